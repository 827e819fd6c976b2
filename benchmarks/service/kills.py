"""kill -9 at random instants of a search, and what is left: nothing lost, nothing twice, the same front.

    python benchmarks/service/kills.py --backend function --count 40 [--seed 0] [--seconds 170]

Backends: function (MM-MO on a Python function), evo (Evo-Merging as published, both stages), local (tiny
weights in memory, scored by transformers), api (an ensemble of models behind HTTP). A run is killed until it
is complete; runs are repeated until ``--count`` kills have happened. Prints one JSON object; exits with 1 when
a finished evaluation was lost or repeated, or when a front differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import yaml

import mergefront as mf

sys.path[:0] = [str(Path(__file__).parents[2] / "tests" / place) for place in ("support", "adapters/remote/http")]

SCORER = """
import os, time
from pathlib import Path

def score(recipe):
    time.sleep(0.02)
    p = recipe.params
    a, b = p["weight[a]"], p["weight[b]"]
    d = p.get("density[a]", 1.0)
    with open(Path(__file__).parent / "calls.txt", "ab", buffering=0) as calls:
        calls.write((recipe.digest + "\\n").encode())
    french = 1 - (b - 0.8) ** 2 - 0.3 * a * a - 0.1 * (d - 0.5) ** 2
    return {"maths": 1 - (a - 0.9) ** 2 - 0.3 * b * b, "french": french}
"""
FUNCTION = {"type": "function", "call": "kill_scorer:score"}
STUDIES: dict[str, dict[str, Any]] = {
    "function": {
        "merge": {"method": "ties", "models": ["a", "b"], "space": {"weight": [0, 1], "density": [0.1, 1]}},
        "backend": FUNCTION,
        "objectives": ["maths", "french"],
        "search": {"sampler": "mm-mo", "evaluations": 16},
    },
    "evo": {
        "merge": {
            "method": "dare_linear",
            "models": ["a", "b", "c", "d"],
            "space": {"weight": [-1.5, 1.5], "density": [0, 1]},
        },
        "backend": FUNCTION,
        "objectives": ["maths"],
        "search": {
            "sampler": "evo-merging", "variant": "paper", "first_stage": 10, "population": 5, "evaluations": 30
        },
    },
    "local": {
        "merge": {
            "method": "task_arithmetic",
            "base_model": "base",
            "models": {"a": "a", "b": "b"},
            "space": {"weight": [0, 1]},
        },
        "backend": {"type": "local", "device": "cpu"},
        "tasks": {"t": {"type": "jsonl", "path": "items.jsonl", "metric": "loss"}},
        "objectives": ["t"],
        "search": {"sampler": "sobol", "evaluations": 12},
    },
    "api": {
        "merge": {"method": "task_arithmetic", "models": ["west", "east", "liar"], "space": {"weight": [0, 1]}},
        "tasks": {"t": {"type": "jsonl", "path": "items.jsonl", "metric": "exact_match"}},
        "objectives": ["t"],
        "search": {"sampler": "sobol", "evaluations": 24},
    },
}  # fmt: skip
COUNTRIES = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Peru": "Lima", "Cuba": "Havana"}


def write_study(folder: Path, kind: str, url: str | None) -> None:
    """The study file and what it needs."""
    folder.mkdir(parents=True)
    content = {"study": "killed", "storage": "sqlite:///study.db", "seed": 5, **STUDIES[kind]}
    if kind == "api":
        members = {name: {"url": url, "model": name, "longest_wait": 0.05} for name in ("west", "east", "liar")}
        content["backend"] = {"type": "ensemble", "members": members}
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    (folder / "kill_scorer.py").write_text(SCORER)
    items = [{"prompt": f"Capital of {country}", "answer": f" {city}"} for country, city in COUNTRIES.items()]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    if kind == "local":
        write_weights(folder)


def write_weights(folder: Path) -> None:
    """A tiny Llama and two perturbed copies of it."""
    from small_tokenizer import make_tokenizer
    from tiny_models import TINY_MODELS, move

    model = TINY_MODELS["llama"].make()
    for seed, name in enumerate(("base", "a", "b")):
        if seed:
            move(model, seed)
        model.save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)


@contextmanager
def closed_models(received: list[str]) -> Iterator[str]:
    """A chat server of three models; ``received`` collects every request's content."""
    from servers import Answer, Received, as_json, serve

    knows = {"west": ("France", "Italy", "Spain"), "east": ("Japan", "Peru"), "liar": ()}

    def chat(request: Received) -> Answer:
        body = request.json
        if "Capital of" in body["messages"][-1]["content"]:  # not what is asked to find out what the server can do
            received.append(json.dumps(body, sort_keys=True))
        country = body["messages"][-1]["content"].split()[-1]
        known = country in knows[body["model"]]
        answer = f" {COUNTRIES[country]}" if known else f"city of {body['model']}"
        usage = {"prompt_tokens": 5, "completion_tokens": 2}
        return as_json({"choices": [{"message": {"content": answer}, "finish_reason": "stop"}], "usage": usage})

    with serve(chat) as server:
        yield server.url


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mergefront", "run", "study.yaml"]
    out = (folder / "out.log").open("ab")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, env=environment, start_new_session=True)


def kept(folder: Path) -> list[tuple[int, dict[str, Any], list[float]]]:
    """What finished so far: number, parameters and values of each trial."""
    if not (folder / "study.db").exists():
        return []
    try:
        study = mf.load_study("killed", storage=f"sqlite:///{folder}/study.db")
    except mf.UserError:  # killed before the study was there
        return []
    trials = study.optuna.get_trials(deepcopy=False)
    study.database.close()
    return [(trial.number, trial.params, trial.values) for trial in trials if trial.state.is_finished()]


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_until_complete(
    folder: Path, budget: int, moments: random.Random, kills_left: int, stop: Callable[[], bool]
) -> tuple[int, int]:
    """Run and kill until the budget is spent; returns the kills and the finished evaluations that got lost."""
    kills = lost = 0
    usual_start = 1.5
    while True:
        before = kept(folder)
        process = start(folder)
        begun = time.monotonic()
        if kills < kills_left and not stop() and len(before) < budget:
            log = folder / "out.log"
            seen = lines(log)
            if moments.random() < 0.8:  # once it works; else at any moment, start-up and opening included
                while process.poll() is None and lines(log) <= seen + moments.randint(0, 2):
                    time.sleep(0.005)
                usual_start = time.monotonic() - begun
                time.sleep(moments.uniform(0.0, 0.15))
            else:
                time.sleep(moments.uniform(0.0, 1.2 * usual_start))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
        process.wait()
        after = kept(folder)
        lost += sum(trial not in after for trial in before)
        if len(after) >= budget and process.returncode == 0:
            return kills, lost


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=sorted(STUDIES), default="function")
    parser.add_argument("--count", type=int, default=100, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600.0, help="kill no more after so long")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mergefront-kills-"))
    moments = random.Random(arguments.seed)
    begun = time.monotonic()
    received: list[str] = []
    result: Counter[str] = Counter()
    with closed_models(received) if arguments.backend == "api" else nullcontext(None) as url:
        write_study(folder / "whole", arguments.backend, url)
        start(folder / "whole").wait()
        expected = kept(folder / "whole")
        budget = STUDIES[arguments.backend]["search"]["evaluations"]
        if len(expected) != budget:
            print((folder / "whole" / "out.log").read_text(), file=sys.stderr)
            return 1

        def stop() -> bool:
            return time.monotonic() - begun > arguments.seconds

        while result["kills"] < arguments.count and not stop():
            received.clear()
            run = folder / f"run{result['runs']}"
            write_study(run, arguments.backend, url)
            kills, lost = kill_until_complete(run, budget, moments, arguments.count - result["kills"], stop)
            calls = (run / "calls.txt").read_text().split() if (run / "calls.txt").exists() else []
            result["kills"] += kills
            result["runs"] += 1
            result["lost"] += lost
            result["fronts_that_differ"] += kept(run) != expected
            study = mf.load_study("killed", storage=f"sqlite:///{run}/study.db")
            with study.database.reading() as connection:
                from sqlalchemy import text

                rows = connection.execute(text("SELECT digest FROM mergefront_evaluations")).scalars().all()
            result["kept_twice"] += len(rows) - len(set(rows))
            repeated = len(calls) - len(set(calls)) + len(received) - len(set(received))
            result["cut_off_and_begun_again"] += repeated
            # What was cut off before it was kept has to run again: for one kill one evaluation or, over HTTP, the
            # requests under way.
            result["finished_evaluated_twice"] += max(0, repeated - kills * (8 if received else 1))
            result["tracebacks"] += (run / "out.log").read_text(errors="replace").count("Traceback")
    print(json.dumps({"backend": arguments.backend, "seed": arguments.seed, "budget": budget, **result}))
    bad = [key for key in ("lost", "fronts_that_differ", "kept_twice", "finished_evaluated_twice") if result[key]]
    if not bad:
        shutil.rmtree(folder)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
