"""A live mixture of experts, from which mixtures with fewer experts are made in place, and written."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mergefront.adapters.checkpoints.dtypes import main_dtype
from mergefront.adapters.checkpoints.header import CheckpointHeader, read_header
from mergefront.adapters.checkpoints.writer import SHARD_BYTES, complete_folder
from mergefront.adapters.local.asked import asked_model
from mergefront.adapters.local.devices.usable import usable_devices
from mergefront.adapters.local.loading import load_model, model_of
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
from mergefront.adapters.local.mixture.uneven import add_to_config, write_class
from mergefront.adapters.merging.output.files import tokenizer_files, write_files
from mergefront.adapters.merging.vocabulary import Alignment
from mergefront.adapters.tasks.items import read_items
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.methods import MERGE_EXPERTS
from mergefront.optimizer.recipes.recipe import Recipe

_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""What configurations call the number of experts."""


class MixtureBackend:
    """A mixture in memory, and what its experts did on prompts.

    ``base`` is its folder, ``prompts`` a file of texts, called ``label`` in messages. ``apply`` takes recipes of
    ``merge_experts``; any other recipe is the whole mixture. Weights are rounded to the dtypes that the checkpoint is
    loaded in; on a CPU the model computes in float32. Raises ``UserError`` for a model that is no mixture of plain
    experts, and for prompts that cannot be read.
    """

    def __init__(self, base: Path, prompts: Path, *, label: str = "", device: str = "auto") -> None:
        texts = read_texts(prompts, label or str(prompts))
        place = usable_devices(device).main
        model, self._processor, _ = load_model(
            base, getattr(torch, main_dtype(read_header(base))), Alignment({}, base), True, False
        )
        self._layers = expert_layers(model)
        _check_counts(self._layers, model.config.get_text_config())
        self._dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        model.to(place)
        if place.type == "cpu":
            model.float()
        self.model, self._base = model.eval().requires_grad_(False), base
        _watch(model, getattr(self._processor, "tokenizer", self._processor), self._layers, texts)
        self.live: Any = asked_model(model, self._processor, base)
        self._groups: dict[tuple[str, str, int], Groups] = {}
        self._lock = threading.Lock()

    @property
    def parameters(self) -> int:
        """How many numbers the live model has by now."""
        return int(self.model.num_parameters())

    def apply(self, recipe: Recipe) -> MixtureMerge:
        """The mixture of a recipe, made when the returned context is entered; one at a time."""
        return MixtureMerge(self, recipe)

    def write(self, recipe: Recipe, out: Path) -> None:
        """The mixture of a recipe in ``out``, a new or empty folder, as transformers loads it.

        Layers with different numbers of experts need ``trust_remote_code=True``: the folder has the class.
        """
        with self.apply(recipe), complete_folder(out) as partial:
            self.write_into(partial)

    def write_into(self, folder: Path) -> None:
        """What the live model is now, in a folder that is there; inside the block of ``apply``."""
        counts = [len(layer.experts.down_proj) for layer in self._layers]
        config = self.model.config.get_text_config()
        before = {key: getattr(config, key) for key in _names_of_count(config, self._layers[0].count)}
        state = {name: tensor.to(self._dtypes[name]) for name, tensor in self.model.state_dict().items()}
        try:
            for key in before:
                setattr(config, key, max(counts))
            self.model.save_pretrained(folder, state_dict=state, max_shard_size=SHARD_BYTES)
        finally:
            for key, value in before.items():
                setattr(config, key, value)
        write_files(tokenizer_files(self._base), (), folder)
        # The model computes in another dtype than it is written in.
        add_to_config(folder, {"dtype": main_dtype(read_header(self._base))})
        if len(set(counts)) > 1:
            write_class(folder, type(self.model).__name__, self._layers)

    def _make(self, recipe: Recipe) -> None:
        if recipe.method != MERGE_EXPERTS.name:
            for layer in self._layers:
                layer.restore()
            return
        sent = _sent(self.model.config.get_text_config())
        keeps = [int(recipe.coefficient("keep", None, f"{layer.name}.")) for layer in self._layers]
        refuse_counts(keeps, self._layers[0].count, sent)
        groups, rank = str(recipe.coefficient("groups", None, "")), float(recipe.coefficient("rank", None, ""))
        for layer, keep in zip(self._layers, keeps, strict=True):
            key = (layer.block, groups, keep)
            if key not in self._groups:
                self._groups[key] = _groups(layer, groups, keep)
            _merge(layer, self._groups[key], rank if groups == "subspace" else None)


class MixtureMerge:
    """A recipe applied to a ``MixtureBackend``: a context that yields the model to be asked."""

    delta_l1: float | None = None

    def __init__(self, backend: MixtureBackend, recipe: Recipe) -> None:
        self._backend, self._recipe = backend, recipe
        self.seconds = 0.0

    @property
    def parameters(self) -> int:
        """How many numbers the model has; inside the block."""
        return self._backend.parameters

    def __enter__(self) -> Any:
        self._backend._lock.acquire()
        started = time.perf_counter()
        try:
            self._backend._make(self._recipe)
        except BaseException:
            self._backend._lock.release()
            raise
        self.seconds = time.perf_counter() - started
        return self._backend.live

    def __exit__(self, *_: object) -> None:
        self._backend._lock.release()


def read_texts(prompts: Path, label: str) -> list[str]:
    """The texts of a file of prompts. Raises ``UserError``."""
    items = read_items(prompts, label, (("prompt",), ("text",)))
    if items.problems:
        raise UserError("; ".join(items.problems))
    return [" ".join((item.prompt, *item.answers[:1])).strip() for item in items.items]


def mixture_layers(base: CheckpointHeader) -> tuple[list[int], int, int]:
    """The numbers of a checkpoint's layers of experts, how many experts each has, and to how many a token is sent.

    Nothing is loaded. Raises ``UserError`` for a model that is no mixture of plain experts.
    """
    model = model_of(base.path)
    layers, config = expert_layers(model), model.config.get_text_config()
    _check_counts(layers, config)
    numbers = [layer.number for layer in layers]
    return numbers, layers[0].count, _sent(config)


def refuse_counts(keeps: Sequence[int], count: int, sent: int) -> None:
    """Raises ``UserError`` for numbers of experts that a mixture cannot keep."""
    for keep in keeps:
        if not sent <= keep <= count:
            raise UserError(
                f"experts.keep is {keep}; the model has {count} experts in a layer and sends a token to {sent} of "
                f"them, so keep {sent} to {count}"
            )


def _sent(config: Any) -> int:
    return int(getattr(config, "num_experts_per_tok", None) or 1)


def _names_of_count(config: Any, count: int) -> list[str]:
    return [key for key in _COUNTS if getattr(config, key, None) == count]


def _check_counts(layers: list[ExpertLayer], config: Any) -> None:
    counts = {layer.count for layer in layers}
    if len(counts) > 1:
        raise UserError(f"experts: layers have {', '.join(map(str, sorted(counts)))} experts; all must have as many")
    if int(getattr(config, "n_group", None) or 1) > 1:
        raise UserError(
            f"experts: the router chooses among n_group: {config.n_group} fixed groups, which no merge keeps"
        )
    if not _names_of_count(config, counts.pop()):
        raise UserError(f"experts: the configuration has the number of experts under none of {', '.join(_COUNTS)}")


def _watch(model: Any, tokenizer: Any, layers: list[ExpertLayer], texts: list[str]) -> None:
    """Run the model on the texts, as far as it reads them."""
    longest = int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2048)
    with torch.inference_mode(), watching(layers):
        for text in texts:
            ids = tokenizer(text, return_tensors="pt")["input_ids"][:, : min(longest, 2048)]
            if ids.numel():
                model(ids.to(model.device))


def _merge(layer: ExpertLayer, groups: Groups, rank: float | None) -> None:
    """Each group becomes one expert: with a ``rank`` in its subspace, without one the average."""
    merged = []
    for group in groups:
        core, weights = layer.expert(group[0]), shares(layer.usage, group)
        members = [core, *(aligned(layer.expert(index), core) for index in group[1:])]
        if rank is None or len(members) == 1:
            merged.append(average(members, weights))
        else:
            merged.append(in_subspace(members, weights, rank))

    def rows(of_experts: torch.Tensor) -> torch.Tensor:
        of_groups = [
            torch.tensordot(shares(layer.usage, group).to(of_experts), of_experts[list(group)], 1) for group in groups
        ]
        return torch.stack(of_groups)

    layer.replace(merged, rows)


def _groups(layer: ExpertLayer, method: str, keep: int) -> Groups:
    if method == "frequency":
        return by_usage(layer.usage, layer.logits(), keep)
    if method == "subspace":
        return by_outputs(layer.usage, layer.outputs(), keep)
    return most_used(layer.usage, keep)
