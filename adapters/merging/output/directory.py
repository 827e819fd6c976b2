"""Writing a planned merge: tensors stream from checkpoints to a model folder that transformers loads."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergefront.adapters.checkpoints.header import DTYPES, Checkpoint, CheckpointHeader
from mergefront.adapters.checkpoints.lora import LoraTaskVector
from mergefront.adapters.checkpoints.names import is_unread
from mergefront.adapters.checkpoints.writer import SHARD_BYTES, complete_folder, write_tensors
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.adapters.merging.output.mergekit_config import read_config
from mergefront.adapters.merging.output.metadata import write_metadata
from mergefront.adapters.merging.output.plan import BASE, MergePlan, Model, Part, plan_config, plan_written
from mergefront.adapters.merging.sources import check_finite
from mergefront.optimizer.yaml_file import read_mapping

if TYPE_CHECKING:
    import torch

_LOG = logging.getLogger(__name__)


def merge_to_directory(
    config: str | Path | Mapping[str, Any],
    out: str | Path,
    root: str | Path | None = None,
    *,
    device: str = "cpu",
    shard_bytes: int = SHARD_BYTES,
    allow: Collection[str] = (),
) -> Path:
    """Merge as a mergekit configuration says and write a Hugging Face folder; returns the folder.

    ``config`` is a path to YAML or its content. Paths of models are relative to ``root`` (default: the
    configuration's folder, or the working directory). Random masks are drawn by the names of the experts' folders.
    ``allow`` names what may differ between the models (see ``compare_models``). Tensors stream: memory holds one
    tensor of every model. Nothing is left under ``out`` when the merge fails. Raises ``UserError`` for everything that
    is wrong or not supported, before anything is written.
    """
    out = Path(out)
    content, folder = _content(config)
    start = Path(root) if root is not None else folder
    if "recipe" in content:
        plan = plan_written(content, start, allow)
    else:
        plan = plan_config(read_config(content), start, allow)
    with complete_folder(out) as partial:
        write_merge(plan, partial, device=device, shard_bytes=shard_bytes)
        (partial / "mergekit_config.yml").write_text(_yaml(content), encoding="utf-8")
    return out


def write_merge(plan: MergePlan, folder: Path, *, device: str = "cpu", shard_bytes: int = SHARD_BYTES) -> None:
    """Make a planned merge in a folder that exists: weights, configuration, tokenizer.

    Raises ``UserError``, naming the tensor, for numbers that are not finite.
    """
    for note in plan.notes:
        _LOG.warning(note)
    layout = _layout(plan)
    write_tensors(folder, layout, _tensors(plan, layout, device), shard_bytes)
    write_metadata(plan.described, folder, {_name(dtype) for _, dtype in layout.values() if dtype.is_floating_point})


def _content(config: str | Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], Path]:
    if isinstance(config, Mapping):
        return config, Path()
    path = Path(config)
    return read_mapping(path, "merge configuration", "merge_method and models"), path.parent


def _yaml(content: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(dict(content), sort_keys=False))


def _layout(plan: MergePlan) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every tensor of the result."""
    import torch

    wanted = plan.out_dtype or plan.dtype
    layout = {}
    for part in plan.parts:
        for name, place in part.places.items():
            header = plan.reference.header
            found = [part.models[key].header.tensors[own] for key, own in place.sources.items()]
            found = found or [header.tensors[str(place.carried)]]
            dtypes = [getattr(torch, DTYPES[info.dtype][1]) for info in found]
            dtype = dtypes[0]
            if dtype.is_floating_point and not is_unread(name, found[0].shape):
                for other in dtypes[1:]:
                    dtype = torch.promote_types(dtype, other)
                dtype = dtype if wanted is None else getattr(torch, wanted)
            layout[name] = (found[0].shape, dtype)
    return layout


def _tensors(
    plan: MergePlan, layout: Mapping[str, tuple[tuple[int, ...], torch.dtype]], device: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """The merged tensors in the layout's order."""
    import torch

    engines = [_engine(plan, part, device) for part in plan.parts]
    made_by = {name: (part, engine) for part, engine in zip(plan.parts, engines, strict=True) for name in part.places}
    stored = plan.reference.whole
    for name, (_, dtype) in layout.items():
        part, engine = made_by[name]
        place = part.places[name]
        if place.carried is not None:
            yield name, stored[place.carried].to(dtype)
            continue
        tied_to = place.tied_to
        if tied_to in made_by and torch.equal(stored[name], stored[tied_to]):
            part, engine = made_by[tied_to]
        else:
            tied_to = name
        ((_, tensor),) = engine.iterate(part.recipe, [tied_to], dtype)
        check_finite(tensor, "the merge", name, f" in {_name(dtype)}; write it in another dtype")
        yield name, tensor


def _engine(plan: MergePlan, part: Part, device: str) -> MergeEngine:
    import torch

    sources = _sources(plan, part)
    return MergeEngine(
        sources.pop(BASE, None),
        sources,
        device,
        None if plan.dtype is None else getattr(torch, plan.dtype),
        resident=False,
        compat_mergekit=plan.compat,
        allow=plan.allow,
    )


def _sources(plan: MergePlan, part: Part) -> dict[str, Checkpoint | Mapping[str, torch.Tensor]]:
    """The models as the engine may have them: whole checkpoints and LoRAs themselves where every tensor of all of them
    stays in place, or views that have the part's tensors alone."""
    places = {made: place for made, place in part.places.items() if place.carried is None}
    base = part.models.get(BASE)
    found: dict[str, Checkpoint | Mapping[str, torch.Tensor]] = {}
    for key, model in part.models.items():
        is_on_base = base is not None and base.whole.path == model.whole.path
        if all(made == place.sources[key] for made, place in places.items()) and (model.lora is None or is_on_base):
            found[key] = model.whole if model.lora is None else model.lora
    if len(found) == len(part.models):
        return found
    return {
        key: _View(model, {made: place.sources[key] for made, place in places.items()}, plan)
        for key, model in part.models.items()
    }


def as_result(plan: MergePlan, part: Part, expert: str) -> Mapping[str, torch.Tensor]:
    """An expert's tensors by the names of the result, a LoRA put on its base (in float32)."""
    places = {made: place.sources[expert] for made, place in part.places.items() if place.carried is None}
    return _View(part.models[expert], places, plan)


class _View(Mapping[str, "torch.Tensor"]):
    """A model under the result's tensor names, its LoRA added: in float32, or with ``compat`` as mergekit stores it."""

    def __init__(self, model: Model, names: Mapping[str, str], plan: MergePlan) -> None:
        tensors = {made: model.header.tensors[name] for made, name in names.items()}
        self.header = CheckpointHeader(model.whole.path, "full", tensors, model.header.files, plan.described.config)
        self._whole = model.whole
        self._lora = None if model.lora is None else LoraTaskVector(model.lora, model.header)
        self._names = names
        self._compat = plan.compat

    def __getitem__(self, name: str) -> torch.Tensor:
        own = self._names[name]
        stored = self._whole[own]
        if self._lora is None:
            return stored
        folded = self._lora.on(own, stored)
        return folded.to(stored.dtype) if self._compat else folded

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
