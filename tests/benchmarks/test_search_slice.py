"""A change that made the default sampler no better than chance on real merges would be seen here, within a minute."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest

from benchmarks.search.peers import PEERS
from benchmarks.search.problems import PROBLEMS
from benchmarks.search.runs import run
from benchmarks.search.tables import between_marks, evaluations_to, median_interval

EVALUATIONS = 24
SEEDS = 3


@pytest.mark.long
def test_the_default_sampler_beats_random_search_on_merges_of_trained_networks(tmp_path: Path) -> None:
    problem = PROBLEMS["residual ties 6-d"](tmp_path)
    reached = {
        name: [
            run(problem, PEERS[name].make(problem, seed), name, seed, EVALUATIONS).hypervolumes[-1]
            for seed in range(SEEDS)
        ]
        for name in ("MM-MO", "random")
    }
    assert mean(reached["MM-MO"]) > mean(reached["random"])
    assert min(reached["MM-MO"]) > min(reached["random"])


def test_what_a_table_says_of_a_run() -> None:
    from benchmarks.search.runs import Run

    finished = Run("p", "s", 0, [0.1, 0.1, 0.3, 0.5], [0.0], 4, "m")
    assert evaluations_to(finished, 0.2) == 3
    assert evaluations_to(finished, 0.6) == float("inf")
    median, low, high = median_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert median == 3.0 and 1.0 <= low < 3.0 < high <= 5.0


def test_what_some_runs_did_not_live_to_see_is_not_held_against_them() -> None:
    """Runs of 30 and of 60 evaluations of one sampler: only the long ones say whether 60 are enough."""
    from benchmarks.search.runs import Run
    from benchmarks.search.tables import longest_runs

    runs = [Run("p", "s", seed, [0.1] * length, [0.0], 1, "m") for seed, length in enumerate((30, 60, 60, 60, 120, 60))]
    chosen, length = longest_runs(runs)
    assert ([run.seed for run in chosen], length) == ([1, 2, 3, 4, 5], 60)
    assert longest_runs(runs[:1]) == (runs[:1], 30)


def test_recorded_runs_come_back_and_local_ones_take_their_place(tmp_path: Path) -> None:
    from benchmarks.search.runs import Run, append, read_all, record

    kept, local = tmp_path / "recorded.jsonl.gz", tmp_path / "runs.jsonl"
    record([Run("p", "s", seed, [0.1, 0.25], [0.3, 0.1, 0.2], 2, "m") for seed in (0, 1)], kept)
    append(local, Run("p", "s", 1, [0.4], [0.1], 1, "m"))
    found = {run.seed: run for run in read_all(local, kept)}
    assert found[0].hypervolumes == [0.1, 0.25] and found[0].ask_seconds == [0.2]
    assert found[1].hypervolumes == [0.4]


def test_other_networks_are_compared_run_by_run() -> None:
    from benchmarks.search.runs import Run
    from benchmarks.search.tables import grouped, paired_table

    def made(network: int, sampler: str, at_30: float) -> Run:
        return Run(f"p, network {network}", sampler, network, [0.1] * 29 + [at_30], [0.0], 30, "m")

    peer = "Optuna GP"
    runs = [made(1, "MM-MO", 0.6), made(1, peer, 0.5), made(2, "MM-MO", 0.3), made(2, peer, 0.5)]
    runs += [made(3, peer, 0.9), made(1, "NSGA-II", 0.1), made(4, "MM-MO", 0.2), made(4, peer, 0.0)]
    rows = paired_table(grouped(runs)).splitlines()[2:]
    assert rows == ["| p | Optuna GP | 1 of 2 | -10.0% ± 30.0 |"]


@pytest.mark.parametrize("objectives", [3, 4])
def test_the_peer_decomposes_fronts_exactly_as_botorch_does(objectives: int) -> None:
    """Otherwise the strongest peer would not be the one that its name says."""
    import torch
    from botorch.utils.multi_objective.box_decompositions.non_dominated import FastNondominatedPartitioning

    from benchmarks.search.botorch_peer import NumpyPartitioning

    reference = torch.full((objectives,), -0.5, dtype=torch.double)
    for count in (0, 1, 8, 25):
        generator = torch.Generator().manual_seed(count)
        values = torch.randn(count, objectives, dtype=torch.double, generator=generator)
        theirs = FastNondominatedPartitioning(reference, values).get_hypercell_bounds()
        assert torch.equal(NumpyPartitioning(reference, values).get_hypercell_bounds(), theirs)


def test_tables_take_the_place_of_the_old_ones_and_nothing_else() -> None:
    text = "a\n<!-- summary -->\nold\n<!-- end of summary -->\nb\n"
    again = between_marks(between_marks(text, "summary", "| new |"), "summary", "| newer |")
    assert again == "a\n<!-- summary -->\n\n| newer |\n\n<!-- end of summary -->\nb\n"
    with pytest.raises(ValueError, match="end of other"):
        between_marks(text, "other", "x")


def test_a_peer_is_not_run_where_it_refuses(tmp_path: Path) -> None:
    """``all`` would end with the first run of a sampler of up to three objectives on a problem of four."""
    three, four = (PROBLEMS[name](tmp_path) for name in ("SmolLM2 written, weights 3-d", "SmolLM2 eight, weights 8-d"))
    assert PEERS["Optuna GP"].takes(three) and not PEERS["Optuna GP"].takes(four)
    assert PEERS["MM-MO"].takes(four)


def test_a_peer_of_two_seeds_is_shown_but_is_not_who_ours_is_measured_against() -> None:
    from benchmarks.search.runs import Run
    from benchmarks.search.tables import front_table, grouped

    reached = {"MM-MO": [1.0, 1.1, 1.2], "BoTorch qLogNEHVI": [1.0, 1.0, 1.0], "Ax": [1.5, 1.5]}
    runs = [
        Run("ties", sampler, seed, [value], [0.1], 1, "here")
        for sampler, values in reached.items()
        for seed, value in enumerate(values)
    ]
    row = front_table(grouped(runs), 1).splitlines()[-1]
    assert row.startswith("| ties (3 seeds) | **1.100** | 1.000 | 1.500 (2) |")
    assert row.endswith("| +10.0% ± 5.8 | +0.0% (+0.0%) |")
