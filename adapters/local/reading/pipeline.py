"""How a folder's texts become vectors: the files of sentence-transformers, read without that library.

modules.json names what follows the model: a pooling of its hidden states, projections, a normalisation. A folder
without one is pooled as sentence-transformers pools it: by the mean of the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mergefront.adapters.checkpoints.header import Checkpoint, own_file, read_json
from mergefront.adapters.merging.output.files import sentence_modules
from mergefront.optimizer.errors import UserError, did_you_mean

Mode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
_MODES: Mapping[str, Mode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Keys of a pooling's config.json, in the order in which several are put side by side."""
_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


@dataclass(frozen=True)
class Dense:
    """A projection of vectors: its folder, and the name of torch's activation behind it."""

    folder: Path
    activation: str


@dataclass(frozen=True)
class Pipeline:
    """What makes a vector of a text's hidden states, and what is put before the text.

    ``modes`` are put side by side; ``counts_prompt`` says whether tokens of the prompt are pooled. ``steps`` follow
    the pooling: projections, and "normalise". ``prompts`` are texts by name, one for queries and one for documents
    among them. ``max_length`` is in tokens (None: what the model reads).
    """

    modes: tuple[Mode, ...] = ("mean",)
    counts_prompt: bool = True
    steps: tuple[Dense | Literal["normalise"], ...] = ()
    prompts: Mapping[str, str] | None = None
    default_prompt: str | None = None
    similarity: str = "cosine"
    max_length: int | None = None
    lower_case: bool = False

    def prompt(self, role: str) -> str:
        """What stands before a text of a role: "query", "document" or "" (a text like any other)."""
        names = {"query": ("query",), "document": ("document", "passage", "corpus")}.get(role, ())
        prompts = self.prompts or {}
        found = next((prompts[name] for name in names if name in prompts), None)
        if found is None and self.default_prompt is not None:
            found = prompts.get(self.default_prompt)
        return found or ""


def read_pipeline(folder: Path) -> Pipeline:
    """The pipeline of a model's folder. Raises ``UserError`` for a module that is not known here."""
    settings = _optional(folder / "sentence_bert_config.json")
    described = _optional(folder / "config_sentence_transformers.json")
    similarity = described.get("similarity_fn_name") or "cosine"
    if similarity not in SIMILARITIES:
        hint = did_you_mean(str(similarity), SIMILARITIES)
        raise UserError(f"{folder}: config_sentence_transformers.json: unknown similarity {similarity!r} {hint}")
    modes: tuple[Mode, ...] = ("mean",)
    counts_prompt = True
    steps: list[Dense | Literal["normalise"]] = []
    for number, (kind, path) in enumerate(sentence_modules(folder)):
        where = folder / path
        if number == 0 and (kind != "Transformer" or path):
            raise UserError(
                f"{folder}: modules.json begins with {kind} in {path or 'the folder itself'!r}; the model has to be a "
                "Transformer in the folder itself"
            )
        if kind == "Pooling":
            modes, counts_prompt = _pooling(where)
        elif kind == "Dense":
            steps.append(_dense(where))
        elif kind == "Normalize":
            steps.append("normalise")
        elif kind not in ("Transformer", "Dropout"):
            raise UserError(f"{folder}: modules.json has a module {kind}, which cannot be asked here; use type: python")
    length = settings.get("max_seq_length")
    return Pipeline(
        modes,
        counts_prompt,
        tuple(steps),
        {str(name): str(text) for name, text in (described.get("prompts") or {}).items()},
        described.get("default_prompt_name"),
        similarity,
        length if isinstance(length, int) and length > 0 else None,
        bool(settings.get("do_lower_case")),
    )


def _pooling(folder: Path) -> tuple[tuple[Mode, ...], bool]:
    config = _optional(folder / "config.json")
    named = config.get("pooling_mode")  # how newer versions write it
    written = [named] if isinstance(named, str) else named if isinstance(named, list) else None
    if written is None:
        written = [mode for key, mode in _MODES.items() if config.get(key)] or ["mean"]
    unknown = [mode for mode in written if mode not in _MODES.values()]
    if unknown:
        raise UserError(f"{folder / 'config.json'}: unknown pooling {unknown[0]!r}")
    return tuple(written), bool(config.get("include_prompt", True))


def _dense(folder: Path) -> Dense:
    activation = str(_optional(folder / "config.json").get("activation_function") or "Tanh").rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        hint = did_you_mean(activation, _ACTIVATIONS)
        raise UserError(f"{folder / 'config.json'}: unknown activation {activation!r} {hint}")
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"{folder}: a Dense module needs its weights in model.safetensors; save it anew")
    own_file(folder.parent, f"{folder.name}/model.safetensors")
    if "linear.weight" not in Checkpoint(folder / "model.safetensors"):
        raise UserError(f"{folder / 'model.safetensors'}: it has no tensor 'linear.weight'")
    return Dense(folder, activation)


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
