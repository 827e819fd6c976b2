"""Experts that see and hear: their shared language is merged, and each brings its own tower into the result."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_models import THINKER, TINY_MODELS, TinyModel, move

import mergefront as mf
from mergefront.adapters.checkpoints.header import Checkpoint
from mergefront.adapters.merging.modalities import compose, processor_file
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.stacks import Modalities
from mergefront.results.export import export_candidate, merge_config
from mergefront.results.export_check import check_export
from mergefront.study.check import check_study

VISION, AUDIO = dict(THINKER.settings["vision_config"]), dict(THINKER.settings["audio_config"])
LLAVA, LLAMA = TINY_MODELS["llava"], TinyModel("llama", {**TINY_MODELS["llava"].settings["text_config"]})
WIDER = {**LLAVA.settings["vision_config"], "num_hidden_layers": 3, "intermediate_size": 40, "image_size": 42}
Save = Callable[..., dict[str, torch.Tensor]]


@pytest.fixture
def save(tokenizer: Any, tmp_path: Path) -> Save:
    def made(name: str, tiny: TinyModel, seed: int = 0, drop: str = "-", **settings: Any) -> dict[str, torch.Tensor]:
        model = tiny.make(**settings)
        move(model, seed, 0.1)
        state = {key: tensor for key, tensor in model.state_dict().items() if drop not in key}
        model.save_pretrained(tmp_path / name, state_dict=state)
        tokenizer.save_pretrained(tmp_path / name)
        return load_file(tmp_path / name / "model.safetensors")

    return made


def study_in(folder: Path, models: Mapping[str, str], **merge: Any) -> Path:
    items = [{"prompt": f"Sort {n}:", "choices": [f" {n}", " 38 4"], "answer": 0} for n in (23, 43, 83, 44)]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    content = {
        "study": "omni",
        "merge": {
            "method": "task_arithmetic", "base_model": "base", "models": dict(models), "scope": "language",
            "space": {"weight": [0, 1]}, **merge,
        },
        "backend": {"type": "local", "device": "cpu"},
        "tasks": {"task": {"type": "jsonl", "path": "items.jsonl", "metric": "loglikelihood"}},
        "objectives": ["task"],
        "search": {"sampler": "random", "evaluations": len(models) + 4},
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    return folder / "study.yaml"


def exported(path: Path, kind: str) -> tuple[dict[str, torch.Tensor], Mapping[str, float], dict[str, Any]]:
    """The tensors of a study's last merge, its weights, and its configuration; it is what was scored, and it loads."""
    import transformers

    report = check_study(path)
    assert report.problems == []
    study = mf.run(path)
    assert not study.failures()
    chosen = study.candidates()[-1]
    out = export_candidate(study, chosen, path.parent / "out")
    assert "tensors equal the merge that was scored" in check_export(study, chosen, out)
    _, found = getattr(transformers, kind).from_pretrained(out, output_loading_info=True)
    assert not any(found.values()), found
    merge_config(out / "mergekit_config.yml", path.parent / "again")
    tensors, again = (load_file(folder / "model.safetensors") for folder in (out, path.parent / "again"))
    assert tensors.keys() == again.keys() and all(torch.equal(tensors[name], again[name]) for name in tensors)
    config = json.loads((out / "config.json").read_text())
    assert json.loads((path.parent / "again" / "config.json").read_text()) == config
    return tensors, {name: float(chosen.params[f"weight[{name}]"]) for name in study.space.models}, config


def test_one_expert_gives_its_eyes_another_its_ears_and_both_their_language(save: Save, tmp_path: Path) -> None:
    base = save("base", THINKER)
    sees = save("sees", THINKER, 1, drop="audio_tower", vision_config={**VISION, "depth": 3, "intermediate_size": 32})
    hears = save("hears", THINKER, 2, drop="visual", audio_config={**AUDIO, "encoder_layers": 1, "encoder_ffn_dim": 40})
    path = study_in(tmp_path, {"sees": "sees", "hears": "hears"}, carry={"vision": "sees", "audio": "hears"})
    made, weights, config = exported(path, THINKER.auto)
    expected = {name: tensor for name, tensor in sees.items() if "visual" in name}
    expected |= {name: tensor for name, tensor in hears.items() if "audio_tower" in name}
    for name, origin in base.items():
        if "visual" not in name and "audio_tower" not in name:
            moved = sum(weights[key] * (one[name] - origin) for key, one in (("sees", sees), ("hears", hears)))
            expected[name] = origin + moved
    assert made.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(made[name], tensor, msg=name)
    assert (config["vision_config"]["depth"], config["audio_config"]["encoder_layers"]) == (3, 1)


def test_towers_that_nobody_is_asked_for_stay_those_of_the_base(save: Save, tmp_path: Path) -> None:
    base, _ = save("base", LLAVA), save("sees", LLAVA, 1, vision_config=WIDER)
    made, _, config = exported(study_in(tmp_path, {"sees": "sees"}), "LlavaForConditionalGeneration")
    towers = [name for name in base if name.startswith(("vision_tower", "multi_modal"))]
    assert len(towers) > 20 and all(torch.equal(made[name], base[name]) for name in towers)
    assert config["vision_config"]["num_hidden_layers"] == 2


def test_a_base_that_reads_only_becomes_a_model_like_the_expert_whose_eyes_it_gets(save: Save, tmp_path: Path) -> None:
    base, sees = save("base", LLAMA), save("sees", LLAVA, 1, vision_config=WIDER)
    reads = save("reads", LLAMA, 2)
    path = study_in(tmp_path, {"sees": "sees", "reads": "reads"}, carry={"vision": "sees"})
    made, weights, config = exported(path, "LlavaForConditionalGeneration")
    assert made.keys() == sees.keys() and config["architectures"] == ["LlavaForConditionalGeneration"]
    for name, tensor in sees.items():
        own = name.replace("language_model.model.", "model.").replace("language_model.lm_head", "lm_head")
        if own in base:
            origin = base[own]
            tensor = origin + weights["sees"] * (tensor - origin) + weights["reads"] * (reads[own] - origin)
        torch.testing.assert_close(made[name], tensor, msg=name)
    assert config["vision_config"]["num_hidden_layers"] == 3


def test_the_eyes_of_a_lora_are_those_that_it_makes_of_the_base(save: Save, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import LlavaForConditionalGeneration as Llava

    save("base", LLAVA)
    torch.manual_seed(3)
    settings = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(Llava.from_pretrained(tmp_path / "base"), settings).save_pretrained(tmp_path / "lora")
    whole = PeftModel.from_pretrained(Llava.from_pretrained(tmp_path / "base"), tmp_path / "lora").merge_and_unload()
    whole.save_pretrained(tmp_path / "whole")
    sees = load_file(tmp_path / "whole" / "model.safetensors")
    path = study_in(tmp_path, {"sees": "lora"}, carry={"vision": "sees"})
    made, weights, _ = exported(path, "LlavaForConditionalGeneration")
    study = mf.run(path)
    with pytest.raises(UserError, match=r"\(scope\)"):
        export_candidate(study, study.candidates()[-1], tmp_path / "one", as_lora=True)
    base = load_file(tmp_path / "base" / "model.safetensors")
    for name, tensor in sees.items():
        weight = weights["sees"] if name.startswith("language_model") else 1.0
        torch.testing.assert_close(made[name], base[name] + weight * (tensor - base[name]), atol=1e-6, rtol=1e-5)


def test_the_processor_comes_with_the_eyes(save: Save, tokenizer: Any, tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="needs Pillow")
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    for name, size, settings in (("base", 28, {}), ("sees", 42, {"vision_config": WIDER})):
        save(name, LLAVA, size, **settings)
        images = CLIPImageProcessorPil(size={"height": size, "width": size}, do_center_crop=False)
        LlavaProcessor(images, tokenizer, patch_size=size // 2).save_pretrained(tmp_path / name)
    exported(study_in(tmp_path, {"sees": "sees"}, carry={"vision": "sees"}), "LlavaForConditionalGeneration")
    written = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert written["image_processor"]["size"] == {"height": 42, "width": 42} and written["patch_size"] == 21


def test_a_language_model_is_merged_into_a_model_that_sees(save: Save, tmp_path: Path) -> None:
    """A maths model into a model of images and text: types and names of their text differ, the stack is one."""
    vl, text = TINY_MODELS["qwen2_5_vl"], dict(TINY_MODELS["qwen2_5_vl"].settings["text_config"])
    plain = {key: value for key, value in text.items() if key != "rope_parameters"}
    base = save("base", vl, tie_word_embeddings=False)
    maths = save("maths", TinyModel("qwen2", {**plain, "tie_word_embeddings": False}), 1)
    path = study_in(tmp_path, {"maths": "maths"})
    assert any("model_type: base says 'qwen2_5_vl', expert says 'qwen2'" in note for note in check_study(path).notes)
    made, weights, _ = exported(path, "Qwen2_5_VLForConditionalGeneration")
    for name, origin in base.items():
        moved = weights["maths"] * (maths[name] - origin) if name in maths else 0.0
        torch.testing.assert_close(made[name], origin + moved, msg=name)
    assert sum(name in maths for name in base) == len(maths)


def test_a_merge_without_a_study_or_a_base_carries_towers_too(save: Save, tmp_path: Path) -> None:
    sees = save("sees", THINKER, 1, vision_config={**VISION, "depth": 3})
    hears = save("hears", THINKER, 2, audio_config={**AUDIO, "encoder_layers": 1})
    config = {
        "merge_method": "linear",
        "models": [{"model": name, "parameters": {"weight": 0.5}} for name in ("sees", "hears")],
        "scope": "language",
        "carry": {"vision": "sees", "audio": "hears"},
    }
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump(config))
    merge_config(tmp_path / "merge.yaml", tmp_path / "out")
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        owner = sees if "visual" in name else hears
        expected = owner[name] if "visual" in name or "audio_tower" in name else (sees[name] + hears[name]) / 2
        torch.testing.assert_close(tensor, expected, msg=name)
    for wrong, said in (
        ({**config, "carry": {"vision": "hear"}}, "'hear' is none of the models"),
        ({**config, "scope": None}, "write scope: language beside it"),
        ({**config, "models": None, "slices": []}, "scope merges whole stacks"),
    ):
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump({key: v for key, v in wrong.items() if v is not None}))
        with pytest.raises(UserError, match=said):
            merge_config(tmp_path / "wrong.yaml", tmp_path / "none")


def test_the_settings_of_a_processor_come_from_the_owner_of_the_tower_that_they_are_about(tmp_path: Path) -> None:
    for name, size in (("sees", 42), ("hears", 28)):
        (tmp_path / name).mkdir()
        content = {"image_processor": {"size": size}, "feature_extractor": {"hop": size}, "processor_class": "Omni"}
        (tmp_path / name / "processor_config.json").write_text(json.dumps(content))
    (tmp_path / "sees" / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "A", "size": 1}))
    (tmp_path / "hears" / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "A", "size": 2}))
    both = {"vision": tmp_path / "sees", "audio": tmp_path / "hears"}
    assert processor_file("processor_config.json", tmp_path / "hears", both) == {
        "image_processor": {"size": 42}, "feature_extractor": {"hop": 28}, "processor_class": "Omni",
    }  # fmt: skip
    assert processor_file("preprocessor_config.json", tmp_path / "hears", both) == (
        tmp_path / "sees" / "preprocessor_config.json"
    )
    (tmp_path / "hears" / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "A", "feature_extractor_type": "B"})
    )
    with pytest.raises(UserError, match="not say which of its settings are for which tower"):
        processor_file("preprocessor_config.json", tmp_path / "hears", both)


@pytest.mark.parametrize(
    ("merge", "said"),
    [
        ({"scope": "langage"}, "merge.scope is 'langage'; the only value is language"),
        ({"scope": None, "carry": {"vision": "sees"}}, "merge.carry: write scope: language beside it"),
        ({"carry": {"visoin": "sees"}}, "merge.carry: 'visoin' is no tower (did you mean 'vision'?)"),
        ({"carry": {"vision": "see"}}, "merge.carry: vision: 'see' is none of the models (did you mean 'sees'?)"),
        ({"carry": {"vision": "reads"}}, "merge.carry: vision: 'reads' has no such tower; it has none"),
        ({"carry": {"audio": "sees"}}, "merge.carry: audio: 'sees' has no such tower; it has vision"),
        (
            {"carry": {"vision": "sees", "audio": "hears"}, "models": {"hears": "hears"}},
            "merge.carry: no model has a place for audio and vision",
        ),
    ],
)
def test_what_no_model_can_be_is_refused_before_anything_runs(
    save: Save, tmp_path: Path, merge: dict[str, Any], said: str
) -> None:
    for name, tiny in (("base", LLAMA), ("sees", LLAVA), ("reads", LLAMA)):
        save(name, tiny)
    if "hears" in merge.get("models", {}):
        hears = TinyModel("qwen2_audio", {"text_config": dict(LLAMA.settings), "audio_config": AUDIO}, "AutoModel")
        save("hears", hears)
    models = {"sees": "sees", "reads": "reads"} | dict(merge.pop("models", {}))
    problems = check_study(study_in(tmp_path, models, **merge)).problems
    assert len(problems) == 1 and said in problems[0]


def test_a_tower_of_another_kind_has_no_place_in_the_class_of_the_base(save: Save, tmp_path: Path) -> None:
    save("base", THINKER)
    other = TINY_MODELS["qwen2_5_vl"]
    save("sees", other, 1, tie_word_embeddings=False)
    problems = check_study(study_in(tmp_path, {"sees": "sees"}, carry={"vision": "sees"})).problems
    assert any("has no place for 'visual.blocks.0.attn.qkv.bias'" in problem for problem in problems), problems


def test_an_expert_whose_language_is_another_is_refused_by_its_tensors(save: Save, tmp_path: Path) -> None:
    save("base", LLAVA)
    save("sees", LLAVA, 1, text_config={**LLAVA.settings["text_config"], "intermediate_size": 32})
    (problem,) = check_study(study_in(tmp_path, {"sees": "sees"})).problems
    assert "differs from the base in shape" in problem and "mlp" in problem


def test_a_scope_on_a_model_without_text_merges_nothing(tmp_path: Path) -> None:
    tensors = {f"vision_model.encoder.layers.{layer}.mlp.fc1.weight": torch.ones(4, 4) for layer in range(2)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="has no stack of text, so that scope: language merges nothing"):
        compose({"": Checkpoint(tmp_path)}, "", Modalities.read("language", {}))
