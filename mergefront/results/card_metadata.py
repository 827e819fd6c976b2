"""What the Hub reads of a model card: its front matter, with the parents' license and the report's scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.scores.evaluation import Evaluation
from mergefront.optimizer.yaml_file import load_yaml
from mergefront.study.stored_study import Study

_LONGEST = 200_000
"""Characters of a parent's card that are looked at."""


def front_matter(
    study: Study,
    name: str,
    base_models: Sequence[str],
    licenses: Mapping[str, str],
    library: str,
    measured: Evaluation | None,
) -> str:
    """The front matter as YAML between its lines. ``base_models`` are names on the Hub, ``licenses`` those that parents
    state, by model, ``measured`` is the report's evaluation of the merge."""
    content: dict[str, Any] = {"library_name": library, "tags": ["merge", "mergekit", "mergefront"]}
    if base_models:
        content["base_model"] = list(base_models)
    if len(set(licenses.values())) == 1:
        content["license"] = next(iter(licenses.values()))
    if measured is not None:
        content["model-index"] = [{"name": name, "results": [*_results(study, measured)]}]
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---\n"


def _results(study: Study, measured: Evaluation) -> Iterable[dict[str, Any]]:
    """The report's scores in the form of the Hub's model index."""
    tasks = study.definition.evaluator.tasks
    for objective in study.objectives:
        if objective.name in tasks:
            metric = str(tasks[objective.name].get("metric", "score"))
            score = {"type": metric, "value": float(measured.scores[objective.name]), "name": f"{metric}, report items"}
            yield {
                "task": {"type": "text-generation"},
                "dataset": {"name": objective.name, "type": objective.name},
                "metrics": [score],
            }


def stated_licenses(folders: Mapping[str, str]) -> dict[str, str]:
    """The license that each model's own card states in its front matter, as far as it does."""
    found = {}
    for name, folder in folders.items():
        stated = _front_matter_of(Path(folder) / "README.md").get("license")
        if isinstance(stated, str) and stated:
            found[name] = stated
    return found


def _front_matter_of(card: Path) -> Mapping[str, Any]:
    try:
        text = card.read_text(encoding="utf-8")[:_LONGEST] if card.is_file() else ""
        start, _, rest = text.partition("---\n")
        content = load_yaml(rest.partition("\n---")[0], str(card)) if not start.strip() and rest else {}
    except (OSError, UnicodeDecodeError, UserError):
        return {}  # a stranger's card that nobody can read states nothing
    return content if isinstance(content, dict) else {}
