"""Do merges of experts rank data mixtures as models that are trained on the mixtures do?

python -m benchmarks.mixture_proxy --seeds 4      # about three minutes on one core for each seed

For each seed a base and one expert of each of the demo's skills are trained, all from the same base with as many steps.
Every mixture of a grid is scored twice: as the linear merge of the experts with the mixture's shares as weights, and as
a model that is trained from the base on the mixture itself. Scores are losses of answers that no model saw.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM

from mergefront.demo.experts import _batch, _new_model, _save, _step, _tokenizer, _train_base
from mergefront.demo.skills import SKILLS
from mergefront.results.export import merge_config

STEPS, RATE, PARTS, BATCHES = 300, 1e-3, 5, 10
Shares = Mapping[str, float]


def mixtures(parts: int) -> list[dict[str, float]]:
    """All shares of the three skills in steps of 1 / ``parts``, but each skill alone."""
    found = [(a, b, parts - a - b) for a in range(parts + 1) for b in range(parts + 1 - a)]
    return [dict(zip(SKILLS, (n / parts for n in each), strict=True)) for each in found if max(each) < parts]


def trained(base: Any, shares: Shares, seed: int) -> Any:
    """The base after ``STEPS`` steps on a mixture; every run has the same schedule."""
    model, rng = copy.deepcopy(base), random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 20, 1 - 0.9 * step / STEPS))
    for _ in range(STEPS):
        _step(model, optimizer, *_batch(shares, (), rng))
        schedule.step()
    return model


def losses(model: Any, held_out: Mapping[str, Any]) -> list[float]:
    """Nats per token of each skill's answers."""
    with torch.inference_mode():
        return [float(model.eval()(input_ids=tokens, labels=labels).loss) for tokens, labels in held_out.values()]


def one_seed(seed: int, folder: Path) -> dict[str, list[list[float]]]:
    """Losses by mixture and skill of the merges and of the trained models: ``mixtures x skills`` each."""
    torch.manual_seed(seed)
    tokenizer, base, rng = _tokenizer(), _new_model(), random.Random(1000 + seed)
    _train_base(base, (), random.Random(seed))
    held_out = {}
    for skill in SKILLS:
        drawn = [_batch({skill: 1.0}, (), rng) for _ in range(BATCHES)]
        held_out[skill] = tuple(torch.cat(parts) for parts in zip(*drawn, strict=True))
    for skill in SKILLS:
        _save(trained(base, {skill: 1.0}, seed), tokenizer, folder / skill)
    merges, models = [], []
    for number, shares in enumerate(mixtures(PARTS)):
        listed = [{"model": skill, "parameters": {"weight": share}} for skill, share in shares.items() if share]
        (folder / "merge.yaml").write_text(json.dumps({"merge_method": "linear", "models": listed, "dtype": "float32"}))
        out = merge_config(folder / "merge.yaml", folder / f"merge-{number}")
        merges.append(losses(AutoModelForCausalLM.from_pretrained(out), held_out))
        models.append(losses(trained(base, shares, seed + 1), held_out))
    return {"merges": merges, "models": models}


def correlation(merges: np.ndarray, models: np.ndarray) -> tuple[float, float, float]:
    """Spearman's rank correlation over mixtures, mean over seeds, and its 95 % bootstrap interval over mixtures.

    Both arrays are ``seeds x mixtures``.
    """

    def mean(columns: np.ndarray) -> float:
        pairs = zip(merges[:, columns], models[:, columns], strict=True)
        return float(np.mean([spearmanr(one, other).statistic for one, other in pairs]))

    count, rng = merges.shape[1], np.random.default_rng(0)
    drawn = [mean(rng.integers(0, count, count)) for _ in range(1000)]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return mean(np.arange(count)), float(low), float(high)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", type=Path, help="a JSON file: what was measured is kept there, seed by seed")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    runs = json.loads(given.out.read_text()) if given.out and given.out.exists() else {}
    for seed in range(given.seeds):
        if str(seed) not in runs:
            with tempfile.TemporaryDirectory() as folder:
                runs[str(seed)] = one_seed(seed, Path(folder))
            if given.out:
                given.out.write_text(json.dumps(runs))
    merges, models = (np.array([run[what] for run in runs.values()]) for what in ("merges", "models"))
    print(f"{len(runs)} seeds, {merges.shape[1]} mixtures; rank correlation of merges and trained models (95 %)")
    columns = {**{skill: [index] for index, skill in enumerate(SKILLS)}, "mean of all": list(range(len(SKILLS)))}
    for name, chosen in columns.items():
        value, low, high = correlation(merges[..., chosen].mean(-1), models[..., chosen].mean(-1))
        print(f"loss of {name}: {value:.2f} ({low:.2f} to {high:.2f})")
    best = merges.mean(-1).argmin(1)
    cost = [run[pick] - run.min() for run, pick in zip(models.mean(-1), best, strict=True)]
    spread = [run.max() - run.min() for run in models.mean(-1)]
    print(
        "training on the best merge's mixture instead of the best mixture costs "
        f"{np.mean(cost):.3f} nats of {np.mean(spread):.3f} between best and worst"
    )


if __name__ == "__main__":
    main()
