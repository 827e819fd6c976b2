"""The pictures of docs/explanation/search.md: ``python tools/draw_search.py``.

The real sampler on two analytic scores of two weights, so that a whole search fits into one square.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import optuna

from mergefront.optimizer import MMMOSampler
from mergefront.optimizer.samplers.gaussian_process.fit import fit_surrogate
from mergefront.optimizer.samplers.mmmo.acquisition import HypervolumeImprovement

matplotlib.use("Agg")
from matplotlib import pyplot

OUT = Path(__file__).parents[1] / "docs" / "images" / "search"
ANCHORS = {"base": (0, 0), "maths": (1, 0), "French": (0, 1), "average": (0.5, 0.5), "sum at 0.3": (0.3, 0.3)}
REFERENCE = np.array([-0.1, -0.1])
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#777777"
EVALUATIONS = 24


def scores(weights: np.ndarray) -> np.ndarray:
    """Maths and French of merges (``n x 2``): each expert's skill fades where the other one weighs much."""
    maths, french = weights[:, 0], weights[:, 1]
    first = np.exp(-((maths - 0.85) ** 2) / 0.25) * (1 - 0.6 * french**2)
    second = np.exp(-((french - 0.75) ** 2) / 0.3) * (1 - 0.5 * maths**2)
    return np.stack([first, second], axis=1)


def searched() -> tuple[np.ndarray, np.ndarray]:
    """The points of a search in their order, and their scores normalised by the anchors."""
    space = {name: optuna.distributions.FloatDistribution(0, 1) for name in ("weight[maths]", "weight[french]")}
    anchors = [dict(zip(space, map(float, point), strict=True)) for point in ANCHORS.values()]
    study = optuna.create_study(
        directions=["maximize"] * 2, sampler=MMMOSampler(seed=0, search_space=space, anchors=anchors)
    )
    study.optimize(
        lambda trial: tuple(scores(np.array([[trial.suggest_float(n, 0, 1) for n in space]]))[0]), n_trials=EVALUATIONS
    )
    points = np.array([[trial.params[name] for name in space] for trial in study.trials])
    values = scores(points)
    known = values[: len(ANCHORS)]
    return points, (values - known.min(axis=0)) / (known.max(axis=0) - known.min(axis=0))


def front(values: np.ndarray) -> np.ndarray:
    """Which rows no other row dominates."""
    beaten = [bool(((values >= row).all(axis=1) & (values > row).any(axis=1)).any()) for row in values]
    return ~np.array(beaten)


def square(axes, title: str) -> None:
    axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), xlabel="weight of maths", ylabel="weight of French", title=title)
    axes.set_aspect("equal")


def plane(axes, title: str) -> None:
    axes.set(xlim=(-0.15, 1.35), ylim=(-0.15, 1.35), xlabel="maths, normalised", ylabel="French, normalised")
    axes.set_title(title)
    axes.plot(*REFERENCE, marker="x", color=GREY, markersize=8, clip_on=False)
    axes.annotate("reference point", REFERENCE, (6, 4), textcoords="offset points", color=GREY, fontsize=8)
    axes.set_aspect("equal")


def staircase(axes, values: np.ndarray, color: str) -> None:
    """The front as a staircase, and the area between it and the reference point: its hypervolume."""
    best = values[front(values)]
    best = best[np.argsort(best[:, 0])]
    xs = np.concatenate([[REFERENCE[0]], np.repeat(best[:, 0], 2)])
    ys = np.concatenate([np.repeat(best[:, 1], 2), [REFERENCE[1]]])
    axes.fill_between(xs, REFERENCE[1], ys, color=color, alpha=0.15, linewidth=0)
    axes.plot(xs, ys, color=color, linewidth=1.2)


def pair(name: str, draw) -> None:
    figure, axes = pyplot.subplots(1, 2, figsize=(8.2, 4), layout="constrained")
    draw(*axes)
    figure.savefig(OUT / f"{name}.png", dpi=110)
    pyplot.close(figure)
    print(OUT / f"{name}.png")


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    pyplot.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    points, values = searched()
    first, seen = len(ANCHORS), len(ANCHORS) + 4
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 61), np.linspace(0, 1, 61)), axis=-1)
    surrogate = fit_surrogate(points[:seen], values[:seen], np.full((seen, 2), np.nan), unexplained="noise")
    mean, variance = (part.reshape(61, 61, 2) for part in surrogate.posterior(grid.reshape(-1, 2)))
    acquisition = HypervolumeImprovement(
        surrogate, np.zeros((0, 2)), REFERENCE, np.zeros((0, 2)), np.random.default_rng(0).normal(size=(32, seen, 2))
    )
    improvement = acquisition.values(grid.reshape(-1, 2)).reshape(61, 61)

    def anchors(left, right) -> None:
        square(left, "five anchors, before anything else")
        plane(right, "their scores set the scale: 0 to 1")
        for axes, where in ((left, points), (right, values)):
            axes.scatter(*where[:first].T, color=ORANGE, zorder=3)
            for name, point in zip(ANCHORS, where, strict=False):
                axes.annotate(name, point, (6, 4), textcoords="offset points", fontsize=8)
        staircase(right, values[:first], ORANGE)

    def model(left, right) -> None:
        square(left, f"maths, as predicted after {seen} trials")
        shown = left.contourf(grid[..., 0], grid[..., 1], mean[..., 0], levels=12, cmap="cividis")
        left.figure.colorbar(shown, ax=left, shrink=0.75)
        square(right, "how uncertain that is (standard deviation)")
        shown = right.contourf(grid[..., 0], grid[..., 1], variance[..., 0] ** 0.5, levels=12, cmap="cividis")
        right.figure.colorbar(shown, ax=right, shrink=0.75)
        for axes in (left, right):
            axes.scatter(*points[:seen].T, color="white", edgecolor="black", s=28, zorder=3)

    def choice(left, right) -> None:
        square(left, "log of the expected gain in hypervolume")
        low = float(np.quantile(improvement, 0.25))
        shown = left.contourf(
            grid[..., 0], grid[..., 1], np.maximum(improvement, low), levels=14, cmap="cividis", extend="min"
        )
        left.figure.colorbar(shown, ax=left, shrink=0.75)
        left.scatter(*points[:seen].T, color="white", edgecolor="black", s=28, zorder=3)
        left.scatter(*points[seen], marker="*", s=190, color=ORANGE, edgecolor="black", zorder=4)
        left.annotate("next trial", points[seen], (9, 7), textcoords="offset points", color="white", fontsize=9)
        plane(right, "what the next trial adds to the front")
        staircase(right, values[: seen + 1], ORANGE)
        staircase(right, values[:seen], BLUE)
        right.scatter(*values[:seen].T, color=BLUE, s=20, zorder=3)
        right.scatter(*values[seen], marker="*", s=190, color=ORANGE, edgecolor="black", zorder=4)

    def result(left, right) -> None:
        square(left, f"all {EVALUATIONS} trials")
        plane(right, "the front, and what is suggested")
        on_front = front(values)
        for axes, where in ((left, points), (right, values)):
            axes.scatter(*where[~on_front].T, color=GREY, s=18)
            axes.scatter(*where[on_front].T, color=BLUE, s=28, zorder=3)
            axes.scatter(*where[:first].T, facecolor="none", edgecolor=ORANGE, s=60, zorder=4)
        suggested = int(np.argmax(np.where(on_front, values.min(axis=1), -np.inf)))
        staircase(right, values, BLUE)
        for axes, where in ((left, points), (right, values)):
            axes.scatter(*where[suggested], marker="D", color=BLUE, edgecolor="black", s=70, zorder=5)

    pair("1-anchors", anchors)
    pair("2-model", model)
    pair("3-choice", choice)
    pair("4-front", result)


if __name__ == "__main__":
    main()
