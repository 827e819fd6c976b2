"""qPOTS (arXiv 2310.15788) with its released settings, told the same anchors as the others.

It draws a sample of every objective's process, finds that sample's front by NSGA-II, and takes its point farthest from
all known ones. It is GPL, so it is only installed beside the benchmarks (``benchmarks.search.peer_environment``).
"""

from __future__ import annotations

import contextlib
import io
import warnings

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]


def propose(points: Array, values: Array, seed: int) -> Array:
    """The next point (``d``) after ``points`` (``n x d``, unit cube) and their ``values`` (``n x m``, maximised)."""
    from qpots import Acquisition, Function, ModelObject, QPOTSConfig

    (n, d), m = points.shape, values.shape[1]
    bounds = torch.stack([torch.zeros(d), torch.ones(d)]).double()
    # Of a function only the dimension counts: it is never called here.
    function = Function(dim=d, nobj=m, custom_func=lambda x: x, bounds=bounds, device="cpu", dtype=torch.float64)
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = ModelObject(
            torch.from_numpy(points), torch.from_numpy(values), bounds, m, 0, n, device="cpu", dtype=torch.float64
        )
        model.fit_gp()
        acquisition = Acquisition(function, model, device="cpu", dtype=torch.float64)
        found = acquisition.qpots(bounds, seed, **QPOTSConfig().acquisition_options(function))
    return np.asarray(found.reshape(-1, d)[0].numpy())
