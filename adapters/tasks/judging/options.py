"""What a study file says of how a task is judged."""

from __future__ import annotations

from pydantic import Field, model_validator

from mergefront.optimizer.sections import Options


class JudgeOptions(Options):
    """Which judge grades by which rubric: in a ``range``, or against the answers of an anchor."""

    by: str = Field(min_length=1, description="a name under `judges`")
    rubric: str = Field(min_length=1, description="what makes an answer good, in your words")
    range: tuple[float, float] | None = Field(
        None,
        strict=False,
        title="two numbers, the worst and the best score",
        description="the worst and the best score",
    )
    against: str | None = Field(None, min_length=1, description="an anchor, whose answers are compared with: `base`")

    @model_validator(mode="after")
    def _is_one_way(self) -> JudgeOptions:
        if (self.range is None) == (self.against is None):
            raise ValueError("it must have either a range, such as [1, 10], or against, such as base")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("its range must begin with the worst score and end with a larger one")
        return self
