"""Talking to a study's merges: who answers, what it is asked, and what is refused before anything is loaded."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner, Result

import mergefront as mf
from mergefront.chat.generation import Sampling, write_answer
from mergefront.chat.merges import Merges
from mergefront.chat.session import Chat
from mergefront.chat.speakers import speaker_of
from mergefront.cli.application import cli
from mergefront.cli.conversation import Screen, converse
from mergefront.cli.tables import step_lines

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' and not message['content'].endswith('.') %}"
    "{{ raise_exception('a system message ends in a full stop') }}{% endif %}"
    "<{{ message['role'][0] }}>{{ message['content'] }}<end>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, random_model: Callable[..., Any]) -> Path:
    """A finished study "skills" of two random experts, whose base has a chat template."""
    folder = tmp_path_factory.mktemp("chat")
    model = random_model(max_position_embeddings=96)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for name in ("base", "one", "two"):
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
            (folder / name / "chat_template.jinja").write_text(TEMPLATE)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    (folder / "items.jsonl").write_text(
        '{"prompt": "two plus", "answer": " two"}\n{"prompt": "Is it", "answer": " B"}\n'
    )
    study = {
        "study": "skills",
        "merge": {
            "method": "task_arithmetic",
            "base_model": "base",
            "models": {"one": "one", "two": "two"},
            "space": {"weight": [0, 1]},
        },
        "backend": {"type": "local", "device": "cpu"},
        "tasks": {"items": {"type": "jsonl", "path": "items.jsonl", "metric": "loss"}},
        "objectives": ["items", "delta_l1"],
        "search": {"sampler": "random", "evaluations": 8},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    mf.run(folder / "study.yaml")
    return folder


def function_study(folder: Path, name: str) -> None:
    """Two models of a folder in a study of a function; the base is its trial 0."""
    space = mf.MergeSpace({"one": str(folder / "one")}, method="task_arithmetic", base_model=str(folder / "base"))
    mf.search(
        space=space, evaluate=lambda recipe: 1.0, objectives=["score"], sampler="random", evaluations=3,
        storage=f"sqlite:///{folder}/mergefront.db", name=name,
    )  # fmt: skip


def talk(folder: Path, said: str, *arguments: object, name: str = "skills") -> Result:
    command = ["chat", name, "--storage", folder / "mergefront.db", *arguments]
    return CliRunner().invoke(cli, [str(part) for part in command], input=said)


def trial(folder: Path) -> int:
    return mf.load_study("skills", storage=f"sqlite:///{folder}/mergefront.db").candidates()[-1].number


def plain_answer(model: Any, tokenizer: Any, messages: list[dict[str, str]], tokens: int = 12) -> str:
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**inputs, do_sample=False, max_new_tokens=tokens, pad_token_id=0)
    return str(tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def test_answers_are_those_of_the_exported_merge_turn_by_turn(folder: Path, tmp_path: Path) -> None:
    """What was judged by talking to it is what gets published."""
    number = trial(folder)
    study = ["skills", "--storage", folder / "mergefront.db"]
    command = ["export", *study, "--trial", number, "--out", tmp_path / "merged", "--unchecked"]
    assert CliRunner().invoke(cli, [str(part) for part in command]).exit_code == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    messages = [{"role": "system", "content": "Be brief."}]
    wanted = []
    for question in ("What is two?", "Is it A?"):
        messages.append({"role": "user", "content": question})
        wanted.append(plain_answer(model, tokenizer, messages))
        messages.append({"role": "assistant", "content": wanted[-1]})
    options = ("--trial", number, "--system", "Be brief.", "--max-new-tokens", 12)
    result = talk(folder, "What is two?\nIs it A?\n", *options)
    assert result.exit_code == 0, result.output
    assert result.stdout == "".join(f"{answer}\n" for answer in wanted) and wanted[0] != wanted[1]


def test_every_merge_answers_as_itself_and_the_conversation_goes_on(folder: Path) -> None:
    number = trial(folder)
    first = ("--trial", number, "--max-new-tokens", 8)
    said = "What is two?\n"

    def alone(switch: str) -> str:
        return talk(folder, f"{switch}\n{said}", *first).stdout

    answers = {label: alone(f"/{label}") for label in (f"trial {number}", "base", "expert one", "expert two")}
    assert len(set(answers.values())) == 4
    compared = talk(folder, f"{said}/compare {number} base one two\n", *first)
    shown = "".join(f"--- {label}\n{answer}" for label, answer in answers.items())
    assert compared.stdout == answers[f"trial {number}"] + shown, "without a prompt: the last one, asked of each"
    assert talk(folder, f"/compare base  What is two?\n{said}", *first).stdout.startswith(
        "--- base\n" + answers["base"]
    )

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    before = [
        {"role": "user", "content": "What is two?"},
        {"role": "assistant", "content": answers[f"trial {number}"][:-1]},
        {"role": "user", "content": "Is it A?"},
    ]
    switched = talk(folder, f"{said}/base\nIs it A?\n/reset\n{said}", *first)
    told = answers[f"trial {number}"] + plain_answer(model, tokenizer, before, 8) + "\n" + answers["base"]
    assert switched.stdout == told
    assert "base answers now (merged in" in switched.stderr


def test_a_long_conversation_loses_its_beginning_and_says_so(folder: Path) -> None:
    result = talk(folder, "What is two?\n" * 9, "--trial", 0, "--max-new-tokens", 8)
    assert result.exit_code == 0, result.output
    assert "the model reads no more at once: the first 2 turns were left out" in result.stderr
    assert len(result.stdout.split("\n")) >= 10
    result = talk(folder, "What is two? " * 40, "--trial", 0)
    assert result.exit_code == 2 and re.search(r"this has \d+ tokens; the model reads 96", result.stderr)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/trial 99", "has no evaluated trial 99"),
        ("/trial best", "write the number of a trial"),
        ("/expert onne", "no expert 'onne' (did you mean 'one'?)"),
        ("/trail 3", "no command /trail (did you mean 'trial'?)"),
        ("/compare 1 base", "there is no question yet"),
        ("/compare What is two?", "it names no merge"),
        ("/temperature hot", "must be a number from 0 to 100"),
        ("/max-new-tokens 0", "a whole number above 0"),
        ("/system Be brief\nWhat is two?", "refuses messages of the roles system, user: a system message ends in"),
    ],
)
def test_a_line_of_a_script_that_cannot_be_done_ends_it(folder: Path, line: str, message: str) -> None:
    result = talk(folder, f"{line}\nWhat is two?\n", "--trial", 0)
    assert result.exit_code == 2 and message in result.stderr and result.stdout == ""


def test_temperature_draws_and_help_lists_every_command(folder: Path) -> None:
    torch.manual_seed(0)
    drawn = talk(folder, "/temperature 5\n" + "What is two?\n/reset\n" * 3, "--trial", 0, "--max-new-tokens", 8)
    assert len(set(drawn.stdout.splitlines())) > 1
    shown = talk(folder, "/help\n", "--trial", 0).stderr
    assert all(f"/{name}" in shown for name in ("trial", "base", "expert", "compare", "system", "reset", "temperature"))


def test_without_a_template_a_text_is_continued_and_one_can_be_named(folder: Path, tmp_path: Path) -> None:
    """Of a study with a function of one's own, whose models are here."""
    for name in ("base", "one"):
        shutil.copytree(folder / name, tmp_path / name, ignore=shutil.ignore_patterns("chat_template.jinja"))
    function_study(tmp_path, "plain")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    inputs = tokenizer("What is", return_tensors="pt")
    written = model.generate(**inputs, do_sample=False, max_new_tokens=6, pad_token_id=0)[0]
    continued = tokenizer.decode(written[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    options = ("--trial", 0, "--max-new-tokens", 6)
    raw = talk(tmp_path, "What is\n" * 2, *options, name="plain")
    assert raw.exit_code == 0 and raw.stdout == f"{continued}\n" * 2, raw.output
    assert raw.stderr.startswith("No chat template: your text is continued")
    assert "--template none continues lines" in talk(folder, "", *options).stderr, "the study's task asks as it stands"
    as_scored = talk(folder, "What is\n", *options, "--template", "none")
    assert as_scored.stdout == f"{continued}\n" and "--template none continues" not in as_scored.stderr
    for refused in (("--system", "Be brief."), ("--template", "no such")):
        assert talk(tmp_path, "", *options, *refused, name="plain").exit_code == 2
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    unread = talk(tmp_path, "", *options, "--template-option", "thinking=false", name="plain")
    assert unread.exit_code == 2 and "there is no chat template" in unread.stderr
    named = talk(tmp_path, "What is two?\n", *options, "--template", tmp_path / "own.jinja", name="plain")
    assert named.stdout == talk(folder, "What is two?\n", *options).stdout != ""

    (tmp_path / "own.jinja").write_text(TEMPLATE + "{% if not thinking %}</t>{% endif %}")
    template = (*options, "--template", tmp_path / "own.jinja")
    opened, closed = (
        talk(tmp_path, "What is two?\n", *template, "--template-option", f"thinking={value}", name="plain").stdout
        for value in ("true", "false")
    )
    assert opened == named.stdout != closed
    misspelt = talk(tmp_path, "", *template, "--template-option", "thinkin=true", name="plain")
    assert misspelt.exit_code == 2 and "the chat template has no such variable" in misspelt.stderr


def test_the_user_can_end_an_answer_and_keeps_what_there_is(folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "base")
    prompt = tokenizer("What is")["input_ids"]
    pieces: list[str] = []

    def interrupt(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    ended = write_answer(model, tokenizer, prompt, Sampling(max_new_tokens=30), interrupt)
    whole = write_answer(model, tokenizer, prompt, Sampling(max_new_tokens=30), lambda piece: None)
    assert ended.finish == "interrupted" and whole.finish == "length" and whole.tokens == 30
    assert ended.text and whole.text.startswith(ended.text) and len(ended.text) < len(whole.text)


def test_studies_whose_merges_nothing_here_can_make_are_refused(
    folder: Path, tmp_path: Path, storage: str, write_study: Callable[..., Path]
) -> None:
    result = CliRunner().invoke(cli, ["chat", "skills", "--storage", storage])
    assert result.exit_code == 2 and "there are no weights for base_model" in result.stderr
    outside = yaml.safe_load((folder / "study.yaml").read_text()) | {"backend": {"type": "external"}}
    del outside["tasks"]
    outside["objectives"], outside["study"] = [{"name": "items", "direction": "maximize"}], "outside"
    (folder / "outside.yaml").write_text(yaml.safe_dump(outside))
    study = mf.create(folder / "outside.yaml")
    study.tell(study.ask().trial, {"items": 1.0})
    result = talk(folder, "Hi\n", "--trial", 0, name="outside")
    assert result.exit_code == 2 and "is scored by an outside harness" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_on_a_terminal_the_next_line_is_read_whatever_came_of_the_last(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = mf.load_study("skills", storage=f"sqlite:///{folder}/mergefront.db")
    merges = Merges(study)
    monkeypatch.setattr("sys.stdin", io.StringIO("/trial 99\nWhat is two?\n/compare base one two Is it A?\n/base\n"))
    monkeypatch.setenv("COLUMNS", "120")
    with speaker_of(study) as speaker:
        converse(Chat(merges, speaker, Screen(True), merges.trial(1), Sampling(max_new_tokens=8)), True)
    shown = capsys.readouterr()
    assert "has no evaluated trial 99" in shown.err and "(8 tokens in " in shown.err
    answer = talk(folder, "What is two?\n", "--trial", 1, "--max-new-tokens", 8).stdout
    assert answer.strip() in shown.out
    heading = next(line for line in shown.out.splitlines() if "expert two" in line)
    assert heading.split()[-5:] == ["base", "expert", "one", "expert", "two"], "side by side, where there is room"
    assert shown.out.endswith("base> \n"), "whose turn it is stands before each line; Ctrl-D leaves"


def test_models_that_are_no_longer_those_that_were_scored_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "moved")
    config = tmp_path / "moved" / "one" / "config.json"
    config.write_text(config.read_text() + "\n")
    (tmp_path / "moved" / "items.jsonl").write_text("other items, which nobody is asked now\n")
    result = talk(tmp_path / "moved", "Hi\n", "--trial", 0)
    assert result.exit_code == 2 and "one: its content has changed since the study was begun" in result.stderr


def test_a_model_that_writes_no_text_is_refused(folder: Path, tmp_path: Path, tokenizer: Any) -> None:
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    for name in ("base", "one"):
        transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    function_study(tmp_path, "silent")
    result = talk(tmp_path, "Hi\n", "--trial", 0, name="silent")
    assert result.exit_code == 2, result.output
    assert result.stderr.endswith("BertForSequenceClassification writes no text, so there is nobody to talk to\n")


def test_the_front_of_a_study_that_can_be_talked_to_names_the_command(folder: Path) -> None:
    study = mf.load_study("skills", storage=f"sqlite:///{folder}/mergefront.db")
    command, *others = step_lines(study, 400)
    number = (study.suggested() or study.knee()).number
    assert command.startswith("  mergefront chat skills --storage") and f" --trial {number}  # talk to it" in command
    assert "mergefront report skills" in others[0] and f"--trial {number} --out merged" in others[1]
    said = re.search(r"/compare .*", command)
    assert said and talk(folder, f"{said[0]} Hi\n", "--trial", number).exit_code == 0
