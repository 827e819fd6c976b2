"""The stacks of layers that a model may have, which of them a tensor is of, by the words in its name, and which of
them are merged."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mergefront.optimizer.errors import UserError, did_you_mean

TEXT = ("language", "encoder", "decoder")
"""Stacks that read or write text: one, or an encoder and a decoder."""
TOWERS: Mapping[str, tuple[str, ...]] = {
    "audio": ("audio", "speech", "talker", "2wav"),
    "vision": ("vision", "visual", "image", "vqmodel"),
}
"""Stacks that read no text, with the words in their tensors' names."""
NAMES = (*TEXT, *TOWERS)
"""What stacks are called in study files and coefficients, in reading order."""
_BETWEEN = ("tower", "projector", "connector", "qformer", "query_tokens", "perceiver", "resampler", "aligner")
"""Words in the names of what lies between a tower and the text; it belongs to the tower."""
_OF_LANGUAGE = ("language_model", "text_model", "text_decoder", "text_encoder")
"""Words in the names of stacks of text that stand beside towers."""


def tower_of(part: str) -> str | None:
    """The tower that a name, or what of it is before a layer's number, speaks of: None where it is of text.

    The empty string stands for a projector or tower whose name does not say what it reads.
    """
    if any(word in part for word in _OF_LANGUAGE):
        return None
    named = (tower for tower, words in TOWERS.items() if any(word in part for word in words))
    return next(named, "" if any(word in part for word in _BETWEEN) else None)


def is_text_section(key: str) -> bool:
    """Whether a section of a configuration describes the stack of text beside towers."""
    return key in ("text_config", "llm_config", "language_config")


def is_tower(part: str) -> bool:
    """Whether a name, of a tensor or a section of a configuration, is of a stack that reads no text."""
    return tower_of(part) is not None


def stacks_of(parts: Iterable[str]) -> dict[str, str]:
    """The stack's name for each of a model's prefixes, a prefix being what is before the number of a layer."""
    parts = list(parts)
    of_text = [part for part in parts if not is_tower(part)]
    marked = [part for part in of_text if any(word in part for word in _OF_LANGUAGE)]
    several = {_half(part) for part in marked or of_text} == {"encoder", "decoder"}
    towers = {tower_of(part) for part in parts}
    unnamed = next(
        (name for name in reversed(NAMES) if name in towers), "encoder" if 0 < len(marked) < len(of_text) else "vision"
    )
    made = {}
    for part in parts:
        if (tower := tower_of(part)) is not None:
            made[part] = tower or unnamed
        elif marked and part not in marked:
            made[part] = "encoder"  # of sounds, say, beside a language_model
        else:
            made[part] = _half(part) if several else "language"
    return made


def stack_of(part: str, known: Collection[str], half: str) -> str:
    """The stack that a name is of, among those that a model has.

    ``half`` is that of an encoder-decoder where the name says none, as shared embeddings and heads do.
    """
    of_text = texts_of(known)
    towers = [stack for stack in reversed(NAMES) if stack in known and stack not in of_text]
    tower = tower_of(part)
    if tower is not None and towers:
        return tower if tower in towers else towers[0]
    if "language" in known:
        marked = any(word in part for word in _OF_LANGUAGE)
        return "encoder" if "encoder" in known and not marked and _half(part) == "encoder" else "language"
    named = _half(part) or half
    return named if named in known else of_text[0]


def texts_of(known: Collection[str]) -> list[str]:
    """The stacks of a model that read or write text; all there are in a model that reads none."""
    if "language" in known:
        return ["language"]
    return [stack for stack in TEXT if stack in known] or [stack for stack in NAMES if stack in known]


def _half(part: str) -> str:
    """The half of an encoder-decoder that a name is of, by the word that comes first; empty where it has neither."""
    found = {part.find(half): half for half in ("encoder", "decoder") if half in part}
    return found[min(found)] if found else ""


SCOPE = "language"
"""The one scope there is: the stacks that read and write text."""


@dataclass(frozen=True)
class Modalities:
    """``scope`` "language" merges the stacks of text alone (None: everything); ``carry`` has the model that each tower
    is taken from, by the tower's name."""

    scope: str | None = None
    carry: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, scope: Any, carry: Any) -> Modalities:
        """What a study file or a merge's file says under ``scope`` and ``carry``. Raises ``UserError``."""
        if scope not in (None, SCOPE):
            raise UserError(f"scope is {scope!r}; the only value is {SCOPE}")
        carry = {} if carry is None else carry
        if not isinstance(carry, Mapping) or not all(isinstance(owner, str) for owner in carry.values()):
            raise UserError(f"carry is {carry!r}; write a model for each tower, such as {{vision: A, audio: B}}")
        if carry and scope is None:
            raise UserError("carry: write scope: language beside it; without it towers are merged as well")
        known = [name for name in NAMES if name not in ("language", "decoder")]
        for tower in carry:
            if tower not in known:
                raise UserError(f"carry: {tower!r} is no tower {did_you_mean(str(tower), known)}")
        return cls(scope, dict(carry))

    def renamed(self, names: Mapping[str, str]) -> Modalities:
        """The same with other names of the models."""
        return replace(self, carry={tower: names.get(owner, owner) for tower, owner in self.carry.items()})
