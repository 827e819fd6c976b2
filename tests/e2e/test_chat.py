"""A study asked in chat: the scores of a plain script of transformers, and the same template when it is resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_families import CHATML, FAMILIES, chat_tokenizer
from tiny_models import move

import mergefront as mf
from mergefront.optimizer.errors import UserError
from mergefront.study.check import check_study
from mergefront.study.evaluators import tasks_of

CHAT = {"enable_thinking": False, "system": "Be brief."}
QUESTIONS = ["What is two plus two?", "Write 425 in French", "Sort 23 43 83", "Is it A, B or C?"]
EARLIER = [{"role": "user", "content": "Is it B?"}, {"role": "assistant", "content": "It is B!"}]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, random_model: Callable[..., Any]) -> Path:
    """Folders of three tiny Qwen3, ``base``, ``one`` and ``two``, whose tokenizer has Qwen3's chat template."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = chat_tokenizer(FAMILIES["qwen 3"])
    ends = tokenizer.convert_tokens_to_ids(["<end>", "<|im_end|>"])
    model = random_model("Qwen3", vocab_size=len(tokenizer), head_dim=8, max_position_embeddings=1024)
    model.generation_config.eos_token_id = ends
    for seed, name in enumerate(("base", "one", "two")):
        move(model, seed, 0.1 * seed)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


class Script:
    """What people write who know transformers, and nothing of this package."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def answer(self, messages: list[dict[str, str]], new_tokens: int) -> str:
        return self.answers(messages, new_tokens)[-1]

    def answers(self, messages: list[dict[str, str]], new_tokens: int) -> list[str]:
        """The text after each new token."""
        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, enable_thinking=False, return_tensors="pt", return_dict=True
        )
        written = self.model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens)
        ids = written[0, inputs["input_ids"].shape[1] :]
        return [str(self.tokenizer.decode(ids[: n + 1], skip_special_tokens=True)) for n in range(len(ids))]

    @torch.inference_mode()
    def loss(self, messages: list[dict[str, str]], answer: str) -> float:
        """Nats a token of the assistant's answer."""
        options = {"enable_thinking": False, "return_dict": False}
        before = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)
        said = [*messages, {"role": "assistant", "content": answer.strip()}]
        whole = self.tokenizer.apply_chat_template(said, continue_final_message=True, **options)
        assert whole[: len(before)] == before
        logits = self.model(torch.tensor([whole])).logits[0].log_softmax(-1)
        return -sum(float(logits[at - 1, whole[at]]) for at in range(len(before), len(whole))) / (
            len(whole) - len(before)
        )


def asked(question: str, number: int) -> list[dict[str, str]]:
    """Every other item is a conversation of several turns."""
    turns = [*(EARLIER if number % 2 else []), {"role": "user", "content": question}]
    return [{"role": "system", "content": "Be brief."}, *turns]


def study_in(folder: Path, models: Path, answers: list[str], chat: Any = CHAT, **keys: Any) -> Path:
    """Two tasks over the same questions: what is written, and how likely an answer is."""
    rows = [
        {**({"messages": asked(one, n)[1:]} if n % 2 else {"prompt": one}), "answer": answer}
        for n, (one, answer) in enumerate(zip(QUESTIONS, answers, strict=True))
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {"type": "jsonl", "path": "items.jsonl", "chat": chat, "report_fraction": 0.25}
    content = {
        "study": "chat",
        "storage": f"sqlite:///{folder}/chat.db",
        "merge": {
            "method": "task_arithmetic", "base_model": str(models / "base"),
            "models": {"one": str(models / "one"), "two": str(models / "two")}, "space": {"weight": [0, 1]},
        },
        "backend": {"type": "local", "device": "cpu"},
        "tasks": {
            "writing": {**shared, "metric": "exact_match", "max_new_tokens": 6, **keys},
            "liking": {**shared, "metric": "loss"},
        },
        "objectives": ["writing", "liking"],
        "search": {"sampler": "random", "evaluations": 6},
    }  # fmt: skip
    (folder / "study.yaml").write_text(json.dumps(content))
    return folder / "study.yaml"


def test_scores_are_those_of_a_plain_script_and_a_resumed_study_has_the_same(models: Path, tmp_path: Path) -> None:
    script = Script(models / "one")
    answers = [script.answer(asked(one, n), 6) for n, one in enumerate(QUESTIONS)]
    assert len(set(answers)) > 1 and all(one.strip() for one in answers)
    path = study_in(tmp_path, models, answers)
    report = check_study(path)
    assert report.problems == [] and report.warnings == []
    shown = next(line for line in report.notes if line.startswith("task writing asks"))
    assert "<|im_start|>system\\nBe brief.<|im_end|>\\n<|im_start|>user" in shown
    assert "assistant\\n<think>\\n\\n</think>\\n\\n" in shown and "<begin>" not in shown

    study = mf.run(path, evaluations=3)
    one = next(anchor for anchor in study.anchors() if anchor.anchor == "expert one")
    assert one.scores["writing"] == 1.0
    items = study.ledger.find(one.recipe).items["liking"]
    numbers = [
        QUESTIONS.index(item.prompt)
        for task in tasks_of(study.definition)
        for item in task.items("search")
        if task.name == "liking"
    ]
    expected = [script.loss(asked(QUESTIONS[n], n), answers[n]) for n in numbers]
    assert items.scores == pytest.approx(expected, abs=1e-5)

    resumed = mf.run(path)
    (tmp_path / "whole").mkdir()
    whole = mf.run(study_in(tmp_path / "whole", models, answers))
    assert [one.scores for one in resumed.candidates()] == [one.scores for one in whole.candidates()]


def test_a_study_with_another_template_is_another_study(models: Path, tmp_path: Path) -> None:
    (tmp_path / "chatml.jinja").write_text(CHATML)
    path = study_in(tmp_path, models, list("abcd"), {"template": "chatml.jinja"})
    mf.run(path, evaluations=1)
    (tmp_path / "chatml.jinja").write_text(CHATML.replace("assistant", "bot"))
    with pytest.raises(UserError, match=r"chatml\.jinja"):
        mf.run(path)


def test_what_cannot_be_asked_in_chat_is_one_line_of_check(models: Path, tmp_path: Path) -> None:
    def problems(chat: Any, rows: list[dict[str, Any]] | None = None) -> list[str]:
        path = study_in(tmp_path, models, list("abcd"), chat)
        if rows is not None:
            (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [line for line in check_study(path).problems if "writing" in line]

    user, good = {"role": "user", "content": "Is it A?"}, {"prompt": "Is it C?", "answer": "no"}
    both = {"messages": [user], "prompt": "Is it?", "answer": "B"}
    assert problems(True, [both, good]) == [
        "tasks.writing: items.jsonl:1: has 'messages' and 'prompt'; keep one of them"
    ]
    twice = {"messages": [{"role": "system", "content": "Be kind."}, user], "answer": "B"}
    assert "items.jsonl:1: has a system message, and so has the task" in problems(CHAT, [twice, good])[0]
    last = {"messages": [user, {"role": "assistant", "content": "Yes"}], "answer": "B"}
    assert "items.jsonl:2: the last message is the assistant's" in problems(True, [good, last])[0]
    assert "items.jsonl:1: has 'messages', which only a task with chat: true" in problems(False, [twice, good])[0]
    (tmp_path / "gemma.jinja").write_text(FAMILIES["gemma"])
    for line in problems({"template": "gemma.jinja", "system": "Be brief."}):  # a line for one turn, one for several
        assert "items.jsonl:" in line and "System role not supported" in line and "(2 of 4 items)" in line
    assert "chat.template none.jinja: cannot be read" in problems({"template": "none.jinja"})[0]
    assert "there is no chat template 'tools'" in problems({"template": "tools"})[0]
    assert "'messages' is set for each item" in problems({"messages": []})[0]


def test_check_says_what_a_template_does_not_read_and_where_its_turns_do_not_end(models: Path, tmp_path: Path) -> None:
    for chat, said in (
        ({"thinking": True}, "does not read 'thinking' (did you mean 'enable_thinking'?) (4 of 4 items)"),
        ({"systm": "Be brief."}, "chat: unknown key 'systm' (did you mean 'system'?)"),
    ):
        told = check_study(study_in(tmp_path, models, list("abcd"), chat)).problems
        assert [said in line and line.startswith("tasks.") for line in told] == [True, True], told
    (tmp_path / "gemma.jinja").write_text(FAMILIES["gemma"])
    (line,) = check_study(study_in(tmp_path, models, list("abcd"), {"template": "gemma.jinja"})).warnings
    assert "ends a turn with '<end_of_turn>', which ends no answer of this model; give the task stop" in line
    thinks = {"thinking": True, "max_thinking_tokens": 100}
    shut = check_study(study_in(tmp_path, models, list("abcd"), {"enable_thinking": False}, **thinks))
    (line,) = [line for line in shut.warnings if "thoughts" in line]
    assert line.startswith("task writing: 4 of 4 prompts close the model's thoughts before it writes")
    assert check_study(study_in(tmp_path, models, list("abcd"), True, **thinks)).warnings == []


def test_drawn_answers_are_the_same_when_a_study_is_resumed(models: Path, tmp_path: Path) -> None:
    """To the digit, by (study, item, number); the mean of several is a score between those of right and wrong."""
    answers = ["it is B", "two", "23 43", "A B C"]
    options = {"temperature": 1.0, "top_p": 0.9, "samples": 6, "metric": "f1", "max_new_tokens": 8}
    for name, before in (("resumed", 2), ("whole", 6)):
        (tmp_path / name).mkdir()
        path = study_in(tmp_path / name, models, answers, **options)
        assert check_study(path).problems == []
        mf.run(path, evaluations=before)
    resumed, whole = mf.run(tmp_path / "resumed" / "study.yaml"), mf.run(tmp_path / "whole" / "study.yaml")
    items = [
        [study.ledger.find(one.recipe).items["writing"] for one in study.candidates()] for study in (resumed, whole)
    ]
    assert items[0] == items[1]
    scores = [score for one in items[0] for score in one.scores]
    assert len(set(scores)) > 2 and all(0 <= score <= 1 for score in scores)
    best = study_in(tmp_path / "whole", models, answers, samples_metric="pass@k", **options)
    best.write_text(best.read_text().replace('"study": "chat"', '"study": "best"'))
    first = mf.run(best, evaluations=1).candidates()[0]
    assert first.scores["writing"] > whole.candidates()[0].scores["writing"]
    alike = study_in(tmp_path / "whole", models, list("abcd"), samples=3)
    assert "samples is 3, but at temperature 0" in check_study(alike).problems[0]


def test_a_thinking_models_answer_is_what_a_script_finds_behind_its_thoughts(models: Path, tmp_path: Path) -> None:
    """And nothing where the thoughts do not end, which is counted. Letters stand for the marks of this random model."""
    script = Script(models / "one")
    thoughts = [script.answer(asked(one, n), 12) for n, one in enumerate(QUESTIONS)]
    letters = {letter for text in thoughts for letter in text if letter.isalpha()}
    mark = next(one for one in sorted(letters) if 0 < sum(one in text for text in thoughts) < 4)
    answers = ["nothing"] * 4
    for number, text in enumerate(thoughts):
        if mark in text:  # and 8 tokens of an answer behind the token that ends the thoughts
            longest = script.answers(asked(QUESTIONS[number], number), 24)
            end = next(length for length, text in enumerate(longest, start=1) if mark in text)
            answer = longest[end + 8 - 1].partition(mark)[2].strip()
            answers[number] = answer if answer and "</think>" not in answer else "nothing"
    thinking = {"thinking": {"start": "<think>", "end": mark}, "max_thinking_tokens": 12, "max_new_tokens": 8}
    path = study_in(tmp_path, models, answers, **thinking)
    study = mf.run(path, evaluations=3)
    one = next(anchor for anchor in study.anchors() if anchor.anchor == "expert one")
    evaluation = study.ledger.find(one.recipe)
    (task,) = [task for task in tasks_of(study.definition) if task.name == "writing"]
    numbers = [QUESTIONS.index(item.prompt) for item in task.items("search")]
    expected = [float(answers[n] != "nothing") for n in numbers]
    assert list(evaluation.items["writing"].scores) == expected and 1.0 in expected
    assert evaluation.details["outcomes"]["writing"].get("thought", 0) == sum(mark not in thoughts[n] for n in numbers)


@pytest.mark.long
def test_the_study_in_the_documentation_runs(models: Path, tmp_path: Path) -> None:
    """As it is written there, with models and items in the places that it names."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "conversations.md").read_text(encoding="utf-8")
    (tmp_path / "study.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    (tmp_path / "models").mkdir()
    (tmp_path / "data").mkdir()
    for name, source in (("base", "base"), ("maths", "one"), ("french", "two")):
        (tmp_path / "models" / name).symlink_to(models / source)
    rows = {
        "maths": [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in (2, 3, 4, 8)],
        "french": [{"prompt": f"Write {n} in French", "answer": "quatre"} for n in (4, 2, 3, 8)],
        "logic": [{"messages": [*EARLIER, {"role": "user", "content": one}], "answer": "B"} for one in QUESTIONS],
    }
    for name, several in rows.items():
        (tmp_path / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in several))
    report = check_study(tmp_path / "study.yaml")
    assert report.problems == []
    study = mf.run(tmp_path / "study.yaml", evaluations=1)
    assert not study.failures() and set(study.candidates()[0].scores) == set(rows)
