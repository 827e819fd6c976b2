"""Tasks of the harness ask in chat what the harness asks, score what it scores, and say what they cannot ask."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_families import CHATML, FAMILIES, chat_tokenizer

from mergefront.adapters.chat_templates import TemplateReader
from mergefront.adapters.language_model import Chat, Generation, Message
from mergefront.adapters.tasks.prompt_findings import Reader, chat_refusals, traps
from mergefront.adapters.tasks.task_types import build_task, problems_of
from mergefront.adapters.tokenization import Tokenization
from mergefront.optimizer.errors import UserError
from mergefront.study.content import data_paths

pytest.importorskip("lm_eval")


@pytest.mark.long
def test_prompts_answers_and_scores_are_the_harness_own(caplog: pytest.LogCaptureFixture) -> None:
    """Without: a search optimises on another benchmark than the one that its merges are published by."""
    from benchmarks.evaluation.harness_tasks import make_model, rows

    caplog.set_level(logging.ERROR)
    names = ("gsm8k", "arc_challenge_chat", "arc_easy", "mmlu_anatomy", "mmlu_astronomy")
    found = {(name, metric): one for name, metric, _, one in rows(names, make_model())}
    assert ("knowledge", "acc,none") in found
    assert all(one.is_same for one in found.values()), found


TASK = """\
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl, train: shown.jsonl}}
training_split: train
test_split: test
output_type: generate_until
description: "Be brief.\\n\\n"
doc_to_text: "{{q}}"
doc_to_target: a
num_fewshot: 2
generation_kwargs: {until: ["\\n"], max_gen_toks: 8}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Any]:
    for name, start in (("rows", 0), ("shown", 50)):
        rows = [{"q": f"What is {n}?", "a": str(n)} for n in range(start, start + 4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.yaml").write_text(TASK)

    def made(**options: Any) -> Any:
        config = {"type": "lm_eval", "task": "own.yaml", "report_fraction": 0, **options}
        return build_task("own", config, tmp_path)

    return made


def test_a_conversation_has_the_turns_that_the_options_say(read: Callable[..., Any]) -> None:
    def turns(**options: Any) -> list[str]:
        task = read(apply_chat_template=True, **options)
        (question,) = task.questions(task.items("search")[:1])
        assert isinstance(question.prompt, Chat) and question.prompt.as_text
        return [message.role for message in question.prompt.messages]

    assert turns() == ["system", "user", "assistant", "user", "assistant", "user"]
    assert turns(fewshot_as_multiturn=False) == ["system", "user"]
    assert turns(num_fewshot=0) == ["system", "user"]
    task = read(apply_chat_template="tool_use", system_instruction="Be exact.")
    (question,) = task.questions(task.items("search")[:1])
    assert question.prompt.template == "tool_use"
    assert question.prompt.messages[0] == Message("system", "Be exact.\n\nBe brief.\n\n")


def test_a_template_of_ones_own_is_a_file(read: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{{ messages[-1].content }}")
    task = read(apply_chat_template="own.jinja")
    assert task.questions(task.items("search")[:1])[0].prompt.template == "{{ messages[-1].content }}"
    config = {"type": "lm_eval", "task": "own.yaml", "apply_chat_template": "gone.jinja"}
    assert "gone.jinja: cannot be read" in problems_of(config, tmp_path)[0]
    assert data_paths({"own": {**config, "apply_chat_template": "own.jinja"}}, tmp_path).count("own.jinja") == 1


def test_a_server_with_a_chat_route_gets_the_conversation(read: Callable[..., Any]) -> None:
    class Route:
        def generate(self, requests: Any) -> list[Generation]:
            self.asked = [request.prompt for request in requests]
            return [Generation(chat.messages[-1].content.split()[-1].strip("?"), 1, "stop") for chat in self.asked]

    task, model = read(apply_chat_template=True), Route()
    assert task.score(model, task.items("search")).mean == 1.0
    assert all(isinstance(chat, Chat) for chat in model.asked)


def test_what_a_template_writes_is_read_as_a_text() -> None:
    """White space at its end is scored with the answer, and a begin token stands once, as the harness has it."""
    tokenizer = chat_tokenizer("{{ bos_token }}" + CHATML)
    read = Tokenization(tokenizer, chats=TemplateReader(tokenizer))
    chat = Chat((Message("user", "Is it A?"),), as_text=True)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Is it A?"}], tokenize=False, add_generation_prompt=True
    )
    assert read.pairs([(chat, "B")]) == read.pairs([(text, "B")])
    assert read.texts([chat])[0].count(tokenizer.bos_token_id) == 1
    begun = Chat((*chat.messages, Message("assistant", "It is")), as_text=True)
    assert read.texts([begun]) == read.texts([text + "It is"])


def test_a_description_that_a_template_refuses_is_left_out_and_said_but_no_instruction(
    read: Callable[..., Any],
) -> None:
    tokenizer = chat_tokenizer(FAMILIES["gemma"])
    reader = Reader(Tokenization(tokenizer, chats=TemplateReader(tokenizer)), template=FAMILIES["gemma"])
    task = read(apply_chat_template=True)
    asked = task.questions(task.items("search"))
    assert not chat_refusals(asked, reader)
    assert "the task's description is left out, as the harness does" in " ".join(traps({"own": asked}, reader))
    text = reader.tokenization.chats.rendered(asked[0].prompt, None)[0]  # type: ignore[union-attr]
    assert "brief" not in text and text.endswith("<start_of_turn>model\n")
    told = read(apply_chat_template=True, system_instruction="Be exact.")
    assert "System role not supported" in chat_refusals(told.questions(told.items("search")), reader)[0]


def test_a_model_without_a_template_is_said(read: Callable[..., Any]) -> None:
    tokenizer = chat_tokenizer(None)
    task = read(apply_chat_template=True)
    asked = task.questions(task.items("search"))
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        Tokenization(tokenizer, chats=TemplateReader(tokenizer)).texts([asked[0].prompt])


def test_turns_without_a_template_are_refused(read: Callable[..., Any], tmp_path: Path) -> None:
    config = {"type": "lm_eval", "task": "own.yaml", "fewshot_as_multiturn": True}
    assert "fewshot_as_multiturn needs apply_chat_template" in problems_of(config, tmp_path)[0]
