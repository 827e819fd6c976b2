"""How far a merge goes along each expert's task vector, as its coefficients alone tell.

Of task vectors tau_m whose entries are independent standard normal numbers, merged by a ``MergeRule`` with weights w
and densities d, the projections

    a_m(w, d) = <merged, tau_m> / <tau_m, tau_m>

are a function of the coefficients that needs no model. They say most of what a score depends on: two recipes that go
equally far along every task vector score alike, whatever mixture of weight, density and elected signs did it.
Trained task vectors are neither normal nor independent; projections of the real ones were measured to predict scores
little better than these (``docs/benchmarks/search-pieces.md``).

    n    points          e    experts of one scope          K    entries, the same for every point
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from mergefront.optimizer.arrays import Array
from mergefront.optimizer.recipes.merge_rule import MergeRule
from mergefront.optimizer.samplers.common.initial_design import scrambled_sobol

ENTRIES = 512
"""A power of two, as Sobol points want; chosen by hand. 3000 real entries predict little better."""
DROP_WIDTH = 0.05
"""An entry is dropped gradually over this much of the density, and its sign elected gradually over ``SIGN_WIDTH`` of a
standard deviation, so that an optimiser of the acquisition finds slopes. Both widths were chosen by hand."""
SIGN_WIDTH = 0.05
SMALLEST_SUM = 0.02
"""Added to the sum of the weights that took part (the largest is 1): a merge of nothing is the base. By hand."""
CHUNK = 2_000_000
"""Numbers in the largest array of a turn; more points than fit are evaluated in turns."""
CACHED = 50_000
"""Numbers in an array of few points at a time: what fits in a processor's cache is computed up to four times as fast,
to the same digits."""

Slopes = Callable[[Array], tuple[Array, Array]]


def projections(rule: MergeRule, weights: Array, densities: Array) -> Array:
    """a (``n x e``) for weights (``n x e``, 0 to 1) and densities (``n x e``, 0 to 1)."""
    if rule.sparsifier == "none" and not rule.signs:
        return weights / (weights.sum(axis=1, keepdims=True) + SMALLEST_SUM) if rule.proportions else weights
    step = max(1, CHUNK // (ENTRIES * weights.shape[1]))
    parts = [_sampled(rule, weights[i : i + step], densities[i : i + step]) for i in range(0, len(weights), step)]
    return np.concatenate(parts) if parts else weights


def _sampled(rule: MergeRule, weights: Array, densities: Array) -> Array:
    known = _entries(weights.shape[1], rule.sparsifier == "bernoulli")
    step = max(1, CACHED // (ENTRIES * weights.shape[1]))
    parts = [_merged(rule, known, weights[i : i + step], densities[i : i + step]) for i in range(0, len(weights), step)]
    # One product for all points, whatever the cache holds: products of fewer rows may round otherwise.
    return np.asarray(np.concatenate(parts) @ known.values.T / known.squares)


def _merged(rule: MergeRule, known: _Entries, weights: Array, densities: Array) -> Array:
    """The merged entries (``n x K``)."""
    entries = known.values
    kept = np.clip((densities[:, :, None] - known.quantiles) / DROP_WIDTH + 0.5, 0.0, 1.0)  # n x e x K
    if rule.rescaled:
        kept /= np.maximum(densities[:, :, None], DROP_WIDTH)
    shares = weights[:, :, None] * kept
    if rule.signs:
        total = (shares * entries).sum(axis=1)
        elected = total / np.sqrt(total**2 + SIGN_WIDTH**2)  # n x K
        shares *= 0.5 * (1.0 + elected[:, None, :] * known.signs)
    merged = (shares * entries).sum(axis=1)
    if rule.proportions:
        merged /= shares.sum(axis=1) + SMALLEST_SUM
    return np.asarray(merged)


def projections_and_slopes(rule: MergeRule, weights: Array, densities: Array) -> tuple[Array, Slopes]:
    """a (``e``) at one point, and its slopes there, for a rule that drops entries or elects signs.

    The slopes are a function of the factors (``r x e``) of ``r`` sums of a: of these sums in the weights (``e``) and in
    the densities (``e``), each ``r x e``.
    """
    known = _entries(len(weights), rule.sparsifier == "bernoulli")
    entries, signs = known.values, known.signs
    place = (densities[:, None] - known.quantiles) / DROP_WIDTH + 0.5
    kept = np.clip(place, 0.0, 1.0)  # e x K
    kept_slope = (kept == place) / DROP_WIDTH
    if rule.rescaled:
        divisor = np.maximum(densities[:, None], DROP_WIDTH)
        kept /= divisor
        kept_slope = (kept_slope - kept * (densities[:, None] > DROP_WIDTH)) / divisor
    shares = weights[:, None] * kept
    along_entries = shares * entries
    # d merged / d shares: an expert's own entry, and what its entry does to the elected sign of all.
    if rule.signs:
        total = along_entries.sum(axis=0)
        root = np.sqrt(total**2 + SIGN_WIDTH**2)
        agreeing = 0.5 * (1.0 + total / root * signs)
        to_total = 0.5 * SIGN_WIDTH**2 / root**3  # K: half of d elected / d total
        merged = (along_entries * agreeing).sum(axis=0)
        slope = entries * (agreeing + (along_entries * signs).sum(axis=0) * to_total)
    else:
        agreeing = np.ones_like(entries)
        to_total = np.zeros(ENTRIES)
        merged = along_entries.sum(axis=0)
        slope = entries
    if rule.proportions:
        taken = (shares * agreeing).sum(axis=0) + SMALLEST_SUM
        merged /= taken
        elected_taken = (shares * signs).sum(axis=0) * to_total
        slope = (slope - merged * (agreeing + entries * elected_taken)) / taken

    def slopes(along: Array) -> tuple[Array, Array]:
        by_entry = (along / known.squares) @ entries  # r x K
        in_kept = by_entry @ (slope * kept_slope).T
        return by_entry @ (slope * kept).T, in_kept * weights

    return np.asarray(entries @ merged / known.squares), slopes


@dataclass(frozen=True)
class _Entries:
    """Task vectors' entries, and where in the order of dropping each stands, from 0 (dropped last) to 1: ``e x K``."""

    values: Array
    quantiles: Array
    signs: Array
    squares: Array
    """<tau_m, tau_m> (``e``)."""


@functools.cache
def _entries(experts: int, at_random: bool) -> _Entries:
    columns = 2 * experts if at_random else experts
    uniform = scrambled_sobol(columns, 0).random(ENTRIES).T
    entries = ndtri(np.clip(uniform[:experts], 1e-9, 1.0 - 1e-9))
    quantiles = uniform[experts:] if at_random else 2.0 * ndtr(-np.abs(entries))
    return _Entries(entries, quantiles, np.sign(entries), (entries**2).sum(axis=1))
