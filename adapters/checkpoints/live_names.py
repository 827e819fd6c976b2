"""Where the tensors of a checkpoint lie in the model that transformers makes of it.

transformers 5 renames and fuses at load: `experts.3.gate_proj.weight` of a file is rows of the live tensor
`experts.gate_up_proj`. Its own conversion mapping says how. All use of that mapping is in this file; what comes out
is data, from a model on the meta device as well as from a loaded one:

    names = live_names(model, {"model.layers.0.mlp.experts.3.gate_proj.weight": (16, 32), ...})
    names.places["model.layers.0.mlp.experts.3.gate_proj.weight"]
        # Place(live="model.layers.0.mlp.experts.gate_up_proj", shape=(16, 32), stride=(32, 1), offset=3072)
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergefront.adapters.checkpoints.names import is_prediction_layer, is_unread

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """A stored tensor as a view of a live one: shape, and stride and offset in entries of the live tensor.

    Without a stride it is the whole live tensor.
    """

    live: str
    shape: Shape
    stride: Shape | None = None
    offset: int = 0

    def of(self, live: torch.Tensor) -> torch.Tensor:
        """The entries of the live tensor (contiguous, where it is not the whole) that the stored one fills."""
        if self.stride is None:
            return live
        return live.as_strided(self.shape, self.stride, live.storage_offset() + self.offset)


@dataclass(frozen=True)
class LiveTensor:
    """A tensor of a live model: its shape, the stored tensors that are views of it, and whether it is the weight of a
    linear layer of torch's, to which every kind of adapter fits."""

    shape: Shape
    places: Mapping[str, Place]
    is_linear: bool = False

    @property
    def whole(self) -> str | None:
        """The stored tensor that is all of it, as it lies, or None."""
        return next((name for name, place in self.places.items() if place.stride is None), None)

    def rows(self, width: int) -> dict[str, tuple[int, int]] | None:
        """First row and number of rows of each stored tensor, in rows of ``width`` entries; None where one is none."""
        found = {}
        for name, place in self.places.items():
            following = [math.prod(place.shape[axis + 1 :]) for axis in range(len(place.shape))]
            first, inside = divmod(place.offset, width)
            if place.stride != tuple(following) or inside or math.prod(place.shape) % width:
                return None
            found[name] = first, math.prod(place.shape) // width
        return found


@dataclass(frozen=True)
class Assembly:
    """Live tensors that are computed from stored ones, because no view of them is a stored tensor.

    ``stored`` has the stored names by the source pattern of transformers' ``converter``; ``live`` is the first of the
    tensors that it makes.
    """

    stored: Mapping[str, tuple[str, ...]]
    live: str
    converter: Any

    @property
    def names(self) -> tuple[str, ...]:
        """The stored tensors."""
        return tuple(name for several in self.stored.values() for name in several)

    def make(self, stored: Mapping[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """The live tensors, by name, that transformers makes of the stored ones."""
        made = _convert(self.converter, self.live, model, {k: [stored[n] for n in v] for k, v in self.stored.items()})
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


@dataclass(frozen=True)
class LiveNames:
    """Stored names and live ones.

    ``ignored``: stored tensors that the model does not read (GPT-2's masks, next-token-prediction layers);
    ``unfilled``: live tensors that no stored one fills; ``misfits``: stored tensors of another shape than the model's,
    with both shapes.
    """

    places: Mapping[str, Place]
    assemblies: tuple[Assembly, ...] = ()
    ignored: tuple[str, ...] = ()
    unfilled: tuple[str, ...] = ()
    misfits: Mapping[str, tuple[Shape, Shape]] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """Why a model cannot be made of the stored tensors: one sentence per kind of problem."""
        found = []
        if self.unfilled:
            found.append(f"no stored tensor fills {_first(self.unfilled)}, which the model has")
        if self.misfits:
            name, (stored, live) = next(iter(self.misfits.items()))
            more = f" (and {len(self.misfits) - 1} more)" if len(self.misfits) > 1 else ""
            found.append(f"tensor {name!r}{more} is stored as {list(stored)} and does not fit the model's {list(live)}")
        return found

    def unexpected(self, config: Mapping[str, Any], stored: Mapping[str, Shape]) -> str | None:
        """A sentence on tensors that the model does not read although they are no buffers and no layers that predict
        further ahead: what they hold has no part in any score."""
        names = [
            name for name in self.ignored if not is_unread(name, stored[name]) and not is_prediction_layer(name, config)
        ]
        return (
            f"the model does not read {_first(names)}; merged and exported, but no part of any score" if names else None
        )


def model_on_meta(kind: Any, config: Any, **settings: Any) -> torch.nn.Module:
    """A model of one of transformers' classes without memory for its weights; ``settings`` are those of the class."""
    import torch

    with torch.device("meta"):
        model: torch.nn.Module = (kind.from_config if hasattr(kind, "from_config") else kind._from_config)(
            config, **settings
        )
    return model


def live_tensors(folder: Path, stored: Mapping[str, Shape]) -> dict[str, LiveTensor]:
    """By name the tensors of the class that a folder's config.json names, and where stored ones lie in them.

    Empty where transformers is not installed or does not know the model.
    """
    try:
        import torch
        import transformers

        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        kind = getattr(transformers, (config.architectures or [""])[0], None)
        is_model = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
        model = model_on_meta(kind if is_model else transformers.AutoModel, config)
    except Exception:  # whatever a stranger's configuration makes of the class that it names
        return {}
    places: dict[str, dict[str, Place]] = {}
    for name, place in live_names(model, stored).places.items():
        places.setdefault(place.live, {})[name] = place
    linear = {f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    return {
        name: LiveTensor(tuple(live.shape), places.get(name, {}), name in linear)
        for name, live in model.state_dict().items()
    }


def live_names(model: torch.nn.Module, stored: Mapping[str, Shape]) -> LiveNames:
    """Map stored tensors, given by name and shape, to those of ``model``.

    ``model`` may lie on the meta device. A module that is none of transformers' has the stored names.
    """
    import torch

    live = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if torch.is_tensor(tensor)}
    groups, ignored = _groups(model, live, list(stored))
    places: dict[str, Place] = {}
    assemblies: list[Assembly] = []
    misfits: dict[str, tuple[Shape, Shape]] = {}
    filled: set[int] = set()
    for target, (converter, sources) in groups.items():
        if converter is None:
            (name,) = next(iter(sources.values()))
            filled.add(id(live[target]))
            if stored[name] != tuple(live[target].shape):
                misfits[name] = stored[name], tuple(live[target].shape)
            else:
                places[name] = Place(target, stored[name])
            continue
        found = _views(model, live, target, converter, sources)
        if found is not None and all(found[name].shape == stored[name] for name in found):
            places.update(found)
            filled.update(id(live[place.live]) for place in found.values())
            continue
        assembly = Assembly(sources, target, converter)
        try:
            made = assembly.make({name: torch.empty(stored[name], device="meta") for name in assembly.names}, model)
        except (RuntimeError, ValueError, IndexError, KeyError, AttributeError):
            made = {}
        if all(name in live and live[name].shape == value.shape for name, value in made.items()) and made:
            assemblies.append(assembly)
            filled.update(id(live[name]) for name in made)
        else:
            misfits.update({name: (stored[name], tuple(live[target].shape)) for name in assembly.names})
            filled.add(id(live[target]))
    dispensable = [*(getattr(model, "_keys_to_ignore_on_load_missing", None) or ())]
    unfilled = [
        name
        for name, tensor in live.items()
        if id(tensor) not in filled and tensor.numel() and not any(re.search(each, name) for each in dispensable)
    ]
    return LiveNames(places, tuple(assemblies), tuple(ignored), tuple(unfilled), misfits)


_Group = tuple[Any, dict[str, tuple[str, ...]]]
"""The converter (None: only a name changes) and the stored names by its source patterns."""


def _groups(
    model: torch.nn.Module, live: Mapping[str, torch.Tensor], stored: list[str]
) -> tuple[dict[str, _Group], list[str]]:
    """The stored tensors that make each live one, and those that make none."""
    prefix = getattr(model, "base_model_prefix", None)
    if prefix is None:
        return {name: (None, {name: (name,)}) for name in stored if name in live}, [n for n in stored if n not in live]
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    groups: dict[str, _Group] = {}
    ignored = []
    # The order in which transformers loads is the order of the experts in a fused tensor.
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, live)
        if target not in live and name in live:
            target, pattern = name, None
        elif target not in live:
            plain, _ = rename_source_key(name, [], [], prefix, live)
            target, pattern = (plain, None) if plain in live else (target, pattern)
        if target not in live:
            ignored.append(name)
            continue
        converter, sources = groups.setdefault(target, (None if pattern is None else by_pattern[pattern], {}))
        if converter is None and sources:
            ignored.append(name)  # the tensor is stored under two names, and transformers takes the first
        else:
            key = name if pattern is None else pattern
            sources[key] = (*sources.get(key, ()), name)
    return groups, ignored


def _views(
    model: torch.nn.Module,
    live: Mapping[str, torch.Tensor],
    target: str,
    converter: Any,
    sources: Mapping[str, tuple[str, ...]],
) -> dict[str, Place] | None:
    """A converter's stored tensors as views of its live one, by undoing its operations; None if they are no views."""
    import torch

    if len(converter.target_patterns) != 1 or set(sources) != set(converter.source_patterns):
        return None
    whole = torch.empty(live[target].shape, device="meta")
    undone = converter.reverse_transform()
    pieces: dict[str, Any] = {undone.source_patterns[0]: [whole]}
    try:
        with _without_copies():
            for operation in undone.operations:
                pieces = operation.convert(
                    pieces,
                    source_patterns=undone.source_patterns,
                    target_patterns=undone.target_patterns,
                    full_layer_name=target,
                    model=model,
                    config=getattr(model, "config", None),
                )
    except (RuntimeError, ValueError, IndexError, KeyError, AttributeError):
        return None
    found = {}
    for pattern, undone_pattern in zip(converter.source_patterns, undone.target_patterns, strict=True):
        for number, name in enumerate(sources[pattern]):
            piece = pieces.pop(undone_pattern.replace("*", str(number)), None)
            piece = piece[0] if isinstance(piece, list) else piece
            if piece is None or piece.untyped_storage()._cdata != whole.untyped_storage()._cdata:
                return None
            found[name] = Place(target, tuple(piece.shape), piece.stride(), piece.storage_offset())
    return None if pieces else found


def _without_copies() -> Any:
    """A context in which ``contiguous`` copies nothing, so that pieces of a tensor stay views of it."""
    import torch
    from torch.overrides import TorchFunctionMode

    class WithoutCopies(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return args[0] if function is torch.Tensor.contiguous else function(*args, **(kwargs or {}))

    return WithoutCopies()


def _convert(converter: Any, target: str, model: Any, tensors: Mapping[str, list[torch.Tensor]]) -> dict[str, Any]:
    used = copy.deepcopy(converter)
    for pattern, several in tensors.items():
        for tensor in several:
            used.add_tensor(target, pattern, pattern, tensor)
    return dict(used.convert(target, model=model, config=model.config))


def _first(names: Sequence[str]) -> str:
    return f"{names[0]!r} (and {len(names) - 1} more)" if len(names) > 1 else repr(names[0])
