"""Whether checkpoints can be merged, from their headers and tokenizers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergefront.adapters.checkpoints.header import CheckpointHeader, read_json
from mergefront.adapters.checkpoints.lora import lora_modules
from mergefront.adapters.checkpoints.names import EMBEDDINGS, HEADS, head_name
from mergefront.optimizer.errors import UserError

_EXAMPLES = 3


def compare_headers(base: CheckpointHeader, expert: CheckpointHeader, name: str) -> list[str]:
    """Why ``expert`` cannot be merged with ``base``: one sentence per kind of problem, empty when it can."""
    if base.kind != "full":
        return [f"base model {base.path} is a LoRA; the base must be a whole checkpoint"]
    if expert.kind == "lora":
        return _compare_lora(base, expert, name)
    problems = []
    shared = [tensor for tensor in base.tensors if tensor in expert.tensors]
    differing = [tensor for tensor in shared if base.tensors[tensor].shape != expert.tensors[tensor].shape]
    vocabulary = [
        tensor for tensor in differing
        if tensor.endswith(EMBEDDINGS + HEADS) and base.tensors[tensor].shape[1:] == expert.tensors[tensor].shape[1:]
    ]  # fmt: skip
    if vocabulary:
        tensor = vocabulary[0]
        problems.append(
            f"expert {name!r} has another vocabulary size: {tensor} is {list(expert.tensors[tensor].shape)}, "
            f"the base's is {list(base.tensors[tensor].shape)}; move it to the base's tokens first "
            "(a token transplantation tool such as mergekit-tokensurgeon does that)"
        )
    others = [tensor for tensor in differing if tensor not in vocabulary]
    if others:
        examples = [
            f"{tensor} is {list(expert.tensors[tensor].shape)} and not {list(base.tensors[tensor].shape)}"
            for tensor in others
        ]
        problems.append(f"expert {name!r} differs from the base in shape: {_some(examples)}")
    head, expert_head = head_name(base.tensors), head_name(expert.tensors)
    missing = [tensor for tensor in base.tensors if tensor not in expert.tensors]
    if head in missing and expert.tied:
        missing.remove(str(head))
    if missing:
        problems.append(f"expert {name!r} lacks tensors that the base has: {_some(missing)}")
    extra = [tensor for tensor in expert.tensors if tensor not in base.tensors]
    if expert_head in extra and expert.tied:
        extra.remove(str(expert_head))
    elif expert_head in extra and base.tied:
        extra.remove(str(expert_head))
        problems.append(
            f"expert {name!r} has an output head of its own ({expert_head}) where the base shares its embedding; "
            "untie the base first (save it with a copy of the embedding as its head and tie_word_embeddings false)"
        )
    if extra:
        problems.append(f"expert {name!r} has tensors that the base lacks: {_some(extra)}")
    return problems


def compare_tokenizers(base: str | Path, expert: str | Path, name: str) -> list[str]:
    """Whether two model folders give tokens different meanings: at most one sentence.

    Folders without a tokenizer (a LoRA, a bare file) say nothing and pass.
    """
    first, second = _vocabulary(Path(base)), _vocabulary(Path(expert))
    if first is None or second is None or first == second:
        return []
    differing = [token for token in first if second.get(token) != first[token]]
    differing += [token for token in second if token not in first]
    examples = [
        f"{token!r} is {first.get(token, 'absent')} in the base and {second.get(token, 'absent')} in the expert"
        for token in differing
    ]
    return [
        f"expert {name!r} has another tokenizer than the base: {_some(examples)}; move it to the base's tokens first "
        "(a token transplantation tool such as mergekit-tokensurgeon does that)"
    ]


def _vocabulary(folder: Path) -> Mapping[str, Any] | None:
    if not folder.is_dir():
        return None
    if (folder / "tokenizer.json").exists():
        content = read_json(folder / "tokenizer.json")
        model = content.get("model") or {}
        vocabulary = model.get("vocab", {})
        if isinstance(vocabulary, list):
            vocabulary = {entry[0]: index for index, entry in enumerate(vocabulary)}
        added = {entry["content"]: entry["id"] for entry in content.get("added_tokens") or [] if "content" in entry}
        return {**vocabulary, **added}
    if (folder / "vocab.json").exists():
        return read_json(folder / "vocab.json")
    if (folder / "tokenizer.model").exists():
        import hashlib

        return {"tokenizer.model": hashlib.sha256((folder / "tokenizer.model").read_bytes()).hexdigest()[:12]}
    return None


def _compare_lora(base: CheckpointHeader, lora: CheckpointHeader, name: str) -> list[str]:
    """Why a LoRA cannot be folded into ``base``: one sentence per kind of problem."""
    try:
        modules, whole = lora_modules(lora)
    except UserError as error:
        return [f"expert {name!r}: {error}"]
    absent = [target for target in (*modules, *whole) if target not in base.tensors]
    differing = []
    for target, module in modules.items():
        made = module.shape[::-1] if module.transposed else module.shape
        if target in base.tensors and base.tensors[target].shape != made:
            differing.append(f"{target} is {list(made)} and not {list(base.tensors[target].shape)}")
    for target, key in whole.items():
        if target in base.tensors and base.tensors[target].shape != lora.tensors[key].shape:
            differing.append(f"{target} is {list(lora.tensors[key].shape)} and not {list(base.tensors[target].shape)}")
    problems = []
    if absent:
        problems.append(f"expert {name!r} (a LoRA) adapts tensors that the base lacks: {_some(absent)}")
    if differing:
        problems.append(f"expert {name!r} (a LoRA) differs from the base in shape: {_some(differing)}")
    return problems


def _some(examples: Sequence[str]) -> str:
    shown = ", ".join(examples[:_EXAMPLES])
    return shown if len(examples) <= _EXAMPLES else f"{shown} and {len(examples) - _EXAMPLES} more"
