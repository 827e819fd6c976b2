"""``merge_method: merge_experts``: one mixture of experts with fewer experts in its layers.

    merge_method: merge_experts
    base_model: models/mixture
    experts: {method: frequency, keep: 4, prompts: prompts.jsonl}

The model is run on the prompts, experts that are alike become one, router and configuration follow.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mergefront.adapters.checkpoints.header import read_header
from mergefront.adapters.checkpoints.stacks import depths
from mergefront.adapters.local.mixture.backend import MixtureBackend
from mergefront.adapters.local.mixture.sections import MIXTURE, MergeExpertsSection
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.grouping import Grouping
from mergefront.optimizer.recipes.methods import MERGE_EXPERTS, ParameterValue
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.sections import read_section

_LOG = logging.getLogger(__name__)


def merge_experts(content: Mapping[str, Any], find: Callable[[str], Path], out: Path) -> Path:
    """Make what a file says, in ``out``, a new or empty folder; ``find`` says where a reference of the file lies.

    The model is held in memory. Raises ``UserError`` for what is wrong in the file, for a model that is no mixture of
    plain experts, and for more experts to keep than there are or fewer than a token is sent to.
    """
    wanted, problems = read_section(MergeExpertsSection, content)
    if wanted is None or problems:
        raise UserError("; ".join(problems))
    base = find(wanted.base_model)
    recipe = _recipe(wanted, max(depths(read_header(base)).values(), default=0))
    backend = MixtureBackend(base, find(wanted.experts.prompts), label=wanted.experts.prompts)
    before = backend.parameters
    backend.write(recipe, out)
    _LOG.info("%s parameters of %s are left", f"{backend.parameters:,}", f"{before:,}")
    return out


def _recipe(wanted: MergeExpertsSection, layers: int) -> Recipe:
    experts, keep = wanted.experts, wanted.experts.keep
    params: dict[str, ParameterValue] = {"groups": experts.method, "rank": experts.rank}
    grouping = Grouping()
    if isinstance(keep, int):
        params["keep"] = keep
    elif len(keep) != layers:
        raise UserError(f"experts.keep has {len(keep)} numbers; the model has {layers} layers")
    else:
        grouping = Grouping.equal_blocks(layers, layers)
        params |= {f"keep[block {layer}]": count for layer, count in enumerate(keep)}
    return Recipe(MERGE_EXPERTS.name, {MIXTURE: wanted.base_model}, params, wanted.base_model, grouping)
