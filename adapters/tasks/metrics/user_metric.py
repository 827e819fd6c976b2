"""A metric of the user's own: ``module:name``, a function of an item and what the model wrote.

def shouting(item, text):        # item.prompt, item.answers, item.tests; text without the stop string
    return float(text.isupper())

shouting.direction = "minimize"  # where less is better
shouting.unanswered = 1.0        # an item without a usable answer; without this line the first one fails the candidate
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mergefront.adapters.language_model import LanguageModel
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.metrics.generation_metrics import all_answered, generations
from mergefront.adapters.tasks.metrics.metric_spec import PROMPT, MetricOptions, MetricSpec, Scored
from mergefront.adapters.tasks.user_code import user_function
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.scores.evaluation import finite_number


def is_user_metric(name: Any) -> bool:
    """Whether a metric's name is that of a function, ``package.module:name``."""
    return isinstance(name, str) and ":" in name


def user_metric(call: str, folder: Path) -> MetricSpec:
    """The metric that ``call`` names; modules in ``folder`` can be named. Raises ``UserError``."""
    function = user_function(call, folder, f"metric {call!r}")
    direction: Literal["maximize", "minimize"] = getattr(function, "direction", "maximize")
    if direction not in ("maximize", "minimize"):
        raise UserError(f"metric {call!r}: its direction is {direction!r}; it must be 'maximize' or 'minimize'")

    unanswered = getattr(function, "unanswered", None)

    def score(model: LanguageModel, items: Sequence[Item], options: MetricOptions) -> Scored:
        answers = generations(model, items, options)
        if unanswered is None:
            all_answered(items, answers)
        return [
            finite_number(unanswered if said.unanswered else function(item, said.text), f"what metric {call} returned")
            for item, said in zip(items, answers, strict=True)
        ], None

    return MetricSpec(call, "generate", direction, PROMPT, score)
