"""A merged folder has what its processor, tokenizer and modules need, and nothing else of its models' folders."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mergefront.adapters.merging.output.directory import merge_to_directory
from mergefront.optimizer.errors import UserError

TAKEN = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tokenizer.model.v3", "vocab.json", "vocab.txt",
    "merges.txt", "added_tokens.json", "special_tokens_map.json", "spiece.model", "spm.model",
    "sentencepiece.bpe.model", "source.spm", "tekken.json", "qwen.tiktoken", "chat_template.jinja",
    "chat_template.json", "chat_templates/tool.jinja", "additional_chat_templates/rag.jinja", "processor_config.json",
    "preprocessor_config.json", "video_preprocessor_config.json", "config_sentence_transformers.json",
    "sentence_bert_config.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors",
)  # fmt: skip
LEFT = (
    "README.md", "optimizer.pt", "scheduler.pt", "training_args.bin", "trainer_state.json", "train.log", "setup.py",
    "evaluation/config.json", "3_Notes/config.json", "runs/events.json", "pytorch_model.bin",
)  # fmt: skip


def model(folder: Path, files: tuple[str, ...] = (), **config: Any) -> Path:
    """A model of one tensor and files whose text is the folder's name."""
    folder.mkdir(parents=True)
    save_file({"model.embed_tokens.weight": torch.ones(4, 2)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": True, **config}))
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(json.dumps({"from": folder.name}))
    return folder


def merged(tmp_path: Path, *models: str, **changes: Any) -> Path:
    entries = [{"model": name, "parameters": {"weight": 0.5}} for name in models]
    return merge_to_directory({"merge_method": "linear", "models": entries, **changes}, tmp_path / "out", tmp_path)


def test_files_are_taken_by_what_they_are(tmp_path: Path) -> None:
    modules = json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}])
    for name in ("a", "b"):
        files = [file for file in (*TAKEN, *LEFT) if "Dense/model" not in file and not file.startswith("tokenizer.j")]
        folder = model(tmp_path / name, tuple(files))
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"x": 0}}}))
        (folder / "modules.json").write_text(modules)
        save_file({"linear.weight": torch.ones(2, 2)}, folder / "2_Dense/model.safetensors")
    out = merged(tmp_path, "a", "b")
    found = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    own = {"config.json", "model.safetensors", "mergekit_config.yml", "modules.json"}
    assert found == {*TAKEN, *own}
    save_file({"linear.weight": torch.zeros(2, 2)}, tmp_path / "b/2_Dense/model.safetensors")
    out.rename(tmp_path / "first")
    with pytest.raises(UserError, match=r"2_Dense.*differ"):
        merged(tmp_path, "a", "b")


def test_a_file_behind_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    model(tmp_path / "a", ("spiece.model",))
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "a/tekken.json").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="leads out of the model's folder"):
        merged(tmp_path, "a")
    assert not (tmp_path / "out").exists()


def test_links_inside_a_folder_and_in_the_cache_of_the_hub_are_followed(tmp_path: Path) -> None:
    snapshot = model(tmp_path / "models--x--y/snapshots/1234", ("spiece.model",))
    (snapshot / "tekken.json").symlink_to("spiece.model")
    (tmp_path / "models--x--y/blobs").mkdir()
    (tmp_path / "models--x--y/blobs/77").write_text("{}")
    (snapshot / "added_tokens.json").symlink_to("../../blobs/77")
    out = merged(tmp_path, str(snapshot))
    assert not (out / "tekken.json").is_symlink() and (out / "tekken.json").read_text() == '{"from": "1234"}'
    assert (out / "added_tokens.json").read_text() == "{}"


def test_code_of_the_models_own_is_copied_with_a_warning_and_not_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = model(tmp_path / "a", auto_map={"AutoModel": "code.Own", "AutoTokenizer": ["other--hub.Own", None]})
    (folder / "code.py").write_text("from .parts import f\nraise SystemExit('run')\n")
    (folder / "parts.py").write_text("f = 1\n")
    (folder / "train.py").write_text("import os\n")
    with caplog.at_level(logging.WARNING):
        out = merged(tmp_path, "a")
    assert sorted(file.name for file in out.glob("*.py")) == ["code.py", "parts.py"]
    assert "code.py, parts.py" in caplog.text


def test_tokenizer_and_ends_of_text_are_those_of_the_donor(tmp_path: Path) -> None:
    files = ("chat_template.jinja", "processor_config.json")
    model(tmp_path / "a", files, eos_token_id=2, text_config={"eos_token_id": 2, "width": 1})
    model(tmp_path / "b", files, eos_token_id=3, text_config={"eos_token_id": 3, "width": 1})
    (tmp_path / "a/generation_config.json").write_text('{"eos_token_id": 2, "temperature": 0.5}')
    (tmp_path / "b/generation_config.json").write_text('{"eos_token_id": [3, 1], "temperature": 0.9}')
    out = merged(tmp_path, "a", "b", tokenizer_source="b")
    assert (out / "chat_template.jinja").read_text() == '{"from": "b"}'
    assert (out / "processor_config.json").read_text() == '{"from": "a"}'
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": [3, 1], "temperature": 0.5}
    config = json.loads((out / "config.json").read_text())
    assert (config["eos_token_id"], config["text_config"]["eos_token_id"]) == (3, 3)


def test_a_merge_has_a_tokenizer_when_only_a_later_model_has_one(tmp_path: Path) -> None:
    model(tmp_path / "a")
    model(tmp_path / "b", ("spiece.model", "tokenizer_config.json"))
    assert (merged(tmp_path, "a", "b") / "spiece.model").exists()
