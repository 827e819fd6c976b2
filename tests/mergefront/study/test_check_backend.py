"""What is wrong with checkpoints, tokenizers and data is found from headers, before anything is loaded."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest
from tiny_models import TINY_MODELS
from tokenizer_json import of_words

from mergefront.adapters.tasks.lm_eval.files import task_files
from mergefront.adapters.tasks.local_imports import imported_files
from mergefront.optimizer.errors import UserError
from mergefront.storage.database import Database
from mergefront.study.check import check_study
from mergefront.study.content import is_unchanged
from mergefront.study.evaluators import make_evaluator, tasks_of
from mergefront.study.preflight.budget import checked_item_scores
from mergefront.study.ready import begin
from mergefront.study.rules import changes_since

STUDY = """
study: skills
merge:
  method: ties
  base_model: models/base
  models: {maths: models/maths, french: models/french}
  space: {weight: [0, 1], density: [0.1, 1]}
backend: {type: local, device: cpu}
tasks:
  maths: {type: jsonl, path: data/maths.jsonl, metric: exact_match}
  french: {type: jsonl, path: data/french.jsonl, metric: loss}
objectives: [maths, french, delta_l1]
search: {sampler: mm-mo, evaluations: 10}
"""
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2, "vocab_size": 8,
    "hidden_size": 4, "intermediate_size": 6, "num_attention_heads": 1, "num_key_value_heads": 1,
}  # fmt: skip
LAYER = {
    **{f"self_attn.{kind}_proj.weight": (4, 4) for kind in "qkvo"},
    **{"mlp.gate_proj.weight": (6, 4), "mlp.up_proj.weight": (6, 4), "mlp.down_proj.weight": (4, 6)},
    **{"input_layernorm.weight": (4,), "post_attention_layernorm.weight": (4,)},
}
TENSORS: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (8, 4),
    **{f"model.layers.{layer}.{name}": shape for layer in range(2) for name, shape in LAYER.items()},
    "model.norm.weight": (4,),
    "lm_head.weight": (8, 4),
}


def write_checkpoint(
    folder: Path, tensors: dict[str, tuple[int, ...]], vocabulary: dict[str, int] | None = None
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    header, offset = {}, 0
    for name, shape in tensors.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    words = vocabulary or {"a": 0, "b": 1}
    (folder / "tokenizer.json").write_text(of_words(words))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    for name in ("base", "maths", "french"):
        write_checkpoint(tmp_path / "models" / name, TENSORS)
    (tmp_path / "data").mkdir()
    for name in ("maths", "french"):
        lines = [json.dumps({"prompt": f"{name} {i} =", "answer": str(i)}) for i in range(10)]
        (tmp_path / "data" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def problems(study: Path) -> str:
    before = sorted(study.parent.rglob("*"))
    report = check_study(study)
    assert sorted(study.parent.rglob("*")) == before, "a preflight writes nothing"
    return "\n".join(report.problems)


def test_a_sound_study_is_sound_and_its_objectives_know_their_directions(study: Path) -> None:
    assert problems(study) == ""
    definition = check_study(study).definition_or_raise()
    assert [objective.direction for objective in definition.objectives] == ["maximize", "minimize", "minimize"]
    assert any(" tensors, 1 kB" in note for note in check_study(study).notes), "a tiny model is not 0 MB"


@pytest.mark.parametrize("racing", [False, True])
def test_item_scores_that_take_much_memory_are_warned_of_and_a_race_that_has_too_little_is_refused(
    study: Path, racing: bool
) -> None:
    """Every process of a race reads them all: without a word the machine would be out of memory after days."""
    lines = [json.dumps({"prompt": f"question {i} =", "answer": str(i)}) for i in range(400)]
    (study.parent / "data/maths.jsonl").write_text("\n".join(lines) + "\n")
    study.write_text(STUDY + ("racing: {items: 0.5}\n" if racing else ""))
    assert not [line for line in check_study(study).warnings if "item scores" in line]
    (line,) = [line for line in check_study(study, evaluations=100_000).warnings if "item scores" in line]
    assert "100,000 evaluations of 205 search items are" in line
    assert ("in every process" in line) == racing
    definition = check_study(study).definition_or_raise()
    if racing:
        with pytest.raises(UserError, match=r"and this machine has .* fewer items"):
            checked_item_scores(definition, 10**9, {"maths": 200})
    else:
        assert checked_item_scores(definition, 10**9, {"maths": 200})


def test_blocks_are_counted_in_the_checkpoint(study: Path) -> None:
    study.write_text(STUDY.replace("density: [0.1, 1]", "granularity: layers"))
    assert check_study(study).definition_or_raise().space.dimension == 2 * 2
    study.write_text(STUDY.replace("density: [0.1, 1]", "granularity: {blocks: 3}"))
    assert "2 layers" in problems(study)


def test_everything_wrong_is_said_at_once(study: Path) -> None:
    root = study.parent
    write_checkpoint(root / "models/maths", TENSORS | {"model.layers.1.mlp.up_proj.weight": (5, 4)})
    write_checkpoint(root / "models/french", TENSORS, {"a": 1, "b": 0})
    (root / "data/maths.jsonl").write_text('{"prompt": "1 + 1 =", "answer": "2"}\n{"prompt": broken}\n')
    (root / "data/french.jsonl").write_text("")
    study.write_text(STUDY.replace("objectives: [maths", "objectives: [mahts"))
    found = problems(study)
    for words in (
        "model.layers.1.mlp.up_proj.weight is [5, 4] and not [6, 4]",
        "another tokenizer",
        "data/maths.jsonl:2",
        "data/french.jsonl",
        "'mahts' names no task",
        "did you mean 'maths'",
    ):
        assert words in found, words


def test_missing_paths_and_pickles(study: Path) -> None:
    root = study.parent
    (root / "models/maths/model.safetensors").rename(root / "models/maths/pytorch_model.bin")
    study.write_text(STUDY.replace("models/french", "models/frnch").replace("data/french", "data/frnch"))
    found = problems(study)
    assert "pickled" in found and "save_pretrained" in found
    assert "models/frnch: there is no such file or folder (paths are relative to the study file)" in found
    assert "data/frnch.jsonl" in found


def test_names_without_paths_need_a_function(study: Path) -> None:
    study.write_text(STUDY.replace("{maths: models/maths, french: models/french}", "[maths, french]"))
    assert "needs a path for each expert" in problems(study)
    study.write_text(STUDY.replace("  base_model: models/base\n", ""))
    assert "merge.base_model: this key is missing" in problems(study)


def test_changed_data_is_another_study(study: Path) -> None:
    first = check_study(study).definition_or_raise().to_json()
    with (study.parent / "data/maths.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "new", "answer": "item"}) + "\n")
    assert check_study(study).definition_or_raise().to_json() != first


def test_changed_weights_of_a_stored_study_are_a_problem(study: Path) -> None:
    """Scores of two versions of an expert would stand side by side in one front."""
    definition = check_study(study).definition_or_raise()
    begin(definition, Database(definition.storage), None)
    assert check_study(study).problems == []
    weights = study.parent / "models/maths/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    (problem,) = check_study(study).problems
    assert "evaluator.content.models/maths: was" in problem


def test_report_items_of_one_task_may_not_be_search_items_of_another(study: Path) -> None:
    data = study.parent / "data"
    (data / "copy.jsonl").write_text((data / "maths.jsonl").read_text())
    shared = "  copy: {type: jsonl, path: data/copy.jsonl, metric: exact_match%s}\n"
    text = study.read_text()
    study.write_text(text.replace("  french:", shared % "" + "  french:"))
    assert check_study(study).problems == [], "alike split, the copies leak nothing"
    study.write_text(text.replace("  french:", shared % ", report_fraction: 0.9" + "  french:"))
    (problem,) = check_study(study).problems
    assert problem.startswith("tasks.copy: the search optimises on") and "task maths" in problem


def test_racing_is_one_line_of_the_study_file(study: Path) -> None:
    text = study.read_text()
    assert check_study(study).definition_or_raise().racing is None
    study.write_text(text + "racing: true\n")
    assert check_study(study).definition_or_raise().to_json()["racing"] == {"items": 0.2, "confidence": 0.95}
    study.write_text(text + "racing: {items: 0.5}\n")
    assert check_study(study).definition_or_raise().to_json()["racing"] == {"items": 0.5, "confidence": 0.95}
    study.write_text(text + "racing: {item: 0.5}\n")
    (problem,) = check_study(study).problems
    assert "did you mean 'items'" in problem


def test_an_answer_that_the_model_could_never_write_is_found_before_the_first_merge(study: Path) -> None:
    """Else every candidate of the search would fail alike."""
    (study.parent / "models/base/config.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": 64}))
    study.write_text(STUDY.replace("metric: exact_match", "metric: exact_match, max_new_tokens: 64"))
    assert "tasks.maths: max_new_tokens is 64, but the base model takes 64 tokens" in problems(study)
    study.write_text(STUDY.replace("metric: exact_match", "metric: exact_match, max_new_tokens: 32"))
    assert problems(study) == ""


def test_a_study_knows_every_file_that_a_harness_task_of_ones_own_is_made_of(study: Path) -> None:
    """A study would go on with other items than it was begun with, and compare scores that are not comparable."""
    pytest.importorskip("lm_eval", reason="needs the extra 'lm-eval'")
    folder = study.parent / "tasks"
    (folder / "data").mkdir(parents=True)
    (folder / "mine.yaml").write_text(
        "include: common.yaml\ntask: mine\ndataset_kwargs: {data_files: {test: [data/a*.jsonl, data/more.jsonl]}}\n"
    )
    (folder / "common.yaml").write_text(
        "dataset_path: json\ntest_split: test\noutput_type: generate_until\ndoc_to_text: prompt\n"
        "doc_to_target: !function wanted.wanted\nmetric_list: [{metric: exact_match}]\n"
    )
    (folder / "wanted.py").write_text(
        "import os, sys\nsys.path.insert(0, os.path.dirname(__file__))\nimport helper_of_wanted\n"
        "def wanted(document):\n    return helper_of_wanted.clean(document['answer'])\n"
    )
    (folder / "helper_of_wanted.py").write_text("import json\n\ndef clean(text):\n    return text.strip()\n")
    for number, name in enumerate(("a1", "a2", "more")):
        lines = [json.dumps({"prompt": f"{number} and {n}", "answer": str(n)}) for n in range(5)]
        (folder / "data" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    study.write_text(
        STUDY.replace(
            "type: jsonl, path: data/maths.jsonl, metric: exact_match", "type: lm_eval, task: tasks/mine.yaml"
        )
    )
    definition = check_study(study).definition_or_raise()
    made_of = {
        *("mine.yaml", "common.yaml", "wanted.py", "helper_of_wanted.py"),
        *("data/a1.jsonl", "data/a2.jsonl", "data/more.jsonl"),
    }
    assert {name for name in definition.evaluator.content if name.startswith("tasks")} == {
        f"tasks/{name}" for name in made_of
    }
    for name in made_of:
        file = folder / name
        before = file.read_text()
        file.write_text(before + "\n")
        with (
            pytest.raises(UserError, match=f"{name}: its content has changed"),
            make_evaluator(definition, lambda: Database(definition.storage)),
        ):
            pass
        file.write_text(before)


def test_a_harness_task_that_cannot_be_read_is_one_file_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").write_text(
        "include: [loop.yaml, nowhere.yaml]\ndataset_kwargs: {data_files: gone.jsonl}\n"
    )
    (tmp_path / "web.yaml").write_text("dataset_kwargs: {data_files: {test: 'https://example.org/a.jsonl'}}\n")
    (tmp_path / "broken.yaml").write_text("task: [\n")
    for name in ("loop.yaml", "web.yaml", "broken.yaml", "nowhere.yaml"):
        assert task_files(name, tmp_path) == [name]


def test_a_study_knows_the_module_of_a_metric_of_ones_own(study: Path) -> None:
    """Scores by two versions of a metric would be compared."""
    module = study.parent / "own_metric_of_check" / "loud.py"
    module.parent.mkdir()
    (module.parent / "__init__.py").write_text("")
    module.write_text("def shouting(item, text):\n    return text.isupper()\n")
    study.write_text(STUDY.replace("metric: exact_match", "metric: 'own_metric_of_check.loud:shouting'"))
    definition = check_study(study).definition_or_raise()
    assert "own_metric_of_check/__init__.py" in definition.evaluator.content
    module.write_text("def shouting(item, text):\n    return not text.isupper()\n")
    with (
        pytest.raises(UserError, match=r"loud\.py: its content has changed"),
        make_evaluator(definition, lambda: Database(definition.storage)),
    ):
        pass


@pytest.mark.parametrize("name", ["chat_template.jinja", "qwen.tiktoken", "additional_chat_templates/tool_use.jinja"])
def test_a_study_knows_every_file_of_a_tokenizer(study: Path, name: str) -> None:
    """Prompts made by two templates would be compared. Studies begun before these files counted go on."""
    file = study.parent / "models" / "base" / name
    file.parent.mkdir(exist_ok=True)
    before = check_study(study).definition_or_raise().evaluator.content
    file.write_text("{{ messages }}")
    definition = check_study(study).definition_or_raise()
    assert definition.evaluator.content != before
    assert all(is_unchanged(path, study.parent, known) for path, known in before.items())
    file.write_text("{{ messages[0] }}")
    with (
        pytest.raises(UserError, match="base: its content has changed"),
        make_evaluator(definition, lambda: Database(definition.storage)),
    ):
        pass


def test_imports_of_ones_own_are_found_through_each_other_and_installed_ones_left_out(tmp_path: Path) -> None:
    """A metric is seldom one file; what is changed behind it changes scores as well."""
    files = {
        "metrics/loud.py": "import json, torch\nfrom metrics.parts import words as w, gone\nfrom .near import x\n",
        "metrics/__init__.py": "",
        "metrics/near.py": "def late():\n    import common\n",
        "metrics/parts/__init__.py": "",
        "metrics/parts/words.py": "from .. import loud\nfrom ..near import *\n",
        "common.py": "this is no Python",
        "metrics/unused.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = imported_files(["metrics/loud.py"], tmp_path)
    assert set(found) == set(files) - {"metrics/loud.py", "metrics/unused.py"} and len(set(found)) == len(found)
    assert imported_files(["nowhere.py"], tmp_path) == []


@pytest.mark.parametrize("name", ["n" * 3000, "a\0b"], ids=["too long", "with a NUL"])
@pytest.mark.parametrize("line", ["include: {}", "dataset_kwargs: {{data_files: {}}}", "doc_to_text: !function {}.f"])
def test_names_that_no_file_can_have_are_left_out(line: str, name: str, tmp_path: Path) -> None:
    """A preflight that looks for them says what is wrong with the task, rather than breaking."""
    quoted = name if "!function" in line else json.dumps(name)
    (tmp_path / "task.yaml").write_text(line.format(quoted), encoding="utf-8")
    assert task_files("task.yaml", tmp_path) == ["task.yaml"]


def test_a_function_over_the_live_model_is_known_by_its_files_and_not_raced(study: Path) -> None:
    """Else a study would go on with scores of another function, or race items that are scored in one call anyway."""
    (study.parent / "shared.py").write_text("ONE = 1.0\n")
    (study.parent / "mine.py").write_text("import shared\n\ndef score(model, processor):\n    return {'x': 1.0}\n")
    task = "{type: python, call: mine:score, files: data/maths.jsonl, direction: minimize}"
    text = STUDY.replace("{type: jsonl, path: data/french.jsonl, metric: loss}", task)
    study.write_text(text)
    report = check_study(study)
    assert report.problems == [] and report.definition is not None
    assert {"mine.py", "shared.py", "data/maths.jsonl"} <= set(report.definition.evaluator.content)
    assert report.definition.objectives[1].direction == "minimize"
    study.write_text(text + "racing: true\n")
    assert "tasks.french: type python scores all its items in one call" in problems(study)
    study.write_text(text.replace("{type: local, device: cpu}", "{type: llama_server, url: http://localhost:1}"))
    assert "tasks.french: type python asks the live model, which backend llama_server has not" in problems(study)


def test_items_with_an_image_are_refused_of_what_reads_none_and_known_by_its_content(study: Path) -> None:
    """Else the search would optimise on guesses about pictures that nobody was shown."""
    items = study.parent / "data" / "maths.jsonl"
    lines = [json.dumps({"prompt": f"What is {i}?", "image": f"{i}.png", "answer": str(i)}) for i in range(4)]
    items.write_text("\n".join(lines) + "\n")
    assert "data/maths.jsonl:1: the image '0.png' cannot be read" in problems(study)
    for number in range(4):
        (items.parent / f"{number}.png").write_bytes(bytes([number]))
    config = study.parent / "models/base/config.json"
    for name in ("base", "maths", "french"):
        config = study.parent / "models" / name / "config.json"
        config.write_text(json.dumps(CONFIG))
    assert "tasks.maths: some items have an image, and the base model (llama) reads none" in problems(study)
    study.write_text(STUDY.replace("{type: local, device: cpu}", "{type: llama_server, url: http://localhost:1}"))
    assert "which backend llama_server does not send" in problems(study)
    study.write_text(STUDY)
    for name in ("base", "maths", "french"):
        TINY_MODELS["llava"].make().save_pretrained(study.parent / "models" / name)
    definition = check_study(study).definition_or_raise()
    assert "data/0.png" in definition.evaluator.content
    before = {item.id for task in tasks_of(definition) if task.name == "maths" for item in task.items("search")}
    for number in range(4):
        (items.parent / f"{number}.png").write_bytes(bytes([number + 10]))
    after = {item.id for task in tasks_of(definition) if task.name == "maths" for item in task.items("search")}
    assert not before & after, "another picture is another item"


def test_a_study_that_asked_about_images_without_them_is_not_continued(study: Path) -> None:
    task = {"type": "jsonl", "path": "data/maths.jsonl"}
    evaluator = {"type": "local", "tasks": {"maths": task}}
    stored = {
        "scoring": 1,
        "sampler": {"name": "random"},
        "objectives": [],
        "space": {"models": {}},
        "evaluator": evaluator,
    }
    assert changes_since("s", stored, study.parent) == []
    (study.parent / "data" / "maths.jsonl").write_text('{"prompt": "What is it?", "image": "x.png", "answer": "x"}\n')
    with pytest.raises(UserError, match="items that name an image are asked with it"):
        changes_since("s", stored, study.parent)
    assert changes_since("s", {**stored, "scoring": 2}, study.parent) == []


def test_kinds_of_module_that_no_tensor_follows_are_named_with_what_there_is(study: Path) -> None:
    study.write_text(STUDY.replace("density: [0.1, 1]}", "density: [0.1, 1], split: [mlp, experts, up_proj]}"))
    problems = [line for line in check_study(study).problems if line.startswith("merge.space.split")]
    assert ["'experts'" in problems[0], "up_proj" in problems[1], len(problems)] == [True, True, 2]
    modules = "self_attn, mlp, input_layernorm, post_attention_layernorm"
    assert [line.endswith(f"the modules of a layer are called {modules}") for line in problems] == [True, True], (
        problems
    )


@pytest.mark.parametrize("damage", ["gone", "not what the tokenizers library reads"])
def test_a_study_without_a_tokenizer_that_can_be_loaded_is_refused_before_it_runs(study: Path, damage: str) -> None:
    """transformers would say so after the base was read, and not in a preflight."""
    for name in ("base", "maths", "french"):
        file = study.parent / "models" / name / "tokenizer.json"
        if damage == "gone":
            file.unlink()
        else:
            file.write_text(json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}}}))
    assert "transformers cannot load it" in problems(study)


def test_one_checkpoint_under_two_names_is_refused(study: Path) -> None:
    study.write_text(STUDY.replace("french: models/french", "french: models/../models/maths"))
    assert "merge.models.french: this is the same checkpoint as maths; name it once" in check_study(study).problems


def test_what_an_export_could_not_write_is_said_before_anything_runs(study: Path) -> None:
    base = study.parent / "models" / "base"
    (base / "modules.json").write_text('[{"path": "1_Pooling"}]')
    (base / "1_Pooling").mkdir()
    (study.parent / "elsewhere.json").write_text("{}")
    (base / "1_Pooling" / "config.json").symlink_to(study.parent / "elsewhere.json")
    assert any("export:" in line and "leads out of the model's folder" in line for line in check_study(study).problems)


def test_layers_that_predict_further_tokens_are_not_counted(study: Path) -> None:
    for name in ("base", "maths", "french"):
        folder = study.parent / "models" / name
        write_checkpoint(folder, {**TENSORS, "model.layers.2.mlp.up_proj.weight": (6, 4)})
        (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 2, "num_nextn_predict_layers": 1}))
    study.write_text(STUDY.replace("density: [0.1, 1]}", "density: [0.1, 1], granularity: {blocks: 3}}"))
    assert any("blocks is 3; the model has 2 layers" in line for line in check_study(study).problems)


def test_a_study_whose_stop_string_was_never_seen_is_not_continued(study: Path) -> None:
    """A special token is left out of an answer's text, and what the model wrote after it was scored."""
    stored = {**check_study(study).definition_or_raise().to_json(), "scoring": 1}
    stored["evaluator"]["tasks"]["maths"]["stop"] = ["\n", "<turn>"]
    assert changes_since("s", stored, study.parent) == []
    base = study.parent / "models" / "base"
    marks = [{"id": 0, "content": "<turn>", "special": True}]
    (base / "tokenizer.json").write_text(json.dumps({"added_tokens": marks}))
    with pytest.raises(UserError, match="stop strings that are special tokens end an answer"):
        changes_since("s", stored, study.parent)
    (base / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<turn>"}))
    assert changes_since("s", stored, study.parent) == []


def test_layers_of_a_tower_are_not_counted(study: Path) -> None:
    for name in ("base", "maths", "french"):
        tower = {f"visual.blocks.{layer}.mlp.up_proj.weight": (6, 4) for layer in range(3)}
        write_checkpoint(study.parent / "models" / name, {**TENSORS, **tower})
    study.write_text(STUDY.replace("density: [0.1, 1]}", "density: [0.1, 1], granularity: {blocks: 3}}"))
    assert any("blocks is 3; the model has 2 layers" in line for line in check_study(study).problems)


@pytest.mark.parametrize(("method", "refused"), [("lora_cat", True), ("task_arithmetic", False)])
def test_loras_of_tensors_that_hold_all_experts_have_no_factors_to_merge(
    study: Path, method: str, refused: bool
) -> None:
    models = study.parent / "models"
    experts = "model.layers.0.mlp.experts"
    write_checkpoint(models / "base", {**TENSORS, f"{experts}.0.w2.weight": (4, 6)})
    described = {"r": 2, "target_parameters": ["mlp.experts.down_proj"]}
    for name in ("maths", "french"):
        write_checkpoint(
            models / name, {f"base_model.model.{experts}.lora_{s}.weight": (2, 6) if s == "A" else (4, 2) for s in "AB"}
        )
        (models / name / "model.safetensors").rename(models / name / "adapter_model.safetensors")
        (models / name / "adapter_config.json").write_text(json.dumps(described))
    study.write_text(study.read_text().replace("method: ties", f"method: {method}").replace(", density: [0.1, 1]", ""))
    assert problems(study) == "", "experts stored one by one have matrices"
    write_checkpoint(models / "base", {**TENSORS, f"{experts}.down_proj": (1, 4, 6)})
    assert ("holds all experts" in problems(study)) is refused


def test_a_base_of_which_no_live_model_can_be_made_is_refused_before_anything_is_loaded(study: Path) -> None:
    without = {name: shape for name, shape in TENSORS.items() if name != "model.layers.1.mlp.down_proj.weight"}
    for name in ("base", "maths", "french"):
        write_checkpoint(study.parent / "models" / name, without)
    assert "merge.base_model: no stored tensor fills 'model.layers.1.mlp.down_proj.weight'" in problems(study)
    for name in ("base", "maths", "french"):
        write_checkpoint(study.parent / "models" / name, TENSORS)
    for broken in ({"model_type": "lama"}, {"hidden_size": "many"}, {"num_attention_heads": 0}):
        for name in ("base", "maths", "french"):
            (study.parent / "models" / name / "config.json").write_text(json.dumps(CONFIG | broken))
        assert "transformers cannot load it" in problems(study), broken


def test_tensors_that_the_model_does_not_read_are_named_and_do_not_block(study: Path) -> None:
    for name in ("base", "maths", "french"):
        write_checkpoint(study.parent / "models" / name, {**TENSORS, "score.weight": (2, 4)})
    assert any("the model does not read 'score.weight'" in note for note in check_study(study).notes)
    assert problems(study) == ""


def test_one_prompt_and_answer_of_each_task_is_shown_and_what_is_odd_about_them(study: Path) -> None:
    """Two spaces at the seam, or an option that does nothing, would be searched on in silence."""
    report = check_study(study)
    assert report.problems == []
    shown = {note.split(" asks ")[0]: note for note in report.notes if " asks " in note}
    assert list(shown) == ["task maths", "task french"]
    assert "=' + ' " in shown["task french"] and r"up to '\n'" in shown["task maths"]
    odd = STUDY.replace("metric: loss", "metric: loss, delimiter: '  ', tolerance: 0.1")
    study.write_text(odd.replace("metric: exact_match", "metric: exact_match, max_new_tokens: 5, stop: '1'"))
    report = check_study(study)
    assert "task french: metric loss has no use for tolerance" in report.warnings
    assert any("task french: 10 of 10 answers follow their prompt after two spaces" in line for line in report.warnings)
    assert any("task maths: 1 of 10 accepted answers hold a stop string" in line for line in report.warnings)
    assert set(report.warnings) <= set(report.notes), "what a run says, check says"


def test_tasks_of_too_few_items_to_race_are_named(study: Path) -> None:
    """Racing over 30 items was accepted in silence, and all candidates answered the same half of them."""
    text = study.read_text()
    assert not any("racing" in note for note in check_study(study).notes)
    study.write_text(text + "racing: true\n")
    report = check_study(study)
    (note,) = [note for note in report.notes if note.startswith("racing")]
    assert "every candidate answers all search items of " in note and "fewer than 32 items are too few" in note
    assert note in report.warnings and report.problems == []
