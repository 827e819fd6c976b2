"""Which answers count as degenerate: loops of any script, never the lists and tables that people write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from mergefront.adapters.language_model import Generation, GenerationRequest
from mergefront.adapters.tasks.metrics.degeneration import is_looping
from mergefront.adapters.tasks.task_types import build_task, problems_of

LOOPS = {
    "a sentence": "Paris is the capital. " + "I hope this answer helps you today. " * 4,
    "a long sentence thrice": "So: " + "The train leaves at noon and arrives in the old town at half past nine. " * 3,
    "two lines in turn": "User: What is it?\nAssistant: It is a dog.\n" * 5,
    "a word": "The answer is " + "yes " * 20,
    "one letter": "a" * 80,
    "numbered entries that say the same": "".join(f"{n}. Drink more water.\n" for n in range(1, 12)),
    "cut in the middle of a piece": ("because the model is not sure, and " * 6)[:-9],
    "left again": "We have 3 apples. " + "Let me check that again: 3 plus 4 is 7. " * 5 + "So the answer is 7.",
    "Chinese": "北京是中国的首都。" + "我不知道这个问题的答案。" * 5,
    "Chinese, a short piece": "答案是" + "好的" * 20,
    "Japanese": "東京です。" + "そうですね。" * 9,
    "Korean": "서울은 수도입니다. " + "감사합니다 " * 12,
    "Thai": "กรุงเทพ" + "ขอบคุณครับ" * 10,
    "Arabic": "الجواب هو " + "لا أعرف الجواب على هذا السؤال. " * 5,
    "marks": "!" * 60,
    "digits": "The value: " + "0 " * 200,
    "tokens of markup": "<|im_end|>" * 12,
    "case and spaces change": "No idea, NO IDEA,  no idea,\nno idea, No Idea, no idea, no idea, no IDEA, no idea",
}
SOUND = {
    "nothing": "",
    "one word": "Paris",
    "laughter": "Ha ha ha ha ha! That is funny.",
    "a numbered list": "".join(
        f"{n}. {what}\n" for n, what in enumerate(["Eat well", "Sleep well", "Walk", "Read", "Rest", "Laugh"], 1)
    ),
    "a list whose entries begin alike": "".join(
        f"- The capital of {land} is {city}.\n"
        for land, city in [("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Norway", "Oslo")]
    ),
    "a table": "| city | coast | river | metro |\n| --- | --- | --- | --- |\n"
    + "".join(f"| {city} | yes | yes | yes |\n" for city in ["Porto", "Lisbon", "Rouen", "Bilbao", "Genoa"]),
    "a wide table's rule": "|" + "------|" * 12 + "\n| " + " | ".join("abcdefghijkl") + " |\n" + "Each is a letter.",
    "a multiplication table": "".join(f"{n} x 7 = {7 * n}\n" for n in range(1, 13)),
    "a truth table": "A B A∧B\nT T T\nT F F\nF T F\nF F F\n",
    "a table of contents": "Introduction ........................ 1\nMethods ............................. 9\n"
    + "Results ............................ 17\nDiscussion ......................... 23\n",
    "the identity matrix": "[[1, 0, 0, 0],\n [0, 1, 0, 0],\n [0, 0, 1, 0],\n [0, 0, 0, 1]]",
    "a CSV file": "name,a,b,c\nanna,0,0,1\nbert,0,0,1\ncarl,0,0,1\ndora,0,0,1\n",
    "JSON records": json.dumps([{"id": n, "name": f"item {n}", "tags": [], "done": False} for n in range(9)]),
    "code": "def f(xs):\n    total = 0\n    for x in xs:\n        if x:\n            total += x\n    return total\n",
    "a refrain": "Let it be, let it be, let it be, let it be.\nWhisper words of wisdom, let it be.",
    "a Chinese list": "1. 北京：首都\n2. 上海：金融中心\n3. 广州：贸易中心\n4. 深圳：科技中心\n",
    "a Chinese table": "| 姓名 | 数学 | 语文 |\n| --- | --- | --- |\n"
    "| 张三 | 是 | 是 |\n| 李四 | 是 | 是 |\n| 王五 | 是 | 是 |\n",
    "a decimal fraction": "1/7 is 0.142857142857142857, so the digits repeat.",
    "a word four times": "Well, well, well, well. Row, row, row your boat.",
    "doubled words in Chinese": "慢慢来，好好学习，天天向上。高高兴兴上学，平平安安回家。",
}


@pytest.mark.parametrize("text", LOOPS.values(), ids=LOOPS)
def test_an_answer_that_goes_round_is_found_in_every_script(text: str) -> None:
    assert is_looping(text)


@pytest.mark.parametrize("text", SOUND.values(), ids=SOUND)
def test_lists_tables_and_refrains_are_no_loops(text: str) -> None:
    assert not is_looping(text)


class Writer:
    """Writes what stands in the prompt, cut off where it says so, nothing where it is filtered."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        return [
            Generation("", 0, "stop", unanswered="content filter")
            if one.prompt == "filtered"
            else Generation(one.prompt.removeprefix("cut"), 1, "length" if one.prompt.startswith("cut") else "stop")
            for one in requests
        ]


def test_the_share_of_answers_that_loop_never_end_or_are_empty_is_minimised(tmp_path: Path) -> None:
    prompts = ["Paris.", "cut off here", " ", "filtered", LOOPS["Chinese"], SOUND["a table"]]
    lines = [json.dumps({"prompt": prompt}) for prompt in prompts]
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    config = {"type": "jsonl", "path": "items.jsonl", "metric": "degenerate", "report_fraction": 0}
    (needed,) = problems_of(config, tmp_path)
    assert "max_new_tokens and stop" in needed
    assert problems_of({**config, "chat": True}, tmp_path) == [], "a model ends its turn itself"
    task = build_task("loops", {**config, "max_new_tokens": 512, "stop": []}, tmp_path)
    items = task.items("search")
    found = dict(zip([item.prompt for item in items], task.score(Writer(), items).scores, strict=True))  # type: ignore[arg-type]
    assert task.direction == "minimize"
    assert [found[prompt] for prompt in prompts] == [0, 1, 1, 1, 1, 0]
