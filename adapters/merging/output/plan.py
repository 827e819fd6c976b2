"""The plan of a merge: which tensor of the result is made of which tensors of which models. Headers say it all.

Without slices a merge is a map over the names of tensors, whatever kinds of layer a model has, and the configuration
stays as it is. Slices take layers of the one stack that reads text; there all sources of a layer must have the same
tensors in it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from mergefront.adapters.checkpoints.compatibility import (
    compare_configurations_of,
    compare_headers,
    compare_models,
    unknown_keys,
)
from mergefront.adapters.checkpoints.header import Checkpoint, CheckpointHeader
from mergefront.adapters.checkpoints.names import expert_names, is_prediction_layer, is_spare_head, is_unread
from mergefront.adapters.checkpoints.quantised import refuse_quantised
from mergefront.adapters.checkpoints.stacks import Layers, depths, stacks, text_stack
from mergefront.adapters.hub.places import ModelPlaces
from mergefront.adapters.merging.coefficients import CoefficientReader, RecipeLike
from mergefront.adapters.merging.modalities import Composition, compose
from mergefront.adapters.merging.output.layered_config import with_layers
from mergefront.adapters.merging.output.mergekit_config import (
    MergekitConfig,
    OutputSlice,
    SliceRecipe,
    merged_models,
    tokenizer_choice,
)
from mergefront.adapters.merging.output.metadata import Description, describe
from mergefront.adapters.merging.output.references import read_reference
from mergefront.adapters.merging.vocabulary import Alignment, TokenizerChoice, align
from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.recipes.grouping import before_layers, split_at_layer, stack_of_tensor
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.stacks import Modalities, texts_of

BASE = ""
"""The key of the base among the models of a part; no expert is called so."""


@dataclass(frozen=True)
class Model:
    """A whole checkpoint, or one with a LoRA to be put on it; ``name`` is what its user calls it."""

    name: str
    whole: Checkpoint
    lora: Checkpoint | None = None

    @property
    def header(self) -> CheckpointHeader:
        """The whole checkpoint's header: a LoRA changes numbers, not names."""
        return self.whole.header


class Place(NamedTuple):
    """One tensor of the result.

    ``sources`` has its name in every model of the part, ``depth`` says where it lies in its slice (0 to 1). A tensor
    that is ``carried`` is a copy of the reference's tensor of that name. One that is ``tied_to`` another is stored
    twice: it is a copy of the merged other one.
    """

    sources: Mapping[str, str]
    depth: float = 0.0
    carried: str | None = None
    tied_to: str | None = None


@dataclass(frozen=True)
class Part:
    """Tensors of the result that one recipe makes of the same models; ``models`` may have a base under ``BASE``."""

    recipe: RecipeLike
    models: Mapping[str, Model]
    places: Mapping[str, Place]

    def __post_init__(self) -> None:
        """A coefficient that is missing is an error before anything is written."""
        reader = CoefficientReader(self.recipe)
        for name, place in self.places.items():
            if place.carried is None:
                reader(name)


@dataclass(frozen=True)
class MergePlan:
    """Everything that is written, but for the numbers.

    ``reference`` is the model whose tensors the result has, ``described`` what it has beside them. Tensors are read as
    ``dtype`` and written as ``out_dtype`` (None: as they are stored). ``notes`` say what of the models differs without
    harm, ``allow`` what was allowed to.
    """

    reference: Model
    parts: Sequence[Part]
    described: Description
    notes: Sequence[str] = ()
    allow: Collection[str] = ()
    dtype: str | None = None
    out_dtype: str | None = None
    compat: bool = False


def plan_recipe(
    recipe: Recipe,
    base: str | Path | None,
    experts: Mapping[str, str | Path],
    *,
    compat: bool = False,
    allow: Collection[str] = (),
    tokenizer: TokenizerChoice | None = None,
    modalities: Modalities | None = None,
) -> MergePlan:
    """The plan of a recipe as the live engine merges it: names, configuration and files are the base's.

    ``experts`` has the folder of every expert of the recipe; LoRAs are put on the base. Raises ``UserError`` with
    everything that does not fit.
    """
    whole = None if base is None else Checkpoint(base)
    models = {} if whole is None else {BASE: Model("the base model", whole)}
    for name in recipe.models:
        expert = Checkpoint(experts[name])
        if expert.header.kind == "full":
            models[name] = Model(name, expert)
        elif whole is None:
            raise UserError(f"expert {name!r} is a LoRA, and no base model is named to put it on")
        else:
            models[name] = Model(name, whole, expert)
    return _plan_by_name(recipe, models, tokenizer or TokenizerChoice(), modalities or Modalities(), compat, allow)


def plan_written(content: Mapping[str, Any], root: Path, allow: Collection[str] = ()) -> MergePlan:
    """The plan of a configuration with a whole recipe (see ``Recipe.in_full``); raises as ``plan_config`` does."""
    problems = [
        f"the key {key!r} is not supported beside a recipe {did_you_mean(str(key), _BESIDE_A_RECIPE)}"
        for key in content
        if key not in _BESIDE_A_RECIPE
    ]
    if problems:
        raise UserError("merge configuration:\n" + "\n".join(f"  - {line}" for line in problems))
    recipe = Recipe.from_json(content["recipe"])
    base = content.get("base_model", recipe.base_model)
    models = {} if base is None else {BASE: replace(_open(base, root), name="the base model")}
    models |= {name: replace(_open(reference, root), name=name) for name, reference in recipe.models.items()}
    names = {reference: name for name, reference in recipe.models.items()} | ({} if base is None else {base: BASE})
    plan = _plan_by_name(
        recipe,
        models,
        tokenizer_choice(content).renamed(names),
        Modalities.read(content.get("scope"), content.get("carry")).renamed(names),
        content.get("compat") == "mergekit",
        allow,
    )
    return replace(plan, out_dtype=content.get("out_dtype"))


_BESIDE_A_RECIPE = (
    "merge_method", "recipe", "base_model", "compat", "tokenizer_source", "tokenizer", "scope", "carry", "out_dtype",
)  # fmt: skip


def _plan_by_name(
    recipe: Recipe, models: Mapping[str, Model], tokenizer: TokenizerChoice, modalities: Modalities, compat: bool,
    allow: Collection[str],
) -> MergePlan:  # fmt: skip
    has_base = BASE in models
    models, composition, aligned = _aligned(models, tokenizer, modalities)
    reference = next(iter(models.values()))
    notes = _compared(reference, models.values(), allow, sliced=False, has_base=has_base)
    return MergePlan(
        reference,
        [Part(recipe, models, _places_by_name(reference, models))],
        describe(composition, aligned, reference.header.config, [model.whole.path for model in models.values()]),
        notes,
        allow,
        compat=compat,
    )


def plan_config(config: MergekitConfig, root: Path, allow: Collection[str] = ()) -> MergePlan:
    """The plan of a mergekit configuration, whose relative paths start from ``root``.

    Raises ``UserError`` with everything that does not fit, is not there or is not said.
    """
    found = {text: _open(text, root) for text in config.models}
    opened, composition, aligned = _aligned(found, config.tokenizer, config.modalities)
    reference = opened[config.models[0]]
    sliced = any(source.layers is not None for made in config.slices for source in made.sources)
    notes = _compared(reference, opened.values(), allow, sliced=sliced, has_base=config.base_model is not None)
    chosen = [_models_of(config, made, opened) for made in config.slices]
    if sliced:
        every = _places_of_slices(config.slices, reference, chosen)
        depth = len(text_stack(reference.header)[1])
        result: Mapping[str, Any] = with_layers(reference.header.config, depth, _layers_of(config.slices, opened))
    else:
        every, result = [_places_by_name(reference, chosen[0])], reference.header.config
    notes += [
        f"the filter {part!r} is in no tensor's name, so its value changes nothing"
        for part in sorted(config.filters)
        if not any(part in own for places in every for place in places.values() for own in place.sources.values())
    ]
    parts = []
    for made, models, places in zip(config.slices, chosen, every, strict=True):
        recipe = SliceRecipe(config, made, {key: model.name for key, model in models.items() if key != BASE}, places)
        parts.append(Part(recipe, models, places))
    return MergePlan(
        reference,
        parts,
        describe(composition, aligned, result, [model.whole.path for model in opened.values()], config.chat_template),
        notes,
        allow,
        config.dtype,
        config.out_dtype,
        config.compat,
    )


def _aligned(
    models: Mapping[str, Model], choice: TokenizerChoice, modalities: Modalities
) -> tuple[dict[str, Model], Composition, Alignment]:
    """The models as far as they are merged, with one vocabulary; the first says what a token is that others lack."""
    opened: dict[str, Checkpoint] = {}
    wholes: dict[str, str] = {}
    for key, model in sorted(models.items(), key=lambda item: item[1].lora is not None):
        # A LoRA's own model is aligned with it, whether it is merged by itself or not.
        wholes[key] = next((other for other, one in opened.items() if one.path == model.whole.path), f"{key} (whole)")
        wholes[key] = wholes[key] if model.lora is not None else key
        opened[wholes[key]] = model.whole
        if model.lora is not None:
            opened[key] = model.lora
    first = next(iter(models))
    others = [key for key in opened if key.endswith(" (whole)")]
    if modalities.scope is not None and others:
        raise UserError(
            f"scope: {others[0].removesuffix(' (whole)')} is a LoRA on another model than {models[first].name}"
        )
    composition = compose(opened, wholes[first], modalities)
    aligned = align(composition.models, wholes[first], choice)
    made = {
        key: replace(model, whole=aligned.models[wholes[key]], lora=None if model.lora is None else aligned.models[key])
        for key, model in models.items()
    }
    return made, composition, aligned


def _open(text: str, root: Path) -> Model:
    reference = read_reference(text, (root,))
    places = ModelPlaces(root)
    whole = Checkpoint(places.folder(reference.model))
    if whole.header.kind == "lora":
        raise UserError(f"{text} is a LoRA; name it with the model that it belongs to, as MODEL+{text}")
    if reference.lora is None:
        return Model(text, whole)
    lora = Checkpoint(places.folder(reference.lora))
    if lora.header.kind != "lora":
        raise UserError(f"{text}: {reference.lora} is not a LoRA folder (no adapter_config.json)")
    return Model(text, whole, lora)


def _compared(
    reference: Model, models: Iterable[Model], allow: Collection[str], *, sliced: bool, has_base: bool
) -> list[str]:
    """Notes of the comparison of every model with the reference; raises ``UserError`` where they are not one model."""
    problems, notes = refuse_quantised(reference.header, reference.name), []
    models = list(models)
    problems += unknown_keys(allow, [model.header for model in models])
    for model in models:
        if model.whole.path != reference.whole.path:
            if sliced:
                headers = (_outside_layers(reference.header), _outside_layers(model.header))
                problems += compare_headers(*headers, model.name)
                found = compare_configurations_of(reference.header, model.header, model.name, allow, sliced=True)
            else:
                found = compare_models(reference.header, model.header, model.name, allow)
            problems += found.problems
            notes += found.notes
        if model.lora is not None:
            problems += compare_headers(model.header, model.lora.header, model.name)
    if problems and not has_base:
        problems.append(f"no base_model is named, so {reference.name}, the first of the models, is the base here")
    if problems:
        raise UserError("\n".join(problems))
    return notes


def _models_of(config: MergekitConfig, made: OutputSlice, opened: Mapping[str, Model]) -> dict[str, Model]:
    """The models of a slice by the names that masks are drawn by, under ``BASE`` the one that is kept apart."""
    merged = merged_models(config, made)
    short = [text.rstrip("/").rsplit("/", 1)[-1] for text in merged]
    models = {}
    if made.base_model is not None and (config.method.needs_base or config.method.optional_base):
        models[BASE] = opened[made.base_model]
    for name, text in zip(short, merged, strict=True):
        models[name if short.count(name) == 1 else text] = opened[text]
    return models


def _places_by_name(reference: Model, models: Mapping[str, Model]) -> dict[str, Place]:
    depths = {before: len(layers) for before, layers in stacks(reference.header).items()}
    renamed = {key: expert_names(reference.header.tensors, model.header.tensors) for key, model in models.items()}
    places = {}
    for name in reference.header.tensors:
        before, layer, _ = split_at_layer(name) or ("", 0, "")
        last = depths.get(before, 0) - 1
        depth = 0.0 if before not in depths else min(layer / last, 1.0) if last else 1.0
        sources = {key: renamed[key].get(name, name) for key in models}
        places[name] = _place(reference, models, name, sources, depth)
    return places


def _place(
    reference: Model, models: Mapping[str, Model], name: str, sources: Mapping[str, str], depth: float = 0.0
) -> Place:
    """The place of a tensor that has the reference's name; ``sources`` has what the models call it."""
    header = reference.header
    lacking = [key for key, model in models.items() if sources[key] not in model.header.tensors]
    is_kept = name in (header.carried or ()) or is_unread(name, header.tensors[name].shape)
    if is_kept or (lacking and (is_prediction_layer(name, header.config) or is_spare_head(name, header.config))):
        return Place({}, carried=name)
    found = dict(sources)
    for key in lacking:
        repeated = models[key].header.repeated_by(name)
        if repeated is None:
            raise UserError(f"{models[key].name} has no tensor {sources[key]!r}, which {reference.name} has")
        found[key] = repeated
    return Place(found, depth, tied_to=header.repeated_by(name))


def _places_of_slices(
    slices: Sequence[OutputSlice], reference: Model, chosen: Sequence[Mapping[str, Model]]
) -> list[dict[str, Place]]:
    """Per slice its places: of its layers, in the first one of what comes before them, in the last one of the rest."""
    before, whole = text_stack(reference.header)
    known = depths(reference.header)
    every: list[dict[str, Place]] = [{} for _ in slices]
    for name in _outside_layers(reference.header).tensors:
        in_tower = stack_of_tensor(name, known) not in texts_of(known)
        at = 0 if in_tower or before_layers(name) or split_at_layer(name) is not None else -1
        every[at][name] = _place(reference, chosen[at], name, dict.fromkeys(chosen[at], name))
    kinds = [_read_tensors(reference, layer) for layer in whole.values()]
    made = 0
    for number, (output, models) in enumerate(zip(slices, chosen, strict=True)):
        starts = {source.model: source.layers[0] for source in output.sources if source.layers is not None}
        absent = [model.name for model in models.values() if model.name not in starts]
        if absent:
            raise UserError(f"slice {number}: the base_model {absent[0]} must be one of its sources")
        stacks_of = {key: text_stack(model.header)[1] for key, model in models.items()}
        for offset in range(output.length):
            layers = {key: starts[model.name] + offset for key, model in models.items()}
            depth = offset / (output.length - 1) if output.length > 1 else 1.0
            taken = _layer(f"slice {number}", models, stacks_of, layers)
            unlike = min((sorted(taken.keys() ^ kind.keys()) for kind in kinds), key=len)
            if unlike:
                names = " and ".join(f"layer {layers[key]} of {model.name}" for key, model in models.items())
                raise UserError(
                    f"slice {number}: {names} is of no kind that {reference.name} has, whose configuration the result "
                    f"takes: only one of the two has {', '.join(unlike)}"
                )
            for after, sources in taken.items():
                every[number][f"{before}{made}{after}"] = Place(sources, depth)
            made += 1
    for name in reference.header.tensors:
        if is_prediction_layer(name, reference.header.config):
            # Where such layers are numbered on from the others, they follow the result's.
            stack, layer, after = split_at_layer(name) or ("", 0, "")
            moved = f"{before}{made + layer - len(whole)}{after}" if stack == before else name
            every[-1][moved] = Place({}, carried=name)
    return every


def _read_tensors(model: Model, layer: Mapping[str, str]) -> dict[str, str]:
    """A layer without its buffers that models compute anew."""
    return {after: name for after, name in layer.items() if not is_unread(name, model.header.tensors[name].shape)}


def _layer(
    where: str, models: Mapping[str, Model], stacks_of: Mapping[str, Layers], layers: Mapping[str, int]
) -> dict[str, dict[str, str]]:
    """One layer of the result: by what follows its number in a tensor's name, the names in the models.

    ``stacks_of`` and ``layers`` have every model's layers and the number of the one that is taken. Raises
    ``UserError`` for layers that do not go together.
    """
    found: dict[str, dict[str, str]] = {}
    for key, model in models.items():
        stack = stacks_of[key]
        if layers[key] not in stack:
            raise UserError(f"{where}: {model.name} has {len(stack)} layers, so it has no layer {layers[key]}")
        found[key] = _read_tensors(model, stack[layers[key]])
    first, *others = found
    for key in others:
        differing = sorted(found[first].keys() ^ found[key].keys())
        if differing:
            raise UserError(
                f"{where}: layer {layers[first]} of {models[first].name} and layer {layers[key]} of {models[key].name} "
                f"are of different kinds: only one of them has the tensor {differing[0]!r}"
            )
    return {after: {key: found[key][after] for key in found} for after in found[first]}


def _layers_of(slices: Sequence[OutputSlice], opened: Mapping[str, Model]) -> list[tuple[Mapping[str, Any], int]]:
    """Per layer of the result, the configuration of the first model it comes from and its number there."""
    firsts = [(output, output.sources[0]) for output in slices]
    return [
        (opened[source.model].header.config, source.layers[0] + offset)
        for output, source in firsts
        if source.layers is not None
        for offset in range(output.length)
    ]


def _outside_layers(header: CheckpointHeader) -> CheckpointHeader:
    """The header without the layers that slices take, and without those that predict tokens further ahead."""
    before, _ = text_stack(header)
    tensors = {
        name: info
        for name, info in header.tensors.items()
        if (split_at_layer(name) or ("",))[0] != before and not is_prediction_layer(name, header.config)
    }
    return replace(header, tensors=tensors)
