"""How prompts and answers meet, and what is said of them before anything is asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small_tokenizer import make_tokenizer

from mergefront.adapters.language_model import Generation, GenerationRequest, LogLikelihood, ScoringRequest
from mergefront.adapters.tasks.prompt_findings import Reader, assembled, traps
from mergefront.adapters.tasks.questions import Question, following
from mergefront.adapters.tasks.task_types import build_task, problems_of, resolved_task
from mergefront.adapters.tokenization import Tokenization


class Recorder:
    """Remembers what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        self.asked += [request.context + request.continuation for request in requests]
        return [LogLikelihood(-1.0, 1, False) for _ in requests]

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        return [Generation("x", 1, "stop") for _ in requests]


@pytest.mark.parametrize(
    ("prompt", "answer", "delimiter", "right"),
    [
        ("2 + 2 =", "4", None, "2 + 2 = 4"),
        ("2 + 2 =", " 4", None, "2 + 2 = 4"),
        ("2 + 2 = ", "4", None, "2 + 2 = 4"),
        ("2 + 2 =\n", "4", None, "2 + 2 =\n4"),
        ("2 + 2 =", "\n4", None, "2 + 2 =\n4"),
        ("2 + 2\u00a0", "4", None, "2 + 2\u00a04"),
        ("", "4", None, "4"),
        ("", "4", "->", "4"),
        ("2 + 2 =", " 4", " ", "2 + 2 =  4"),
        ("2 + 2 =", "4", "", "2 + 2 =4"),
    ],
)
def test_prompt_and_answer_meet_as_the_data_says(prompt: str, answer: str, delimiter: str | None, right: str) -> None:
    assert prompt + following(prompt, answer, delimiter) == right


@pytest.mark.parametrize("metric", ["loss", "perplexity", "bits_per_byte", "loglikelihood"])
def test_no_metric_scores_an_answer_behind_two_spaces(tmp_path: Path, metric: str) -> None:
    """A loss of 0.96 read 3.63, and a whole search optimised it."""
    row = {"prompt": "2 + 2 =", "choices": [" 4", " 5"], "answer": " 4"}
    if metric != "loglikelihood":
        row.pop("choices")
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    config = {"type": "jsonl", "path": "rows.jsonl", "metric": metric, "report_fraction": 0}
    model = Recorder()
    task = build_task("t", config, tmp_path)
    task.score(model, task.items("search"))
    assert model.asked[0] == "2 + 2 = 4"
    assert task.questions(task.items("search"))[0].answers[0] == " 4", "check shows what is scored"
    assert resolved_task(config)["delimiter"] is None, "the default is stored with a new study"
    before = build_task("t", {**config, "delimiter": " "}, tmp_path)
    before.score(model, before.items("search"))
    assert model.asked[-len(model.asked) // 2] == "2 + 2 =  4", "a study that stored a space goes on with it"


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(Tokenization(make_tokenizer()), longest=64)


def test_the_seam_is_shown_token_by_token(reader: Reader) -> None:
    line = assembled(Question("Is it A, B or C?", (" It is B!",)), reader)
    assert line.startswith("'Is it A, B or C?' + ' It is B!'")
    left, right = line.rsplit(":", 1)[1].rstrip(")").split("|")
    assert left.strip().endswith("'?'") and right.strip().startswith("' "), line
    written = assembled(Question("Is it B?", ("yes",), new_tokens=3, stop=("\n",)), reader)
    assert r"at most 3 new tokens, up to '\n'" in written and written.split("|")[1].strip(" )"), "the answer's too"
    ends_with_a_space = assembled(Question("Is it B? ", ("yes",), new_tokens=3), reader)
    assert "' ' |" in ends_with_a_space
    assert "message of a user" in assembled(Question("Is it B?", ("yes",), 3), Reader(is_chat=True))
    assert "\x1b" not in assembled(Question("\x1b[2J", ("\x1b]0;",), 3), reader)


def test_tokens_at_the_seam_keep_their_spaces() -> None:
    """A tokenizer that writes a space as a part of its word loses it where the word is decoded by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "▁Is", "▁it", "▁A", "▁or", "▁B", "▁no"]
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<unk>")
    line = assembled(Question("Is it A or B", (" no",)), Reader(Tokenization(tokenizer)))
    assert line.endswith("(5 + 1 tokens: ... ' it' ' A' ' or' ' B' | ' no')")


def writing(prompt: str, *answers: str, **more: Any) -> Question:
    return Question(prompt, answers or ("four",), **{"new_tokens": 8, "stop": ("\n",), **more})


TEMPLATE = "{{ '<|im_start|>user\n' + messages[0].content + '<|im_end|>' }}"


@pytest.mark.parametrize(
    ("questions", "settings", "said"),
    [
        ([Question("a ", (" b",))], {}, "1 of 1 answers follow their prompt after two spaces"),
        ([Question("a", ("  b",))], {}, "after two spaces"),
        ([Question("def f():\n", ("    return",))], {}, None),
        ([Question("a ", ("b",)), Question("a", (" b",))], {}, None),
        ([writing("2 + 2 = ")], {}, "prompts end with a space"),
        ([writing("2 + 2 =\n")], {}, None),
        ([writing("Write two lines:", "one\ntwo")], {}, "accepted answers hold a stop string"),
        ([writing("Write:", "one\ntwo", "one")], {}, None),
        ([writing("Sum:", "\nfour")], {}, None),
        ([writing("Sum:", "two experts keeps what both of them know")], {}, "longer than max_new_tokens"),
        ([writing("Sum: " * 60)], {}, "1 of 1 prompts are longer than the model reads (64 tokens"),
        ([writing("Sum: " * 60)], {"is_remote": True}, "longer than the model reads"),
        ([Question("Sum: " * 60, ("four",))], {}, "longer than the model reads"),
        ([Question("Sum:", ("four" * 60,))], {}, "longer than the model reads"),
        ([Question("Sum:", ("four" * 60,))], {"is_split": True}, None),
        (
            [writing("Sum:")],
            {"template": TEMPLATE},
            "are not written in it; if it is an instruct model, ask it in chat: true",
        ),
        ([writing("<|im_start|>user\nSum:<|im_end|>")], {"template": TEMPLATE}, "is no token of this tokenizer"),
        (
            [writing("Sum:", stop=("<|im_end|>",))],
            {"is_remote": True},
            "the stop string '<|im_end|>' is a special token",
        ),
        ([writing("Sum:", stop=("<|im_end|>",))], {}, None),
        ([writing("<|im_start|>user\nSum:<|im_end|>")], {"is_chat": True}, "puts them into its own again"),
        ([writing("[INST] Sum: [/INST]")], {"is_chat": True}, "puts them into its own again"),
        ([writing("Sum:")], {"is_chat": True, "template": TEMPLATE}, None),
    ],
)
def test_traps_are_named_and_sound_prompts_are_not(
    reader: Reader, questions: list[Question], settings: dict[str, Any], said: str | None
) -> None:
    made = Reader(**{"tokenization": reader.tokenization, "longest": reader.longest, **settings})
    lines = traps({"t": questions}, made)
    assert (lines == []) if said is None else any(said in line for line in lines), lines


def tokenizer_with_begin(template: str) -> Any:
    """A tokenizer that puts <s> around texts as ``template`` says."""
    from tokenizers import processors

    made = make_tokenizer()
    made.add_special_tokens({"bos_token": "<s>"})
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", made.bos_token_id)]
    )
    return made


@pytest.mark.parametrize(
    ("template", "prompt", "said"),
    [
        ("<s> $A", "Sum:", None),
        ("$A", "Sum:", "no prompt begins with the tokenizer's begin token"),
        ("<s> <s> $A", "Sum:", "begin with two begin tokens"),
        ("<s> $A", "<s>Sum:", None),
        ("$A", "<s><s>Sum:", "begin with two begin tokens"),
    ],
)
def test_begin_tokens_are_there_once(template: str, prompt: str, said: str | None) -> None:
    reader = Reader(Tokenization(tokenizer_with_begin(template)))
    lines = traps({"t": [writing(prompt)]}, reader)
    assert (lines == []) if said is None else any(said in line for line in lines), lines


def test_an_endpoint_puts_its_own_begin_token() -> None:
    lines = traps({"t": [writing("<s>Sum:"), writing("Sum:")]}, Reader(is_remote=True))
    assert "1 of 2 prompts begin with the text of a begin token" in lines[0]


def test_one_cause_is_one_line(reader: Reader) -> None:
    (line,) = traps({"a": [writing("Sum: ")], "b": [writing("Sum: ")]}, reader)
    assert line.startswith("tasks a, b: ")


@pytest.mark.parametrize(
    ("prompt", "answer", "refused"),
    [
        ("Q: 1+1?\nA: 2\n\nQ: 3+4?\nA: 7\n\nQ: 3+4?\nA:", "7", True),
        ("1+1=2\n3+4=7\n3+4=", "7", True),
        ("1+1=2\n3+4=8\n3+4=", "7", False),
        ("Q: 1+1?\nA: 2\n\nQ: 3+4?\nA:", "7", False),
        ("3+4=", "7", False),
    ],
)
def test_an_item_that_stands_answered_in_its_own_prompt_is_refused(
    tmp_path: Path, prompt: str, answer: str, refused: bool
) -> None:
    rows = [{"prompt": "Q: 9+9?\nA:", "answer": "18"}, {"prompt": prompt, "answer": answer}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    problems = problems_of({"type": "jsonl", "path": "rows.jsonl", "metric": "exact_match"}, tmp_path)
    assert [problem.startswith("rows.jsonl:2: its prompt has its own question, answered") for problem in problems] == [
        True
    ] * refused


def test_a_last_paragraph_that_items_share_is_no_question(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}+4=?\nThe answer is:\n7\n\nThe answer is:", "answer": "7"} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert problems_of({"type": "jsonl", "path": "rows.jsonl", "metric": "exact_match"}, tmp_path) == []


def test_a_template_that_is_no_jinja_is_the_fault_of_its_file_and_of_no_item(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text("".join(f'{{"prompt": "{n} =", "answer": "4"}}\n' for n in range(8)))
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m.content }")
    config = {"type": "jsonl", "path": "items.jsonl", "metric": "exact_match", "chat": {"template": "own.jinja"}}
    [problem] = problems_of(config, tmp_path)
    assert problem.startswith("chat.template own.jinja: ") and "items.jsonl" not in problem
