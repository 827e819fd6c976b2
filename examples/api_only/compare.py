"""Search, and compare on items that no search saw: `python compare.py` (over HTTP), `--seeds 5 --backend local`.

Starts llama.cpp's server on the pool, searches by Evo-Merging and by LoRAHub's setting (weights alone by CMA-ES) with
the same number of evaluations, and compares the best of each with base, uniform mix and best single LoRA by paired
tests. `--case` names another pool or target. `--backend local` computes here instead (`upper_blocks.py`); `--agree 20`
scores 20 recipes of such a search on the server too and prints how far they differ. What the server answered is kept in
built/CASE.db.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import binomtest, ttest_rel
from upper_blocks import EXACT, LOSS, UpperBlocks

import mergefront as mf
from mergefront.adapters.tasks.jsonl import JsonlTask
from mergefront.optimizer.recipes.anchors import BASE, UNIFORM, expert_anchor
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.evaluation import Evaluation, EvaluationRequest, Evaluator
from mergefront.study.evaluators import make_evaluator

HERE = Path(__file__).resolve().parent
BUILT = HERE / "built"
BASE_MODEL = HERE.parent / "smollm" / "base"
DONOR = BUILT / "donor" / "tokenizer.gguf"
DENSITIES = (0.25, 0.5, 0.75)
PORT = 8190
FIRST_BLOCK = 18
OURS = "Evo-Merging"
SEARCHES: Mapping[str, Mapping[str, Any]] = {
    OURS: {"sampler": "evo-merging"},
    "LoRAHub's setting": {"sampler": "evo-merging", "variant": "lorahub"},
}


@dataclass(frozen=True)
class Case:
    """A pool, and the target that it is merged for."""

    name: str
    target: str
    loras: tuple[str, ...]

    def items(self, split: str) -> str:
        """The file with the target's search or report items."""
        return str(HERE / "data" / f"{self.target}_{split}.jsonl")


DATES = tuple(yaml.safe_load((HERE / "study.yaml").read_text(encoding="utf-8"))["merge"]["models"])
NEW = ("english_digits", "french_digits", "length_units", "mass_units", "time_units", "units_in_full")
CASES = {
    case.name: case
    for case in (
        Case("french", "french", DATES),
        Case("german", "german", DATES),
        Case("units", "units", (*NEW, *DATES[6:])),
        Case("eighteen-french", "french", (*DATES, *NEW)),
        Case("eighteen-german", "german", (*DATES, *NEW)),
    )
}


def build(loras: Sequence[str]) -> list[Path]:
    """GGUF files of base, LoRAs and their copies at each density, in float32; the base comes first."""
    files = [BUILT / f"{name}.gguf" for name in ("base", *loras)]
    files += [BUILT / f"{name}@{density:g}.gguf" for name in loras for density in DENSITIES]
    if not all(file.is_file() for file in files):
        make_base = [sys.executable, str(BASE_MODEL.parent / "make_base.py"), "--gguf", str(DONOR)]
        subprocess.run(make_base, check=True)
        for file in files:
            file.unlink(missing_ok=True)
        models = [str(BASE_MODEL), *(str(HERE / "loras" / name) for name in loras)]
        options = ["--tokenizer", str(DONOR), "--dtype", "f32"]
        for density in DENSITIES:
            options += ["--density", str(density)]
        subprocess.run([sys.executable, "-m", "mergefront", "gguf", *models, str(BUILT), *options], check=True)
    return files


@contextmanager
def server(files: Sequence[Path]) -> Iterator[None]:
    """llama.cpp's server on the files, while the block lasts."""
    # Measured on two cores: 8 requests at once on both take 14 to 18 s where 2 on one take 29 to 39.
    speed = ["--slots", "8", "--threads", str(os.cpu_count() or 1)]
    command = [sys.executable, "-m", "mergefront", "llama-server", *map(str, files), "--port", str(PORT), "--exact"]
    command += speed
    # A terminated comparison leaves no server behind; SystemExit would only end the evaluation under way.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise SystemExit("the server did not start; run it by hand: " + " ".join(command))
        yield
    finally:
        process.terminate()
        process.wait()


def study_file(case: Case, name: str, seed: int, search: Mapping[str, Any], evaluations: int) -> Path:
    """study.yaml with another pool, target, name, seed and search, and absolute paths."""
    content = yaml.safe_load((HERE / "study.yaml").read_text(encoding="utf-8"))
    for task in content["tasks"].values():
        task |= {"path": case.items("search"), "report": case.items("report")}
    content |= {"study": f"{name} {seed}", "seed": seed, "storage": f"sqlite:///{BUILT}/{case.name}.db"}
    content["merge"]["models"] = list(case.loras)
    content["search"] = {**search, "evaluations": evaluations}
    path = BUILT / f"{case.name}-{name.replace(' ', '_')}-{seed}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def upper_blocks(case: Case) -> UpperBlocks:
    task = JsonlTask.read(LOSS, case.items("search"), "loss", report=case.items("report"))
    return UpperBlocks(BASE_MODEL, {name: HERE / "loras" / name for name in case.loras}, task, FIRST_BLOCK)


@contextmanager
def searched(
    case: Case, name: str, seed: int, evaluations: int, local: UpperBlocks | None
) -> Iterator[tuple[mf.Study, Evaluator]]:
    """A finished search, and what scores its recipes."""
    path = study_file(case, name, seed, SEARCHES[name], evaluations)
    if local is None:
        study = mf.run(path)
        with make_evaluator(study.definition, lambda: study.database) as evaluator:
            yield study, evaluator
        return
    given = yaml.safe_load(path.read_text(encoding="utf-8"))["merge"]
    options = {key: value for key, value in SEARCHES[name].items() if key != "sampler"}
    study = mf.search(
        space=MergeSpace(
            given["models"], method=given["method"], base_model="base", parameters=given["space"], seed=seed
        ),
        evaluate=local,
        objectives=[{"name": LOSS, "direction": "minimize"}],
        name=f"{name} {seed}",
        sampler="evo-merging",
        sampler_options=options,
        evaluations=evaluations,
        seed=seed,
        storage=f"sqlite:///{BUILT}/local-{case.name}.db",
        progress=False,
    )
    yield study, local


def compare(case: Case, seed: int, evaluations: int, local: UpperBlocks | None) -> dict[str, Any]:
    """One row of every merge that is compared, with p-values against the best found by Evo-Merging."""
    spent, scored = {}, {}
    for name in SEARCHES:
        started = time.monotonic()
        with searched(case, name, seed, evaluations, local) as (study, evaluator):
            spent[name] = {"seconds": round(time.monotonic() - started)}
            for evaluation in study.own_evaluations():
                for kind, number in evaluation.cost.items():
                    spent[name][kind] = round(spent[name].get(kind, 0) + number, 3)
            best = study.best()
            chosen = {name: best.recipe}
            if name == OURS:
                anchors = {one.anchor: one for one in study.anchors()}
                single = min(
                    (anchors[expert_anchor(expert)] for expert in study.space.models), key=lambda one: one.scores[LOSS]
                )
                chosen |= {"base": anchors[BASE].recipe, "uniform mix": anchors[UNIFORM].recipe}
                if local is not None:
                    chosen |= {expert: anchors[expert_anchor(expert)].recipe for expert in study.space.models}
                chosen["best single LoRA"] = single.recipe
                weights = {
                    expert: [best.recipe.coefficient(kind, expert, "") for kind in ("weight", "density")]
                    for expert in study.space.models
                }
            for whose, recipe in chosen.items():
                scored[whose] = evaluator.evaluate(recipe, EvaluationRequest((LOSS, EXACT), "report"))
    rows = {whose: row(evaluation, scored[OURS]) for whose, evaluation in scored.items()}
    return {"seed": seed, "rows": rows, "single": single.anchor, "spent": spent, "weights": weights}


def row(evaluation: Evaluation, best: Evaluation) -> dict[str, float]:
    """Means of loss and exact match, and the p-values of their differences from the best found, item by item: paired
    t-test, McNemar's exact test."""
    losses, right = (np.array(evaluation.items[task].scores) for task in (LOSS, EXACT))
    our_losses, ours_right = (np.array(best.items[task].scores) for task in (LOSS, EXACT))
    gained, lost = int((ours_right > right).sum()), int((ours_right < right).sum())
    return {
        "loss": float(losses.mean()),
        "exact": float(right.mean()),
        "loss p": float(ttest_rel(our_losses, losses).pvalue) if (our_losses != losses).any() else 1.0,
        "exact p": float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
    }


def agreement(case: Case, count: int, local: UpperBlocks) -> float:
    """How far, in nats per token of any item, the server is from what is computed here, on a local search's recipes."""
    study = mf.load_study(f"{OURS} 0", storage=f"sqlite:///{BUILT}/local-{case.name}.db")
    candidates = study.candidates()
    furthest = 0.0
    over_http = mf.create(study_file(case, "agreement", 0, SEARCHES[OURS], count))
    with make_evaluator(over_http.definition, lambda: over_http.database) as evaluator:
        for place in np.linspace(0, len(candidates) - 1, count).astype(int):
            recipe = candidates[place].recipe
            there, here = (one.evaluate(recipe, EvaluationRequest((LOSS,))).items[LOSS] for one in (evaluator, local))
            known = dict(zip(here.ids, here.scores, strict=True))
            difference = max(abs(score - known[item]) for item, score in zip(there.ids, there.scores, strict=True))
            print(f"trial {candidates[place].number}: {there.mean:.4f}, {difference:.1e} nats", flush=True)
            furthest = max(furthest, difference)
    return furthest


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--case", choices=list(CASES), default="french", help="pool and target (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--backend", choices=["http", "local"], default="http")
    parser.add_argument("--evaluations", type=int, default=40, help="of each search (default: %(default)s)")
    parser.add_argument("--agree", type=int, metavar="N", help="only compare N recipes of a local search on the server")
    given = parser.parse_args()
    BUILT.mkdir(exist_ok=True)
    case = CASES[given.case]
    local = upper_blocks(case) if given.agree or given.backend == "local" else None
    with ExitStack() as stack:
        if given.agree or local is None:
            stack.enter_context(server(build(case.loras)))
        if given.agree and local is not None:
            print(f"largest difference: {agreement(case, given.agree, local):.1e} nats")
            return
        for seed in range(given.first_seed, given.first_seed + given.seeds):
            result = compare(case, seed, given.evaluations, local)
            with (BUILT / f"results-{given.backend}-{case.name}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            print(f"seed {seed}, {result['single']}; {result['spent']}")
            for name, found in result["rows"].items():
                print(f"  {name:20} " + "  ".join(f"{key} {value:.4g}" for key, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
