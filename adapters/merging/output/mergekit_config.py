"""A mergekit configuration as it stands: slices, layer ranges, filters, gradients, dtypes.

Richer than a recipe: layers may be dropped, repeated and taken from different models. A setting is
looked up at the source, then at its slice, then at the whole configuration; a list of filters of
which none matches falls through to the next. Within a slice a gradient runs over t = layer /
(layers - 1), 1 when there is a single layer; tensors outside the layers take t = 0. Embeddings
belong to the first slice, final norm and head to the last (mergekit 0.1.5, plan.py and config.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mergefront.adapters.merging.vocabulary import TokenizerChoice
from mergefront.optimizer.errors import UserError, did_you_mean, unsupported_keys
from mergefront.optimizer.recipes.mergekit.structure import (
    IGNORED_PARAMETERS,
    check_structure,
    plain_value,
    repeated_models,
)
from mergefront.optimizer.recipes.methods import METHODS, MergeMethod, MethodParameter, ParameterValue
from mergefront.optimizer.recipes.stacks import Modalities

_SUPPORTED = {
    "merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer", "chat_template", "name", "compat", "seed", "scope", "carry",
}  # fmt: skip
DTYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class SourceSlice:
    """One model's layers in a slice. ``layers`` None: all of them."""

    model: str
    layers: tuple[int, int] | None
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class OutputSlice:
    """Consecutive layers of the result and the models that they are made of, the base among them or not."""

    sources: tuple[SourceSlice, ...]
    parameters: Mapping[str, Any]
    base_model: str | None

    @property
    def length(self) -> int:
        """How many layers it makes; 0 where it takes all there are."""
        layers = self.sources[0].layers
        return 0 if layers is None else layers[1] - layers[0]


@dataclass(frozen=True)
class MergekitConfig:
    """A checked configuration."""

    method: MergeMethod
    base_model: str | None
    slices: tuple[OutputSlice, ...]
    parameters: Mapping[str, Any]
    dtype: str | None
    out_dtype: str | None
    tokenizer: TokenizerChoice
    chat_template: str | None
    compat: bool
    seed: int
    modalities: Modalities = field(default_factory=Modalities)

    @property
    def filters(self) -> set[str]:
        """Every part of a tensor's name that a rule asks for."""
        sources = [source.parameters for made in self.slices for source in made.sources]
        settings = [self.parameters, *(made.parameters for made in self.slices), *sources]
        values = [value for parameters in settings for value in parameters.values()]
        rules = [rule for value in values for rule in (value if isinstance(value, list) else [value])]
        return {rule["filter"] for rule in rules if isinstance(rule, Mapping) and rule.get("filter") not in (None, "*")}

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that is read, the base first."""
        named = [self.base_model] if self.base_model is not None else []
        named += [source.model for made in self.slices for source in made.sources]
        return tuple(dict.fromkeys(named))


def read_config(content: Mapping[str, Any]) -> MergekitConfig:
    """Check a configuration; everything that is wrong or unsupported is named in one ``UserError``."""
    problems = unsupported_keys(content, _SUPPORTED)
    if "merge_method" not in content:
        raise UserError("mergekit configuration: the key 'merge_method' is missing")
    check_structure(content)
    method = METHODS[content["merge_method"]]
    base = content.get("base_model")
    if ("models" in content) == ("slices" in content):
        problems.append("give either 'models' or 'slices'")
        slices: list[OutputSlice] = []
    elif "models" in content:
        slices = [_from_models(content["models"], base, problems)]
    else:
        slices = [_read_slice(made, number, base, problems) for number, made in enumerate(content["slices"] or ())]
    for key in ("dtype", "out_dtype"):
        if content.get(key) is not None and str(content[key]).removeprefix("torch.") not in DTYPES:
            problems.append(f"{key} is {content[key]!r}; it must be one of {', '.join(DTYPES)}")
    tokenizer, modalities = TokenizerChoice(), Modalities()
    try:
        tokenizer = tokenizer_choice(content)
        modalities = Modalities.read(content.get("scope"), content.get("carry"))
    except UserError as error:
        problems.append(str(error))
    if modalities.scope is not None and "slices" in content:
        problems.append("scope merges whole stacks; give 'models' and not 'slices'")
    template = content.get("chat_template")
    if template is not None and "{" not in str(template):
        problems.append(f"chat_template {template!r} is not supported; give the template's text")
    if content.get("compat") not in (None, "mergekit"):
        problems.append(f"compat is {content['compat']!r}; the only value is 'mergekit'")
    made = MergekitConfig(
        method,
        base,
        tuple(slices),
        content.get("parameters") or {},
        _dtype(content.get("dtype")),
        _dtype(content.get("out_dtype")),
        tokenizer,
        template,
        content.get("compat") == "mergekit",
        int(content.get("seed") or 0),
        modalities,
    )
    problems += _check_parameters(made) + _check_models(made)
    if problems:
        raise UserError("mergekit configuration:\n" + "\n".join(f"  - {line}" for line in dict.fromkeys(problems)))
    return made


def tokenizer_choice(content: Mapping[str, Any]) -> TokenizerChoice:
    """``tokenizer_source``, or mergekit's ``tokenizer: {source, tokens, pad_to_multiple_of}``."""
    given = content.get("tokenizer")
    if given is None:
        return TokenizerChoice.read(content.get("tokenizer_source"))
    if not isinstance(given, Mapping) or content.get("tokenizer_source") is not None:
        raise UserError("tokenizer: write {source: union, tokens: ...}, and no tokenizer_source beside it")
    rest = {key: value for key, value in given.items() if key != "source"}
    return TokenizerChoice.read({"model": given.get("source", "union"), **rest})


def _dtype(value: Any) -> str | None:
    return None if value is None else str(value).removeprefix("torch.")


def _from_models(models: Any, base: str | None, problems: list[str]) -> OutputSlice:
    sources = []
    for entry in models or ():
        if not isinstance(entry, Mapping) or "model" not in entry:
            problems.append(f"models: {entry!r} must be a mapping with the key 'model'")
            continue
        problems.extend(f"models: {line}" for line in unsupported_keys(entry, ("model", "parameters")))
        sources.append(SourceSlice(str(entry["model"]), None, entry.get("parameters") or {}))
    if not sources:
        problems.append("models: at least one model is needed")
    problems.extend(repeated_models(source.model for source in sources))
    if base is not None and base not in (source.model for source in sources):
        sources.append(SourceSlice(base, None, {}))
    return OutputSlice(tuple(sources), {}, base)


def _read_slice(made: Any, number: int, base: str | None, problems: list[str]) -> OutputSlice:
    known = ("sources", "parameters", "base_model")
    if not isinstance(made, Mapping) or not made.get("sources"):
        problems.append(f"slice {number}: it must be a mapping with 'sources'")
        return OutputSlice((), {}, base)
    problems.extend(f"slice {number}: {line}" for line in unsupported_keys(made, known))
    sources = []
    for source in made["sources"]:
        layers = source.get("layer_range")
        whole = isinstance(layers, Sequence) and len(layers) == 2 and all(type(at) is int and at >= 0 for at in layers)
        if not whole or layers[0] >= layers[1]:
            problems.append(f"slice {number}: layer_range is {layers!r}; it must be [first, end) with first < end")
            continue
        sources.append(SourceSlice(str(source["model"]), (layers[0], layers[1]), source.get("parameters") or {}))
    problems.extend(f"slice {number}: {line}" for line in repeated_models(source.model for source in sources))
    if len({source.layers[1] - source.layers[0] for source in sources if source.layers}) > 1:
        problems.append(f"slice {number}: its sources take different numbers of layers")
    return OutputSlice(tuple(sources), made.get("parameters") or {}, made.get("base_model") or base)


def _check_parameters(config: MergekitConfig) -> list[str]:
    known = [parameter.name for parameter in config.method.parameters]
    problems = []
    settings = [("parameters", config.parameters)]
    for number, made in enumerate(config.slices):
        settings.append((f"slice {number}", made.parameters))
        settings += [(f"model {source.model}", source.parameters) for source in made.sources]
    for where, parameters in settings:
        for name in parameters:
            if name not in known and name not in IGNORED_PARAMETERS:
                problems.append(
                    f"{where}: {config.method.name} has no parameter {name!r} {did_you_mean(str(name), known)}"
                )
    return problems


def _check_models(config: MergekitConfig) -> list[str]:
    method, problems = config.method, []
    if method.needs_base and config.base_model is None and not all(made.base_model for made in config.slices):
        problems.append(f"{method.name} needs a base_model")
    for made in config.slices:
        refused = method.refuses(len(merged_models(config, made)))
        if refused is not None:
            of_base = "; the base_model is one of them, and can be left out" if made.base_model is not None else ""
            problems.append(f"{refused}{of_base}")
    return problems


def merged_models(config: MergekitConfig, made: OutputSlice) -> tuple[str, ...]:
    """The models of a slice that the method merges: without the base where the method keeps it apart."""
    models = list(dict.fromkeys(source.model for source in made.sources))
    if config.method.needs_base or config.method.optional_base:
        return tuple(model for model in models if model != made.base_model)
    if config.method.max_models == 2 and made.base_model in models:
        models.sort(key=lambda model: model != made.base_model)
    return tuple(models)


class Placed(Protocol):
    """Where a tensor of the result lies: depth t, and its name in every model."""

    @property
    def depth(self) -> float: ...
    @property
    def sources(self) -> Mapping[str, str]: ...


class SliceRecipe:
    """One slice's coefficients, in the form that the engine asks for.

    ``models`` are references by the names that ``places`` has, per tensor of the result, in its sources.
    """

    def __init__(
        self, config: MergekitConfig, made: OutputSlice, models: Mapping[str, str], places: Mapping[str, Placed]
    ) -> None:
        self.method = config.method.name
        self.models = dict(models)
        self.base_model = made.base_model
        self.seed = config.seed
        self._config = config
        self._slice = made
        self._places = places

    def coefficient(self, parameter: str, expert: str | None, tensor_name: str) -> ParameterValue:
        """The value at one tensor of the result; raises ``UserError`` when it is required and not given."""
        declared = self._config.method.parameter(parameter)
        assert declared is not None
        place = self._places[tensor_name]
        scopes: list[Mapping[str, Any]] = [self._slice.parameters, self._config.parameters]
        name = tensor_name
        if expert is not None:
            model = self.models[expert]
            name = place.sources[expert]
            scopes = [source.parameters for source in self._slice.sources if source.model == model] + scopes
        for settings in scopes:
            if parameter in settings:
                value = evaluate_setting(settings[parameter], name, place.depth, declared)
                if value is not None:
                    return value
        if declared.default is None:
            whose = f" for {self.models[expert]}" if expert is not None else ""
            raise UserError(f"mergekit configuration: {self.method} needs a value for {parameter!r}{whose} ({name})")
        return declared.default


def evaluate_setting(setting: Any, tensor_name: str, depth: float, declared: MethodParameter) -> ParameterValue | None:
    """A scalar, a gradient list or a list of filters at one tensor; None when no filter matches."""
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list):
        return _plain(setting, declared)
    if not setting:
        return None
    if not isinstance(setting[0], Mapping):
        values = [_plain(value, declared) for value in setting]
        scaled = depth * (len(values) - 1)
        left = int(scaled)
        if any(isinstance(value, (bool, str)) for value in values):
            return values[left]
        right = min(left + 1, len(values) - 1)
        fraction = scaled - left
        return (1 - fraction) * float(values[left]) + fraction * float(values[right])
    for rule in setting:
        pattern = rule.get("filter")
        if pattern is None or pattern == "*" or pattern in tensor_name:
            return evaluate_setting(rule["value"], tensor_name, depth, declared)
    return None


def _plain(value: Any, declared: MethodParameter) -> ParameterValue:
    value = plain_value(value, declared)
    if isinstance(value, str) and not declared.choices:
        try:
            value = float(value)
        except ValueError:
            raise UserError(f"mergekit configuration: {declared.name} is {value!r}; it must be a number") from None
    wrong = declared.check(value)
    if wrong is not None:
        raise UserError(f"mergekit configuration: {wrong}")
    return value  # type: ignore[no-any-return]
