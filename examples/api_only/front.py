"""Two targets at once: `python front.py` searches for French and German dates and draws their front.

Evo-Merging follows one number, so `preferences` say what each target counts in it. Three preferences find three regions
of the front. The last search begins with what the others found, so that its front is that of all three. Everything is
computed in this process (`upper_blocks.py`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml
from compare import BUILT, CASES, HERE, upper_blocks
from scipy.stats import ttest_rel
from upper_blocks import LOSS

import mergefront as mf
from mergefront.optimizer.recipes.anchors import UNIFORM
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.evaluation import EvaluationRequest
from mergefront.results.plots.front import save_front

TARGETS = ("french", "german")
PREFERENCES = {
    "mostly French": "french=4,german=1",
    "mostly German": "french=1,german=4",
    "both": "french=1,german=1",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--evaluations", type=int, default=34, help="of each search (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", default="front.png", help="where the front is drawn (default: %(default)s)")
    given = parser.parse_args()
    BUILT.mkdir(exist_ok=True)
    scorers = {target: upper_blocks(CASES[target]) for target in TARGETS}
    merge = yaml.safe_load((HERE / "study.yaml").read_text(encoding="utf-8"))["merge"]
    storage = f"sqlite:///{BUILT}/front.db"

    def scores(recipe: Recipe) -> dict[str, float]:
        request = EvaluationRequest((LOSS,))
        return {target: scorer.evaluate(recipe, request).scores[LOSS] for target, scorer in scorers.items()}

    studies: list[mf.Study] = []
    for name, preferences in PREFERENCES.items():
        known = [{"study": study.name, "storage": storage} for study in studies] if name == "both" else []
        study = mf.search(
            space=MergeSpace(
                merge["models"], method=merge["method"], base_model="base", parameters=merge["space"], seed=given.seed
            ),
            evaluate=scores,
            objectives=[{"name": target, "direction": "minimize"} for target in TARGETS],
            name=name,
            sampler="evo-merging",
            sampler_options={"preferences": preferences},
            evaluations=given.evaluations,
            seed=given.seed,
            storage=storage,
            warm_start=known,
            progress=False,
        )
        studies.append(study)
        print(f"{name}: {len(study.candidates())} merges", flush=True)
    last = studies[-1]
    save_front(last, Path(given.picture))
    front = last.front()
    digests = {one.digest for one in front}
    shown = [one for one in last.anchors() if one.digest in digests or one.anchor == UNIFORM]
    compared = {str(one.anchor): one.recipe for one in shown}
    compared |= {f"trial {one.number}": one.recipe for one in front if not one.anchor}
    request = EvaluationRequest((LOSS,), "report")
    for name, recipe in compared.items():
        line = []
        for target, scorer in scorers.items():
            losses, equal = (scorer.evaluate(one, request).items[LOSS].scores for one in (recipe, compared[UNIFORM]))
            p = ttest_rel(losses, equal).pvalue if losses != equal else 1.0
            line.append(f"{target} {sum(losses) / len(losses):.3f} (against the uniform mix p = {p:.2g})")
        print(f"{name}: {', '.join(line)}", flush=True)


if __name__ == "__main__":
    main()
