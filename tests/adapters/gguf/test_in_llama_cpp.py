"""What llama.cpp makes of the files: the log-probabilities of transformers and peft, for every architecture written."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp_server import llama_cpp_server

from mergefront.adapters.gguf.architectures import _INTERLEAVED
from mergefront.adapters.gguf.conversion import plan_files
from mergefront.adapters.gguf.file import write_gguf
from mergefront.optimizer.errors import UserError

TOKENS = 320
PROMPT = [104, 275, 282, 49, 314, 42, 30, 216]
KINDS = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
SIZES: dict[str, Any] = {
    "vocab_size": TOKENS, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def small_donor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of an end of text, the 256 bytes and pairs of letters: a real one takes seconds to read."""
    pytest.importorskip("xllamacpp")
    gguf = pytest.importorskip("gguf")
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = sorted(bytes_to_unicode().values())
    pairs = list(product("abcdefgh", repeat=2))[: TOKENS - 1 - len(letters)]
    path = tmp_path_factory.mktemp("donor") / "donor.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<|endoftext|>", *letters, *("".join(pair) for pair in pairs)])
    writer.add_token_types([int(gguf.TokenType.CONTROL)] + [int(gguf.TokenType.NORMAL)] * (TOKENS - 1))
    writer.add_token_merges([" ".join(pair) for pair in pairs])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_every_architecture_is_tried() -> None:
    assert KINDS.keys() == _INTERLEAVED.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_answers_as_transformers_does_with_and_without_the_lora(
    kind: str, small_donor: Path, tmp_path: Path
) -> None:
    """A row in the wrong order, or a bias that is lost, would be another model that answers all the same."""
    import httpx
    import torch
    import transformers
    from peft import LoraConfig, PeftModel, get_peft_model

    head = {"head_dim": 16} if kind in ("mistral", "qwen3") else {}  # where it is not hidden_size / heads
    bias = {"attention_bias": True} if kind == "llama" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = getattr(transformers, f"{KINDS[kind]}Config")(
            **SIZES, **head, **bias, tie_word_embeddings=kind == "qwen2"
        )
        model = getattr(transformers, f"{KINDS[kind]}ForCausalLM")(config).eval()
        for name, parameter in model.named_parameters():
            if name.endswith(".bias") or "norm" in name:
                parameter.data.add_(torch.randn_like(parameter) * 0.3)
        model.save_pretrained(tmp_path / "base")
        every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=6, target_modules=every, init_lora_weights=False))
        adapted.save_pretrained(tmp_path / "skill")
    models, out = [str(tmp_path / "skill"), str(tmp_path / "base")], tmp_path / "out"
    out.mkdir()
    for file, plan in plan_files(models, out, base=None, tokenizer_from=small_donor, dtype="f32").items():
        write_gguf(plan, file)

    base = getattr(transformers, f"{KINDS[kind]}ForCausalLM").from_pretrained(tmp_path / "base", dtype=torch.float32)
    live = PeftModel.from_pretrained(base, tmp_path / "skill").eval()
    ids = torch.tensor([PROMPT])
    with torch.no_grad(), live.disable_adapter():
        expected = {0.0: live(ids).logits[0, -1].log_softmax(-1)}
    for module in live.modules():
        if hasattr(module, "lora_A"):
            module.scaling["default"] *= 0.7
    with torch.no_grad():
        expected[0.7] = live(ids).logits[0, -1].log_softmax(-1)
    assert (expected[0.0] - expected[0.7]).abs().max() > 0.1, "the LoRA changes something"
    with llama_cpp_server(out / "base.gguf", [out / "skill.gguf"], context=128, exact=True) as url:
        for scale, wanted in expected.items():
            asked = {"prompt": PROMPT, "n_predict": 1, "n_probs": 50, "temperature": 0, "cache_prompt": False}
            answer = httpx.post(f"{url}/completion", json={**asked, "lora": [{"id": 0, "scale": scale}]}, timeout=60)
            (first,) = answer.json()["completion_probabilities"]
            got = {one["id"]: one["logprob"] for one in first["top_logprobs"]}
            assert got == pytest.approx({token: float(wanted[token]) for token in got}, abs=2e-3), (kind, scale)


def write_checkpoint(folder: Path, **config: Any) -> Path:
    from safetensors.numpy import save_file

    folder.mkdir()
    sizes = {**SIZES, "model_type": "llama", "rms_norm_eps": 1e-5, **config}
    (folder / "config.json").write_text(json.dumps(sizes))
    save_file({"model.norm.weight": np.ones(48, dtype=np.float32)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gemma2"}, r"model_type 'gemma2' is not written.*own converter, convert_hf_to_gguf\.py"),
        ({"rope_scaling": {"rope_type": "llama3"}}, r"of type 'llama3' are not written here; use llama\.cpp's"),
        ({"vocab_size": 321}, "has 320 tokens, but the checkpoint has 321"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers is 'two'"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, not a number above 0"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None, not a number"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name_with_the_remedy(
    config: dict[str, Any], said: str, small_donor: Path, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "model", **config)
    with pytest.raises(UserError, match=said):
        plan_files([str(folder)], tmp_path / "out", base=None, tokenizer_from=small_donor, dtype="f16")


def test_a_tokenizer_of_other_words_is_refused(small_donor: Path, tmp_path: Path) -> None:
    """Of two vocabularies of one size, the wrong one would read every prompt as another text."""
    folder = write_checkpoint(tmp_path / "model")
    vocabulary = {f"word{number}": number for number in range(TOKENS)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    with pytest.raises(UserError, match="another vocabulary; the checkpoint's token 'word0' is not in its place"):
        plan_files([str(folder)], tmp_path / "out", base=None, tokenizer_from=small_donor, dtype="f16")


@pytest.mark.parametrize("kept", [0, 30, 3000])
def test_a_damaged_tokenizer_file_is_refused_by_name(kept: int, small_donor: Path, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (tmp_path / "cut.gguf").write_bytes(small_donor.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"cut\.gguf: no readable GGUF file"):
        plan_files([str(folder)], tmp_path / "out", base=None, tokenizer_from=tmp_path / "cut.gguf", dtype="f16")


def test_numbers_that_half_precision_cannot_hold_leave_no_file(small_donor: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = write_checkpoint(tmp_path / "model")
    save_file({"model.embed_tokens.weight": np.full((2, 2), 1e5, dtype=np.float32)}, folder / "model.safetensors")
    ((out, plan),) = plan_files([str(folder)], tmp_path, base=None, tokenizer_from=small_donor, dtype="f16").items()
    with pytest.raises(UserError, match=r"token_embd\.weight has NaN or infinite entries in f16"):
        write_gguf(plan, out)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
