"""HEBO's optimiser of several objectives (``GeneralBO``) with its defaults, told the same anchors and the same
reference point as the others.

Its pins (numpy below 1.25) are of another time than ours, so ``benchmarks.search.peer_environment`` installs it without
them: its model and its search of the acquisition run as they are.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from benchmarks.search.ax_peer import REFERENCE

Array = NDArray[np.float64]


def propose(points: Array, values: Array, seed: int) -> Array:
    """The next point (``d``) after ``points`` (``n x d``, unit cube) and their ``values`` (``n x m``, maximised).

    It is another one every time: the search of its acquisition takes no ``seed``.
    """
    import pandas
    from hebo.design_space.design_space import DesignSpace
    from hebo.optimizers.general import GeneralBO

    d, m = points.shape[1], values.shape[1]
    names = [f"x{i}" for i in range(d)]
    space = DesignSpace().parse([{"name": name, "type": "num", "lb": 0.0, "ub": 1.0} for name in names])
    optimizer = GeneralBO(space, num_obj=m, rand_sample=1, ref_point=np.full(m, -REFERENCE))
    optimizer.observe_new_data(pandas.DataFrame(points, columns=names), -values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optimizer.suggest(1)
    return np.clip(found[names].to_numpy(dtype=float)[0], 0.0, 1.0)
