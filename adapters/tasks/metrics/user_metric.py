"""A metric of the user's own: ``module:name``, a function of an item and what the model wrote.

def shouting(item, text):        # item.prompt, item.answers, item.tests; text without the stop string
    return float(text.isupper())

shouting.direction = "minimize"  # where less is better
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from mergefront.adapters.language_model import LanguageModel
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.metrics.generation_metrics import generations
from mergefront.adapters.tasks.metrics.metric_spec import MetricOptions, MetricSpec, Scored
from mergefront.optimizer.errors import EvaluationError, UserError, did_you_mean


def is_user_metric(name: Any) -> bool:
    """Whether a metric's name is that of a function, ``package.module:name``."""
    return isinstance(name, str) and ":" in name


def user_metric(call: str, folder: Path) -> MetricSpec:
    """The metric that ``call`` names; modules in ``folder`` can be named. Raises ``UserError``."""
    function = _function(call, folder)
    direction: Literal["maximize", "minimize"] = getattr(function, "direction", "maximize")
    if direction not in ("maximize", "minimize"):
        raise UserError(f"metric {call!r}: its direction is {direction!r}; it must be 'maximize' or 'minimize'")

    def score(model: LanguageModel, items: Sequence[Item], options: MetricOptions) -> Scored:
        answers = generations(model, items, options)
        return [_number(call, function(item, said.text)) for item, said in zip(items, answers, strict=True)], None

    return MetricSpec(call, "generate", direction, (("prompt",),), function.__doc__ or call, score)


def _number(call: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise EvaluationError(f"metric {call} returned {value!r}, which is no number", kind="not a number") from None
    if not math.isfinite(number):
        raise EvaluationError(f"metric {call} returned {number}", kind="not finite")
    return number


def _function(call: str, folder: Path) -> Callable[[Item, str], Any]:
    module_name, _, name = call.partition(":")
    if not module_name or not name:
        raise UserError(f"metric {call!r} must be written as package.module:name")
    path = str(folder.resolve())
    sys.path.insert(0, path)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and module_name.split(".")[0] == error.name.split(".")[0]:
            raise UserError(f"metric {call!r}: there is no module {module_name!r} in {folder} or installed") from None
        raise UserError(f"metric {call!r}: importing {module_name!r} failed: {error}") from None
    except Exception as error:
        raise UserError(f"metric {call!r}: importing {module_name!r} failed: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove(path)
    function = getattr(module, name, None)
    if not callable(function):
        public = [known for known in vars(module) if not known.startswith("_")]
        raise UserError(f"metric {call!r}: {module_name!r} has no function {name!r} {did_you_mean(name, public)}")
    return function  # type: ignore[no-any-return]
