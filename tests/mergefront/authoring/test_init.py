"""What mergefront init writes is sound and runs as it is, or nothing is written and the reason is said."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import CliRunner, Result
from hub_server import hub_of_this_process
from local_study import write_local_study

from mergefront.cli.application import cli

ROOT = Path(__file__).parents[3]
TEMPLATE = "{% for one in messages %}{{ one.content }}{% endfor %}"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two experts, two LoRAs, an expert with one more token and one with a chat template; items."""
    pytest.importorskip("transformers", reason="needs the extra 'local'")
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("models")
    write_local_study(folder, "unused").unlink()
    for name, matrix in (("maths", "q_proj"), ("french", "v_proj")):
        model = AutoModelForCausalLM.from_pretrained(folder / "base")
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=[matrix], init_lora_weights=False))
        adapted.save_pretrained(folder / "loras" / name / "checkpoint-500")
    model = AutoModelForCausalLM.from_pretrained(folder / "two")
    tokenizer = AutoTokenizer.from_pretrained(folder / "two")
    tokenizer.add_tokens(["<more>"])
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder / "wider")
    tokenizer.save_pretrained(folder / "wider")
    shutil.copytree(folder / "base", folder / "chatty")
    (folder / "chatty" / "chat_template.jinja").write_text(TEMPLATE)
    sums = [json.dumps({"prompt": f"{a} + 1 =", "answer": str(a + 1)}) for a in range(12)]
    (folder / "sums.jsonl").write_text("\n".join(sums) + "\n")
    return folder


def called(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(one) for one in arguments])


CASES = {
    "loras": ["base", "loras/maths/checkpoint-500", "loras/french/checkpoint-500"],
    "whole": ["base", "one", "two"],
    "both": ["base", "one", "loras/maths/checkpoint-500"],
    "chat": ["chatty", "one"],
    "tokens": ["base", "one", "wider"],
    "hub": ["lab/base", "lab/one@v1", "hf://lab/lora"],
}


@pytest.mark.cases(2)
@pytest.mark.parametrize("case", CASES)
def test_a_first_file_is_sound_and_runs_as_it_is(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(models)
    with hub_of_this_process(tmp_path, monkeypatch) as hub:
        for name, folder in (("base", "chatty"), ("one", "one"), ("lora", "loras/maths/checkpoint-500")):
            hub.add(f"lab/{name}", models / folder)
        (tmp_path / "data").mkdir()
        shutil.copy(models / "sums.jsonl", tmp_path / "data")
        hub.add("datasets/lab/data", tmp_path / "data")
        sums = "hf://datasets/lab/data/sums.jsonl" if case == "hub" else "sums.jsonl"
        path = tmp_path / f"{case}.yaml"
        made = called("init", *CASES[case], "--task", "sorting.jsonl", "--task", sums, "--output", path)
        assert made.exit_code == 0 and f"{path} is sound" in made.output, made.output
        if case == "hub":
            whole = (models / "base" / "model.safetensors").stat().st_size
            assert max(size for _, path, size in hub.requests) < whole, "headers, before anything runs"
            assert "a run fetches" in path.read_text()
        content = yaml.safe_load(path.read_text())
        schema = json.loads((ROOT / "docs" / "study.schema.json").read_text())
        assert list(jsonschema.Draft7Validator(schema).iter_errors(content)) == []
        assert content["merge"].get("tokenizer_source") == ("union" if case == "tokens" else None)
        assert [task["metric"] for task in content["tasks"].values()] == ["loglikelihood", "numeric"]
        assert [task.get("chat", False) for task in content["tasks"].values()] == [False, case in ("chat", "hub")]
        ran = called("run", path, "--evaluations", 3)
        assert ran.exit_code == 0, ran.output
    assert case in called("studies", "--storage", tmp_path / "mergefront.db").output


def test_a_task_of_the_harness_is_asked_in_chat_where_the_base_has_a_template(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.chdir(models)
    (models / "order.yaml").write_text(
        "task: order\ndataset_path: json\ndataset_kwargs: {data_files: {test: sorting.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{prompt}}'\ndoc_to_choice: choices\ndoc_to_target: answer\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    path = tmp_path / "study.yaml"
    made = called("init", *CASES["chat"], "--task", "order.yaml", "--output", path)
    assert made.exit_code == 0, made.output
    (entry,) = yaml.safe_load(path.read_text())["tasks"].values()
    assert entry["type"] == "lm_eval" and entry["apply_chat_template"] is True


def test_the_file_says_why_each_line_is_so(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)
    path = tmp_path / "study.yaml"
    assert called("init", *CASES["loras"], "--task", "sums.jsonl", "--output", path).exit_code == 0
    text = path.read_text()
    content = yaml.safe_load(text)
    assert content["study"] == "base-merges" and list(content["merge"]["models"]) == ["maths", "french"]
    for line in (
        r"# LlamaForCausalLM: .* parameters, 2 layers, float32, .*, no chat template",
        r"maths: .*# a LoRA of rank 2 on 2 matrices",
        r"metric: numeric .*# every answer is a number",
        r"# memory: .* for the live model, .* for base and experts; .* free",
        r"# about .* \(30 evaluations x .*\): 6 questions each, at .* measured here",
    ):
        assert re.search(line, text), line


@pytest.mark.parametrize(
    ("items", "metric"),
    [
        ([{"prompt": "a", "choices": ["b", "c"], "answer": 0}] * 2, "loglikelihood"),
        ([{"prompt": "a", "answer": "1,000.5"}, {"prompt": "b", "answer": "-3"}], "numeric"),
        ([{"prompt": "a", "answer": f"3 + {n} makes\n#### ${n},000"} for n in (1, 2)], "numeric"),
        ([{"prompt": "a", "answer": "7"}, {"prompt": "b", "answer": "seven"}], "exact_match"),
        (
            [{"prompt": "a", "answer": "30. tammikuuta 1977"}, {"prompt": "b", "answer": "1. maaliskuuta"}],
            "exact_match",
        ),
        ([{"prompt": "a", "answer": "2 25 31"}, {"prompt": "b", "answer": "2024-05-06"}], "exact_match"),
        ([{"prompt": "def f", "tests": "assert f()"}] * 2, "code"),
        ([{"text": "once"}, {"text": "upon"}], "loss"),
        ([{"question": "a", "options": ["b", "c"], "answer": 0, "id": n} for n in range(2)], "loglikelihood"),
        ([{"instruction": "a", "output": "b"}] * 2, "exact_match"),
        ([{"messages": [{"role": "user", "content": "a"}], "answer": "7"}] * 2, "numeric"),
    ],
)
def test_the_fields_of_items_tell_the_metric(items: list[dict[str, object]], metric: str) -> None:
    from mergefront.authoring.task_entries import told_metric

    told = told_metric([json.dumps(item).encode() for item in items])
    assert told.metric == metric and told.has_messages == ("messages" in items[0])
    assert bool(told.fields) == (not items[0].keys() <= {"prompt", "messages", "text", "answer", "choices", "tests"})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["loras/maths/checkpoint-500", "one"], ["this is a LoRA; the first model is the base"]),
        (["base", "gone", "base"], ["gone: ", "there is no such file", "base: this is the base itself"]),
        (["base", "one", "--task", "gone.jsonl"], ["--task gone.jsonl: the file cannot be read"]),
        (["base", "one", "--task", "loras"], ["--task loras: this is a folder; name a file of items in it"]),
        (["base", "one", "--task", "odd.jsonl"], ["the fields a, answer", "name them prompt (or messages) and answer"]),
        (["base", "one", "--task", "sums.jsonl", "--output", "old.yaml"], ["old.yaml is there already"]),
        (["base", "one", "--task", "sums.jsonl", "--output", "no/study.yaml"], ["there is no folder no"]),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_written(
    models: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: list[str]
) -> None:
    monkeypatch.chdir(models)
    (models / "odd.jsonl").write_text('{"a": "a", "answer": "b"}\n')
    (models / "old.yaml").write_text("mine")
    refused = called("init", *arguments)
    assert refused.exit_code == 2 and all(words in refused.output for words in said), refused.output
    assert not (models / "study.yaml").exists() and (models / "old.yaml").read_text() == "mine"


def test_without_a_task_the_file_says_what_is_missing_and_so_does_check(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without: a file that looks whole and runs on nothing."""
    monkeypatch.chdir(models)
    path = tmp_path / "study.yaml"
    made = called("init", "base", "one", "--output", path)
    assert made.exit_code == 0 and "lacks tasks and objectives" in made.output
    missing = re.findall(r"(?m)^# (.*)$", path.read_text().split("# MISSING", 1)[1])
    assert list(yaml.safe_load("\n".join(missing))) == ["tasks", "objectives"], "what to fill in is YAML"
    refused = called("check", path)
    assert refused.exit_code == 2 and "objectives" in refused.output


def test_models_that_do_not_fit_are_named_with_the_file_to_mend(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(models / "one", tmp_path / "cut")
    tensors = load_file(tmp_path / "cut" / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, tmp_path / "cut" / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.chdir(models)
    made = called("init", "base", tmp_path / "cut", "--task", "sums.jsonl", "--output", tmp_path / "study.yaml")
    assert made.exit_code == 2 and "model.norm.weight" in made.output and "Mend what is named" in made.output
