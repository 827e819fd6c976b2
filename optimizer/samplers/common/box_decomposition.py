"""The region that a new point can improve, cut into disjoint boxes.

All objectives are maximised. The hypervolume gained by a point y over a front is the sum, over the boxes [lower, upper)
of this decomposition, of prod_j (min(y_j, upper_j) - lower_j)+. The boxes come from local upper bounds, added
one front point at a time: Lacour, Klamroth, Fonseca, "A box decomposition algorithm to compute the hypervolume
indicator", Computers & Operations Research 79, 2017; applied a second time, to the bounds themselves, it
decomposes the region that the front does not dominate. For one front of 10 or 30 points, BoTorch 0.18's
FastNondominatedPartitioning takes 7 to 12 times as long with three and four objectives; with two it takes a fifth, 1 ms
for 5.
"""

from __future__ import annotations

import numpy as np

from mergefront.optimizer.arrays import Array, Integers, Mask


def nondominated_boxes(fronts: Array, reference: Array) -> tuple[Array, Array, Integers]:
    """Boxes ``(lower, upper)``, each ``C x m``, of the regions above ``reference`` (``m``) that each of ``fronts``
    (``S x n x m``) does not dominate, front after front, and the front of each box (``C``).

    A front may hold dominated points and points below the reference; they make no difference. ``upper`` is infinite
    where a box is open. All fronts advance together: 32 fronts of 30 points take a ninth of the time that they take one
    after the other with three objectives, half of it with four.
    """
    count, _, m = fronts.shape
    # A point that no bound is above, which is passed over.
    above = np.where((fronts > reference).all(axis=2, keepdims=True), -fronts, np.inf)
    if m == 1:
        lower = -np.minimum(above.min(axis=1, initial=np.inf), -reference)
        return lower, np.full((count, 1), np.inf), np.arange(count)
    # Minimisation from here on, as in the paper. The local upper bounds are the corners below which a point improves.
    corners, _, owner = _local_upper_bounds(above, -reference)
    # {y < some corner}, mirrored, is what the mirrored corners dominate.
    bounds, defining, owner = _local_upper_bounds(_padded(-corners, owner, count), np.full(m, np.inf))
    lower, upper, filled = _boxes(bounds, defining, np.full(m, np.inf))
    return lower, upper, owner[filled]


def _padded(points: Array, owner: Integers, count: int) -> Array:
    """Points (``U x m``), sorted by front, as ``count x n x m``, with infinite ones at the end of short fronts."""
    sizes = np.bincount(owner, minlength=count)
    place = np.arange(len(owner)) - (np.cumsum(sizes) - sizes)[owner]
    found = np.full((count, sizes.max(), points.shape[1]), np.inf)
    found[owner, place] = points
    return found


def _local_upper_bounds(points: Array, reference: Array) -> tuple[Array, Array, Integers]:
    """Local upper bounds ``U x m`` of each front of ``points`` (``S x n x m``, minimisation), their defining points
    ``U x m x m`` and their fronts (``U``, sorted).

    ``defining[u, k]`` is the point that gives bound u its k-th coordinate; dummies stand for the reference.
    """
    count, _, m = points.shape
    bounds = np.repeat(reference[None, :], count, axis=0)
    defining = np.full((count, m, m), -np.inf)
    defining[:, np.arange(m), np.arange(m)] = reference
    owner = np.arange(count)
    # In lexicographic order a point comes after all that dominate it, and then lies inside no bound.
    order = np.lexsort(np.moveaxis(points, 2, 0)[::-1], axis=1)
    for step in np.moveaxis(np.take_along_axis(points, order[:, :, None], axis=1), 1, 0):
        inside = (step[owner] < bounds).all(axis=1)
        if not inside.any():
            continue
        outside = ~inside
        old_bounds, old_defining, old_owner = bounds[inside], defining[inside], owner[inside]
        new_bounds, new_defining, new_owner = [bounds[outside]], [defining[outside]], [owner[outside]]
        for j in range(m):
            # The new bound is redundant when its j-th coordinate lies below that of another defining point. Equal is
            # kept: the corners of the second pass share coordinates, and the empty boxes that come of it drop out.
            others = old_defining[:, np.arange(m) != j, j].max(axis=1)
            needed = step[old_owner, j] >= others
            child, parents, own = old_bounds[needed], old_defining[needed], old_owner[needed]
            child[:, j] = step[own, j]
            parents[:, j, :] = step[own]
            new_bounds.append(child)
            new_defining.append(parents)
            new_owner.append(own)
        bounds, defining = np.concatenate(new_bounds), np.concatenate(new_defining)
        owner = np.concatenate(new_owner)
    order = np.argsort(owner, kind="stable")
    return bounds[order], defining[order], owner[order]


def _boxes(bounds: Array, defining: Array, reference: Array) -> tuple[Array, Array, Mask]:
    """Disjoint boxes of the region dominated by the points behind ``bounds`` (minimisation), empty ones left out, and
    which bounds (``U``) they are of."""
    lower, upper = np.empty_like(bounds), bounds.copy()
    lower[:, 0], upper[:, 0] = defining[:, 0, 0], reference[0]
    for j in range(1, bounds.shape[1]):
        lower[:, j] = defining[:, :j, j].max(axis=1)
    filled = np.asarray((upper > lower).all(axis=1))
    return lower[filled], upper[filled], filled
