"""Evo-Merging against its relatives on a pool of LoRAs:  python -m benchmarks.lora_pool

Trains the pool (a minute), runs every procedure with every seed, keeps each finished run in the cache (so that an
interrupted benchmark continues), and writes its part of docs/benchmarks/lora-pools.md. ``--table`` only writes what
is there.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.lora_pool.merged_model import MergedModel
from benchmarks.lora_pool.pool import PoolPlan, load_pool
from benchmarks.lora_pool.procedures import PROCEDURES, Run, run
from benchmarks.lora_pool.report import DOCS, write_report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lora_pool", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--size", type=int, default=20, help="LoRAs in the pool")
    parser.add_argument("--pool-seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "lora_pool")
    parser.add_argument("--out", type=Path, default=DOCS, help="a page that has the marks of this part")
    parser.add_argument("--table", action="store_true", help="write the table of the finished runs only")
    arguments = parser.parse_args()
    plan = PoolPlan(seed=arguments.pool_seed, size=arguments.size)
    pool = load_pool(plan, arguments.cache)
    models = {operator: MergedModel(pool, operator) for operator in ("cat", "factor")}
    kept = arguments.cache / f"runs-{plan.seed}-{plan.size}.jsonl"
    runs = [Run(**json.loads(line)) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(finished.procedure, finished.seed) for finished in runs}
    # The exact operator first, for all seeds: the comparison that matters is there when the benchmark is cut short.
    planned = [
        (seed, procedure)
        for operator in ("cat", "factor")
        for seed in range(arguments.seeds)
        for procedure in PROCEDURES
        if procedure.operator == operator and (procedure.name, seed) not in done
    ]
    for seed, procedure in [] if arguments.table else planned:
        finished = run(procedure, models[procedure.operator], seed)
        runs.append(finished)
        with kept.open("a") as file:
            file.write(json.dumps(finished.to_json()) + "\n")
        print(f"seed {seed}  {procedure.name:28}  {finished.best[-1]:.4f}", flush=True)
    write_report(arguments.out, plan, models["cat"], runs)


if __name__ == "__main__":
    main()
