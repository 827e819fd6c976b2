"""A model whose layers lie on several accelerators, in the host's memory and on disk.

accelerate decides which layer lies where and, where there is an accelerator, moves inputs and weights to it. On disk
are tensors of memory-mapped files without a name (in the folder for temporary files), which the system reads and writes
as they are used: for torch they are tensors of the CPU, so that merges are written into them as into any other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergefront.adapters.local.devices.usable import Devices
from mergefront.optimizer.errors import UserError

if TYPE_CHECKING:
    import torch

_SHARE = 0.8
"""Of an accelerator's free memory: the live model's, where nothing bounds it."""
LayerMap = Mapping[str, int | str]
"""By a module's name ("": all) an accelerator's number, ``cpu`` or ``disk``."""


def layer_map(model: Any, devices: Devices, limits: Mapping[str, int], dtype: torch.dtype) -> LayerMap:
    """Where the modules of a model (on the meta device) lie, by the bytes that each device may hold.

    Raises ``UserError`` where the devices cannot hold it and nothing else may, or without accelerate.
    """
    import torch

    from mergefront.adapters.merging.offload.memory import free_memory
    from mergefront.adapters.merging.offload.placement import device_name

    try:
        from accelerate import infer_auto_device_map  # type: ignore[import-untyped]
    except ImportError:
        raise UserError("several devices need accelerate; install it with: pip install accelerate") from None
    room: dict[int | str, int] = {}
    for device in devices.all if devices.main.type != "cpu" else ():
        room[device.index or 0] = limits.get(device_name(device), int(_SHARE * free_memory(device)))
    if devices.offloads:
        room["cpu"] = limits.get("cpu", free_memory(torch.device("cpu")) // 2)
    model.tie_weights()
    whole = getattr(model, "_no_split_modules", None)
    made = dict(infer_auto_device_map(model, room, no_split_module_classes=list(whole or []), dtype=dtype))
    if not devices.offloads and {"cpu", "disk"} & set(made.values()):
        held = ", ".join(map(str, devices.all))
        raise UserError(
            f"the live model does not fit into {held}; set device_map: auto, which also uses the host's memory and "
            "disk, or a narrower dtype"
        )
    return made


def place_of(name: str, layers: LayerMap) -> int | str:
    """Where a tensor of a live model lies."""
    parts = name.split(".")
    return next(layers[prefix] for end in range(len(parts), -1, -1) if (prefix := ".".join(parts[:end])) in layers)


def device_of(place: int | str, devices: Devices) -> torch.device:
    """The device of a place's tensors: what is on disk is the CPU's to torch."""
    import torch

    return torch.device("cpu") if isinstance(place, str) else torch.device(devices.main.type, place)


def spread_model(model: Any, layers: LayerMap, devices: Devices) -> dict[str, torch.Tensor]:
    """Give a model that transformers has loaded by this map tensors to write to for what it left on disk.

    Returns, by name, the tensors that wait in the host's memory or on disk for an accelerator to run them; the model's
    own are on the meta device.
    """
    from accelerate import dispatch_model
    from accelerate.hooks import remove_hook_from_module  # type: ignore[import-untyped]

    places = set(layers.values())
    if not places & {"cpu", "disk"}:
        return {}
    remove_hook_from_module(model, recurse=True)
    _map_to_files(model)
    if places <= {"cpu", "disk"}:
        return {}
    waiting = {
        name: tensor.detach()
        for name, tensor in model.state_dict(keep_vars=True).items()
        if isinstance(place_of(name, layers), str)
    }
    on_host = {module: "cpu" if place == "disk" else place for module, place in layers.items()}
    skipped = getattr(model, "_skip_keys_device_placement", None)
    dispatch_model(model, on_host, main_device=devices.main, state_dict=waiting, skip_keys=skipped)
    return waiting


def _map_to_files(model: torch.nn.Module) -> None:
    """Replace parameters on the meta device by tensors in files; tied ones stay one."""
    import torch

    made: dict[int, torch.nn.Parameter] = {}
    with tempfile.TemporaryDirectory(prefix="mergefront-live-") as folder:  # a mapped file lives on without its name
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is None or parameter.device.type != "meta":
                    continue
                if id(parameter) not in made:
                    file, size = Path(folder) / str(len(made)), parameter.numel()
                    tensor = torch.from_file(str(file), shared=True, size=size, dtype=parameter.dtype)
                    made[id(parameter)] = torch.nn.Parameter(tensor.view(parameter.shape), requires_grad=False)
                module._parameters[name] = made[id(parameter)]
