"""What a coefficient is searched in: an interval, or a list of choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.recipes.methods import MethodParameter, ParameterValue

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True)
class Range:
    """A searched coefficient: any value of [low, high], or one of ``choices`` when given."""

    low: float = 0.0
    high: float = 1.0
    log: bool = False
    step: float | None = None
    choices: tuple[ParameterValue, ...] = ()

    @classmethod
    def parse(cls, name: str, given: Any) -> Range | ParameterValue:
        """What a user wrote for one coefficient: ``[low, high]``, ``{low, high, log, step}``,
        ``{choices: [...]}``, or a fixed number, word or switch. Raises ``UserError``."""
        if isinstance(given, Range):
            return given
        if isinstance(given, Mapping):
            unknown = set(given) - {"low", "high", "log", "step", "choices"}
            if unknown:
                key = sorted(unknown)[0]
                raise UserError(
                    f"{name}: unknown key {key!r} {did_you_mean(key, ('low', 'high', 'log', 'step', 'choices'))}"
                )
            if "choices" in given:
                if len(given) > 1 or not given["choices"]:
                    raise UserError(f"{name}: 'choices' takes a list of values, and no other key beside it")
                return cls(choices=tuple(given["choices"]))
            if not {"low", "high"} <= set(given):
                raise UserError(f"{name}: a range needs 'low' and 'high'")
            return cls._checked(name, given["low"], given["high"], bool(given.get("log", False)), given.get("step"))
        if isinstance(given, (list, tuple)):
            if len(given) != 2 or any(isinstance(v, (bool, str)) for v in given):
                raise UserError(f"{name} is {list(given)!r}; write a range as [low, high], or {{choices: [...]}}")
            return cls._checked(name, given[0], given[1], False, None)
        if isinstance(given, (bool, int, float, str)):
            return given
        raise UserError(f"{name} is {given!r}; write a range [low, high] or one fixed value")

    @classmethod
    def _checked(cls, name: str, low: Any, high: Any, log: bool, step: Any) -> Range:
        numbers = [low, high] if step is None else [low, high, step]
        for value in numbers:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e300 < value < 1e300:
                raise UserError(f"{name}: {value!r} is not a finite number")
        if not low < high:
            raise UserError(
                f"{name} is [{low}, {high}]; the low end must be below the high end (one value fixes it: {name}: {low})"
            )
        if log and low <= 0:
            raise UserError(f"{name}: a log range must begin above 0, not at {low}")
        if step is not None and (step <= 0 or log):
            raise UserError(f"{name}: step {step} must be positive and cannot be combined with log")
        return cls(float(low), float(high), log, None if step is None else float(step))

    def distribution(self) -> BaseDistribution:
        """The Optuna distribution of this range."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def holds(self, value: ParameterValue) -> bool:
        """Whether ``value`` is a point of this range."""
        if self.choices:
            return value in self.choices
        if isinstance(value, str) or not self.low <= float(value) <= self.high:
            return False
        if self.step is None:
            return True
        steps = (float(value) - self.low) / self.step
        return abs(steps - round(steps)) < 1e-9

    def points(self) -> Sequence[ParameterValue] | None:
        """Every point of a range in steps or of choices; None for a range without steps."""
        if self.choices or self.step is None:
            return self.choices or None
        count = int((self.high - self.low) / self.step + 1e-9) + 1
        return [round(self.low + place * self.step, 12) for place in range(count)]

    def nearest(self, value: ParameterValue) -> ParameterValue:
        """The point of this range nearest to ``value``."""
        if self.choices:
            return value if value in self.choices else self.choices[0]
        clipped = self.high if isinstance(value, str) else min(max(float(value), self.low), self.high)
        if self.step is None:
            return clipped
        return min(self.low + self.step * round((clipped - self.low) / self.step), self.high)

    @property
    def middle(self) -> ParameterValue:
        """The value half-way, on the range's own scale."""
        if self.choices:
            return self.choices[len(self.choices) // 2]
        if self.log:
            return float(self.low * (self.high / self.low) ** 0.5)
        return self.nearest(self.low + 0.5 * (self.high - self.low))


def own_ranges(parameter: MethodParameter) -> list[Range]:
    """The range that a method declares for one of its parameters: one, or none where it is a single value."""
    if parameter.search[0] == parameter.search[1]:
        return []
    return [Range(choices=parameter.choices) if parameter.choices else Range(*parameter.search)]


def extremes(rule: Range | ParameterValue) -> tuple[ParameterValue, ...]:
    """The values of a coefficient between which, or among which, all others are."""
    if isinstance(rule, Range):
        return rule.choices or (rule.low, rule.high)
    return (rule,)


def rule_to_json(rule: Any) -> Any:
    """What ``Range.parse`` reads as the same rule, for JSON."""
    if isinstance(rule, Range):
        if rule.choices:
            return {"choices": list(rule.choices)}
        return {"low": rule.low, "high": rule.high, "log": rule.log, "step": rule.step}
    return list(rule) if isinstance(rule, tuple) else rule
