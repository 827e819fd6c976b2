"""What `mergefront check` says of memory and time: where a study's weights will be held, and what a merge will take."""

from __future__ import annotations

from mergefront.adapters.hub.places import Preview
from mergefront.formatting import duration, size
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.anchors import one_of_each_method
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.study.definition import StudyDefinition
from mergefront.study.evaluators import is_mixture, local_pool


def memory_and_time(definition: StudyDefinition, places: Preview) -> list[str]:
    """A line of what is held where and one of what a candidate's merge takes, measured in tenths of a second; none
    where nothing is merged in this process. Only headers of models are read, as ``places`` has them."""
    if definition.evaluator.type != "local" or "engine" in definition.evaluator.backend or is_mixture(definition):
        return []
    import torch

    from mergefront.adapters.merging.forecast import forecast
    from mergefront.adapters.merging.offload.memory import free_memory
    from mergefront.adapters.merging.offload.placement import device_name

    try:
        pool, live = local_pool(definition, places)
    except UserError as error:  # another machine may have the device
        return [f"memory: {error}"]
    recipes = list(one_of_each_method(definition.space))
    by_factors = all(METHODS[recipe.method].lora for recipe in recipes)
    found = forecast(pool, recipes, live.get("cpu", 0), has_files=not places.to_fetch)
    placement, main, holders = found.placement, device_name(pool.device), []
    for name in sorted({main, *live, *(name for name, _ in (*placement.base, *placement.experts))}):
        held = {"the live model": live.get(name, 0), "base": placement.base.get((name, "device"), 0)}
        experts = 0 if by_factors else placement.experts.get((name, "device"), 0)
        held |= {"experts": experts, "tables": found.tables if name == main else 0}
        free = f" ({size(free_memory(torch.device(name)))} free)" if name != "disk" else ""
        parts = [f"{what} ({size(count)})" for what, count in held.items() if count]
        holders += [f"{name}{free} holds {', '.join(parts)}"] if parts else []
    said = f"memory: {'; '.join(holders)}"
    if by_factors:
        return [f"{said}; of LoRAs their factors alone", "merging a candidate: 'mergefront bench' measures it"]
    if on_host := placement.on("host"):
        speed = "" if found.host_speed is None else f" at {size(int(found.host_speed))} a second"
        said += f"; {size(on_host)} are held on the host and copied for every merge{speed}"
    if on_disk := placement.on("disk"):
        speed = "" if found.disk_speed is None else f" at {size(int(found.disk_speed))} a second"
        kept = ", mostly from the system's page cache" if found.is_cached else speed
        said += f"; {size(on_disk)} stay on disk and are read for every merge{kept}"
    foreseen = [
        f"{name} {'under 0.1 s' if seconds < 0.1 else duration(seconds)}"
        for name, seconds in found.seconds.items()
        if seconds is not None
    ]
    unknown = [name for name, seconds in found.seconds.items() if seconds is None]
    time = f"{', '.join(foreseen)}" if foreseen else ""
    if unknown:
        time += ("; " if time else "") + f"{', '.join(unknown)}: 'mergefront bench' measures it"
    return [said, f"merging a candidate: {time}"]
