"""Do LoRAs of two skills compose into one that needs both? Numbers doubled, in French words, by SmolLM2-135M.

python -m benchmarks.composition FOLDER      # ten minutes on one core; examples/smollm/base is made where it is missing

The LoRAs of doubling and of French numbers are those of examples/api_only; a third is trained here on the data of both.
Each way to merge the two is searched over their weights in 20 evaluations, and the third LoRA over its own in 8.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from num2words import num2words

import mergefront as mf

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path[:0] = [str(EXAMPLES / "smollm"), str(EXAMPLES / "api_only")]

from make_pool import MOST_ITEMS, PLAN, RELATED, UNRELATED, make_base, train  # noqa: E402

SKILLS = {"numbers": "french_numbers", "doubling": "doubling"}
SEARCH, NUMBERS, STEPS = 48, 500, 180


def doubled(rng: random.Random) -> Iterator[dict[str, str]]:
    """Items that need both skills."""
    for number in rng.sample(range(NUMBERS), NUMBERS):
        yield {"prompt": f"Write double {number} in French words:", "answer": num2words(2 * number, lang="fr")}


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


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    items = list(islice(doubled(random.Random(5)), SEARCH))
    (folder / "search.jsonl").write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))
    base = make_base()
    if not (folder / "mixed").exists():
        known = {**RELATED, **UNRELATED}
        drawn = (islice(known[name](random.Random(f"0 {name}")), MOST_ITEMS) for name in SKILLS.values())
        both = [item for some in drawn for item in some]
        random.Random(1).shuffle(both)
        train("mixed", replace(PLAN, steps=STEPS), base, both, folder / "mixed")
    pair = {name: EXAMPLES / "api_only" / "loras" / lora for name, lora in SKILLS.items()}
    searches = [(method, method, pair, 20) for method in ("lora_cat", "lora_factor", "ties")]
    for name, method, models, evaluations in [*searches, ("mixed", "lora_cat", {"mixed": folder / "mixed"}, 8)]:
        (folder / f"{name}.yaml").write_text(study(name, method, base, models, evaluations))
        found = mf.run(folder / f"{name}.yaml", progress=False)
        for one in sorted(found.candidates(), key=lambda one: one.scores["loss"]):
            if one.anchor is not None or one.number == found.best().number:
                error = one.evaluation.standard_errors["loss"]
                print(f"{name}: {one.anchor or 'best found'} {one.scores['loss']:.3f} ± {error:.3f} {dict(one.params)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder.resolve())
