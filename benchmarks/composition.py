"""Do LoRAs of two skills compose into one that needs both? French numbers doubled, or in capitals, by SmolLM2-135M.

python -m benchmarks.composition FOLDER      # eight minutes on one core; examples/smollm/base is made where missing

The LoRAs of each skill are those of examples/api_only; for each pair a third is trained here on the data of both. Each
way to merge the two is searched over their weights in 20 evaluations, and the third LoRA over its own in 8. The last
column is the difference from the best of lora_cat, item by item, with its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from num2words import num2words
from numpy.typing import NDArray
from scipy.stats import t

import mergefront as mf

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path[:0] = [str(EXAMPLES / "smollm"), str(EXAMPLES / "api_only")]

from make_pool import MOST_ITEMS, PLAN, RELATED, UNRELATED, make_base, train  # noqa: E402

SEARCH, NUMBERS, STEPS = 48, 500, 180


def doubled(number: int) -> dict[str, str]:
    return {"prompt": f"Write double {number} in French words:", "answer": num2words(2 * number, lang="fr")}


def in_capitals(number: int) -> dict[str, str]:
    return {"prompt": f"Write {number} in French words in capitals:", "answer": num2words(number, lang="fr").upper()}


PAIRS: Mapping[str, Callable[[int], dict[str, str]]] = {"doubling": doubled, "capitals": in_capitals}
"""By the skill beside French numbers, the items that need both."""


def study(name: str, method: str, base: Path, models: dict[str, Path], evaluations: int) -> str:
    """A study file that searches weights for the least loss; JSON is YAML."""
    task = {"type": "jsonl", "path": "search.jsonl", "report_fraction": 0}
    made = {
        "study": name,
        "merge": {
            "method": method,
            "base_model": str(base),
            "models": {key: str(path) for key, path in models.items()},
            "space": {"weight": [0, 2]},
        },
        "backend": {"type": "local", "dtype": "float32"},
        "tasks": {"loss": {**task, "metric": "loss"}},
        "objectives": [{"name": "loss", "direction": "minimize"}],
        "search": {"evaluations": evaluations},
    }
    return json.dumps(made)


def pair(skill: str, folder: Path, base: Path) -> None:
    """Search every way for one pair, and print what anchors and the best found score."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = random.Random(5).sample(range(NUMBERS), SEARCH)
    lines = [json.dumps(PAIRS[skill](number), ensure_ascii=False) + "\n" for number in numbers]
    (folder / "search.jsonl").write_text("".join(lines))
    loras = {"numbers": "french_numbers", skill: skill}
    if not (folder / "mixed").exists():
        known = {**RELATED, **UNRELATED}
        drawn = (islice(known[name](random.Random(f"0 {name}")), MOST_ITEMS) for name in loras.values())
        both = [item for some in drawn for item in some]
        random.Random(1).shuffle(both)
        train("mixed", replace(PLAN, steps=STEPS), base, both, folder / "mixed")
    models = {name: EXAMPLES / "api_only" / "loras" / lora for name, lora in loras.items()}
    searches = [(method, method, models, 20) for method in ("lora_cat", "lora_factor", "ties")]
    against: NDArray[np.float64] | None = None
    for name, method, experts, evaluations in [*searches, ("mixed", "lora_cat", {"mixed": folder / "mixed"}, 8)]:
        (folder / f"{name}.yaml").write_text(study(name, method, base, experts, evaluations))
        found = mf.run(folder / f"{name}.yaml", progress=False)
        kept = found.ledger.evaluations("search", items=True)
        losses = {one.number: np.array(kept[one.digest].items["loss"].scores) for one in found.candidates()}
        best = found.best().number
        against = losses[best] if against is None else against
        for one in sorted(found.candidates(), key=lambda one: one.scores["loss"]):
            if one.anchor is not None or one.number == best:
                apart = losses[one.number] - against
                half = t.ppf(0.975, SEARCH - 1) * apart.std(ddof=1) / SEARCH**0.5
                error = one.evaluation.standard_errors["loss"]
                print(
                    f"{skill} | {name}: {one.anchor or 'best found'} {one.scores['loss']:.3f} ± {error:.3f} | "
                    f"{apart.mean():+.3f} ± {half:.3f} | {dict(one.params)}",
                    flush=True,
                )


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    base = make_base()
    for skill in PAIRS:
        pair(skill, folder / skill, base)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder.resolve())
