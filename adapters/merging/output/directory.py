"""``mergefront merge CONFIG.yaml OUT``: one merge from a mergekit configuration to a model folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergefront.adapters.checkpoints.compatibility import (
    compare_configurations_of,
    compare_models,
    compare_tokenizers,
)
from mergefront.adapters.checkpoints.header import Checkpoint, read_json
from mergefront.adapters.checkpoints.lora import LoraTaskVector
from mergefront.adapters.checkpoints.names import embedding_name, head_name
from mergefront.adapters.checkpoints.quantised import refuse_quantised
from mergefront.adapters.checkpoints.writer import SHARD_BYTES, complete_folder, write_tensors
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.adapters.merging.output.files import copy_files, generation_config, has_tokenizer, token_ids
from mergefront.adapters.merging.output.mergekit_config import (
    MergekitConfig,
    OutputSlice,
    SliceRecipe,
    merged_models,
    read_config,
)
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.grouping import before_layers, layer_of, with_layer
from mergefront.optimizer.yaml_file import read_mapping

if TYPE_CHECKING:
    import torch

_LOG = logging.getLogger(__name__)
_LAYERS_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def merge_to_directory(
    config: str | Path | Mapping[str, Any],
    out: str | Path,
    root: str | Path | None = None,
    *,
    device: str = "cpu",
    shard_bytes: int = SHARD_BYTES,
    names: Mapping[str, str] | None = None,
    allow: Collection[str] = (),
) -> Path:
    """Merge as a mergekit configuration says and write a Hugging Face folder; returns the folder.

    ``config`` is a path to YAML or its content. Paths of models are relative to ``root`` (default: the
    configuration's folder, or the working directory). ``names`` maps references of experts to the names
    that random masks are drawn by (default: the folders' names). ``allow`` names what may differ between the models
    (see ``compare_models``). Tensors stream: memory holds one tensor of every
    model. Nothing is left under ``out`` when the merge fails. Raises ``UserError`` for everything
    that is wrong or not supported, before anything is written.
    """
    out = Path(out)
    content, folder = _content(config)
    plan = _Plan(read_config(content), Path(root) if root is not None else folder, device, names or {}, allow)
    with complete_folder(out) as partial:
        layout = {name: (shape, dtype) for name, shape, dtype in plan.layout()}
        write_tensors(partial, layout, plan.tensors(), shard_bytes)
        plan.write_metadata(partial)
        (partial / "mergekit_config.yml").write_text(_yaml(content), encoding="utf-8")
    return out


def _content(config: str | Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], Path]:
    if isinstance(config, Mapping):
        return config, Path()
    path = Path(config)
    return read_mapping(path, "merge configuration", "merge_method and models"), path.parent


def _yaml(content: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(dict(content), sort_keys=False))


class _Plan:
    """Which tensor of the result comes from which tensors of which models, slice by slice."""

    def __init__(
        self, config: MergekitConfig, root: Path, device: str, names: Mapping[str, str], allow: Collection[str]
    ) -> None:
        self.config = config
        self.device = device
        self.allow = allow
        self.sources = {model: _open(model, config, root) for model in config.models}
        reference = config.base_model or config.models[0]
        if self.sources[reference].header.kind == "lora":
            raise UserError(f"{reference} is a LoRA; give the model that it belongs to as base_model")
        self.reference = self.sources[reference]
        self.layers = 1 + max((layer for name in self.reference if (layer := layer_of(name)) is not None), default=-1)
        problems = refuse_quantised(self.reference.header, reference)
        for model, source in self.sources.items():
            if source is not self.reference and self._same_depth():
                compared = compare_models(self.reference.header, source.header, model, allow)
            else:
                compared = compare_configurations_of(self.reference.header, source.header, model, allow, sliced=True)
            problems += compared.problems
            for note in compared.notes:
                _LOG.warning(note)
            problems += compare_tokenizers(self.reference.path, source.path, model)
        if config.tokenizer_source not in (None, "base", *config.models):
            problems.append(f"tokenizer_source {config.tokenizer_source!r} is none of the models")
        if problems:
            raise UserError("\n".join(problems))
        self.places = [self._places(number, made) for number, made in enumerate(config.slices)]
        self.recipes = [
            SliceRecipe(config, made, _names(merged_models(config, made), names), places)
            for made, places in zip(config.slices, self.places, strict=True)
        ]
        for recipe, places in zip(self.recipes, self.places, strict=True):
            _ask_everything(recipe, places)

    def _same_depth(self) -> bool:
        return all(source.layers is None for made in self.config.slices for source in made.sources)

    def _places(self, number: int, made: OutputSlice) -> dict[str, tuple[float, dict[str, str]]]:
        """Per tensor of the result in this slice: its depth and the tensor's name in every model."""
        first = sum(_length(earlier, self.layers) for earlier in self.config.slices[:number])
        length = _length(made, self.layers)
        starts = {source.model: source.layers[0] if source.layers else 0 for source in made.sources}
        places: dict[str, tuple[float, dict[str, str]]] = {}
        last = number == len(self.config.slices) - 1
        for name in self.reference:
            layer = layer_of(name)
            if layer is None:
                early = before_layers(name)
                if (early and number == 0) or (not early and last):
                    places[name] = (0.0, dict.fromkeys(starts, name))
                continue
            if layer:
                continue
            for offset in range(length):
                depth = offset / (length - 1) if length > 1 else 1.0
                places[with_layer(name, first + offset)] = (
                    depth,
                    {model: with_layer(name, start + offset) for model, start in starts.items()},
                )
        for made_name, (_, names) in places.items():
            for model, source_name in names.items():
                known = self.sources[model]
                if known.header.kind == "full" and source_name not in known and not _tied_head(known, source_name):
                    raise UserError(
                        f"{model} has no tensor {source_name!r}, which {made_name!r} needs; check layer_range"
                    )
        return places

    def layout(self) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
        """Name, shape and dtype of every tensor of the result."""
        for places in self.places:
            for name, (_, names) in places.items():
                shape, dtype = self._shape_and_dtype(names)
                yield name, shape, dtype

    def _shape_and_dtype(self, names: Mapping[str, str]) -> tuple[tuple[int, ...], torch.dtype]:
        import torch

        found = [self.sources[model][name] for model, name in names.items() if name in self.sources[model]]
        first = found[0]
        for model, name in names.items():
            if name in self.sources[model] and self.sources[model][name].shape != first.shape:
                shape = list(self.sources[model][name].shape)
                raise UserError(f"{model}: {name} is {shape}, the other models have {list(first.shape)}")
        if not first.is_floating_point():
            return tuple(first.shape), first.dtype
        wanted = self.config.out_dtype or self.config.dtype
        dtype = first.dtype if wanted is None else getattr(torch, wanted)
        if wanted is None:
            for tensor in found[1:]:
                dtype = torch.promote_types(dtype, tensor.dtype)
        return tuple(first.shape), dtype

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The merged tensors in the layout's order."""
        import torch

        dtype = None if self.config.dtype is None else getattr(torch, self.config.dtype)
        for made, places, recipe in zip(self.config.slices, self.places, self.recipes, strict=True):
            base = made.base_model if self.config.method.needs_base or self.config.method.optional_base else None
            engine = MergeEngine(
                None if base is None else self._view(base, places, base),
                {name: self._view(model, places, base) for name, model in recipe.models.items()},
                self.device,
                dtype,
                resident=False,
                compat_mergekit=self.config.compat,
                allow=self.allow,
            )
            for name in places:
                _, out_dtype = self._shape_and_dtype(places[name][1])
                yield from engine.iterate(recipe, [name], out_dtype)

    def _view(
        self, model: str, places: Mapping[str, tuple[float, Mapping[str, str]]], base: str | None
    ) -> Checkpoint | Mapping[str, torch.Tensor]:
        names = {made: sources.get(model, made) for made, (_, sources) in places.items()}
        if all(made == name for made, (_, sources) in places.items() for name in sources.values()):
            # Every layer stays where it is: the engine may have the whole checkpoint, a LoRA as a LoRA.
            return self.sources[model]
        return _Renamed(self.sources[model], names, None if base is None else self.sources[base])

    def write_metadata(self, folder: Path) -> None:
        """config.json with the result's dtype and depth, generation config and tokenizer."""
        donor = self._tokenizer_donor()
        config = dict(self.reference.header.config)
        if config:
            if donor != self.reference.path and (donor / "config.json").exists():
                config = token_ids(config, read_json(donor / "config.json"))
            dtypes = {dtype for _, _, dtype in self.layout() if dtype.is_floating_point}
            name = str(next(iter(dtypes))).removeprefix("torch.") if len(dtypes) == 1 else None
            for key in ("dtype", "torch_dtype"):
                if key in config and name is not None:
                    config[key] = name
            for key in _LAYERS_KEYS:
                if key in config:
                    config[key] = sum(_length(made, self.layers) for made in self.config.slices)
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        made = generation_config(self.reference.path, donor)
        if made is not None:
            (folder / "generation_config.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
        models = [source.path for source in self.sources.values() if source.header.kind == "full"]
        copy_files(self.reference.path, donor, models, folder)
        if self.config.chat_template is not None:
            (folder / "chat_template.jinja").write_text(self.config.chat_template, encoding="utf-8")

    def _tokenizer_donor(self) -> Path:
        """The folder whose tokenizer the result takes: the chosen model's, else the first that has one."""
        chosen = self.config.tokenizer_source
        if chosen not in (None, "base"):
            return self.sources[str(chosen)].path
        paths = [self.reference.path, *(source.path for source in self.sources.values())]
        return next((path for path in paths if has_tokenizer(path)), self.reference.path)


def _open(model: str, config: MergekitConfig, root: Path) -> Checkpoint:
    base, plus, lora = model.partition("+")
    if not plus:
        return Checkpoint(root / model)
    if base != config.base_model:
        raise UserError(f"{model}: a LoRA on {base} can only be merged where base_model is {base}")
    checkpoint = Checkpoint(root / lora)
    if checkpoint.header.kind != "lora":
        raise UserError(f"{model}: {lora} is not a LoRA folder (no adapter_config.json)")
    return checkpoint


def _names(models: tuple[str, ...], given: Mapping[str, str]) -> dict[str, str]:
    """Names of model references: the given one, else the folder's, or the reference where that is not unique."""
    short = [given.get(model, model.rstrip("/").rsplit("/", 1)[-1]) for model in models]
    return {name if short.count(name) == 1 else model: model for name, model in zip(short, models, strict=True)}


def _length(made: OutputSlice, layers: int) -> int:
    span = made.sources[0].layers
    return layers if span is None else span[1] - span[0]


def _tied_head(source: Checkpoint, name: str) -> bool:
    return source.header.tied and name == head_name([name])


def _ask_everything(recipe: SliceRecipe, places: Mapping[str, Any]) -> None:
    """Resolve every coefficient once, so that a missing one is an error before anything is written."""
    from mergefront.adapters.merging.coefficients import CoefficientReader

    reader = CoefficientReader(recipe)
    for name in places:
        reader(name)


class _Renamed(Mapping[str, "torch.Tensor"]):
    """A checkpoint under the result's tensor names; a LoRA appears folded into its base."""

    def __init__(self, source: Checkpoint, names: Mapping[str, str], base: Checkpoint | None) -> None:
        self._source = source
        self._names = names
        self._base = base
        self._lora = LoraTaskVector(source) if source.header.kind == "lora" else None

    def __getitem__(self, name: str) -> torch.Tensor:
        source_name = self._names[name]
        if self._lora is None:
            embedding = embedding_name(self._source)
            if source_name not in self._source and embedding is not None:
                source_name = embedding
            return self._source[source_name]
        assert self._base is not None
        origin = self._base[source_name]
        whole = self._lora.replacement(source_name)
        delta = self._lora.delta(source_name)
        return whole if whole is not None else origin if delta is None else origin.float() + delta

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
