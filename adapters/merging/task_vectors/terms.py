"""One expert's part in the merge of one tensor.

Ranks come from a table by task vector (counted once), and the L1 norm that a random mask keeps from a
table by density (summed once per seed). After the first candidates a new density
costs a look-up; whoever reads the task vector next makes a rank exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mergefront.adapters.merging.coefficients import TensorMerge
from mergefront.adapters.merging.offload.factored import FactoredDelta
from mergefront.adapters.merging.sources import Entry
from mergefront.adapters.merging.task_vectors.c_kernel import MergeKernel
from mergefront.adapters.merging.task_vectors.fused import counter, multiplies_alike
from mergefront.adapters.merging.task_vectors.fused import kept_norms as measured_norms
from mergefront.adapters.merging.task_vectors.masks import LEVELS, KeptNorms, keep_threshold, mask_key
from mergefront.adapters.merging.task_vectors.ranks import (
    EVERY,
    NONE,
    Bracket,
    Rank,
    RankTable,
    rank_dtype,
    ranks_in_rows,
    select_rank,
)
from mergefront.adapters.merging.task_vectors.task_vector import TaskVector
from mergefront.adapters.merging.task_vectors.torch_kernel import Term, kept_norms
from mergefront.adapters.merging.tensor_pool import TensorPool
from mergefront.optimizer.recipes.methods import MergeMethod, kept_count

Key = tuple[str, str]
"""Names of a tensor and of an expert."""
_SMALLEST_NORM = 1e-7
_CPU = torch.device("cpu")


class TermBuilder:
    """Makes the terms of a pool's experts.

    ``uniform`` gives every expert the method's own mode, also where nothing is dropped, so that one
    compiled kernel serves all recipes. ``kernel`` counts for the tables of ranks where there is one.
    """

    def __init__(self, pool: TensorPool, uniform: bool, kernel: MergeKernel | None) -> None:
        self._pool = pool
        self._kernel = kernel
        self._count = counter(kernel)
        self.uniform = uniform
        self._tables: dict[Key, RankTable] = {}
        self._mask_norms: dict[Key, tuple[tuple[int, int], KeptNorms]] = {}
        self._row_ranks: dict[Key, torch.Tensor] = {}
        self._multiplied: dict[tuple[torch.Size, torch.Size], bool] = {}

    def terms(self, wanted: TensorMerge, models: Sequence[str]) -> list[Term]:
        """The part of each of these experts that does not leave the base as it is."""
        made: list[Term] = []
        for model in models:
            found = self._pool.found(wanted.name, model)
            if isinstance(found, FactoredDelta) and not self._is_multiplied_by_kernel(found):
                found = Entry(found.expand(), True)
            if found is not None:
                made.append(self._term(wanted, model, found))
        return made

    def _is_multiplied_by_kernel(self, factors: FactoredDelta) -> bool:
        """Whether the kernel gets factors, which it multiplies as torch does on this machine, rather than a product."""
        if self._kernel is None:
            return False
        shapes = factors.left.shape, factors.right.shape
        if shapes not in self._multiplied:
            self._multiplied[shapes] = multiplies_alike(self._kernel, factors.in_float32())
        return self._multiplied[shapes]

    def _term(self, wanted: TensorMerge, model: str, found: Entry | FactoredDelta) -> Term:
        key = (wanted.name, model)
        values = wanted.coefficients.of_model(model)
        weight = float(values["weight"])
        delta = TaskVector(found, wanted.origin)
        term = Term(delta.tensor, delta.is_delta, "all", weight, weight, factors=delta.factors)
        if wanted.method.sparsifier == "none":
            return term
        if wanted.method.sparsifier in ("magnitude", "breadcrumbs"):
            term = self._ranked(term, key, delta, values)
        else:
            term = self._random(term, key, delta, values, wanted)
        density = float(values["density"])
        rescale = wanted.coefficients.of_recipe("rescale")
        nothing_dropped = term.mode == "all" or (term.least is EVERY and term.mode == "largest")
        if rescale == "none" or nothing_dropped or density <= 0 or density >= 1:
            return term
        if rescale == "density":
            return term._replace(factor=weight * (1 / density))
        term = settled(term, delta)
        return term._replace(factor=weight * self._norm_ratio(term, key, delta))

    def _ranked(self, term: Term, key: Key, delta: TaskVector, values: dict[str, Any]) -> Term:
        """Keep by rank of magnitude: the largest, or (breadcrumbs) those below the ``gamma`` largest."""
        density = float(values["density"])
        if "gamma" in values:
            kept = min(int(density * delta.size), delta.size)
            dropped = min(int(float(values["gamma"]) * delta.size), delta.size - kept)
        else:
            kept, dropped = kept_count(density, delta.size), 0
        least, least_bracket = self._rank(key, delta, dropped + kept) if kept else (NONE, None)
        if "gamma" in values:
            above, above_bracket = self._rank(key, delta, dropped) if dropped and kept else (NONE, None)
            term = term._replace(mode="window", above=above, above_bracket=above_bracket)
        elif least is not EVERY or self.uniform:
            term = term._replace(mode="largest")
        return term._replace(least=least, least_bracket=least_bracket)

    def _random(self, term: Term, key: Key, delta: TaskVector, values: dict[str, Any], wanted: TensorMerge) -> Term:
        """Keep at random: every entry alike (DARE), or large ones more often within their row (DELLA)."""
        density = float(values["density"])
        threshold = keep_threshold(density)
        if threshold == LEVELS and not self.uniform:
            return term
        term = term._replace(mode="random", keys=mask_key(wanted.coefficients.seed, *key), threshold=threshold)
        if wanted.method.sparsifier == "bernoulli" or threshold in (0, LEVELS):
            return term
        epsilon = min(float(values["epsilon"]), 0.999 * density, 0.999 * (1 - density))
        row = delta.shape[1] if len(delta.shape) > 1 else delta.size
        start, slope = (density - epsilon, 2 * epsilon / (row - 1)) if row > 1 else (density, 0.0)
        ranks = self._row_ranks.get(key)
        if ranks is None:
            ranks = ranks_in_rows(delta)
            if self._pool.keeps(ranks.device, ranks.nbytes):
                self._row_ranks[key] = ranks
        return term._replace(mode="ranked", row_ranks=ranks, start=start * LEVELS, slope=slope * LEVELS)

    def _norm_ratio(self, term: Term, key: Key, delta: TaskVector) -> float:
        """L1 norm of the task vector over that of what is kept of it; 1 where either vanishes."""
        if term.factors is not None and self._kernel is not None:
            ((whole, kept),) = measured_norms(self._kernel, [term], delta.base)
            if term.mode == "random" and delta.size > LEVELS:
                whole, kept = float(np.float32(whole)), float(np.float32(kept))  # the digits of a table's sums
        elif term.mode != "random":
            whole, kept = kept_norms(term, delta)
        else:
            keys, norms = self._mask_norms.get(key, (None, None))
            if norms is None or keys != term.keys:
                norms = KeptNorms(delta, term.keys)
                if keys is not None or self._pool.keeps(_CPU, KeptNorms.bytes_of(delta.size)):
                    self._mask_norms[key] = term.keys, norms
            whole, kept = norms.whole, norms.below(term.threshold)
        return 1.0 if min(whole, kept) < _SMALLEST_NORM else whole / kept

    def _rank(self, key: Key, delta: TaskVector, k: int) -> tuple[Rank, Bracket | None]:
        """The k-th largest magnitude of a task vector, or a guess and the bracket in which it is."""
        if k == delta.size:
            return EVERY, None
        table = self._tables.get(key)
        if table is None:
            table = self._tables[key] = RankTable(delta, self._count)
        return table.find(k)


def settled(term: Term, delta: TaskVector) -> Term:
    """The term with its ranks made exact, in a pass over its task vector for each."""
    if term.least_bracket is not None:
        term = term._replace(least=select_rank(delta, term.least_bracket), least_bracket=None)
    if term.above_bracket is not None:
        term = term._replace(above=select_rank(delta, term.above_bracket), above_bracket=None)
    return term


def table_bytes(method: MergeMethod, shape: tuple[int, ...], is_factored: bool) -> int:
    """Bytes of what is kept of one task vector for candidates to come; of a product of factors ``is_factored``."""
    size = math.prod(shape)
    if method.sparsifier in ("magnitude", "breadcrumbs"):
        return RankTable.bytes_of(size, is_factored)
    if method.sparsifier == "bernoulli":
        return 0 if is_factored else KeptNorms.bytes_of(size)
    row = shape[1] if len(shape) > 1 else size
    return size * rank_dtype(row).itemsize if method.sparsifier == "rank" else 0
