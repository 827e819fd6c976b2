"""Whether checkpoints are one model, so that they can be merged: by headers, configurations and tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mergefront.adapters.checkpoints.configurations import compare_configurations, compare_texts, is_allowed, known_keys
from mergefront.adapters.checkpoints.header import CheckpointHeader, TensorInfo
from mergefront.adapters.checkpoints.lora import LoraContents, read_lora
from mergefront.adapters.checkpoints.names import (
    EMBEDDINGS,
    HEADS,
    embedding_name,
    expert_names,
    head_name,
    is_prediction_layer,
    is_spare_head,
    is_unread,
    shared_embedding_name,
)
from mergefront.adapters.checkpoints.quantised import refuse_quantised
from mergefront.optimizer.errors import UserError, did_you_mean

_EXAMPLES = 3


@dataclass(frozen=True)
class Comparison:
    """What a comparison found: ``problems`` forbid a merge, ``notes`` are worth knowing."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare_models(
    base: CheckpointHeader,
    expert: CheckpointHeader,
    name: str,
    allow: Collection[str] = (),
    *,
    equal: Callable[[str, str], bool] | None = None,
) -> Comparison:
    """Whether ``expert`` is the same model as ``base`` with other weights.

    ``allow`` names configuration keys (and integer tensors) whose difference is harmless. ``equal`` compares the
    base's tensor of the first name with the expert's of the second; by default as they are stored.
    """
    found = Comparison(compare_headers(base, expert, name))
    if found.problems or expert.kind == "lora":
        return found
    found.problems.extend(_compare_integers(base, expert, name, allow, equal))
    configurations = compare_configurations_of(base, expert, name, allow)
    found.problems.extend(configurations.problems)
    found.notes.extend(configurations.notes)
    found.notes.extend(_only_one_has(base, expert, name, is_prediction_layer, "layers that predict further tokens"))
    found.notes.extend(_only_one_has(base, expert, name, is_spare_head, "a pooler or a head of masked tokens"))
    return found


def _only_one_has(
    base: CheckpointHeader,
    expert: CheckpointHeader,
    name: str,
    is_one: Callable[[str, Mapping[str, Any]], bool],
    what: str,
) -> list[str]:
    """A note on tensors of a kind that a merge needs of neither side, where only one has some that the other lacks."""
    renamed = expert_names(base.tensors, expert.tensors)
    shared = {renamed.get(tensor, tensor) for tensor in base.tensors}
    ours = [one for one in base.tensors if is_one(one, base.config) and renamed.get(one, one) not in expert.tensors]
    theirs = [one for one in expert.tensors if is_one(one, expert.config) and one not in shared]
    return [
        f"expert {name!r}: only {whose} has {what} ({found[0]}), which {kept}"
        for whose, found, kept in (("the base", ours, "is kept as it is"), ("the expert", theirs, "is left out"))
        if found
    ]


def compare_configurations_of(
    base: CheckpointHeader, expert: CheckpointHeader, name: str, allow: Collection[str] = (), *, sliced: bool = False
) -> Comparison:
    """What two checkpoints' configurations say of a merge (``sliced``: of some layers of each)."""
    if expert.kind == "lora":
        return Comparison()
    compare = compare_configurations if base.carried is None else compare_texts
    differences = compare(base.config, expert.config, allow, sliced=sliced)
    found = Comparison()
    if differences.refused:
        keys = ", ".join(differences.refused)
        found.problems.append(
            f"expert {name!r} is another model than the base by its config.json: {_all(differences.refused)}; if you "
            f"know that to be harmless, allow it (allow: [{keys}] under merge in a study file, --allow KEY of merge)"
        )
    if differences.reported:
        found.notes.append(
            f"expert {name!r} computes otherwise than the base by its config.json: {_all(differences.reported)}; "
            "merges have the base's configuration"
        )
    if differences.unknown:
        found.notes.append(
            f"expert {name!r} differs from the base in config.json, in keys of which mergefront does not know what "
            f"they do: {_some([f'{key} ({said})' for key, said in differences.unknown.items()])}"
        )
    return found


def unknown_keys(allow: Collection[str], headers: Sequence[CheckpointHeader]) -> list[str]:
    """What of an ``allow`` list names nothing that could differ between these checkpoints, a sentence each."""
    known = known_keys(*(header.config for header in headers)) if allow else set()
    for header in headers if allow else ():
        known |= header.tensors.keys()
    return [
        f"allow: {key!r} is no key of these models' config.json {did_you_mean(key, known)}"
        for key in allow
        if key not in known
    ]


def compare_headers(base: CheckpointHeader, expert: CheckpointHeader, name: str) -> list[str]:
    """Why ``expert`` cannot be merged with ``base``: one sentence per kind of problem, empty when it can."""
    if base.kind != "full":
        return [f"base model {base.path} is a LoRA; the base must be a whole checkpoint"]
    if expert.kind == "lora":
        return _compare_lora(base, expert, name)
    problems = refuse_quantised(expert, f"expert {name!r}")
    if problems or refuse_quantised(base, "the base model"):
        return problems  # packed tensors have other names and shapes
    renamed = expert_names(base.tensors, expert.tensors)
    own = {
        tensor: expert.tensors[renamed.get(tensor, tensor)]
        for tensor in base.tensors
        if renamed.get(tensor, tensor) in expert.tensors
    }
    differing = [
        tensor for tensor, info in own.items()
        if base.tensors[tensor].shape != info.shape and not is_unread(tensor, info.shape)
    ]  # fmt: skip
    vocabulary = [
        tensor for tensor in differing
        if tensor.endswith(EMBEDDINGS + HEADS) and base.tensors[tensor].shape[1:] == own[tensor].shape[1:]
    ]  # fmt: skip
    if vocabulary:
        tensor = vocabulary[0]
        problems.append(
            f"expert {name!r} has another vocabulary size: {tensor} is {list(own[tensor].shape)}, "
            f"the base's is {list(base.tensors[tensor].shape)}; tokenizer_source says whose tokens a merge of folders "
            "with tokenizers has"
        )
    others = [tensor for tensor in differing if tensor not in vocabulary]
    ours, theirs = (_classes(header) for header in (base, expert))
    heads = [
        tensor for tensor in others if (base.tensors[tensor].shape[:1], own[tensor].shape[:1]) == ((ours,), (theirs,))
    ]
    if ours != theirs and others and heads == others:
        problems.append(
            f"expert {name!r} has a head of {theirs} classes, the base's has {ours} ({others[0]}), "
            "and a merge has one head; give models that were trained on the same classes in the same order"
        )
    elif others:
        examples = [
            f"{tensor} is {list(own[tensor].shape)} and not {list(base.tensors[tensor].shape)}" for tensor in others
        ]
        problems.append(f"expert {name!r} differs from the base in shape: {_some(examples)}")
    expert_head = head_name(expert.tensors)
    missing = [
        tensor for tensor in base.tensors
        if tensor not in own and not _is_optional(base, tensor) and expert.repeated_by(tensor) is None
    ]  # fmt: skip
    if missing:
        problems.append(f"expert {name!r} lacks tensors that the base has: {_some(missing)}")
    used = {renamed.get(tensor, tensor) for tensor in own}
    extra = [
        tensor for tensor in expert.tensors
        if tensor not in used and not _is_optional(expert, tensor) and expert.repeated_by(tensor) is None
    ]  # fmt: skip
    if expert_head in extra and base.tied:
        extra.remove(str(expert_head))
        problems.append(
            f"expert {name!r} has an output head of its own ({expert_head}) where the base shares its embedding; "
            "untie the base first (save it with a copy of the embedding as its head and tie_word_embeddings false)"
        )
    if extra:
        problems.append(f"expert {name!r} has tensors that the base lacks: {_some(extra)}")
    return problems


def _classes(header: CheckpointHeader) -> int:
    """How many classes a model has a head for; configurations leave two of them out."""
    return len(header.config.get("id2label") or ()) or 2


def _is_optional(header: CheckpointHeader, tensor: str) -> bool:
    """Whether a merge needs no such tensor of the other side."""
    return (
        tensor in (header.carried or ())
        or is_unread(tensor, header.tensors[tensor].shape)
        or is_prediction_layer(tensor, header.config)
        or is_spare_head(tensor, header.config)
    )


def _compare_integers(
    base: CheckpointHeader,
    expert: CheckpointHeader,
    name: str,
    allow: Collection[str],
    equal: Callable[[str, str], bool] | None,
) -> list[str]:
    """Integer and boolean tensors with other values, of which a merge could only take one side's."""
    renamed = expert_names(base.tensors, expert.tensors)
    differing = []
    for tensor, info in base.tensors.items():
        other = renamed.get(tensor, tensor)
        if info.dtype[0] not in "BIU" or info.dtype == "BF16" or other not in expert.tensors:
            continue
        if is_unread(tensor, info.shape) or is_allowed(tensor, allow):
            continue
        if not (equal(tensor, other) if equal is not None else _same_stored(info, expert.tensors[other])):
            differing.append(tensor)
    if not differing:
        return []
    return [
        f"expert {name!r} has other integers than the base in {_some(differing)}, which no merge can mix; give both "
        f"the same, or, if you know the base's to be right for every merge, allow it: allow: [{', '.join(differing)}]"
    ]


def _same_stored(first: TensorInfo, second: TensorInfo) -> bool:
    """Whether two stored tensors of integers hold the same numbers."""
    return first.dtype == second.dtype and _stored(first) == _stored(second)


def _stored(info: TensorInfo) -> bytes:
    with info.file.open("rb") as stream:
        stream.seek(info.begin)
        return stream.read(info.end - info.begin)


def _compare_lora(base: CheckpointHeader, lora: CheckpointHeader, name: str) -> list[str]:
    """Why a LoRA cannot be folded into ``base``: one sentence per kind of problem."""
    try:
        contents = read_lora(lora, base)
    except UserError as error:
        return [f"expert {name!r}: {error}"]
    found = {
        target: module.stored[::-1] if module.transposed else module.stored
        for target, module in contents.modules.items()
    }
    found |= {target: lora.tensors[bias.key].shape for target, bias in contents.biases.items()}
    whole = {target: lora.tensors[key].shape for target, key in contents.whole.items()}
    absent = [
        target for target in contents.targets
        if target not in base.tensors and not (base.tied and target.endswith(HEADS))
    ]  # fmt: skip
    differing, longer = [], []
    for target, shape in (*found.items(), *whole.items()):
        own = base.tensors[target].shape if target in base.tensors else shape
        if own == shape:
            continue
        if target.endswith(EMBEDDINGS + HEADS) and len(own) == len(shape) == 2 and own[1:] == shape[1:]:
            longer.append((target, shape[0], own[0]))
        differing.append(f"{target} is {list(shape)} and not {list(own)}")
    problems = _compare_tied(base, lora, contents, name) if base.tied else []
    shared = shared_embedding_name(base.tensors)
    if shared in contents.whole:
        problems.append(
            f"expert {name!r} (a LoRA) saved {shared} whole. In peft the embeddings of encoder and decoder stay as "
            "they are, but the base stores them as one tensor; give a LoRA without it in modules_to_save"
        )
    computed = [target for target in absent if target in base.live]
    if computed:
        problems.append(
            f"expert {name!r} (a LoRA) adapts {_some(computed)}, which transformers makes of other tensors of the base "
            "at load; merge it into its base with peft (merge_and_unload, then save_pretrained) and give that model"
        )
    elif absent:
        reason = f"expert {name!r} (a LoRA) adapts tensors that the base lacks: {_some(absent)}"
        lacking = [target for target in contents.biases if target in absent]
        problems.append(f"{reason}; a bias of B (lora_bias) needs a layer with a bias" if lacking else reason)
    if longer:
        target, rows, own_rows = longer[0]
        problems.append(
            f"expert {name!r} (a LoRA) was trained on a base of another vocabulary: {target} has {rows} rows, the "
            f"base's {own_rows}; give its base as it was then: load the base, call "
            f"model.resize_token_embeddings({rows}), and save it with the LoRA's tokenizer as the base_model"
        )
    elif differing:
        problems.append(f"expert {name!r} (a LoRA) differs from the base in shape: {_some(differing)}")
    return problems


def _compare_tied(base: CheckpointHeader, lora: CheckpointHeader, contents: LoraContents, name: str) -> list[str]:
    """Why a LoRA cannot be folded into a base whose head shares the embedding's storage: at most one sentence."""
    embedding = embedding_name(base.tensors)
    shared = [target for target in contents.targets if target == embedding or target.endswith(HEADS)]
    saved = [key for key in lora.tensors if key.endswith(HEADS) and ".lora_" not in key and ".base_layer." not in key]
    adapted = [target for target in shared if target in contents.modules]
    if not shared and not saved:
        return []
    if adapted:
        said = f"adapts {adapted[0]} alone, and peft merges it into both"
    elif embedding is None or embedding not in contents.whole or not saved:
        said = f"saved {(shared or saved)[0]} alone, and in peft the other one stays as it is"
    elif _stored(lora.tensors[saved[0]]) != _stored(lora.tensors[contents.whole[embedding]]):
        said = "saved another embedding than head"
    else:
        return []
    return [
        f"expert {name!r} (a LoRA) {said}, but the base's embedding and head are one tensor; untie the base first "
        "(save it with a copy of the embedding as its head and tie_word_embeddings false)"
    ]


def _all(differences: Mapping[str, str]) -> str:
    return "; ".join(f"{key}: {said}" for key, said in differences.items())


def _some(examples: Sequence[str]) -> str:
    shown = ", ".join(examples[:_EXAMPLES])
    return shown if len(examples) <= _EXAMPLES else f"{shown} and {len(examples) - _EXAMPLES} more"
