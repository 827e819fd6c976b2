"""What stands in a model's folder beside its weights, and which of it a merged model takes over.

A file is taken by what it is, never for being there: weights, optimizer states, logs and
READMEs stay behind. Tokenizer and chat template come from the tokenizer's donor, the rest from the model
that the merge is described by.
"""

from __future__ import annotations

import ast
import json
import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mergefront.adapters.checkpoints.header import own_file, read_json
from mergefront.optimizer.errors import UserError

_log = logging.getLogger(__name__)
_LARGEST = 512 * 1024 * 1024
"""Bytes; the largest tokenizers have about 40 MB, a sentence-transformers' projection some more."""
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab*.json", "vocab*.txt", "merges.txt", "normalizer.json", "*.tiktoken", "tekken.json",
    "tokenizer.model*", "spiece.model", "spm.model", "sentencepiece*.model", "*.spm", "bpe.codes",
    "chat_template.jinja", "chat_template.json", "chat_templates/*.jinja", "additional_chat_templates/*.jinja",
)  # fmt: skip
"""Files of a tokenizer and its chat templates, as patterns of their paths in the folder."""
_PROCESSOR = ("*processor_config.json",)
_SENTENCE_TRANSFORMERS = ("modules.json", "config_sentence_transformers.json", "sentence_*_config.json")
_MODULE = ("*.json", "*.txt", "*.safetensors")
"""Files of a sentence-transformers module folder, ``1_Pooling`` or ``2_Dense``."""
_TOKEN_KEY = re.compile(r"^(\w+_)?token_ids?$|^\w+_token_index$")
_CODE = re.compile(r"^(?:[^:]*--)?(?P<module>[A-Za-z_][\w.]*)\.[A-Za-z_]\w*$")


def files_of(reference: Path, models: Iterable[Path]) -> dict[str, Path]:
    """What merged weights need beside a tokenizer, by the path in their folder: processor, custom code and modules of
    ``reference``.

    ``models`` are all models of the merge: weights of sentence-transformers modules, which no merge reaches, are
    taken where all have the same. Raises ``UserError`` for a link that leaves its model's folder, for a file that is
    too large for what its name says, and for modules whose weights differ.
    """
    found = _matching(reference, (*_PROCESSOR, *_SENTENCE_TRANSFORMERS))
    for module in [path for _, path in sentence_modules(reference) if path]:
        found += _matching(reference, tuple(f"{module}/{pattern}" for pattern in _MODULE))
    for file in found:
        if file.endswith(".safetensors"):
            _refuse_differing(reference, file, models)
    return {file: _own_file(reference, file) for file in (*found, *sorted(_code(reference)))}


def processor_names(folder: Path) -> list[str]:
    """The files of a processor that a folder has."""
    return _matching(folder, _PROCESSOR)


def is_token_key(key: str) -> bool:
    """Whether a key of a configuration has the id of a token."""
    return _TOKEN_KEY.match(key) is not None


def tokenizer_files(donor: Path) -> dict[str, Path]:
    """The tokenizer of ``donor`` and its chat templates, by the path in their folder; raises as ``files_of`` does."""
    return {file: _own_file(donor, file) for file in _matching(donor, TOKENIZER)}


def write_files(files: Mapping[str, Path], added: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Copy files, and append tokens (entries of tokenizer.json) to the tokenizer among them.

    Nothing that is copied is run; copied code is named in the log.
    """
    for file, origin in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin, folder / file)
    code = [file for file in files if file.endswith(".py")]
    if code:
        _log.warning(
            "code of the model's own was copied, not run: %s (from %s); read it before you load the model with "
            "trust_remote_code",
            ", ".join(code),
            files[code[0]].parent,
        )
    if not added:
        return
    content = read_json(folder / "tokenizer.json")
    content["added_tokens"] = [*content.get("added_tokens", ()), *added]
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    settings = _json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" in settings:
        settings["added_tokens_decoder"] |= {
            str(entry["id"]): {key: value for key, value in entry.items() if key != "id"} for entry in added
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def generation_config(reference: Path, donor: Path) -> dict[str, Any] | None:
    """generation_config.json of a merge: the reference's, with the special tokens (ends of text) of the donor."""
    made = _json(reference / "generation_config.json")
    if donor == reference:
        return made or None
    given = {**_json(donor / "config.json"), **_json(donor / "generation_config.json")}
    tokens = {key: value for key, value in given.items() if _TOKEN_KEY.match(key) and value is not None}
    if not made and not (donor / "generation_config.json").exists():
        return None
    return {**made, **tokens}


def token_ids(config: Mapping[str, Any], donor: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` (config.json) with the donor's ids of special tokens, in nested configurations too."""
    made = dict(config)
    for key, value in donor.items():
        if _TOKEN_KEY.match(key) and key in made:
            made[key] = value
        elif isinstance(value, Mapping) and isinstance(made.get(key), Mapping):
            made[key] = token_ids(made[key], value)
    return made


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[str]:
    """Paths in ``folder`` that match one of the patterns; a pattern with a slash looks into that subfolder."""
    if not folder.is_dir():
        return []
    found = []
    for place in sorted({pattern.rpartition("/")[0] for pattern in patterns}):
        inside = [file for file in sorted((folder / place).glob("*")) if not file.is_dir()]
        paths = [file.relative_to(folder).as_posix() for file in inside]
        found += [
            path for path in paths
            if any(fnmatch(path, pattern) for pattern in patterns if pattern.rpartition("/")[0] == place)
        ]  # fmt: skip
    return found


def sentence_modules(folder: Path) -> list[tuple[str, str]]:
    """The modules that a sentence-transformers' modules.json names, in their order: the name of each one's class, and
    its folder beside the file (empty: the folder itself). Raises ``UserError`` for folders elsewhere."""
    listed = folder / "modules.json"
    if not listed.exists():
        return []
    try:
        entries = json.loads(own_file(folder, listed.name).read_text("utf-8"))
        found = [(str(entry.get("type", "")).rpartition(".")[2], str(entry["path"])) for entry in entries]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f"{listed}: it must be a list of modules with a path each") from None
    strange = [path for _, path in found if not re.fullmatch(r"[\w.-]*", path) or path in (".", "..")]
    if strange:
        raise UserError(f"{listed}: the module {strange[0]!r} must be a folder beside it")
    return found


def _code(folder: Path) -> set[str]:
    """Python files that the configurations of a folder name under auto_map, with those beside them that they import."""
    names = ("config.json", "tokenizer_config.json", *_matching(folder, _PROCESSOR))
    described = [_json(folder / name) for name in names]
    waiting = [match["module"] for one in described for name in _names(one.get("auto_map"))
               if (match := _CODE.match(name)) is not None]  # fmt: skip
    found: set[str] = set()
    while waiting:
        file = f"{waiting.pop().replace('.', '/')}.py"
        if file in found or not (folder / file).is_file():
            continue
        found.add(file)
        waiting += _relative_imports(own_file(folder, file))
    return found


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _names(entry)


def _relative_imports(file: Path) -> list[str]:
    """Modules beside ``file`` that it imports (``from .parts import ...``)."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):
        return []  # it is copied as it is; its own loader says what is wrong with it
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    return [node.module for node in found if node.module] + [
        name.name for node in found if not node.module for name in node.names
    ]


def _own_file(folder: Path, file: str) -> Path:
    """The file itself behind a path in a model's folder, to be copied."""
    target = own_file(folder, file)
    if target.stat().st_size > _LARGEST:
        raise UserError(
            f"{folder / file}: {target.stat().st_size} bytes are too many for what its name says; remove or rename it"
        )
    return target


def _refuse_differing(reference: Path, file: str, models: Iterable[Path]) -> None:
    for model in models:
        other = model / file
        if other.exists() and _own_file(model, file).read_bytes() != _own_file(reference, file).read_bytes():
            raise UserError(
                f"{other}: this module's weights differ from those of {reference}, and a merge does not reach them; "
                "train it anew after the merge, or give every model the same one"
            )


def _json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.exists() else {}
