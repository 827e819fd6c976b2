"""What ``adapter_config.json`` says of a LoRA: kinds that are merged as peft 0.21 merges them, and refused ones.

A key that is in none of the tables and says anything (is not null, false or empty) is refused by its name, since a
kind that is not known must not be merged as a plain one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergefront.optimizer.errors import UserError

_MERGE_FIRST = "merge it into its base with peft (merge_and_unload, then save_pretrained) and give that model"
_CONVERT = (
    "save it again with model.save_pretrained(folder, path_initial_model_for_weight_conversion=...), which makes it a "
    "plain LoRA of the base"
)

READ = frozenset(
    {
        "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "peft_type",
        "init_lora_weights",
    }
)  # fmt: skip
"""Keys whose values a merge depends on. ``fan_in_fan_out`` counts only where the base does not tell a layer's kind."""
SEEN_IN_TENSORS = frozenset(
    {
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias",
        "lora_bias", "target_parameters", "ensure_weight_tying", "target_modules_to_tie", "modules_to_tie",
    }
)  # fmt: skip
"""Keys that say which tensors an adapter has: the tensors are there to be read."""
WITHOUT_EFFECT = frozenset(
    {
        # how it was trained or started
        "lora_dropout", "inference_mode", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
        "velora_config", "monteclora_config", "runtime_config", "lora_dtype", "lorap_lr_ratio", "lorap_emb_lr",
        # what it belongs to, and defaults of kinds that other keys switch on
        "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "parent_library",
        "megatron_core", "qalora_group_size",
    }
)  # fmt: skip
"""Keys on which peft's merge does not depend (VeLoRA and Monteclora change training and merge as plain LoRAs)."""
REFUSED: Mapping[str, str] = {
    "use_dora": f"DoRA rescales the rows of the merged weight, which is no difference to add; {_MERGE_FIRST}",
    "use_qalora": f"QALoRA belongs to quantised layers; {_MERGE_FIRST}",
    "kasa_config": f"KaSA also cuts the base's smallest singular values off; {_MERGE_FIRST}",
    "use_bdlora": f"BD-LoRA stores block-diagonal factors; {_MERGE_FIRST}",
    "alora_invocation_tokens": "an activated LoRA acts only after its invocation tokens, which no merged weight can do",
    "arrow_config": "Arrow routes every token among several LoRAs, which no merged weight can do; give those LoRAs",
    "trainable_token_indices": f"single rows of the embedding were trained; {_MERGE_FIRST}",
    "layer_replication": f"it belongs to a base with repeated layers; {_MERGE_FIRST}",
    "megatron_config": f"it belongs to Megatron's parallel layers; {_MERGE_FIRST}",
}
"""Keys that make an adapter something else than differences that can be added to the base."""
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")
_RESIDUAL_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
TRAINING_TENSORS = ("lora_velora_embed", "lora_monteclora_sampler")
"""Tensors that only training reads."""


_QUANTIFIER = re.compile(r"(?:[*+?]|\{(?P<least>\d{0,3})(?P<comma>,?)(?P<most>\d{0,3})\})\??")
_ATOM = re.compile(r"\\[dDwWsS]|\\[^A-Za-z0-9\s]|\[\^?(?:[^\[\]\\^]|\\[^A-Za-z0-9])+\]|[^\\\[\]()|*+?{}^$]")
_PLAIN = re.compile(r"(?:[\w.-]|\\\.)+")
_MOST_STEPS = 10_000_000
"""Of matching all patterns of one LoRA: some seconds' work."""
_LONGEST = 1000
"""Characters of a pattern, and of a module's name that is held against patterns."""
_DEEPEST = 20
"""Groups in groups of a pattern."""


class ModulePatterns:
    """Values by patterns of modules' names, as peft matches them: the first pattern that matches the whole name, or its
    end after a dot.

    Patterns are a stranger's regular expressions, on which Python's own matching can take time without bound. Here all
    places in a name are followed at once, and the steps are counted. Raises ``ValueError`` for a pattern that is no
    plain expression (letters, sets, groups, alternatives, repeats), and for too much work.
    """

    def __init__(self, patterns: Mapping[str, float]) -> None:
        self._rules = [(_parsed(pattern), value) for pattern, value in patterns.items()]
        self._work = _Work(_MOST_STEPS)
        # Adapters of many ranks name every module, so names are looked up: by their length, the places of dots, which
        # stand for any letter, and what is around them.
        self._named: dict[int, dict[tuple[int, ...], dict[str, list[int]]]] = {}
        self._expressions: list[int] = []
        for number, pattern in enumerate(patterns):
            if _PLAIN.fullmatch(pattern) is None:
                self._expressions.append(number)
                continue
            letters = re.findall(r"\\.|.", pattern)
            dots = tuple(at for at, letter in enumerate(letters) if letter == ".")
            text = "".join(letter[-1] for letter in letters)
            self._named.setdefault(len(text), {}).setdefault(dots, {}).setdefault(text, []).append(number)

    def value(self, module: str, default: float) -> float:
        """What the patterns give a module."""
        if not self._rules:
            return default
        if len(module) > _LONGEST:
            raise ValueError(f"the name of module {module[:40]!r}... is longer than {_LONGEST} characters")
        begins = [0, *(at + 1 for at, letter in enumerate(module) if letter == ".")]
        named = [number for at in begins for number in self._of_name(module[at:])]
        name = _Name(module, self._work)
        for number in sorted((*named, *self._expressions)):
            node, value = self._rules[number]
            if node(name, sum(1 << at for at in begins)) >> len(module):
                return value
        return default

    def _of_name(self, name: str) -> Iterator[int]:
        """The numbers of the patterns that are names, and this one."""
        for dots, names in self._named.get(len(name), {}).items():
            letters = list(name)
            for at in dots:
                letters[at] = "."
            yield from names.get("".join(letters), ())


@dataclass
class _Work:
    left: int


class _Name:
    """A module's name as the places of its letters, one bit for each."""

    def __init__(self, text: str, work: _Work) -> None:
        self.end = 1 << len(text)
        self.letters: dict[str, int] = {}
        self._work = work
        for at, letter in enumerate(text):
            self.letters[letter] = self.letters.get(letter, 0) | 1 << at

    def step(self) -> None:
        self._work.left -= 1
        if self._work.left < 0:
            raise ValueError("its patterns take too much work to match; write the modules' names instead")


_Node = Callable[[_Name, int], int]
"""Where a part of a pattern can end in a name, by where it can begin: one bit for each place."""


def _parsed(pattern: str) -> _Node:
    if len(pattern) > _LONGEST:
        raise ValueError(f"the pattern {pattern[:40]!r}... is longer than {_LONGEST} characters")
    node, at = _alternatives(pattern, 0, 0)
    if at < len(pattern):
        raise _unknown(pattern, at)
    return node


def _unknown(pattern: str, at: int) -> ValueError:
    return ValueError(
        f"the pattern {pattern!r} is no expression of letters, sets, groups, alternatives and repeats (see its "
        f"character {at + 1}); write the modules' names instead"
    )


def _alternatives(pattern: str, at: int, depth: int) -> tuple[_Node, int]:
    branches: list[list[_Node]] = [[]]
    while at < len(pattern) and pattern[at] != ")":
        if pattern[at] == "|":
            branches.append([])
            at += 1
        else:
            node, at = _part(pattern, at, depth)
            branches[-1].append(node)

    def ends(name: _Name, begins: int) -> int:
        found = 0
        for branch in branches:
            name.step()
            reached = begins
            for node in branch:
                reached = node(name, reached)
            found |= reached
        return found

    return ends, at


def _part(pattern: str, at: int, depth: int) -> tuple[_Node, int]:
    """A letter, a set, a group or an edge, with its repeat; and where the pattern goes on."""
    atom = _ATOM.match(pattern, at)
    if pattern[at] == "(" and depth < _DEEPEST:
        begin = at + 3 if pattern.startswith("(?:", at) else at + 1
        node, end = _alternatives(pattern, begin, depth + 1)
        if not pattern.startswith(")", end):
            raise _unknown(pattern, at)
        end += 1
    elif pattern[at] in "^$":
        node, end = (_begin if pattern[at] == "^" else _end), at + 1
    elif atom is not None:
        try:
            node, end = _letter(re.compile(atom[0])), atom.end()
        except re.error:
            raise _unknown(pattern, at) from None
    else:
        raise _unknown(pattern, at)
    repeat = _QUANTIFIER.match(pattern, end)
    if repeat is None:
        return node, end
    if repeat[0][0] != "{":
        least, most = int(repeat[0][0] == "+"), 1 if repeat[0][0] == "?" else None
    elif repeat["least"] or repeat["most"]:
        least = int(repeat["least"] or 0)
        most = least if not repeat["comma"] else int(repeat["most"]) if repeat["most"] else None
    else:
        raise _unknown(pattern, end)
    return _repeated(node, least, most), repeat.end()


def _begin(name: _Name, begins: int) -> int:
    return begins & 1


def _end(name: _Name, begins: int) -> int:
    return begins & name.end


def _letter(letters: re.Pattern[str]) -> _Node:
    def ends(name: _Name, begins: int) -> int:
        name.step()
        places = 0
        for letter, at in name.letters.items() if begins else ():
            if letters.fullmatch(letter):
                places |= at
        return (begins & places) << 1

    return ends


def _repeated(node: _Node, least: int, most: int | None) -> _Node:
    def ends(name: _Name, begins: int) -> int:
        for _ in range(least):
            name.step()
            begins = node(name, begins)
        found = new = begins
        times = 0
        while new and (most is None or times < most - least):
            name.step()
            new = node(name, new) & ~found
            found |= new
            times += 1
        return found

    return ends


@dataclass(frozen=True)
class LoraSettings:
    """What ``adapter_config.json`` says about scaling and layout."""

    r: int
    alpha: float
    rank_pattern: ModulePatterns
    alpha_pattern: ModulePatterns
    rslora: bool = False
    fan_in_fan_out: bool = False
    parameters: tuple[str, ...] = ()


def lora_settings(path: Path, config: Mapping[str, Any]) -> LoraSettings:
    """The settings of the LoRA in a folder; raises ``UserError`` for a kind that is not merged as peft merges it."""
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise UserError(f"{path}: a PEFT adapter of type {kind}; only LORA can be merged")
    for key, reason in REFUSED.items():
        if config.get(key):
            raise UserError(f"{path}: {key} is set: {reason}")
    start = config.get("init_lora_weights", True)
    name = start.lower() if isinstance(start, str) else ""
    if name.startswith(_RESIDUAL_STARTS):
        raise UserError(
            f"{path}: init_lora_weights is {start!r}: it was started from the base's weights and belongs to what is "
            f"left of them; {_CONVERT}"
        )
    if name not in ("", "true", "false", *_PLAIN_STARTS):
        raise UserError(f"{path}: init_lora_weights is {start!r}, a start that this version does not know")
    known = READ | SEEN_IN_TENSORS | WITHOUT_EFFECT | REFUSED.keys()
    unknown = [key for key, value in config.items() if value and key not in known]
    if unknown:
        raise UserError(
            f"{path / 'adapter_config.json'}: {unknown[0]} is set to {config[unknown[0]]!r}, a kind of LoRA that this "
            f"version does not know; {_MERGE_FIRST}"
        )
    try:
        ranks = dict(config.get("rank_pattern") or {})
        alphas = dict(config.get("alpha_pattern") or {})
        for key, rank in (("r", config.get("r", 8)), *ranks.items()):
            if int(rank) < 1 or int(rank) != float(rank):
                raise ValueError(f"{key!r} has the rank {rank!r}; a rank is a whole number from 1")
        for key, alpha in (("lora_alpha", config.get("lora_alpha", 8)), *alphas.items()):
            if not math.isfinite(float(alpha)):
                raise ValueError(f"{key!r} has the alpha {alpha!r}; an alpha is a number")
        parameters = config.get("target_parameters") or ()
        if not isinstance(parameters, list | tuple) or not all(isinstance(name, str) for name in parameters):
            raise ValueError(f"target_parameters is {parameters!r}; it must be a list of names")
        return LoraSettings(
            r=int(config.get("r", 8)),
            alpha=float(config.get("lora_alpha", 8)),
            rank_pattern=ModulePatterns(ranks),
            alpha_pattern=ModulePatterns(alphas),
            rslora=bool(config.get("use_rslora", False)),
            fan_in_fan_out=bool(config.get("fan_in_fan_out", False)),
            parameters=tuple(parameters),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path / 'adapter_config.json'}: {error}") from None
