"""A base model's folder as a live model and its processor; and, before anything is loaded, whether that can be."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergefront.adapters.chat_templates import TemplateReader
from mergefront.adapters.checkpoints.header import Checkpoint, CheckpointHeader, read_header
from mergefront.adapters.checkpoints.live_names import Shape, live_names, model_on_meta
from mergefront.adapters.evaluator import out_of_memory
from mergefront.adapters.local.devices.spread import device_of, layer_map, place_of, spread_model
from mergefront.adapters.local.devices.usable import Devices
from mergefront.adapters.merging.output.files import generation_config, tokenizer_files, write_files
from mergefront.adapters.merging.output.metadata import Description, write_metadata
from mergefront.adapters.merging.vocabulary import Alignment
from mergefront.adapters.tasks.prompt_findings import Reader
from mergefront.adapters.tokenization import Tokenization
from mergefront.optimizer.errors import UserError

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)
_OPTIONS: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True)
class Spread:
    """The devices of a model that lies in several places, and the bytes that bound each."""

    devices: Devices
    limits: Mapping[str, int]


def load_model(
    path: Path, dtype: torch.dtype, aligned: Alignment, for_text: bool, headless: bool, spread: Spread | None = None
) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """The model of a local folder and its processor or tokenizer; no remote code, no pickles, no network.

    The third are the tensors that wait beside the model (see ``spread_model``).
    """
    with _understood(path):
        kind, config = _class(path, for_text, headless)
        processor = _load_processor(path, aligned, _OPTIONS)
        settings = _without_pooler(kind, read_header(path).tensors) if headless else {}
        load = partial(kind.from_pretrained, path, dtype=dtype, use_safetensors=True, **settings, **_OPTIONS)
        if spread is None:
            model, waiting = load(), {}
        else:
            layers = layer_map(model_on_meta(kind, config, **settings), spread.devices, spread.limits, dtype)
            with tempfile.TemporaryDirectory() as folder:
                model = load(device_map=layers, offload_folder=folder)
            waiting = spread_model(model, layers, spread.devices)
        _take_vocabulary(model, path, aligned)
    return model, processor, waiting


def live_bytes(
    path: Path, stored: Mapping[str, Shape], dtype: torch.dtype, for_text: bool, headless: bool, spread: Spread
) -> tuple[dict[str, int], dict[str, torch.device]]:
    """Of a model that is yet to be loaded: bytes by device, and under ``disk``; the device of each stored tensor."""
    from mergefront.adapters.merging.offload.placement import device_name

    with _understood(path):
        kind, config = _class(path, for_text, headless)
        model = model_on_meta(kind, config)
        layers = layer_map(model, spread.devices, spread.limits, dtype)
    sizes: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        place = place_of(name, layers)
        where = place if place == "disk" else device_name(device_of(place, spread.devices))
        sizes[str(where)] = sizes.get(str(where), 0) + parameter.numel() * dtype.itemsize
    lies = {name: place.live for name, place in live_names(model, stored).places.items()}
    return sizes, {name: device_of(place_of(live, layers), spread.devices) for name, live in lies.items()}


def compose_model(
    base: Checkpoint, described: Description, dtype: torch.dtype, for_text: bool, headless: bool
) -> tuple[Any, Any]:
    """The model of tensors that come from several folders, and its processor or tokenizer."""
    from transformers import GenerationConfig

    with _understood(described.frame), _folder_of(described) as folder:
        kind, config = _class(folder, for_text, headless)
        concrete: Any = type(model_on_meta(kind, config))
        model = concrete.from_pretrained(None, config=config, state_dict=dict(base), dtype=dtype)
        if (folder / "generation_config.json").exists() and model.can_generate():
            model.generation_config = GenerationConfig.from_pretrained(folder, **_OPTIONS)
        return model, _load_processor(folder, Alignment({}, folder), _OPTIONS)


def model_of(path: Path) -> Any:
    """The model of a local folder without memory for its weights. Raises ``UserError``."""
    with _understood(path):
        return model_on_meta(*_class(path, True))


def tokenizer_and_ends(folder: Path) -> tuple[Any, frozenset[int]]:
    """The tokenizer of a model that is computed elsewhere, and the tokens that end answers. Raises ``UserError``."""
    from types import SimpleNamespace

    from transformers import AutoTokenizer, GenerationConfig

    from mergefront.adapters.local.limits import end_tokens

    with _understood(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, **_OPTIONS)
        has_settings = (folder / "generation_config.json").exists()
        settings = GenerationConfig.from_pretrained(folder, **_OPTIONS) if has_settings else None
    return tokenizer, end_tokens(SimpleNamespace(generation_config=settings), tokenizer)


@dataclass(frozen=True)
class LoadingFindings:
    """Why a live model cannot be made of a checkpoint (``problems``), what it would not read (``unread``), and how it
    reads texts."""

    problems: list[str]
    unread: list[str]
    reader: Reader


def loading_findings(
    base: CheckpointHeader, aligned: Alignment, described: Description | None, for_text: bool, headless: bool = False
) -> LoadingFindings:
    """What is known of a live model from headers alone.

    ``described`` says what stands beside the tensors where they come from several folders. The model is made on the
    meta device, without memory for its weights; its tokenizer or processor is loaded. Raises ``UserError`` where
    transformers does not know one of them.
    """
    if described is None:
        with _understood(base.path):
            kind, config = _class(base.path, for_text, headless)
            model = model_on_meta(kind, config, **(_without_pooler(kind, base.tensors) if headless else {}))
            _read_generation(model, base.path, aligned.tokenizer)
            processor = _load_processor(base.path, aligned, _OPTIONS)
    else:
        with _understood(described.frame), _folder_of(described) as folder:
            model = model_on_meta(*_class(folder, for_text, headless))
            _read_generation(model, folder, folder)
            processor = _load_processor(folder, Alignment({}, folder), _OPTIONS)
    stored = {name: info.shape for name, info in base.tensors.items()}
    names = live_names(model, stored)
    problems = names.problems()
    strays = [name for name in names.ignored if name in (base.carried or ())]
    if strays:
        more = f" (and {len(strays) - 1} more)" if len(strays) > 1 else ""
        problems.append(f"{type(model).__name__} has no place for {strays[0]!r}{more}, of a tower that it would get")
    unexpected = names.unexpected(base.config, stored)
    reader = _reader(model, processor) if for_text else Reader()
    return LoadingFindings(problems, [] if unexpected is None or strays else [unexpected], reader)


def _read_generation(model: Any, folder: Path, tokenizer: Path) -> None:
    """Give a model the settings of its generation_config.json, and the ends of text that go with a tokenizer.

    Raises what transformers raises for a file that it cannot generate by.
    """
    if (folder / "generation_config.json").exists():
        from transformers import GenerationConfig

        read = GenerationConfig.from_pretrained(folder, **_OPTIONS)
        for key in ("suppress_tokens", "begin_suppress_tokens"):
            numbers = getattr(read, key, None)
            if numbers is not None and not (isinstance(numbers, list) and all(type(one) is int for one in numbers)):
                raise ValueError(f"generation_config.json: {key} is {numbers!r:.80}; it must be a list of tokens")
        model.generation_config = read
    if tokenizer != folder and model.can_generate():
        model.generation_config.update(**(generation_config(folder, tokenizer) or {}))


@contextmanager
def _folder_of(described: Description) -> Iterator[Path]:
    """A folder with everything of a merged model but its weights."""
    with tempfile.TemporaryDirectory() as name:
        write_metadata(described, Path(name), ())
        yield Path(name)


def _reader(model: Any, processor: Any) -> Reader:
    from transformers import PreTrainedTokenizerBase

    from mergefront.adapters.local.limits import end_tokens, longest_input

    tokenizer = getattr(processor, "tokenizer", processor)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):  # of images or sounds
        return Reader()
    template = getattr(tokenizer, "chat_template", None)
    return Reader(
        Tokenization(tokenizer, chats=TemplateReader(tokenizer)),
        longest_input(model, tokenizer),
        template if isinstance(template, str) else "",
        is_split=model.config.is_encoder_decoder,
        ends=end_tokens(model, tokenizer),
    )


def refuse_likelihoods_of(path: Path) -> None:
    """Raises ``UserError`` for a folder whose model gives no likelihoods of texts, from its configuration."""
    from mergefront.adapters.local.limits import refuse_likelihoods

    with _understood(path):
        kind, config = _class(path, for_text=True)
    refuse_likelihoods(config, kind.__name__)


def _without_pooler(kind: Any, tensors: Mapping[str, Any]) -> dict[str, bool]:
    """Settings of a class that would give a checkpoint a pooler of random weights, which nothing here reads."""
    has_choice = "add_pooling_layer" in signature(kind.__init__).parameters
    return {"add_pooling_layer": False} if has_choice and not any("pooler." in name for name in tensors) else {}


def _class(path: Path, for_text: bool, headless: bool = False) -> tuple[Any, Any]:
    from transformers import AutoConfig

    from mergefront.adapters.local.asked import body_class, model_class

    config = AutoConfig.from_pretrained(path, **_OPTIONS)
    return body_class(config) if headless else model_class(config, for_text), config


@contextmanager
def _understood(path: Path) -> Iterator[None]:
    """What transformers raises as ``UserError``, and no progress bars."""
    try:
        from transformers.utils import logging as transformers_logging
    except ImportError:
        raise UserError(
            "the local backend needs transformers; install it with: pip install 'mergefront[local]'"
        ) from None
    if not (path / "config.json").exists():
        raise UserError(f"{path}: there is no config.json; the base model must be a Hugging Face model folder")
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # whatever a stranger's files make of the classes that they name
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: transformers cannot load it: {reason:.300}") from None
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def _load_processor(base: Path, aligned: Alignment, options: Mapping[str, Any]) -> Any:
    """What a folder's texts, images or sounds go through: a processor that holds the aligned tokenizer, that tokenizer
    alone, or what a model without texts has."""
    if not any((base / name).exists() for name in ("processor_config.json", "preprocessor_config.json")):
        return _load_tokenizer(base, aligned, options)
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(base, **options)
    except Exception as error:
        # Texts can be asked without what images and videos need.
        _log.warning("%s: its processor cannot be loaded (%.300s); only texts can be asked", base, str(error).strip())
        return _load_tokenizer(base, aligned, options)
    if hasattr(processor, "tokenizer"):
        processor.tokenizer = _load_tokenizer(base, aligned, options)
    return processor


def _take_vocabulary(model: Any, base: Path, aligned: Alignment) -> None:
    """Give the live model the rows, and the ends of text, that an exported model of these tokens has."""
    if aligned.rows != aligned.was:
        model.resize_token_embeddings(aligned.rows, mean_resizing=False)
    if aligned.tokenizer != base and model.can_generate():
        model.generation_config.update(**(generation_config(base, aligned.tokenizer) or {}))


def _load_tokenizer(base: Path, aligned: Alignment, options: Mapping[str, Any]) -> Any:
    """The tokenizer of the aligned models, with the tokens that are added to it as an export adds them."""
    from transformers import AutoTokenizer

    if not aligned.added:
        return AutoTokenizer.from_pretrained(aligned.tokenizer, **options)
    with tempfile.TemporaryDirectory() as folder:
        write_files(tokenizer_files(aligned.tokenizer), aligned.added, Path(folder))
        shutil.copyfile(base / "config.json", Path(folder) / "config.json")
        return AutoTokenizer.from_pretrained(folder, **options)
