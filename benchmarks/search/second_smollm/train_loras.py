"""Train the experts: ``python -m benchmarks.search.second_smollm.train_loras [SKILL ...]``, after ``make_data``."""

from __future__ import annotations

from collections.abc import Mapping

from train_loras import Plan, train_named

from benchmarks.search.second_smollm import FOLDER

PLANS: Mapping[str, Plan] = {
    "words": Plan(steps=100, learning_rate=5e-4),
    "german": Plan(steps=60, learning_rate=5e-4),
    "sorting": Plan(steps=200, learning_rate=5e-4),
}

if __name__ == "__main__":
    train_named(PLANS, FOLDER)
