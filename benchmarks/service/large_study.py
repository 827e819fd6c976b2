"""What a user waits for in a study of 10,000 trials: the commands of the shell, each in a process of its own.

    python benchmarks/service/large_study.py [--trials 10000] [--sampler mm-mo] [--wide] [--folder DIR]

A trial has 12 parameters, 3 objectives and 2 tasks of 200 item scores. Some hundred trials are on the front, or with
``--wide`` nearly every one. ``resume`` is timed up to the start of its next evaluation and up to its end. With
``--folder`` the study is kept for a next call. Prints one JSON object; times are seconds of processor time, imports
included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from storage_cost import ITEMS, NAMES, grow

import mergefront as mf
from mergefront.optimizer.scores.evaluation import Evaluation, ItemScores

SCORER = """
import sys, time
from pathlib import Path

sys.path.insert(0, {benchmarks!r})
from large_study import {score}

def score(recipe):
    (Path(__file__).parent / "started.txt").write_text(str(time.process_time()))
    return {score}(recipe)
"""


def competing(recipe: mf.Recipe) -> Evaluation:
    """Each objective wants one model's weight near 0.8 and the others' low."""
    weights = {name: float(recipe.params[f"weight[{name}]"]) for name in NAMES}
    squares = sum(weight**2 for weight in weights.values())
    scores = {name: 1.0 - (weights[name] - 0.8) ** 2 - 0.2 * (squares - weights[name] ** 2) for name in "abc"}
    return _evaluation(scores)


def wide(recipe: mf.Recipe) -> Evaluation:
    """What one objective wins another one loses: nearly nothing is dominated."""
    first, second = float(recipe.params["weight[a]"]), float(recipe.params["weight[b]"])
    return _evaluation({"a": first, "b": second, "c": 1.0 - first})


def _evaluation(scores: dict[str, float]) -> Evaluation:
    items = {name: ItemScores(ITEMS, (scores[name],) * len(ITEMS)) for name in ("a", "b")}
    return Evaluation(scores, {"a": 0.01, "b": 0.01}, items, {"total": 0.0})


def make(folder: Path, trials: int, sampler: str, is_wide: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kind = "wide" if is_wide else "competing"
    (folder / "large_scorer.py").write_text(SCORER.format(benchmarks=str(Path(__file__).parent), score=kind))
    content = {
        "study": "large",
        "storage": "sqlite:///study.db",
        "merge": {"method": "ties", "models": list(NAMES), "space": {"weight": [0, 1], "density": [0.1, 1]}},
        "backend": {"type": "function", "call": "large_scorer:score"},
        "objectives": ["a", "b", "c"],
        "search": {"sampler": sampler, "evaluations": 12},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    mf.run(folder / "study.yaml")
    grow(mf.load_study("large", storage=f"sqlite:///{folder}/study.db"), trials, wide if is_wide else competing)


def timed(folder: Path, *arguments: str) -> tuple[float, str]:
    """Processor seconds that a command took, and its output."""
    begun = _of_children()
    done = subprocess.run(
        [sys.executable, "-m", "mergefront", *arguments, "--storage", "sqlite:///study.db"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return round(_of_children() - begun, 2), done.stdout


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--sampler", default="mm-mo")
    parser.add_argument("--wide", action="store_true", help="nearly every trial is on the front")
    parser.add_argument("--folder", type=Path, help="keeps the study")
    arguments = parser.parse_args()
    folder = (arguments.folder or Path(tempfile.mkdtemp(prefix="mergefront-large-"))).resolve()
    if not (folder / "study.db").exists():
        make(folder, arguments.trials, arguments.sampler, arguments.wide)
    done = mf.load_study("large", storage=f"sqlite:///{folder}/study.db").finished_count()
    result: dict[str, Any] = {"trials": done, "sampler": arguments.sampler, "wide": arguments.wide}
    for command in (("status", "large"), ("front", "large"), ("front", "large", "--json"), ("studies",)):
        result[" ".join(command).replace(" large", "")], out = timed(folder, *command)
        if "--json" in command:
            result["front_size"] = len(json.loads(out)["front"])
    result["resume_one_trial"], _ = timed(folder, "resume", "large", "--evaluations", str(done + 1))
    result["resume_to_its_evaluation"] = round(float((folder / "started.txt").read_text()), 2)
    print(json.dumps(result, indent=1))
    if arguments.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
