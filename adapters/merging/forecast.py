"""Before anything is loaded: where a pool's weights will be held, and how long a candidate's merge will take.

A merge takes as long as its arithmetic, or as what it streams, whichever is longer: one is done while the other is. On
a CPU arithmetic is measured by the engine itself on tensors made for it; an accelerator is taken to be as fast as its
memory. Methods that decompose matrices take what their shapes take, and have no forecast.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from mergefront.adapters.merging.engine import MergeEngine
from mergefront.adapters.merging.offload.memory import free_memory
from mergefront.adapters.merging.offload.placement import BASE, TIERS, Placement
from mergefront.adapters.merging.offload.speeds import copy_speed, read_speed, transfer_speed
from mergefront.adapters.merging.task_vectors.terms import table_bytes
from mergefront.adapters.merging.tensor_pool import TensorPool
from mergefront.optimizer.recipes.methods import METHODS, MergeMethod
from mergefront.optimizer.recipes.recipe import Recipe

_ROWS, _COLUMNS = 1 << 11, 1 << 10
"""Of the matrix that is merged to measure: with its experts larger than a processor's cache."""
_CPU = torch.device("cpu")
_NAME = "model.layers.0.mlp.up_proj.weight"


@dataclass(frozen=True)
class MergeForecast:
    """Where weights will be held; bytes of the tables that methods keep; bytes a second that are streamed from the
    host's memory and from disk (None: not measured); whether the system's page cache has room for what comes from disk;
    seconds of a candidate by method (None: not foreseen)."""

    placement: Placement
    tables: int
    host_speed: float | None
    disk_speed: float | None
    is_cached: bool
    seconds: dict[str, float | None]


def forecast(pool: TensorPool, recipes: Iterable[Recipe], live: int, has_files: bool = True) -> MergeForecast:
    """What merges of a pool, of which nothing is loaded yet, will take; one recipe of each method.

    ``live`` has the bytes of the live model, which is not loaded either; without ``has_files`` the weights are not on
    this machine yet, and their disk is not measured.
    """
    chosen = {recipe.method: recipe for recipe in recipes}
    placement, device = pool.placement, pool.device
    from_host, from_disk = placement.on("host"), placement.on("disk")
    host_speed = transfer_speed(device) if from_host else None
    file = pool.largest_file() if from_disk and has_files else None
    disk_speed = None if file is None else read_speed(file)
    held_here = placement.on("device") + live if device.type == "cpu" else from_host
    is_cached = from_disk < free_memory(_CPU) - held_here
    streaming = from_host / host_speed if host_speed else 0.0
    if from_disk and (is_cached or disk_speed):
        streaming += from_disk / (copy_speed(_CPU) if is_cached or disk_speed is None else disk_speed)
    seconds: dict[str, float | None] = {}
    for name, recipe in chosen.items():
        arithmetic = _arithmetic(pool, METHODS[name], recipe)
        seconds[name] = None if arithmetic is None else max(arithmetic, streaming)
    kept = [(pool.shape(name), pool.is_factored(name, owner)) for name, owner in placement.tiers if owner != BASE]
    tables = sum(table_bytes(METHODS[name], *one) for name in chosen for one in kept)
    return MergeForecast(placement, tables, host_speed, disk_speed, is_cached, seconds)


def _arithmetic(pool: TensorPool, method: MergeMethod, recipe: Recipe) -> float | None:
    """Seconds of a later candidate whose tensors are all held."""
    if method.of_matrices or method.matrix_wise or method.lora is not None:
        return None
    if pool.device.type != "cpu":
        return sum(pool.placement.on(tier) for tier in TIERS) / copy_speed(pool.device)
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if pool.placement.of_base() < 3 * pool.size else torch.float32
    base = torch.randn(_ROWS, _COLUMNS, generator=generator)
    experts = {name: {_NAME: (base + 0.1 * base.roll(at)).to(dtype)} for at, name in enumerate(recipe.models, 1)}
    engine = MergeEngine({_NAME: base.to(dtype)}, experts, resident=True, check=False)
    live, took = {_NAME: torch.empty_like(base)}, []
    for _ in range(3):  # the first candidate makes tables
        engine.forget()
        begun = time.perf_counter()
        engine.merge_into(recipe, live)
        took.append(time.perf_counter() - begun)
    return min(took[1:]) / base.numel() * pool.size
