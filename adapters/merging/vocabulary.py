"""Models of different tokens, moved to one vocabulary: embeddings and heads aligned token by token.

    aligned = align({"base": base, "maths": maths}, "base", TokenizerChoice.read("union"))
    aligned.models["maths"]["model.embed_tokens.weight"]        # one row for each token of the union

A token that a model has keeps its row, wherever it stood. A token that it lacks takes the base's row, else the mean of
the rows of the models that have it (mergekit 0.1.5), so that it adds nothing to that model's task vector. Rows that
stand for no token (padding to a round number) are kept where a model has them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mergefront.adapters.checkpoints.configurations import with_vocabulary
from mergefront.adapters.checkpoints.header import Checkpoint, TensorInfo
from mergefront.adapters.checkpoints.names import expert_names
from mergefront.adapters.checkpoints.tokenizers import (
    Vocabulary,
    differing_tokens,
    embedding_of,
    lora_token_axes,
    read_vocabulary,
    respelled,
    token_axes,
)
from mergefront.optimizer.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import torch

_KEYS = ("model", "transplant", "tokens", "pad_to_multiple_of")
_REMEDY = (
    "say whose tokens the merge has: tokenizer_source: base, union or one of the models; for a tokenizer of another "
    "family {model: base, transplant: omp}"
)


@dataclass(frozen=True)
class TokenRule:
    """Where a token's row comes from in models that lack it, or in all of them with ``force``.

    ``model`` None: zeros. ``token`` is another token of that model, by its text or its id (None: the same token).
    """

    model: str | None
    token: str | int | None = None
    force: bool = False


@dataclass(frozen=True)
class TokenizerChoice:
    """Whose tokens a merge has: ``model`` None (all models have the same), "base", "union", or a model.

    ``transplant`` "omp" makes rows of tokens that a model lacks by orthogonal matching pursuit; ``tokens`` are rules
    of single tokens; rows are padded to a multiple of ``pad_to_multiple_of``.
    """

    model: str | None = None
    transplant: Literal["omp"] | None = None
    tokens: Mapping[str, TokenRule] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None

    @classmethod
    def read(cls, value: Any) -> TokenizerChoice:
        """``tokenizer_source`` as a study file or a mergekit configuration has it. Raises ``UserError``."""
        if value is None or isinstance(value, str):
            return cls(value)
        if not isinstance(value, Mapping) or not isinstance(value.get("model"), str):
            raise UserError(f"tokenizer_source is {value!r}; write base, union, a model, or {{model: base, ...}}")
        for key in value:
            if key not in _KEYS:
                raise UserError(f"tokenizer_source: unknown key {key!r} {did_you_mean(str(key), _KEYS)}")
        transplant, multiple = value.get("transplant"), value.get("pad_to_multiple_of")
        if transplant not in (None, "omp"):
            raise UserError(f"tokenizer_source: transplant is {transplant!r}; the only value is omp")
        if transplant is not None and value["model"] == "union":
            raise UserError("tokenizer_source: a transplant needs the vocabulary of one model, not the union")
        if multiple is not None and (type(multiple) is not int or multiple < 1):
            raise UserError(f"tokenizer_source: pad_to_multiple_of is {multiple!r}; it must be a whole number above 0")
        rules = value.get("tokens") or {}
        if not isinstance(rules, Mapping):
            raise UserError(f"tokenizer_source: tokens is {rules!r}; it must be a mapping of tokens to rules")
        made = {str(token): _rule(str(token), rule) for token, rule in rules.items()}
        return cls(value["model"], transplant, made, multiple)

    def renamed(self, names: Mapping[str, str]) -> TokenizerChoice:
        """The same with other names of the models."""
        rules = {
            token: rule if rule.model is None else replace(rule, model=names.get(rule.model, rule.model))
            for token, rule in self.tokens.items()
        }
        return replace(self, model=None if self.model is None else names.get(self.model, self.model), tokens=rules)


@dataclass(frozen=True)
class Alignment:
    """Models with one vocabulary. ``tokenizer`` is the folder of their tokenizer, to which ``added`` tokens (entries
    of tokenizer.json) are appended; ``rows`` is the number of rows of embedding and head (None: no tokens)."""

    models: Mapping[str, Checkpoint]
    tokenizer: Path
    added: tuple[Mapping[str, Any], ...] = ()
    rows: int | None = None
    was: int | None = None
    """Rows of the model that the merge is described by, as it is stored."""
    is_chosen: bool = False
    """Whether it was said whose tokens they are; otherwise all models have the same."""

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """That model's configuration with the aligned models' vocabulary size, in nested configurations too."""
        return with_vocabulary(config, self.was, self.rows)


@dataclass(frozen=True)
class _Target:
    """The vocabulary that models are moved to."""

    tokens: Mapping[str, int]
    rows: int
    donor: str
    added: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class _Rows:
    """Where the rows of the target come from in one model: by row of the target, its own row or -1."""

    own: list[int]
    sources: Mapping[str, list[int]]
    """By model, its row for the default of each row of the target, or -1: the default is the mean over models."""
    tokens: int
    """Rows from here on are padding; those that no model has become the mean of the tokens' rows."""
    transplanted: tuple[str, list[int]] | None = None
    """The model from which missing tokens are transplanted, and its rows."""


def align(models: Mapping[str, Checkpoint], base: str | None, choice: TokenizerChoice) -> Alignment:
    """All models (the base among them) with the vocabulary that ``choice`` names.

    Headers and tokenizer files are read, no tensors: those are aligned when they are asked for. Raises ``UserError``,
    a line for each model whose tokens differ where ``choice`` says nothing of them, and for rules of tokens that do
    not hold.
    """
    reference = base if base is not None else next(iter(models))
    if choice.model is not None and choice.model not in ("base", "union", *models):
        names = ("base", "union", *models)
        raise UserError(f"tokenizer_source {choice.model!r} is none of the models {did_you_mean(choice.model, names)}")
    axes, sizes = _axes(models, reference)
    was = sizes.get(reference)
    found = {name: read_vocabulary(model.path) for name, model in models.items()}
    tokens = {name: one.within(sizes.get(name, was)) for name, one in found.items() if one is not None}
    donor = reference if choice.model is None or choice.model not in models else choice.model
    if was is None or not tokens:
        _refuse_other_sizes(sizes, was, models)
        return Alignment(models, models[donor].path, rows=was, was=was)
    _refuse_other_sizes({name: rows for name, rows in sizes.items() if name not in tokens}, was, models)
    if choice.model is None:
        donor = next(name for name in (reference, *models) if name in tokens)
        _refuse_differing({name: one for name, one in tokens.items() if name in sizes}, donor, models)
    elif donor not in tokens:
        raise UserError(f"tokenizer_source: {models[donor].path} has no tokenizer that is read here")
    own = {name: one for name, one in tokens.items() if name in sizes or name == donor}
    target = _target(own, {donor: was, **sizes}, donor, choice)
    if target.added and not (models[target.donor].path / "tokenizer.json").exists():
        raise UserError(
            f"tokenizer_source: union: tokens can be added to a tokenizer.json only; save the tokenizer of "
            f"{models[target.donor].path} with one"
        )
    # A model without a tokenizer is taken at its word: it has the base's tokens, or the donor's.
    known = {name: tokens.get(name, tokens.get(reference, tokens[donor])) for name in sizes}
    if choice.transplant is not None:
        known = {name: respelled(one, tokens[donor]) for name, one in known.items()}
    made: dict[str, Checkpoint] = dict(models)
    is_one = all(known[name] is tokens[donor] and rows == target.rows for name, rows in sizes.items())
    stays = is_one and choice.transplant is None and not choice.tokens
    for name, plan in {} if stays else _plans(known, sizes, target, reference, choice).items():
        if plan.own != list(range(sizes[name])):
            made[name] = AlignedCheckpoint(models, name, axes, plan, target.rows)
    return Alignment(made, models[target.donor].path, target.added, target.rows, was, choice.model is not None)


class AlignedCheckpoint(Checkpoint):
    """A checkpoint whose embedding and head have the rows of another vocabulary; the rest is as it was."""

    def __init__(
        self, models: Mapping[str, Checkpoint], name: str, axes: Mapping[str, _Axes], plan: _Rows, rows: int
    ) -> None:
        self._origin, self._models, self._name = models[name], models, name
        self._axes, self._plan, self._rows = axes, plan, rows
        header = self._origin.header
        tensors = {key: self._moved(key, info) for key, info in header.tensors.items()}
        self.header = replace(header, tensors=tensors)
        self._storages = {}
        self._transplanted: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._origin[name]
        found = self._axes[self._name].get(name)
        if found is None:
            return tensor
        if name in self._transplanted:
            return self._transplanted[name]
        target, axis, is_whole = found
        rows = self._align(tensor.movedim(axis, 0), target if is_whole else None)
        made = rows.movedim(0, axis).contiguous()
        if self._plan.transplanted is not None:
            # Matching pursuit takes minutes for large vocabularies, and engines read a tensor more than once.
            self._transplanted[name] = made
        return made

    def release(self) -> None:
        """See ``Checkpoint``."""
        self._origin.release()
        self._transplanted.clear()

    def _moved(self, key: str, info: TensorInfo) -> TensorInfo:
        found = self._axes[self._name].get(key)
        if found is None:
            return info
        axis = found[1]
        size = (info.end - info.begin) // info.shape[axis] * self._rows
        shape = (*info.shape[:axis], self._rows, *info.shape[axis + 1 :])
        return info._replace(shape=shape, end=info.begin + size)

    def _align(self, tensor: torch.Tensor, target: str | None) -> torch.Tensor:
        """``tensor`` (own rows first) with the target's rows; a factor of a LoRA (no ``target``) adds zeros."""
        import torch

        plan = self._plan
        own = torch.tensor(plan.own, device=tensor.device)
        made = tensor.new_zeros((self._rows, *tensor.shape[1:]))
        made[own >= 0] = tensor[own[own >= 0]]
        if target is None:
            return made
        missing = own < 0
        total = torch.zeros((int(missing.sum()), *tensor.shape[1:]), dtype=torch.float32)
        count = torch.zeros(len(total), dtype=torch.float32)
        for model, rows in plan.sources.items():
            given = self._tensor_of(model, target)
            at = torch.tensor(rows)[missing]
            has = at >= 0
            if given is not None and bool(has.any()):
                total[has] += given[at[has]].float()
                count[has] += 1
        column = count.clamp(min=1).view(-1, *[1] * (tensor.dim() - 1))
        made[missing] = (total / column).to(made.dtype)
        if plan.transplanted is not None:
            self._transplant(made, own, target, *plan.transplanted)
        absent = missing.nonzero().flatten()[count == 0]
        absent = absent[absent >= plan.tokens]
        if len(absent):
            read = made[: plan.tokens] if plan.tokens else tensor
            made[absent] = read.float().mean(0).to(made.dtype)
        return made

    def _transplant(
        self, made: torch.Tensor, own: torch.Tensor, target: str, donor: str, given_rows: list[int]
    ) -> None:
        """Overwrite rows of tokens that this model lacks and ``donor`` has, by matching pursuit over shared ones."""
        import torch

        from mergefront.adapters.merging.transplant import transplant

        given = self._tensor_of(donor, target)
        rows = torch.tensor(given_rows)
        shared, new = (own >= 0) & (rows >= 0), (own < 0) & (rows >= 0)
        if given is None or given.dim() != 2 or not bool(new.any()):
            return
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else made.device
        known, wanted, mine = (
            part.to(device).float() for part in (given[rows[shared]], given[rows[new]], made[shared])
        )
        made[new] = transplant(known, wanted, mine).to(made)

    def _tensor_of(self, model: str, target: str) -> torch.Tensor | None:
        """A model's own tensor for one of the base's, tokens first; a tied model's head is its embedding."""
        checkpoint = self._models[model]
        found = {wanted: (key, axis) for key, (wanted, axis, is_whole) in self._axes[model].items() if is_whole}
        if target not in found and checkpoint.header.kind == "full" and checkpoint.header.tied:
            target = next((wanted for wanted in found if embedding_of([wanted])), target)
        if target not in found:
            return None
        key, axis = found[target]
        return checkpoint[key].movedim(axis, 0)


_Axes = Mapping[str, tuple[str, int, bool]]
"""By name of a model's tensor: the base's tensor that it is for, its axis of tokens, whether it is no LoRA's factor."""


def _axes(models: Mapping[str, Checkpoint], reference: str) -> tuple[dict[str, _Axes], dict[str, int]]:
    """Axes of tokens of every model, and the number of rows of each model that has an embedding of its own."""
    axes: dict[str, _Axes] = {}
    sizes = {}
    for name, model in models.items():
        header = model.header
        if header.kind == "lora":
            axes[name] = lora_token_axes(header, models[reference].header)
        else:
            # A model may be stored under older names than the reference.
            names = {
                other: mine for mine, other in expert_names(models[reference].header.tensors, header.tensors).items()
            }
            axes[name] = {key: (names.get(key, key), axis, True) for key, axis in token_axes(header.tensors).items()}
        found = {header.tensors[key].shape[axis] for key, (_, axis, _) in axes[name].items()}
        if len(found) > 1:
            raise UserError(f"{model.path}: embedding and head have different numbers of rows ({sorted(found)})")
        if found:
            sizes[name] = found.pop()
    return axes, sizes


def _rule(token: str, rule: Any) -> TokenRule:
    """One entry of ``tokens``, as mergekit has it: {source: MODEL | {kind: ...}, force: true}."""
    where = f"tokenizer_source: tokens[{token!r}]"
    source = rule.get("source") if isinstance(rule, Mapping) else None
    unknown = [key for key in rule if key not in ("source", "force")] if isinstance(rule, Mapping) else []
    force = rule.get("force", False) if isinstance(rule, Mapping) else False
    if unknown or type(force) is not bool:
        raise UserError(f"{where} is {rule!r}; it takes source and force (true or false)")
    if isinstance(source, str):
        return TokenRule(source, None, force)
    if source == {"kind": "zero"}:
        return TokenRule(None, None, force)
    if isinstance(source, Mapping) and source.get("kind") == "model_token":
        given = [source[key] for key in ("token", "token_id") if source.get(key) is not None]
        known = set(source) <= {"kind", "model", "token", "token_id"}
        if known and isinstance(source.get("model"), str) and len(given) == 1 and isinstance(given[0], (str, int)):
            return TokenRule(source["model"], given[0], force)
    raise UserError(
        f"{where}: its source is {source!r}; write a model, {{kind: zero}} or {{kind: model_token, model: MODEL, "
        "token: TEXT}} (or token_id: N)"
    )


def _refuse_other_sizes(sizes: Mapping[str, int], was: int | None, models: Mapping[str, Checkpoint]) -> None:
    """Without tokenizers nothing says what rows stand for, so that all models must have the same number."""
    for name, rows in sizes.items():
        if was is not None and rows != was:
            raise UserError(
                f"{name!r} has another vocabulary size: {rows} rows, the base has {was}, and no tokenizer says which "
                f"tokens they are; put its tokenizer into {models[name].path}"
            )


def _refuse_differing(tokens: Mapping[str, Vocabulary], donor: str, models: Mapping[str, Checkpoint]) -> None:
    first = tokens[donor]
    found = {name: differing_tokens(first, other, models[donor].path, models[name].path)
             for name, other in tokens.items() if other is not first}  # fmt: skip
    problems = [
        f"expert {name!r} has another tokenizer than the base: {differing}; {_REMEDY}"
        for name, differing in found.items() if differing
    ]  # fmt: skip
    if problems:
        raise UserError("\n".join(problems))


def _target(tokens: Mapping[str, Vocabulary], sizes: Mapping[str, int], donor: str, choice: TokenizerChoice) -> _Target:
    if choice.model is not None and len(tokens) > 1:
        closed = [name for name, vocabulary in tokens.items() if vocabulary.digest]
        if closed:
            raise UserError(f"tokenizer_source: {closed[0]}: its tokenizer's format is not read here; save it with a "
                            "tokenizer.json")  # fmt: skip
    added: list[Mapping[str, Any]] = []
    made = dict(tokens[donor].ids)
    if choice.model == "union":
        donor, made, added = _union(tokens, donor)
    highest = 1 + max(made.values(), default=-1)
    rows = max(sizes[donor], highest)
    if choice.pad_to_multiple_of is not None:
        rows = math.ceil(highest / choice.pad_to_multiple_of) * choice.pad_to_multiple_of
    return _Target(made, rows, donor, tuple(added))


def _union(tokens: Mapping[str, Vocabulary], reference: str) -> tuple[str, dict[str, int], list[Mapping[str, Any]]]:
    """The folder that the union's tokenizer begins with, all tokens, and the entries that are appended to it.

    A tokenizer that has every token of the others, with the reference's ids, is the union. Otherwise the tokens that
    the reference lacks are appended, in the models' order.
    """
    first = tokens[reference].ids
    for name in (reference, *tokens):
        ids = tokens[name].ids
        if first.items() <= ids.items() and all(other.ids.keys() <= ids.keys() for other in tokens.values()):
            return name, dict(ids), []
    made: dict[str, int] = dict(first)
    added: list[Mapping[str, Any]] = []
    for name, vocabulary in tokens.items():
        lacking = [token for token in vocabulary.ids if token not in made]
        own = [token for token in lacking if token not in vocabulary.added]
        if own:
            raise UserError(
                f"tokenizer_source: union: {name} has {len(own)} tokens in its tokenizer's own vocabulary that "
                f"{reference or 'the base'} lacks ({', '.join(map(repr, own[:3]))}); only added tokens can be joined: "
                f"use tokenizer_source: {{model: {reference or 'base'}, transplant: omp}}"
            )
        for token in sorted(lacking, key=vocabulary.ids.__getitem__):
            made[token] = 1 + max(made.values())
            added.append({**vocabulary.added[token], "id": made[token]})
    return reference, made, added


def _plans(
    tokens: Mapping[str, Vocabulary], sizes: Mapping[str, int], target: _Target, reference: str, choice: TokenizerChoice
) -> dict[str, _Rows]:
    """Where every row of the target comes from, for every model that has an embedding of its own."""
    named = [""] * target.rows
    for token, at in target.tokens.items():
        named[at] = token
    highest = 1 + max(target.tokens.values(), default=-1)
    own = {name: _own_rows(named, tokens[name].ids, rows) for name, rows in sizes.items()}
    rules = _rules(choice, target, tokens, sizes, own, reference)
    sources = {name: [-1] * target.rows for name in own}
    for row in range(target.rows):
        holders = [name for name in own if own[name][row] >= 0]
        for name in [reference] if reference in holders else holders:
            sources[name][row] = own[name][row]
    for row, (source, at, force) in rules.items():
        for name in own:
            sources[name][row] = at if name == source else -1
            if force:
                own[name][row] = -1
    given = [at if named[row] and row not in rules else -1 for row, at in enumerate(own.get(target.donor, []))]
    return {
        name: _Rows(rows, sources, highest, (target.donor, given) if choice.transplant and given else None)
        for name, rows in own.items()
    }


def _own_rows(named: list[str], ids: Mapping[str, int], rows: int) -> list[int]:
    """By row of the target, whose tokens are ``named`` ("" for padding), the row of a model with tokens ``ids``."""
    taken = set(ids.values())
    return [
        ids.get(token, -1) if token else at if at < rows and at not in taken else -1 for at, token in enumerate(named)
    ]


def _rules(
    choice: TokenizerChoice, target: _Target, tokens: Mapping[str, Vocabulary], sizes: Mapping[str, int],
    own: Mapping[str, list[int]], reference: str,
) -> dict[int, tuple[str | None, int, bool]]:  # fmt: skip
    """By row of the target: the model that gives its default (None: zeros), the row there, and whether in all."""
    made: dict[int, tuple[str | None, int, bool]] = {}
    for token, rule in choice.tokens.items():
        where = f"tokenizer_source: tokens[{token!r}]"
        if token not in target.tokens:
            raise UserError(f"{where}: the merge's tokenizer has no such token")
        row = target.tokens[token]
        source = reference if rule.model == "base" and "base" not in own else rule.model
        if source is None:
            made[row] = (None, -1, rule.force)
            continue
        if source not in own:
            raise UserError(f"{where}: {source!r} is none of the models {did_you_mean(source, own)}")
        if rule.token is None:
            at = own[source][row]
        elif isinstance(rule.token, str):
            at = tokens[source].ids.get(rule.token, -1)
        else:
            at = rule.token if 0 <= rule.token < sizes[source] else -1
        if at < 0:
            raise UserError(f"{where}: {source} has no token {token if rule.token is None else rule.token!r}")
        made[row] = (source, at, rule.force)
    return made
