"""What was spent on a server, and the limit that stops a search cleanly."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from mergefront.optimizer.errors import SearchStoppedError
from mergefront.optimizer.sections import Section


class BudgetExhaustedError(SearchStoppedError):
    """The budget for requests, tokens or money is spent; what finished is kept."""


@dataclass(frozen=True)
class Usage:
    """Requests sent (repeated attempts included) and tokens read and written."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.requests + other.requests,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
        )

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


class Price(Section):
    """Money per million tokens, in the currency of the budget, and per request."""

    input: float = Field(default=0.0, ge=0)
    output: float = Field(default=0.0, ge=0)
    request: float = Field(default=0.0, ge=0)

    def of(self, usage: Usage) -> float:
        return (
            self.input * usage.input_tokens / 1e6
            + self.output * usage.output_tokens / 1e6
            + self.request * usage.requests
        )


class Budget(Section):
    """Limits of the whole study on one server; None is no limit."""

    requests: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=1)
    money: float | None = Field(default=None, gt=0)

    def check_counted(self, server: str, price: Price) -> None:
        """Raises ``SearchStoppedError`` when a limit needs the tokens of an answer, which are unknown."""
        for name, is_limited in (("tokens", self.tokens), ("money", self.money and (price.input or price.output))):
            if is_limited:
                raise SearchStoppedError(
                    f"{server} does not say how many tokens an answer took (usage), so that budget.{name} cannot be "
                    "kept; limit requests, or name the model's tokenizer if the backend takes one (tokenizer: FOLDER)"
                )

    def check(self, spent: Usage, price: Price, where: str = "backend") -> None:
        """Raises ``BudgetExhaustedError`` when one more request may not be sent; ``where`` is the limit's section.

        Requests are counted before they are sent. Tokens and money are known afterwards, so that the
        requests then under way may exceed those limits.
        """
        limits = (
            ("requests", self.requests, spent.requests),
            ("tokens", self.tokens, spent.tokens),
            ("money", self.money, price.of(spent)),
        )
        for name, limit, value in limits:
            if limit is not None and value >= limit:
                raise BudgetExhaustedError(
                    f"the budget of {limit:g} {name} is spent ({value:g} used). What finished is kept; raise "
                    f"{where}.budget.{name} and resume the study to go on"
                )
