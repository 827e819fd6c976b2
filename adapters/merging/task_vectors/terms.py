"""One expert's part in the merge of one tensor, with what it costs to know it kept for the next candidate.

Ranks come from the order of a task vector's magnitudes (sorted once), the L1 norm that a random mask
keeps from a table by density (summed once per seed): after the first candidates a new density costs
a look-up. Nothing is kept when the pool streams, and no order where memory is short.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from mergefront.adapters.merging.coefficients import Coefficients
from mergefront.adapters.merging.memory import free_memory
from mergefront.adapters.merging.sources import Entry
from mergefront.adapters.merging.task_vectors.masks import LEVELS, KeptNorms, keep_threshold, mask_key
from mergefront.adapters.merging.task_vectors.ranks import (
    EVERY,
    NONE,
    DeltaChunk,
    Rank,
    kept_count,
    rank_in_order,
    ranks_in_rows,
    select_rank,
    sort_magnitudes,
)
from mergefront.adapters.merging.task_vectors.torch_kernel import Mode, Term, kept_norms
from mergefront.adapters.merging.tensor_pool import TensorPool
from mergefront.optimizer.recipes.methods import MergeMethod

if TYPE_CHECKING:
    import torch

_SMALLEST_NORM = 1e-7
_SORTING_BYTES, _SORTING_BYTES_ON_GPU = 28, 40
"""Per entry: keys and indices while sorting, of which an index of four bytes stays."""


class TermBuilder:
    """Makes the terms of a pool's experts.

    ``uniform`` gives every expert the method's own mode, also where nothing is dropped, so that one
    compiled kernel serves all recipes. ``room`` says whether so many more bytes may be taken (default: while half
    of what was free at first stays free); where they may not, ranks are found anew for every candidate, in three
    passes over the task vector.
    """

    def __init__(self, pool: TensorPool, uniform: bool, room: Callable[[int], bool] | None = None) -> None:
        self._pool = pool
        self._room = room
        self.uniform = uniform
        self._orders: dict[tuple[str, str], torch.Tensor] = {}
        self._ranks: dict[tuple[str, str, int], Rank] = {}
        self._mask_norms: dict[tuple[str, str], tuple[tuple[int, int], KeptNorms]] = {}
        self._row_ranks: dict[tuple[str, str], torch.Tensor] = {}

    def term(
        self, name: str, method: MergeMethod, coefficients: Coefficients, model: str, base: torch.Tensor
    ) -> Term | None:
        """One expert's part, or None when it leaves the base as it is."""
        entry = self._pool.entry(name, model)
        if entry is None:
            return None
        place = coefficients.models.index(model)
        weight = float(coefficients.of_models("weight")[place])
        tensor = entry.tensor.view(-1)
        size = tensor.numel()
        if method.sparsifier == "none":
            return Term(tensor, entry.is_delta, "all", weight, weight)
        density = float(coefficients.of_models("density")[place])
        delta = _delta_of(entry, base)
        if method.sparsifier in ("magnitude", "breadcrumbs"):
            term = self._ranked_term(name, method, coefficients, entry, delta, weight, density, place)
        else:
            term = self._random_term(name, method, coefficients, entry, delta, weight, density, place)
        rescale = coefficients.of_recipe("rescale")
        nothing_dropped = term.mode == "all" or (term.least is EVERY and term.mode == "largest")
        if rescale == "none" or nothing_dropped or density <= 0 or density >= 1:
            return term
        factor = 1 / density if rescale == "density" else self._norm_ratio(name, model, term, delta, size)
        return term._replace(factor=weight * factor)

    def _ranked_term(
        self,
        name: str,
        method: MergeMethod,
        coefficients: Coefficients,
        entry: Entry,
        delta: DeltaChunk,
        weight: float,
        density: float,
        place: int,
    ) -> Term:
        """Keep by rank of magnitude: the largest, or (breadcrumbs) those below the ``gamma`` largest."""
        tensor, model = entry.tensor.view(-1), coefficients.models[place]
        size = tensor.numel()
        kept = kept_count(density, size) if method.sparsifier == "magnitude" else min(int(density * size), size)
        dropped = 0
        if method.sparsifier == "breadcrumbs" and density < 1:
            gamma = float(coefficients.of_models("gamma")[place])
            dropped = min(int(gamma * size), size - kept)
        least = (
            NONE
            if kept == 0
            else EVERY
            if dropped + kept == size
            else self._rank(name, model, delta, size, dropped + kept)
        )
        above = self._rank(name, model, delta, size, dropped) if dropped and kept else NONE
        if method.sparsifier == "magnitude":
            mode: Mode = "all" if least is EVERY and not self.uniform else "largest"
        else:
            mode = "window"
        return Term(tensor, entry.is_delta, mode, weight, weight, least, above)

    def _random_term(
        self,
        name: str,
        method: MergeMethod,
        coefficients: Coefficients,
        entry: Entry,
        delta: DeltaChunk,
        weight: float,
        density: float,
        place: int,
    ) -> Term:
        """Keep at random: every entry alike (DARE), or large ones more often within their row (DELLA)."""
        tensor, model = entry.tensor.view(-1), coefficients.models[place]
        keys = mask_key(coefficients.seed, name, model)
        threshold = keep_threshold(density)
        if threshold == LEVELS and not self.uniform:
            return Term(tensor, entry.is_delta, "all", weight, weight)
        if method.sparsifier == "bernoulli" or threshold in (0, LEVELS):
            return Term(tensor, entry.is_delta, "random", weight, weight, keys=keys, threshold=threshold)
        epsilon = min(float(coefficients.of_models("epsilon")[place]), 0.999 * density, 0.999 * (1 - density))
        row = entry.tensor.shape[1] if entry.tensor.dim() > 1 else tensor.numel()
        start, slope = (density - epsilon, 2 * epsilon / (row - 1)) if row > 1 else (density, 0.0)
        if (name, model) not in self._row_ranks or not self._pool.resident:
            self._row_ranks[name, model] = ranks_in_rows(delta, entry.tensor.shape)
        ranks = self._row_ranks[name, model] if self._pool.resident else self._row_ranks.pop((name, model))
        return Term(
            tensor,
            entry.is_delta,
            "ranked",
            weight,
            weight,
            keys=keys,
            row_ranks=ranks,
            start=start * LEVELS,
            slope=slope * LEVELS,
        )

    def _norm_ratio(self, name: str, model: str, term: Term, delta: DeltaChunk, size: int) -> float:
        """L1 norm of the task vector over that of what is kept of it; 1 where either vanishes."""
        if term.mode != "random" or not self._pool.resident:
            whole, kept = kept_norms(term, delta, size)
        else:
            keys, norms = self._mask_norms.get((name, model), (None, None))
            if norms is None or keys != term.keys:
                norms = KeptNorms(delta, size, term.keys)
                self._mask_norms[name, model] = term.keys, norms
            whole, kept = norms.whole, norms.below(term.threshold)
        return 1.0 if min(whole, kept) < _SMALLEST_NORM else whole / kept

    def _rank(self, name: str, model: str, delta: DeltaChunk, size: int, k: int) -> Rank:
        """The k-th largest magnitude of a task vector: from its order, sorted once, or by selection when streaming."""
        known = self._ranks.get((name, model, k))
        if known is not None:
            return known
        needed = size * (_SORTING_BYTES if self._pool.device.type == "cpu" else _SORTING_BYTES_ON_GPU)
        if self._pool.resident and (name, model) not in self._orders and self._has_room(needed):
            self._orders[name, model] = sort_magnitudes(delta, size, self._pool.device)
        order = self._orders.get((name, model))
        rank = select_rank(delta, size, k) if order is None else rank_in_order(order, delta, k)
        if self._pool.resident:
            self._ranks[name, model, k] = rank
        return rank

    def _has_room(self, needed: int) -> bool:
        if self._room is not None:
            return self._room(needed)
        return free_memory(self._pool.device) - needed > self._stays_free

    @cached_property
    def _stays_free(self) -> int:
        return free_memory(self._pool.device) // 2


def _delta_of(entry: Entry, base: torch.Tensor) -> DeltaChunk:
    flat, origin = entry.tensor.view(-1), base.view(-1)
    if entry.is_delta:
        return lambda start, end: flat[start:end].float()
    return lambda start, end: flat[start:end].float() - origin[start:end].float()
