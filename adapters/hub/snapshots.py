"""The files of a repository at one commit: where they lie, what would be fetched, and their headers alone."""

from __future__ import annotations

import fnmatch
import json
import shutil
import struct
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergefront.adapters.hub.errors import explained
from mergefront.adapters.hub.names import HubName
from mergefront.optimizer.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_SMALL = ("README.md", "*.json", "*.jsonl", "*.model", "*.txt", "*.jinja", "*.tiktoken")
_WEIGHTS = "*.safetensors"
_NEVER = ("*consolidated*", "*.fp16.*", "*onnx*", "*openvino*", "*original/*", "*checkpoint-*/*", "*runs/*")
"""Second copies of the weights, and what training leaves."""
_PROJECTION = "_Dense"
"""How folders of sentence-transformers' projections end, whose weights are wanted beside the model's."""
_BELOW = tuple(f"*[!{letter}]{_PROJECTION[place + 1 :]}/{_WEIGHTS}" for place, letter in enumerate(_PROJECTION))
"""Weights in other folders. Patterns know no "but not": each says that a name ends otherwise from a letter on."""


@dataclass(frozen=True)
class Snapshot:
    """A repository at a commit. ``sizes`` has the bytes of each file that is wanted, by its path in the repository."""

    name: HubName
    commit: str
    sizes: dict[str, int]

    def missing_bytes(self) -> int:
        """How much of it is not in the cache yet."""
        from huggingface_hub import try_to_load_from_cache

        def is_cached(path: str) -> bool:
            return isinstance(try_to_load_from_cache(self.name.repository, path, revision=self.commit), str)

        return sum(size for path, size in self.sizes.items() if not is_cached(path))


def commit_of(name: HubName) -> str:
    """The commit that a name means now; without a network, the one that it meant when it was last fetched.

    Raises ``UserError``.
    """
    with explained(name):
        if not _offline():
            return str(api().repo_info(name.repository, revision=name.revision, repo_type=name.kind).sha)
        if name.kind == "model":
            return Path(_download(name, name.revision, local=True)).name
        return Path(_download_file(name, name.revision)).parents[name.folder.count("/")].name


def snapshot(name: HubName, commit: str) -> Snapshot:
    """What is wanted of a repository, with sizes (asks the Hub). Raises ``UserError``."""
    with explained(name):
        found = api().model_info(name.repository, revision=commit, files_metadata=True)
    listed = {file.rfilename: file.size or 0 for file in found.siblings or ()}
    # What a server lists becomes places on this disk, and none of them may lie outside the model's folder.
    files = {path: size for path, size in listed.items() if not {"", ".."} & set(path.split("/"))}
    sizes = {path: size for path, size in files.items() if _is_wanted(path, name.folder)}
    if not any(fnmatch.fnmatch(path, _WEIGHTS) for path in sizes):
        inside = f" in its folder {name.folder}" if name.folder else ""
        pickles = sorted(path for path in files if path.endswith((".bin", ".pt", ".pth", ".ckpt", ".gguf")))
        other = f", only {pickles[0]}" if pickles else ""
        raise UserError(f"{name} on the Hub has no safetensors{inside}{other}; name a repository that has")
    return Snapshot(name, commit, sizes)


def cached(name: HubName, commit: str) -> Path | None:
    """The repository's folder in the cache, if all that is wanted of this commit is there."""
    with explained(name):
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return Path(_download(name, commit, local=True))
        except LocalEntryNotFoundError:
            return None


def fetched(name: HubName, commit: str) -> Path:
    """The folder of a model at a commit, downloaded into the Hub's cache if it is not there. Raises ``UserError``."""
    with explained(name):
        return (cached(name, commit) or Path(_download(name, commit))) / name.folder


def fetched_file(name: HubName, commit: str) -> Path:
    """A file of a data set at a commit, downloaded into the Hub's cache if it is not there. Raises ``UserError``."""
    with explained(name):
        from huggingface_hub.errors import RemoteEntryNotFoundError

        try:
            return Path(_download_file(name, commit))
        except RemoteEntryNotFoundError:
            known = api().list_repo_files(name.repository, repo_type=name.kind, revision=commit)
            raise UserError(f"{name} has no file {name.folder!r} {did_you_mean(name.folder, known)}") from None


def headers_only(found: Snapshot, folder: Path) -> Path:
    """A folder like the model's whose weights are holes: headers are read from the Hub, tensors never.

    Small files are whole. It serves to look at a model before gigabytes are fetched. Raises ``UserError``.
    """
    name = found.name
    with explained(name):
        small = Path(_download(name, found.commit, small=True))
        for path in found.sizes:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if not fnmatch.fnmatch(path, _WEIGHTS):
                shutil.copyfile(small / path, target)
                continue
            read = api().parse_safetensors_file_metadata(name.repository, path, revision=found.commit)
            header: dict[str, Any] = {
                tensor: {"dtype": info.dtype, "shape": info.shape, "data_offsets": info.data_offsets}
                for tensor, info in read.tensors.items()
            }
            text = json.dumps(header).encode()
            with target.open("wb") as stream:
                stream.write(struct.pack("<Q", len(text)) + text)
                # A file with a hole takes no room on the disk.
                stream.truncate(
                    8 + len(text) + max((info.data_offsets[1] for info in read.tensors.values()), default=0)
                )
    return folder / name.folder


def _is_wanted(path: str, folder: str) -> bool:
    kept, dropped = _patterns(folder)
    return any(fnmatch.fnmatch(path, one) for one in kept) and not any(fnmatch.fnmatch(path, one) for one in dropped)


def _patterns(folder: str, *, small: bool = False) -> tuple[list[str], list[str]]:
    """Which files are fetched and which are not: the weights of one folder, and small files below it."""
    start = escape(f"{folder}/") if folder else ""
    kept = [start + pattern for pattern in (_SMALL if small else (*_SMALL, _WEIGHTS))]
    return kept, [start + pattern for pattern in (*_NEVER, *_BELOW)]


def _download(name: HubName, revision: str | None, *, local: bool = False, small: bool = False) -> str:
    from huggingface_hub import snapshot_download

    kept, dropped = _patterns(name.folder, small=small)
    return str(
        snapshot_download(
            name.repository, revision=revision, allow_patterns=kept, ignore_patterns=dropped, local_files_only=local
        )
    )


def _download_file(name: HubName, revision: str | None) -> str:
    from huggingface_hub import hf_hub_download

    return hf_hub_download(name.repository, name.folder, repo_type=name.kind, revision=revision)


def api() -> HfApi:
    """The Hub, as the user's environment names it."""
    from huggingface_hub import HfApi

    return HfApi(library_name="mergefront")


def _offline() -> bool:
    from huggingface_hub import constants

    return constants.is_offline_mode()


def room_in_cache() -> tuple[Path, int]:
    """The Hub's cache folder on this machine, and how many bytes are free where it lies or will lie."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    made = next(folder for folder in (cache, *cache.parents) if folder.exists())
    return cache, shutil.disk_usage(made).free
