"""``merge_method: merge_experts``: one mixture of experts with fewer experts in every layer.

    merge_method: merge_experts
    base_model: models/mixture
    experts: {method: frequency, keep: 4, prompts: prompts.jsonl}

The model is run on the prompts, experts that are alike become one, router and configuration follow.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from mergefront.adapters.checkpoints.dtypes import main_dtype
from mergefront.adapters.checkpoints.header import read_header
from mergefront.adapters.checkpoints.writer import SHARD_BYTES, complete_folder
from mergefront.adapters.local.loading import load_model
from mergefront.adapters.local.mixture.groups import (
    Groups,
    aligned,
    average,
    by_outputs,
    by_usage,
    in_subspace,
    most_used,
    shares,
)
from mergefront.adapters.local.mixture.layers import ExpertLayer, expert_layers, watching
from mergefront.adapters.merging.output.files import tokenizer_files, write_files
from mergefront.adapters.merging.vocabulary import Alignment
from mergefront.adapters.tasks.items import read_items
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.sections import Section, read_section

METHOD = "merge_experts"
_LOG = logging.getLogger(__name__)
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""What configurations call the number of experts."""


class ExpertsSection(Section):
    """How experts become fewer."""

    method: Literal["frequency", "subspace", "most_used"] = Field(
        description="grouped by router logits, by outputs in the groups' subspace, or left out but the most used"
    )
    keep: int = Field(ge=1, description="how many experts every layer keeps")
    prompts: str = Field(description="a JSONL file of texts, or prompts with answers, by which experts are compared")
    rank: float = Field(default=1.0, gt=0, le=1, description="of subspace: the share of the directions that is kept")


class MergeExpertsSection(Section):
    """The file's keys."""

    merge_method: Literal["merge_experts"]
    base_model: str
    experts: ExpertsSection


def merge_experts(content: Mapping[str, Any], find: Callable[[str], Path], out: Path) -> Path:
    """Make what a file says, in ``out``, a new or empty folder; ``find`` says where a reference of the file lies.

    The model is held in memory. Raises ``UserError`` for what is wrong in the file, for a model that is no mixture of
    plain experts, and for more experts to keep than there are or fewer than a token is sent to.
    """
    wanted, problems = read_section(MergeExpertsSection, content)
    if wanted is None or problems:
        raise UserError("; ".join(problems))
    base, prompts = find(wanted.base_model), find(wanted.experts.prompts)
    items = read_items(prompts, wanted.experts.prompts, (("prompt",), ("text",)))
    if items.problems:
        raise UserError("; ".join(items.problems))
    texts = [" ".join((item.prompt, *item.answers[:1])).strip() for item in items.items]
    dtype = getattr(torch, main_dtype(read_header(base)))
    model, tokenizer, _ = load_model(base, dtype, Alignment({}, base), True, False)
    layers = expert_layers(model)
    _check(wanted.experts.keep, layers, model.config.get_text_config())
    before, count = model.num_parameters(), layers[0].count
    _watch(model, getattr(tokenizer, "tokenizer", tokenizer), layers, texts)
    for layer in layers:
        _merge(layer, wanted.experts)
    _configure(model.config.get_text_config(), count, wanted.experts.keep)
    with complete_folder(out) as partial:
        model.save_pretrained(partial, max_shard_size=SHARD_BYTES)
        write_files(tokenizer_files(base), (), partial)
    _LOG.info("%s parameters of %s are left", f"{model.num_parameters():,}", f"{before:,}")
    return out


def _check(keep: int, layers: list[ExpertLayer], config: Any) -> None:
    counts = {layer.count for layer in layers}
    if len(counts) > 1:
        raise UserError(f"experts: layers have {', '.join(map(str, sorted(counts)))} experts; all must have as many")
    count, sent = counts.pop(), int(getattr(config, "num_experts_per_tok", None) or 1)
    if not sent <= keep <= count:
        raise UserError(
            f"experts.keep is {keep}; the model has {count} experts in a layer and sends a token to {sent} of them, so "
            f"keep {sent} to {count}"
        )
    if int(getattr(config, "n_group", None) or 1) > 1:
        raise UserError(
            f"experts: the router chooses among n_group: {config.n_group} fixed groups, which no merge keeps"
        )
    if not any(getattr(config, key, None) == count for key in _COUNTS):
        raise UserError(f"experts: the configuration has the number of experts under none of {', '.join(_COUNTS)}")


def _watch(model: Any, tokenizer: Any, layers: list[ExpertLayer], texts: list[str]) -> None:
    """Run the model on the texts, as far as it reads them."""
    longest = int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2048)
    with torch.inference_mode(), watching(layers):
        for text in texts:
            ids = tokenizer(text, return_tensors="pt")["input_ids"][:, : min(longest, 2048)]
            if ids.numel():
                model(ids.to(model.device))


def _merge(layer: ExpertLayer, wanted: ExpertsSection) -> None:
    groups = _groups(layer, wanted)
    merged = []
    for group in groups:
        core, weights = layer.expert(group[0]), shares(layer.usage, group)
        members = [core, *(aligned(layer.expert(index), core) for index in group[1:])]
        is_cut = wanted.method == "subspace" and len(members) > 1
        merged.append(in_subspace(members, weights, wanted.rank) if is_cut else average(members, weights))

    def rows(of_experts: torch.Tensor) -> torch.Tensor:
        of_groups = [
            torch.tensordot(shares(layer.usage, group).to(of_experts), of_experts[list(group)], 1) for group in groups
        ]
        return torch.stack(of_groups)

    layer.replace(merged, rows)


def _groups(layer: ExpertLayer, wanted: ExpertsSection) -> Groups:
    if wanted.method == "frequency":
        return by_usage(layer.usage, layer.logits(), wanted.keep)
    if wanted.method == "subspace":
        return by_outputs(layer.usage, layer.outputs(), wanted.keep)
    return most_used(layer.usage, wanted.keep)


def _configure(config: Any, count: int, keep: int) -> None:
    """The number of experts, under every name that had it."""
    for key in [key for key in _COUNTS if getattr(config, key, None) == count]:
        setattr(config, key, keep)
