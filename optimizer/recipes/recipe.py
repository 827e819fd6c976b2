"""A recipe: one complete merge configuration, immutable, hashable and exact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.recipes.grouping import CoefficientName, Grouping, Stack
from mergefront.optimizer.recipes.methods import METHODS, ParameterValue


@dataclass(frozen=True, eq=False)
class Recipe:
    """One merge, completely: method, base model, experts and every coefficient.

    ``models`` maps the experts' names to references (paths as the user wrote them; the name itself
    where there is no path). ``params`` is the flat mapping of every coefficient, searched or fixed,
    by the name that Optuna shows: ``{"weight[maths]": 0.4, "density[maths]": 0.7, "lambda": 1.0}``;
    see ``mergefront.optimizer.recipes.grouping`` for names with blocks and module kinds. Parameters that
    are left out have the method's default. ``seed`` fixes the masks of methods that drop at random.

    Two recipes are equal when their content is; numbers are compared exactly. Raises ``UserError``
    for an unknown method, expert or parameter, and for a value outside its range.
    """

    method: str
    models: Mapping[str, str]
    params: Mapping[str, ParameterValue] = field(default_factory=dict)
    base_model: str | None = None
    grouping: Grouping = field(default_factory=Grouping)
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", MappingProxyType(dict(self.models)))
        params = {name: _plain(value) for name, value in self.params.items()}
        object.__setattr__(self, "params", MappingProxyType(params))
        problems = self._problems()
        if problems:
            raise UserError("recipe: " + "; ".join(problems))

    def __getstate__(self) -> dict[str, Any]:
        """For processes that hand recipes to each other: read-only views cannot be pickled."""
        return {**self.__dict__, "models": dict(self.models), "params": dict(self.params)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, MappingProxyType(value) if isinstance(value, dict) else value)

    def _problems(self) -> list[str]:
        method = METHODS[self.method]
        problems = []
        refused = method.refuses(len(self.models))
        if refused is not None:
            problems.append(refused)
        for name, value in self.params.items():
            parsed = CoefficientName.parse(name, self.models, self.grouping.split)
            parameter = method.parameter(parsed.parameter)
            if parameter is None:
                known = [known.name for known in method.parameters]
                problems.append(
                    f"{self.method} has no parameter {parsed.parameter!r} {did_you_mean(parsed.parameter, known)}"
                )
                continue
            if parsed.expert is not None and parameter.scope == "recipe":
                problems.append(
                    f"{parameter.name} is one number for the whole merge, so {name!r} cannot name an expert"
                )
            kind, index = parsed.position or ("knot", 0)
            if kind == "block" and index >= len(self.grouping.starts):
                problems.append(f"{name!r}: there are {len(self.grouping.starts)} blocks, numbered from 0")
            elif kind not in ("block", "knot") and (kind, index) not in self.grouping.positions():
                problems.append(f"{name!r}: the stacks have no such blocks")
            wrong = parameter.check(value)
            if wrong is not None:
                problems.append(f"{name}: {wrong}")
        return problems

    def coefficient(self, parameter: str, expert: str | None, tensor_name: str) -> ParameterValue:
        """The value of a parameter for one expert (None: the whole merge) and one tensor.

        Raises ``UserError`` when the recipe does not set it and the method has no default.
        """
        declared = METHODS[self.method].parameter(parameter)
        if declared is None:
            raise UserError(f"{self.method} has no parameter {parameter!r}")
        value = self.grouping.resolve(self.params, parameter, expert, tensor_name)
        if value is None:
            value = declared.default
        if value is None:
            raise UserError(f"{self.method} needs a value for {parameter!r}; add it to the recipe's params")
        return value

    @property
    def digest(self) -> str:
        """Full-precision content hash: 32 hexadecimal characters, equal exactly for equal recipes."""
        return hashlib.sha256(self._canonical.encode()).hexdigest()[:32]

    @property
    def _canonical(self) -> str:
        content = self.to_json()
        content["params"] = {
            name: value.hex() if isinstance(value, float) else value for name, value in sorted(self.params.items())
        }
        return json.dumps(content, sort_keys=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self._canonical == other._canonical

    def __hash__(self) -> int:
        return hash(self._canonical)

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which ``from_json`` makes an equal recipe."""
        content: dict[str, Any] = {
            "method": self.method,
            "base_model": self.base_model,
            "models": dict(self.models),
            "params": dict(self.params),
            "layers": self.grouping.layers,
            "blocks": list(self.grouping.starts),
            "split": list(self.grouping.split),
            "seed": self.seed,
        }
        if self.grouping.stacks:
            content["stacks"] = {stack.name: stack.layers for stack in self.grouping.stacks}
            if not self.grouping.starts:
                content["blocks"] = {stack.name: list(stack.starts) for stack in self.grouping.stacks}
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Recipe:
        """Read what ``to_json`` wrote; raises ``UserError`` for a missing or unknown key."""
        known = {"method", "base_model", "models", "params", "layers", "blocks", "split", "seed", "stacks"}
        for key in content:
            if key not in known:
                raise UserError(f"recipe: unknown key {key!r} {did_you_mean(key, known)}")
        for key in ("method", "models", "params"):
            if key not in content:
                raise UserError(f"recipe: the key {key!r} is missing")
        blocks = content.get("blocks", ())
        own = blocks if isinstance(blocks, Mapping) else {}
        grouping = Grouping(
            int(content.get("layers", 0)),
            () if own else tuple(blocks),
            tuple(content.get("split", ())),
            tuple(Stack(name, layers, tuple(own.get(name, ()))) for name, layers in content.get("stacks", {}).items()),
        )
        return cls(
            content["method"],
            content["models"],
            content["params"],
            content.get("base_model"),
            grouping,
            int(content.get("seed", 0)),
        )

    def to_mergekit(self, references: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The recipe as a mergekit configuration (a mapping to dump as YAML).

        ``references`` replaces the references of experts and of the base model (keyed by the
        expert's name, the base by ``""``), for paths that hold elsewhere. mergekit has no words for blocks per stack:
        such a recipe is written ``in_full``.
        """
        if self.grouping.stacks and not self.grouping.starts:
            return self.in_full(references)
        from mergefront.optimizer.recipes.mergekit import configuration

        return configuration.dump(self, references or {})

    def in_full(self, references: Mapping[str, str] | None = None) -> dict[str, Any]:
        """A configuration with the recipe as it is, for what mergekit cannot say: mergekit refuses the file, and
        ``mergefront merge`` reads it."""
        where = references or {}
        models = {name: where.get(name, reference) for name, reference in self.models.items()}
        base = where.get("", self.base_model)
        moved = replace(self, models=models, base_model=None if self.base_model is None else base)
        beside = {} if base is None else {"base_model": base}
        return {"merge_method": self.method, **beside, "recipe": moved.to_json()}

    @classmethod
    def from_mergekit(
        cls, config: str | Mapping[str, Any], names: Mapping[str, str] | None = None, seed: int = 0
    ) -> Recipe:
        """Read a mergekit configuration (YAML text or the mapping in it).

        ``names`` maps references to experts' names; without it an expert is called after the last
        part of its path. Raises ``UserError`` for what a recipe cannot say, naming it.
        """
        from mergefront.optimizer.recipes.mergekit import configuration

        content = configuration.parse(config)
        if "recipe" in content:
            return cls.from_json(content["recipe"])
        return cls(**configuration.load(content, names or {}), seed=seed)

    def with_params(self, **changes: ParameterValue) -> Recipe:
        """A copy with some coefficients changed."""
        return replace(self, params={**self.params, **changes})

    def __repr__(self) -> str:
        coefficients = ", ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self.params.items()
        )
        return f"Recipe({self.method}: {coefficients})"


def _plain(value: object) -> ParameterValue:
    """Numbers of numpy and torch as Python's own, so that equal recipes hash alike."""
    if isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return float(value)
    item = getattr(value, "item", None)
    plain = item() if callable(item) else value
    if isinstance(plain, bool):
        return plain
    if isinstance(plain, (int, float)) and plain == plain and abs(plain) != float("inf"):
        return float(plain)
    raise UserError(f"coefficient value {value!r} is not a finite number, a switch or a word")
