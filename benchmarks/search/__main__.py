"""``python -m benchmarks.search run`` makes the runs that are missing, ``record`` keeps them, ``tables`` says in
the documentation what they say.

Runs go to a folder that is not committed, one line each as soon as it is finished; recorded ones count as made.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.search.peers import PEERS
from benchmarks.search.problems import PROBLEMS, on_other_networks
from benchmarks.search.runs import append, read, read_all, record, run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("what", choices=["run", "tables", "record"])
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/search/results"))
    parser.add_argument("--pages", type=Path, default=Path("docs/benchmarks"), help="folder of the pages with tables")
    parser.add_argument("--problems", nargs="*", default=[], help="substrings of names; all without")
    parser.add_argument("--samplers", nargs="*", default=[], help="exact names; all without")
    parser.add_argument("--networks", nargs="*", type=int, default=[0], help="seeds of the networks; 0 is the tables'")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--evaluations", type=int, help="at most that many; each sampler's own limit without")
    parser.add_argument("--again", action="store_true", help="make recorded runs anew, as a changed sampler needs")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after that")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results = arguments.folder / "runs.jsonl"
    if arguments.what == "record":
        record(read_all(results))
        return
    if arguments.what == "tables":
        from benchmarks.search.known_front import known
        from benchmarks.search.tables import write_tables

        fronts = {name: known(make(arguments.folder / "pools")) for name, make in PROBLEMS.items()}
        write_tables(read_all(results), fronts, arguments.pages)
        return
    import torch

    torch.set_num_threads(1)
    started = time.monotonic()
    offered = {
        name: make
        for seed in arguments.networks
        for name, make in (on_other_networks(seed) if seed else PROBLEMS).items()
    }
    problems = [name for name in offered if not arguments.problems or any(p in name for p in arguments.problems)]
    samplers = arguments.samplers or list(PEERS)
    made = {name: offered[name](arguments.folder / "pools") for name in problems}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for problem in problems:
            for sampler in samplers:
                peer = PEERS[sampler]
                if not peer.takes(made[problem]):
                    continue
                evaluations = min(peer.evaluations, arguments.evaluations or peer.evaluations)
                made_before = read(results) if arguments.again else read_all(results)
                done = {(r.problem, r.sampler, r.seed) for r in made_before if len(r.hypervolumes) >= evaluations}
                if (problem, sampler, seed) in done:
                    continue
                if time.monotonic() - started > 60 * arguments.minutes:
                    return
                finished = run(
                    made[problem], peer.make(made[problem], seed), sampler, seed, evaluations,
                    anchors=peer.anchors, workers=peer.workers, constraints=peer.constraints,
                )  # fmt: skip
                append(results, finished)
                marks = " ".join(
                    f"{n}:{finished.hypervolumes[n - 1]:.4f}" for n in (15, 30, 60, 120) if n <= evaluations
                )
                print(f"{problem} | {sampler} | {seed} | {marks} | ask {sum(finished.ask_seconds):.1f} s", flush=True)


if __name__ == "__main__":
    main()
