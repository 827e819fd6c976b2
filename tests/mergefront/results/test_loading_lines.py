"""The lines of a model card load what lies beside it: run as they stand, in the exported folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from tiny_models import TINY_MODELS, move

import mergefront as mf
from mergefront.cli.application import cli
from mergefront.results.export import export_candidate

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

SCORER = "def score(recipe):\n    return {'score': sum(v for v in recipe.params.values() if isinstance(v, float))}\n"


def new_study(folder: Path, models: dict[str, str], method: str = "task_arithmetic") -> mf.Study:
    """A study of the models in a folder; a function scores, so that nothing is loaded to make it."""
    (folder / "loading_scorer.py").write_text(SCORER)
    study = {
        "study": "cards",
        "merge": {"method": method, "base_model": "base", "models": models},
        "backend": {"type": "function", "call": "loading_scorer:score"},
        "objectives": ["score"],
        "search": {"sampler": "random", "evaluations": 6},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return mf.run(folder / "study.yaml")


def loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the card's lines leave behind."""
    lines = re.search(r"## Loading.*?```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert lines is not None
    monkeypatch.chdir(folder)
    found: dict[str, Any] = {}
    exec(lines[1], found)
    return found


def processors(kind: str, tokenizer: Any) -> Any:
    """What a tiny model of a kind is saved with."""
    if kind == "vit":
        return transformers.ViTImageProcessorPil(size={"height": 28, "width": 28})
    if kind == "llava":
        images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 28})
        return transformers.LlavaProcessor(images, tokenizer, patch_size=14, chat_template="{{ messages }}")
    if kind == "whisper":
        return transformers.WhisperFeatureExtractor(feature_size=8)
    return tokenizer


@pytest.mark.cases(3)
@pytest.mark.parametrize(
    ("kind", "architecture", "prepared"),
    [
        ("llama", "LlamaForCausalLM", "tokenizer"),
        ("llava", "LlavaForConditionalGeneration", "processor"),
        ("t5", "T5ForConditionalGeneration", "tokenizer"),
        ("bert", "BertForMaskedLM", "tokenizer"),
        ("distilbert", "DistilBertForSequenceClassification", "tokenizer"),
        ("vit", "ViTForImageClassification", "processor"),
        ("whisper", "WhisperForConditionalGeneration", "processor"),
        ("clip", "CLIPModel", "tokenizer"),
    ],
)
def test_a_whole_model_is_loaded_with_its_head(
    kind: str, architecture: str, prepared: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind in ("llava", "vit"):
        pytest.importorskip("PIL", reason="image processors need Pillow")
    words = deepcopy(tokenizer)
    for seed, name in enumerate(("base", "first", "second")):
        TINY_MODELS[kind].make(seed).save_pretrained(tmp_path / name)
        processors(kind, words).save_pretrained(tmp_path / name)
    study = new_study(tmp_path, {"first": "first", "second": "second"})
    out = export_candidate(study, study.candidates()[-1], tmp_path / "out")
    found = loaded(out, monkeypatch)
    assert type(found["model"]).__name__ == architecture
    assert found[prepared] is not None and {"tokenizer", "processor"} & found.keys() == {prepared}
    assert all(parameter.isfinite().all() for parameter in found["model"].parameters())


@pytest.fixture
def loras(tokenizer: Any, random_model: Callable[..., Any], tmp_path: Path) -> Path:
    """A base and two LoRAs that peft made: other modules, ranks, alphas, one with rsLoRA."""
    settings = {
        "first": peft.LoraConfig(
            r=4, lora_alpha=8, use_rslora=True, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]
        ),
        "second": peft.LoraConfig(r=2, lora_alpha=3, rank_pattern={"q_proj": 3}, target_modules="all-linear"),
    }
    random_model().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    for seed, (name, config) in enumerate(settings.items()):
        model = peft.get_peft_model(random_model(), config)
        move(model, seed)
        model.save_pretrained(tmp_path / name)
    return tmp_path


def test_a_sum_of_loras_is_exported_as_the_lora_that_peft_merges_to_the_same_weights(
    loras: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = new_study(loras, {"first": "first", "second": "second"})
    number = str(study.candidates()[-1].number)
    monkeypatch.chdir(loras)
    for out, option in (("whole", ()), ("lora", ("--as-lora",))):
        made = CliRunner().invoke(cli, ["export", "cards", "--trial", number, "--out", out, *option])
        assert made.exit_code == 0, made.stderr
    whole, lora = (loaded(loras / out, monkeypatch) for out in ("whole", "lora"))
    assert type(lora["model"]).__name__ == "PeftModelForCausalLM" and lora["tokenizer"].eos_token == "<end>"
    merged = lora["model"].merge_and_unload().state_dict()
    expected = whole["model"].state_dict()
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=1e-5)
    changed = transformers.AutoModelForCausalLM.from_pretrained(loras / "base").state_dict()
    assert sum(not torch.equal(expected[name], tensor) for name, tensor in changed.items()) == 14
    metadata = yaml.safe_load((loras / "lora/README.md").read_text().split("---")[1])
    assert metadata["library_name"] == "peft"


def test_what_is_no_lora_is_refused_with_reason_and_remedy_and_nothing_is_written(
    loras: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_study(loras, {"first": "first", "second": "second"}, "ties")
    monkeypatch.chdir(loras)
    refused = CliRunner().invoke(cli, ["export", "cards", "--trial", "5", "--out", "lora", "--as-lora"])
    assert refused.exit_code == 2 and not (loras / "lora").exists()
    assert refused.stderr.startswith("Error: export --as-lora: ties elects signs")
    assert "without --as-lora it is written as a whole model" in refused.stderr


@pytest.mark.parametrize(("method", "command"), [("ties", "mergekit-yaml"), ("lora_cat", "mergefront merge")])
def test_a_card_without_weights_says_what_makes_them(
    loras: Path, monkeypatch: pytest.MonkeyPatch, method: str, command: str
) -> None:
    study = new_study(loras, {"first": "first", "second": "second"}, method)
    card = (export_candidate(study, study.candidates()[-1], loras / "out", config_only=True) / "README.md").read_text()
    assert f"{command} mergekit_config.yml merged" in card and "from_pretrained" not in card
    if command == "mergefront merge":
        monkeypatch.chdir(loras / "out")
        assert CliRunner().invoke(cli, [*command.split()[1:], "mergekit_config.yml", "merged"]).exit_code == 0
