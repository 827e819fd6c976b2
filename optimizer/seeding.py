"""Random numbers that depend on what they are for, never on what was drawn before.

Every random decision derives its seed from (seed, trial number, purpose), so that a search which
was interrupted and resumed, or whose workers finish in another order, draws the same numbers.
"""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *parts: int | str) -> int:
    """A seed in [0, 2^63) for one purpose; equal arguments give equal seeds on every machine.

    ``parts`` are integers and strings that name the purpose, such as a trial number and "sobol".
    """
    digest = hashlib.sha256(repr((int(seed), *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
