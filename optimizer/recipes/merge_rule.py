"""What of a merge's arithmetic shows in its coefficients: all that a sampler needs to know about a merge method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sparsifier = Literal["none", "magnitude", "bernoulli"]
"""Which entries are dropped: none, the smallest, or any at random."""


@dataclass(frozen=True)
class MergeRule:
    """How weights and densities enter the merge.

    ``additive`` says that the merge is a combination of task vectors, to which ``sparsifier``, ``signs`` (entries that
    disagree with the elected sign are dropped) and ``rescaled`` (what is dropped is made up for) apply.
    ``used_by`` lists, where the method is searched, the methods that use each parameter that not all of them use.
    ``proportions`` says that it divides by the sum of the weights that took part, and that all of them are searched.
    """

    proportions: bool = False
    additive: bool = False
    sparsifier: Sparsifier = "none"
    signs: bool = False
    rescaled: bool = False
    used_by: tuple[tuple[str, tuple[str, ...]], ...] = ()


UNKNOWN = MergeRule()
"""Nothing is known: coefficients are taken as they are."""
