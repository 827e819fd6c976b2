"""A study that is made in an instant, for tests of what happens to one afterwards."""

from __future__ import annotations

import mergefront as mf

NAME = "small"


def small_study(url: str, evaluations: int = 6) -> mf.Study:
    """The study ``NAME``: created, or continued up to so many evaluations."""
    return mf.search(
        space=mf.MergeSpace(["a", "b"], method="ties"),
        evaluate=lambda recipe: float(recipe.params["weight[a]"]),
        objectives=["score"],
        sampler="random",
        evaluations=evaluations,
        storage=url,
        name=NAME,
    )
