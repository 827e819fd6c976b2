"""Models with tokens of their own, as transformers makes and reads them: merged, searched and exported alike."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_models import TINY_MODELS

import mergefront as mf
from mergefront.adapters.local.backend import LocalBackend
from mergefront.adapters.merging.output.directory import merge_to_directory
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.results.export import export_candidate
from mergefront.study.check import check_study

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def pools(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, random_model: Callable[..., Any]
) -> dict[str, Path]:
    """A base, an expert with <chat> and <tool>, another with <code> and <tool> and rows to spare; with tied and with
    untied heads."""
    made = {}
    for kind in ("tied", "untied"):
        folder = made[kind] = tmp_path_factory.mktemp(kind)
        base = random_model(tie_word_embeddings=kind == "tied")
        for number, (name, added, spare) in enumerate(
            [("base", (), 0), ("chat", ("<chat>", "<tool>"), 0), ("code", ("<code>", "<tool>"), 5)]
        ):
            own, model = copy.deepcopy(tokenizer), copy.deepcopy(base)
            own.add_tokens([transformers.AddedToken(token, special=True) for token in added])
            torch.manual_seed(number)
            model.resize_token_embeddings(len(own) + spare, mean_resizing=False)
            with torch.no_grad():
                for parameter in model.parameters() if number else ():
                    parameter.add_(0.05 * torch.randn(parameter.shape))
            model.save_pretrained(folder / name)
            own.save_pretrained(folder / name)
    return made


def config(weights: dict[str, float], source: Any) -> dict[str, Any]:
    models = [{"model": name, "parameters": {"weight": weight}} for name, weight in weights.items()]
    return {"merge_method": "task_arithmetic", "base_model": "base", "models": models, "tokenizer_source": source}


def logits(folder: Path, text: str, tokens: list[str]) -> torch.Tensor:
    """What a model answers to a text, for these tokens only (by their text, since ids differ between models)."""
    made = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        answer: torch.Tensor = model(**made(text, return_tensors="pt")).logits[0, :, made.convert_tokens_to_ids(tokens)]
    return answer


@pytest.mark.parametrize(("kind", "expert"), [("tied", "chat"), ("untied", "chat"), ("untied", "code")])
def test_with_the_union_an_expert_at_weight_1_answers_as_itself(
    pools: dict[str, Path], tmp_path: Path, tokenizer: Any, kind: str, expert: str
) -> None:
    pool, text, size = pools[kind], f"<{expert}> Is it A, B or C? <tool>", len(tokenizer)
    weights = {"chat": float(expert == "chat"), "code": float(expert == "code")}
    out = merge_to_directory(config(weights, "union"), tmp_path / "out", pool)
    merged = transformers.AutoTokenizer.from_pretrained(out)
    assert len(merged) == size + 3 and json.loads((out / "config.json").read_text())["vocab_size"] == size + 3
    assert merged.decode(merged(text).input_ids) == text and merged.convert_tokens_to_ids("<code>") == size + 2
    own = list(transformers.AutoTokenizer.from_pretrained(pool / expert).get_vocab())
    assert torch.allclose(logits(out, text, own), logits(pool / expert, text, own), atol=1e-4)


def study_file(folder: Path, pool: Path, source: Any) -> Path:
    (folder / "items.jsonl").write_text(json.dumps({"prompt": "<tool> Is it A,", "answer": " B"}) + "\n")
    content = {
        "study": "tokens",
        "merge": {
            "method": ["task_arithmetic", "linear"],
            "base_model": str(pool / "base"),
            "models": {"chat": str(pool / "chat"), "code": str(pool / "code")},
            "tokenizer_source": source,
        },
        "tasks": {"t": {"type": "jsonl", "path": "items.jsonl", "metric": "loss", "report_fraction": 0.0}},
        "objectives": ["t"],
        "search": {"sampler": "sobol", "evaluations": 5},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    return folder / "study.yaml"


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("untied", "union"),
        ("tied", {"model": "code", "transplant": "omp"}),
        ("tied", {"model": "union", "tokens": {"<tool>": {"source": "code", "force": True}}}),
    ],
)
def test_what_is_searched_is_what_is_exported(pools: dict[str, Path], tmp_path: Path, kind: str, source: Any) -> None:
    pool = pools[kind]
    study = mf.run(study_file(tmp_path, pool, source))
    assert study.definition.tokenizer_source == source
    experts = {name: pool / name for name in ("chat", "code")}
    backend = LocalBackend.from_checkpoints(pool / "base", experts, tokenizer_source=source)
    for candidate in study.candidates():
        out = export_candidate(study, candidate, tmp_path / f"out{candidate.number}")
        exported = load_file(out / "model.safetensors")
        with backend.apply(candidate.recipe):
            live = backend.model.state_dict()
            assert all(torch.equal(live[name], tensor) for name, tensor in exported.items()), candidate.recipe
        loaded = transformers.AutoModelForCausalLM.from_pretrained(out)
        assert loaded.config.vocab_size == len(exported["model.embed_tokens.weight"])
    first = study.candidates()[1]
    assert first.recipe.method == "task_arithmetic"
    again = merge_to_directory(tmp_path / f"out{first.number}" / "mergekit_config.yml", tmp_path / "again")
    exported = load_file(tmp_path / f"out{first.number}" / "model.safetensors")
    assert all(torch.equal(tensor, exported[name]) for name, tensor in load_file(again / "model.safetensors").items())


def test_check_says_which_tokens_differ_and_what_no_export_would_take(pools: dict[str, Path], tmp_path: Path) -> None:
    pool = pools["tied"]
    problems = check_study(study_file(tmp_path, pool, None)).problems
    assert len(problems) == 1 and problems[0].count("another tokenizer") == 2, "a line for each expert"
    assert "'<chat>' is absent in the base" in problems[0] and "tokenizer_source: base, union" in problems[0]
    (wrong,) = check_study(study_file(tmp_path, pool, "unoin")).problems
    assert "did you mean 'union'" in wrong
    assert check_study(study_file(tmp_path, pool, "union")).problems == []
    link = pool / "base" / "added_tokens.json"
    link.symlink_to(tmp_path / "study.yaml")
    try:
        (problem,) = check_study(study_file(tmp_path, pool, "union")).problems
    finally:
        link.unlink()
    assert "leads out of the model's folder" in problem
    with pytest.raises(mf.UserError, match="another tokenizer"):
        LocalBackend.from_checkpoints(pool / "base", {"chat": pool / "chat"})


@pytest.mark.parametrize("kind", ["phi", "gemma3n_text", "mamba", "rwkv", "bart", "llava", "modernbert"])
def test_padded_vocabularies_of_every_kind_of_model_merge(tmp_path: Path, tokenizer: Any, kind: str) -> None:
    """Heads with biases, embeddings for each layer, biases of final logits and text models among others."""
    row = TINY_MODELS[kind]
    padded = row.make(1)
    padded.resize_token_embeddings(200, mean_resizing=False)
    for name, model in (("base", row.make(0)), ("e", padded)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    out = merge_to_directory(config({"e": 1.0}, None), tmp_path / "out", tmp_path)
    made, expert = load_file(out / "model.safetensors"), load_file(tmp_path / "e" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "base" / "model.safetensors").items():
        assert made[name].shape == tensor.shape
        assert torch.allclose(made[name], expert[name][tuple(slice(0, size) for size in tensor.shape)], atol=1e-5), name
    _, problems = getattr(transformers, row.auto).from_pretrained(out, output_loading_info=True)
    assert not any(problems.values())


def test_a_merged_model_of_images_and_text_has_its_processor(tmp_path: Path, tokenizer: Any) -> None:
    pytest.importorskip("PIL", reason="image processors need pillow")
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 28})
    processor = transformers.LlavaProcessor(images, tokenizer, patch_size=14, chat_template="{{ messages }}")
    for seed, name in enumerate(("base", "e")):
        TINY_MODELS["llava"].make(seed).save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    out = merge_to_directory(config({"e": 0.5}, None), tmp_path / "out", tmp_path)
    loaded = transformers.AutoProcessor.from_pretrained(out)
    assert type(loaded) is transformers.LlavaProcessor and loaded.chat_template == "{{ messages }}"
    assert loaded.image_processor.size["shortest_edge"] == 28 and loaded.patch_size == 14


@pytest.mark.parametrize(
    ("kind", "tied", "embedding", "layer"),
    [
        ("llama", True, "embed_tokens", "q_proj"),
        ("llama", False, "embed_tokens", "q_proj"),
        ("gpt_neox", False, "embed_in", "dense"),  # its head is stored as embed_out
    ],
)
def test_a_lora_with_tokens_of_its_own_answers_as_itself(
    tmp_path: Path, tokenizer: Any, kind: str, tied: bool, embedding: str, layer: str
) -> None:
    peft = pytest.importorskip("peft")
    model = TINY_MODELS[kind].make(0, vocab_size=len(tokenizer), tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    own = copy.deepcopy(tokenizer)
    own.add_tokens([transformers.AddedToken("<chat>", special=True)])
    model.resize_token_embeddings(len(own), mean_resizing=False)
    saved = {"modules_to_save": [embedding] if tied else [embedding, "lm_head"], "ensure_weight_tying": tied}
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=[layer], **saved))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    adapted.save_pretrained(tmp_path / "lora")
    own.save_pretrained(tmp_path / "lora")
    out = merge_to_directory(config({"base+lora": 1.0}, "union"), tmp_path / "out", tmp_path)
    asked = transformers.AutoTokenizer.from_pretrained(out)("<chat> Is it A?", return_tensors="pt")
    merged = transformers.AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        assert asked.input_ids[0, 0] == len(tokenizer)
        assert torch.allclose(merged(**asked).logits, adapted.eval()(**asked).logits, atol=1e-5)
    backend = LocalBackend.from_checkpoints(tmp_path / "base", {"e": tmp_path / "lora"}, tokenizer_source="union")
    space = MergeSpace({"e": "lora"}, method="task_arithmetic", base_model="base")
    with backend.apply(space.recipe({"weight[e]": 1.0})):
        live = backend.model.state_dict()
        assert all(torch.equal(live[name], tensor) for name, tensor in merged.state_dict().items())
