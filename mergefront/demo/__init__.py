"""The built-in example: a tiny real language model, three experts, data and a study file.

Everything is made on the spot, seeded and offline, in about a minute on two cores. The ordinary study machinery then
runs it like any other study.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from mergefront.demo.skills import SKILLS, item, questions
from mergefront.optimizer.seeding import derive_seed

SEARCH_ITEMS = 200
REPORT_ITEMS = 300

_STUDY = """\
# Written by `mergefront demo` (models and data of version {version}): three skills of a tiny language model.
study: demo
storage: sqlite:///mergefront.db
seed: {seed}
merge:
  method: task_arithmetic
  base_model: models/base
  models:
{models}
  space: {{weight: [0, 1]}}
backend: {{type: local, device: cpu}}
tasks:
  reverse: {{type: jsonl, metric: exact_match, path: data/reverse.jsonl, report: data/reverse_report.jsonl}}
  sort: {{type: jsonl, metric: exact_match, path: data/sort.jsonl, report: data/sort_report.jsonl}}
  most: {{type: jsonl, metric: loglikelihood, path: data/most.jsonl, report: data/most_report.jsonl}}
objectives: [reverse, sort, most]
search: {{sampler: mm-mo, evaluations: 30}}
"""
_VERSION = 1


def write_demo(directory: Path, *, seed: int = 0, progress: Callable[[str], None] = lambda what: None) -> Path:
    """Make models, data and study file in ``directory``; returns the study file.

    ``directory/models`` gets a base and three experts, ``directory/data`` search and report items that
    are all different from each other and from what the models were trained on. ``progress`` is told
    what is being made. The study file is written last: where it is there already for the same seed,
    nothing is made again.
    """
    from mergefront.demo.experts import train_models

    study = directory / "study.yaml"
    models = "\n".join(f"    {skill}: models/{skill}" for skill in SKILLS)
    text = _STUDY.format(seed=seed, models=models, version=_VERSION)
    if study.exists() and study.read_text(encoding="utf-8") == text:
        return study
    directory.mkdir(parents=True, exist_ok=True)
    progress("writing the data files")
    held_out = _write_data(directory / "data", seed)
    train_models(directory / "models", held_out, seed, progress)
    study.write_text(text, encoding="utf-8")
    return study


def _write_data(directory: Path, seed: int) -> set[str]:
    """Search and report items of each skill; returns the strings that they ask about."""
    directory.mkdir(parents=True, exist_ok=True)
    asked: set[str] = set()
    for skill in SKILLS:
        rng = random.Random(derive_seed(seed, "demo", "items", skill))
        letters = questions(skill, rng, SEARCH_ITEMS + REPORT_ITEMS)
        lines = [json.dumps(item(skill, string, rng)) + "\n" for string in letters]
        (directory / f"{skill}.jsonl").write_text("".join(lines[:SEARCH_ITEMS]), encoding="utf-8")
        (directory / f"{skill}_report.jsonl").write_text("".join(lines[SEARCH_ITEMS:]), encoding="utf-8")
        asked.update(letters)
    return asked
