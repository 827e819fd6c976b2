"""One model under two names of its tensors: what an expert's checkpoint calls the base's tensors.

Checkpoints of one model differ in the modules that wrap it: saved with or without a head (``layers.0...`` and
``model.layers.0...``), by an older or a newer version of transformers (``language_model.model.layers.0...`` and
``model.language_model.layers.0...``). The names without their wrappers are the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

_WRAPPERS = frozenset({"model", "language_model", "vision_model"})
_OLD_ENDINGS = {
    "LayerNorm.gamma": "LayerNorm.weight",
    "LayerNorm.beta": "LayerNorm.bias",
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}


def expert_names(base: Collection[str], expert: Collection[str]) -> dict[str, str]:
    """The expert's name of every tensor of the base that it calls otherwise.

    Empty where the names agree, and where they belong to different models: then they are compared as they are.
    """
    ours, theirs = set(base), set(expert)
    missing, extra = ours - theirs, theirs - ours
    if not missing or not extra:
        return {}
    wrappers = _WRAPPERS | _prefixes(missing, extra) | _prefixes(extra, missing)
    bare_ours, bare_theirs = _by_bare_name(ours, wrappers), _by_bare_name(theirs, wrappers)
    if len(bare_ours) < len(ours) or len(bare_theirs) < len(theirs):
        return {}  # two tensors would become one
    return {
        name: bare_theirs[bare] for bare, name in bare_ours.items() if bare in bare_theirs and bare_theirs[bare] != name
    }


def _prefixes(wrapped: Iterable[str], bare: Collection[str]) -> set[str]:
    """First parts of names without which they are names of the other side (``bert.encoder...``, ``encoder...``)."""
    return {first for first, _, rest in (name.partition(".") for name in wrapped) if rest in bare}


def _by_bare_name(names: Iterable[str], wrappers: Collection[str]) -> dict[str, str]:
    found = {}
    for name in names:
        bare = ".".join(part for part in name.split(".") if part not in wrappers)
        for old, new in _OLD_ENDINGS.items():
            bare = bare.replace(old, new)
        found[bare] = name
    return found
