"""From folders to scales that are searched: gguf and llama-server, with the real llama.cpp."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import mergefront as mf
from mergefront.cli.application import cli

NAMES = ("maths", "french")
STUDY = """
study: pasted
{lines}
tasks:
  words: {{type: jsonl, path: words.jsonl, metric: loss, report_fraction: 0}}
objectives: [words]
search: {{sampler: random, evaluations: 7}}
"""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random base and two random LoRAs of it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        config = LlamaConfig(
            vocab_size=49152, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.2, rms_norm_eps=1e-5,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        model.save_pretrained(folder / "base")
        for name in NAMES:
            lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
            adapted = get_peft_model(model, lora)
            adapted.save_pretrained(folder / name)
            model = adapted.unload()
    return folder


@pytest.mark.long
def test_what_llama_server_prints_is_a_study_that_runs(models: Path, donor: Path, tmp_path: Path) -> None:
    loras = [models / name for name in NAMES]
    made = call("gguf", models / "base", *loras, tmp_path / "gguf", "--tokenizer", donor, "--density", 0.5)
    assert made.exit_code == 0, made.output
    stems = ["base", *(f"{name}{copy}" for name in NAMES for copy in ("", "@0.5"))]
    files = [tmp_path / "gguf" / f"{stem}.gguf" for stem in stems]
    assert made.stdout.split() == [str(file) for file in files] and all(file.is_file() for file in files)
    again = call("gguf", models / "base", *loras, tmp_path / "gguf", "--tokenizer", donor)
    assert again.exit_code == 2 and again.stderr.count("exists already") == 3, "nothing is overwritten"

    command = [sys.executable, "-m", "mergefront", "llama-server", *map(str, files), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        lines = []
        while not lines or not lines[-1].startswith("backend:"):
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read() if process.stderr is not None else ""
        (tmp_path / "study.yaml").write_text(STUDY.format(lines="".join(lines)))
        items = [{"prompt": "The capital of", "answer": f" {word}"} for word in ("France", "Peru", "Chad")]
        (tmp_path / "words.jsonl").write_text("\n".join(map(json.dumps, items)) + "\n")
        wrong = "".join(lines).replace("low: 0.5", "low: 0.25")
        (tmp_path / "wrong.yaml").write_text(STUDY.format(lines=wrong))
        refused = call("check", tmp_path / "wrong.yaml")
        assert refused.exit_code == 2 and "holds those of density 0.5, 1" in refused.stderr + refused.stdout
        ran = call("run", tmp_path / "study.yaml")
        assert ran.exit_code == 0, ran.output
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=240)
    assert process.returncode == 0 and "Traceback" not in said, said
    assert f"--lora-scaled {files[1]}:0.0,{files[2]}:0.0," in said and "--cache-ram 0" in said
    study = mf.load_study("pasted", storage=f"sqlite:///{tmp_path}/mergefront.db")
    scores = {candidate.scores["words"] for candidate in study.candidates()}
    assert study.space.models.keys() == set(NAMES) and len(scores) == 7, "every scale is another model"
    kept = {value for one in study.candidates() for name, value in one.params.items() if name.startswith("density")}
    assert kept == {0.5, 1.0}


def test_what_is_missing_is_said_for_every_model_at_once(models: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    result = call("gguf", models / "base", models / "nothing", tmp_path / "out")
    assert result.exit_code == 2 and "name it with --tokenizer" in result.stderr
    assert "nothing: there is no such file or folder" in result.stderr and not (tmp_path / "out").exists()
    alone = call("gguf", models / "maths", tmp_path / "out.gguf")
    assert alone.exit_code == 2 and "name it with --base" in alone.stderr
    several = call("gguf", models / "maths", models / "french", tmp_path / "out.gguf", "--base", models / "base")
    assert several.exit_code == 2 and "one file holds one model" in several.stderr
    assert call("gguf", models / "maths", tmp_path / "out.gguf", "--base", models / "base").exit_code == 0


def test_a_server_that_cannot_start_says_why(models: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    (tmp_path / "text.gguf").write_text("not a model")
    result = call("llama-server", tmp_path / "text.gguf", models / "maths", tmp_path / "none.gguf")
    assert result.exit_code == 2
    for said in ("text.gguf: no GGUF file", "mergefront gguf", "none.gguf: there is no such file"):
        assert said in result.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (tmp_path / "cut.gguf").write_bytes(b"GGUF")
        refused = call("llama-server", tmp_path / "cut.gguf", "--port", port)
    assert refused.exit_code == 2 and f"port {port} is taken" in refused.stderr
    twins = call("llama-server", tmp_path / "cut.gguf", tmp_path / "a" / "x.gguf", tmp_path / "b" / "x.gguf")
    assert twins.exit_code == 2 and "several LoRAs are called x" in twins.stderr
