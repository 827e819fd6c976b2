"""Messages become the tokens that transformers makes of them, for templates of ten families; what a template refuses is
said in one line."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from chat_families import CHATML, FAMILIES, chat_tokenizer

from mergefront.adapters.chat_templates import ChatTemplate
from mergefront.optimizer.errors import UserError

ASKED = [{"role": "user", "content": " What is two plus two?\n"}]
SEVERAL = [
    {"role": "user", "content": "Write 425 in French"},
    {"role": "assistant", "content": "<think>\nIt is hard.\n</think>\n\nquatre cent vingt-cinq"},
    {"role": "user", "content": "Is it A, B or C?"},
]
TOLD = [{"role": "system", "content": "Answer in one word."}, *ASKED]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return chat_tokenizer(None)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"enable_thinking": False, "thinking": True}], ids=["plain", "options"])
def test_messages_have_the_tokens_that_transformers_gives_them(
    tokenizer: Any, family: str, options: dict[str, Any]
) -> None:
    tokenizer.chat_template = FAMILIES[family]
    template = ChatTemplate.of_tokenizer(tokenizer)
    # transformers knows no other date than this very day's
    today = datetime.now(UTC).astimezone().date().isoformat()
    for messages in [ASKED, SEVERAL, *([] if family == "gemma" else [TOLD])]:
        expected = tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=False, **options
        )
        text = template.prompt(messages, options, today)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected
        assert expected.count(tokenizer.bos_token_id) == ("bos_token" in FAMILIES[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scored_answer_is_what_the_assistants_turn_would_be(tokenizer: Any, family: str) -> None:
    tokenizer.chat_template = FAMILIES[family]
    before, answer = ChatTemplate.of_tokenizer(tokenizer).turn(ASKED, " four\n", {"enable_thinking": False})
    said = [*ASKED, {"role": "assistant", "content": "four"}]
    whole = ChatTemplate.of_tokenizer(tokenizer).render(said)
    assert whole.startswith(before + answer)
    assert answer == (" four" if family == "mistral" else "four")


def test_an_answer_that_stands_in_the_marks_too_is_scored_whole(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML
    assert ChatTemplate.of_tokenizer(tokenizer).turn(ASKED, "im_end")[1] == "im_end"


def test_a_study_asks_the_same_on_every_day(tokenizer: Any) -> None:
    tokenizer.chat_template = FAMILIES["llama 3"]
    template = ChatTemplate.of_tokenizer(tokenizer)
    assert "Today Date: 26 Jul 2024" in template.prompt(ASKED)
    assert "Today Date: 01 Feb 2025" in template.prompt(ASKED, today="2025-02-01")


def test_what_a_template_does_not_take_is_one_line(tokenizer: Any) -> None:
    tokenizer.chat_template = FAMILIES["gemma"]
    template = ChatTemplate.of_tokenizer(tokenizer)
    with pytest.raises(UserError, match=r"refuses messages of the roles system, user: System role not supported"):
        template.prompt(TOLD)
    with pytest.raises(UserError, match=r"roles user, user: Conversation roles must alternate"):
        template.prompt(ASKED * 2)
    silent = ChatTemplate("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", {})
    with pytest.raises(UserError, match="leaves out the system message"):
        silent.prompt(TOLD)
    with pytest.raises(UserError, match=r"no valid Jinja template: .* \(line 2\)"):
        ChatTemplate("{{ bos_token }}\n{% for %}", {})


def test_options_that_a_template_does_not_read_are_known() -> None:
    assert ChatTemplate(FAMILIES["qwen 3"], {}).unread({"enable_thinking": False, "thinking": True}) == ["thinking"]


def test_a_template_is_found_by_name_or_its_absence_said() -> None:
    several = chat_tokenizer({"default": CHATML, "tool_use": FAMILIES["phi"]})
    assert ChatTemplate.of_tokenizer(several).text == CHATML
    assert ChatTemplate.of_tokenizer(several, "tool_use").text == FAMILIES["phi"]
    assert ChatTemplate.of_tokenizer(several, FAMILIES["gemma"]).text == FAMILIES["gemma"]
    with pytest.raises(UserError, match=r"no chat template 'tool_user'.*'tool_use'"):
        ChatTemplate.of_tokenizer(several, "tool_user")
    with pytest.raises(UserError, match=r"has no chat template; give one.*FILE\.jinja.*instruct model"):
        ChatTemplate.of_tokenizer(chat_tokenizer(None))
    with pytest.raises(UserError, match=r"only templates called rag"):
        ChatTemplate.of_tokenizer(chat_tokenizer({"rag": CHATML}))
