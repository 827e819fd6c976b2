"""Whether tasks of the LM evaluation harness give here what the harness itself gives: prompt by prompt, item by item.

    python -m benchmarks.evaluation.harness_tasks          prints the table of docs/benchmarks/evaluation.md

The tasks are the harness' own YAML files, with made-up items that have the fields of its data sets.
One tiny random model is asked by the harness (its Hugging Face model, ``simple_evaluate``) and by mergefront's engine.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergefront.adapters.chat_templates import TemplateReader
from mergefront.adapters.language_model import Chat
from mergefront.adapters.local.model import HuggingFaceModel
from mergefront.adapters.tasks.task_types import build_task

ITEMS = 12
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One task: its YAML file in the harness, a row of data by number, and the options of a study file that are the
    arguments of ``simple_evaluate`` too (``num_fewshot`` ...)."""

    file: str
    row: Callable[[int], Row]
    options: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[str] = ("acc,none",)


def _word(number: int) -> str:
    return ("apple", "river", "stone", "cloud", "sugar", "tiger", "paper", "music")[number * 5 % 8] + str(number)


def _four(number: int) -> list[str]:
    return [_word(number + step) for step in range(4)]


def _arc(number: int) -> Row:
    choices = {"text": _four(number), "label": list("ABCD")}
    return {"question": f"What is near {_word(number)}?", "choices": choices, "answerKey": "ABCD"[number % 4]}


def _mmlu(number: int) -> Row:
    return {"question": f"Which is {_word(number)}?", "choices": _four(number), "answer": number % 4, "subject": "made"}


def _gsm8k(number: int) -> Row:
    return {"question": f"What is {number} and {number}?", "answer": f"It is twice {number}.\n#### {2 * number}"}


_FOUR_METRICS = ("acc,none", "acc_norm,none")
_GREEDY = ("exact_match,remove_whitespace",)
CASES: Mapping[str, Case] = {
    "arc_easy": Case("arc/arc_easy.yaml", _arc, {}, _FOUR_METRICS),
    "arc_challenge_chat": Case(
        "arc/arc_challenge_chat.yaml",
        _arc,
        {"apply_chat_template": True, "gen_kwargs": {"max_gen_toks": 10}},
        _GREEDY,
    ),
    "hellaswag": Case(
        "hellaswag/hellaswag.yaml",
        lambda n: {
            "ctx_a": f"A man sees {_word(n)}.",
            "ctx_b": "he",
            "activity_label": "Walking",
            "endings": [f"goes to {one}." for one in _four(n)],
            "label": str(n % 4),
        },
        {"num_fewshot": 1},
        _FOUR_METRICS,
    ),
    "piqa": Case(
        "piqa/piqa.yaml",
        lambda n: {"goal": f"Get {_word(n)}", "sol1": f"Take {_word(n)}", "sol2": "Leave it there", "label": n % 2},
        {"num_fewshot": 2},
        _FOUR_METRICS,
    ),
    "winogrande": Case(
        "winogrande/default.yaml",
        lambda n: {
            "sentence": f"Ann saw Eve since _ had {_word(n)} with her.",
            "option1": "Ann",
            "option2": "Eve",
            "answer": str(1 + n % 2),
        },
        {"num_fewshot": 3},
    ),
    "boolq": Case(
        "super_glue/boolq/default.yaml",
        lambda n: {"passage": f"There is {_word(n)} here.", "question": f"is there {_word(n + n % 2)}", "label": n % 2},
        {"system_instruction": "Answer yes or no.", "apply_chat_template": True},
    ),
    "openbookqa": Case(
        "openbookqa/openbookqa.yaml",
        lambda n: {
            "question_stem": f"Beside {_word(n)} lies",
            "choices": {"text": _four(n), "label": list("ABCD")},
            "answerKey": "ABCD"[n % 4],
        },
        {"limit": 7},
        _FOUR_METRICS,
    ),
    "sciq": Case(
        "sciq/sciq.yaml",
        lambda n: {
            "support": f" {_word(n)} is hard.",
            "question": f"What is hard ({n})?",
            "correct_answer": _word(n),
            **{f"distractor{step}": _word(n + step) for step in (1, 2, 3)},
        },
        {"num_fewshot": 1, "apply_chat_template": True},
        _FOUR_METRICS,
    ),
    "commonsense_qa": Case(
        "commonsense_qa/default.yaml",
        lambda n: {
            "question": f"Where is {_word(n)}?",
            "choices": {"text": [*_four(n), "home"], "label": list("ABCDE")},
            "answerKey": "ABCDE"[n % 5],
        },
        {"num_fewshot": 5, "limit": 0.5},
    ),
    "mmlu_anatomy": Case(
        "mmlu/default/mmlu_anatomy.yaml",
        _mmlu,
        {"num_fewshot": 5, "apply_chat_template": True, "fewshot_as_multiturn": False},
    ),
    "mmlu_astronomy": Case("mmlu/default/mmlu_astronomy.yaml", _mmlu, {"num_fewshot": 2}),
    "truthfulqa_mc1": Case(
        "truthfulqa/truthfulqa_mc1.yaml",
        lambda n: {"question": f"Is it {_word(n)}?", "mc1_targets": {"choices": _four(n), "labels": [1, 0, 0, 0]}},
    ),
    "copa": Case(
        "super_glue/copa/default.yaml",
        lambda n: {
            "premise": f"Ann took {_word(n)}.",
            "question": ("cause", "effect")[n % 2],
            "label": n % 2,
            "choice1": f"She was in {_word(n + 1)}.",
            "choice2": "It was late.",
        },
        {"num_fewshot": 2},
    ),
    "logiqa": Case(
        "logiqa/logiqa.yaml",
        lambda n: {
            "context": f"All have {_word(n)}.",
            "question": "Who has it?",
            "options": _four(n),
            "label": "abcd"[n % 4],
        },
        {},
        _FOUR_METRICS,
    ),
    "swag": Case(
        "swag/swag.yaml",
        lambda n: {
            "startphrase": f"She takes {_word(n)} and",
            "label": n % 4,
            **{f"ending{step}": f"sees {one}." for step, one in enumerate(_four(n))},
        },
        {},
        _FOUR_METRICS,
    ),
    "lambada_openai": Case(
        "lambada/lambada_openai.yaml", lambda n: {"text": f"They spoke of {_word(n)} and then of {_word(n + 1)}"}
    ),
    "triviaqa": Case(
        "triviaqa/default.yaml",
        lambda n: {"question": f"Who has {_word(n)}", "answer": {"aliases": [_word(n), f"The {_word(n)}"]}},
        {"num_fewshot": 2, "gen_kwargs": {"max_gen_toks": 12}},
        _GREEDY,
    ),
    "nq_open": Case(
        "nq_open/nq_open.yaml",
        lambda n: {"question": f"who has {_word(n)}", "answer": [_word(n)]},
        {"num_fewshot": 3, "gen_kwargs": {"max_gen_toks": 12, "until": ["\n", "e"]}},
        _GREEDY,
    ),
    "gsm8k": Case(
        "gsm8k/gsm8k.yaml",
        _gsm8k,
        {"num_fewshot": 5, "apply_chat_template": True, "gen_kwargs": {"max_gen_toks": 20}},
        ("exact_match,strict-match", "exact_match,flexible-extract"),
    ),
    "gsm8k_cot": Case(
        "gsm8k/gsm8k-cot.yaml",
        _gsm8k,
        {"gen_kwargs": {"max_gen_toks": 20}},
        ("exact_match,strict-match", "exact_match,flexible-extract"),
    ),
    "bbh_boolean": Case(
        "bbh/cot_fewshot/boolean_expressions.yaml",
        lambda n: {"input": f"not ( True ) or {bool(n % 2)} and {n % 3} < {n} is", "target": str(n % 6 == 1)},
        {"gen_kwargs": {"max_gen_toks": 16}},
        ("exact_match,get-answer",),
    ),
    "babi": Case(
        "babi/babi.yaml",
        lambda n: {"passage": f"Ann has {_word(n)}.\n", "question": f"What has Ann{n}?", "answer": _word(n)},
        {"num_fewshot": 1, "gen_kwargs": {"max_gen_toks": 10}},
        ("exact_match,none",),
    ),
    "mgsm_direct_en": Case(
        "mgsm/direct/mgsm_direct_en.yaml",
        lambda n: {"question": f"Question: What is {n} and 1?", "answer": f"Answer: {n + 1}", "answer_number": n + 1},
        {"gen_kwargs": {"max_gen_toks": 10}},
        (*_GREEDY, "exact_match,flexible-extract"),
    ),
}
GROUPS: Mapping[str, Row] = {
    "knowledge": {
        "task": ["local_arc_easy", {"group": "subjects", "task": ["local_mmlu_anatomy", "local_mmlu_astronomy"]}],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": False}],
    },
    "questions": {
        "task": ["local_mmlu_anatomy", "local_openbookqa", "local_copa"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    },
}
"""Groups of the tasks above; the second of each task's sizes differ, so that their weights do."""


def write_tasks(folder: Path, names: Sequence[str] = tuple(CASES)) -> None:
    """YAML files ``local_NAME`` that include the harness' own with local data."""
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    root = Path(lm_eval.tasks.__file__).parent
    for place, name in enumerate(names):
        case = CASES[name]
        config = load_yaml(root / case.file, resolve_func=False)
        splits = [config.get(f"{kind}_split") for kind in ("training", "validation", "test", "fewshot")]
        files = {}
        for part, split in enumerate(dict.fromkeys(one for one in splits if one is not None)):
            rows = [case.row(100 * part + number) for number in range(ITEMS + place % 3)]
            files[split] = str(folder / f"{name}_{split}.jsonl")
            Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
        own = {
            "include": str(root / case.file), "task": f"local_{name}", "tag": None, "dataset_path": "json",
            "dataset_name": None, "dataset_kwargs": {"data_files": files},
        }  # fmt: skip
        (folder / f"local_{name}.yaml").write_text(json.dumps(own))
    for name, group in GROUPS.items():
        if set(_named(group)) <= {f"local_{one}" for one in names}:
            (folder / f"{name}.yaml").write_text(json.dumps({"group": f"local_{name}", **group}))


def _named(group: Row) -> Iterator[str]:
    for one in group["task"]:
        yield from _named(one) if isinstance(one, dict) else [one]


def make_model() -> tuple[Any, Any]:
    """A random Llama over bytes whose greedy answers differ, and its tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<|turn|>", "<|done|>"]
    vocabulary = {token: number for number, token in enumerate([*special, *pre_tokenizers.ByteLevel.alphabet()])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for one in messages %}{{ '<|turn|>' + one.role + '\n' + one.content + '<|done|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|turn|>assistant\n' }}{% endif %}"
    )
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(vocabulary), max_position_embeddings=8192, bos_token_id=0, eos_token_id=1, **sizes,
        initializer_range=0.5, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval(), tokenizer


class Recorded:
    """A model that keeps what it was asked and what it answered: by prompt and continuation, or by prompt."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = HuggingFaceModel(model, tokenizer)
        self._chats = TemplateReader(tokenizer)
        self.likelihoods: dict[tuple[str, str], tuple[float, bool]] = {}
        self.texts: dict[str, str] = {}

    def loglikelihood(self, requests: Any) -> Any:
        answers = self._model.loglikelihood(requests)
        for request, answer in zip(requests, answers, strict=True):
            self.likelihoods[self._text(request.context), request.continuation] = answer.logprob, answer.is_greedy
        return answers

    def generate(self, requests: Any) -> Any:
        answers = self._model.generate(requests)
        asked = [self._text(request.prompt) for request in requests]
        self.texts |= {prompt: answer.text for prompt, answer in zip(asked, answers, strict=True)}
        return answers

    def _text(self, prompt: str | Chat) -> str:
        return prompt if isinstance(prompt, str) else self._chats.rendered(prompt, None)[0]


@dataclass(frozen=True)
class Compared:
    """What the harness' run and ours have in common: items, those whose requests are the same, whose answers are, and
    whose score is; the largest difference of a log-likelihood, in nats."""

    items: int
    requests: int
    answers: int
    scores: int
    difference: float
    total: float

    @property
    def is_same(self) -> bool:
        return (
            self.items == self.requests == self.answers == self.scores > 0
            and self.difference < 1e-3
            and self.total < 1e-9
        )


def evaluated(folder: Path, task: str, options: Mapping[str, Any], model: tuple[Any, Any]) -> Any:
    """The harness' own run."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    return simple_evaluate(
        model=HFLM(pretrained=model[0], tokenizer=model[1], batch_size=8, backend="causal"),
        tasks=[task],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
        **{"fewshot_as_multiturn": bool(options.get("apply_chat_template")), **options},
    )


def compared(
    folder: Path, task: str, metric: str, options: Mapping[str, Any], model: tuple[Any, Any], theirs: Any
) -> Compared:
    """The harness' samples of a task against our scores of the same items."""
    config = {
        "type": "lm_eval", "task": task, "include_path": str(folder), "metric": metric, "report_fraction": 0, **options,
    }  # fmt: skip
    ours: Any = build_task("ours", config, folder)
    asked = Recorded(*model)
    scored = ours.score(asked, ours.items("search"))
    weights = [ours.weights.get(item, 1.0) for item in scored.ids]
    found = {item: score / weight for item, score, weight in zip(scored.ids, scored.scores, weights, strict=True)}
    measure, _, name = metric.partition(",")
    samples = {
        (member.name, json.dumps(one["doc"], sort_keys=True, default=str)): one
        for member in ours.members
        for one in theirs["samples"][member.name]
        if one["filter"] == name
    }
    counts, difference = [0, 0, 0], 0.0
    for item, score in found.items():
        document = json.dumps(ours.documents[item], sort_keys=True, default=str)
        theirs_of_item = samples[ours.owners[item].name, document]
        known = asked.texts if ours.verb == "generate" else asked.likelihoods
        pairs = [
            (known.get(arguments[0] if ours.verb == "generate" else tuple(arguments[:2])), answer[0])
            for arguments, answer in zip(theirs_of_item["arguments"], theirs_of_item["resps"], strict=True)
        ]
        counts[0] += all(one is not None for one, _ in pairs)
        if ours.verb == "generate":
            counts[1] += all(one == two for one, two in pairs)
        else:
            counts[1] += all(one is not None and one[1] == two[1] for one, two in pairs)
            difference = max([difference, *(abs(one[0] - two[0]) for one, two in pairs if one is not None)])
        counts[2] += math.isclose(score, float(theirs_of_item[measure]), abs_tol=1e-9)
    return Compared(len(found), *counts, difference, abs(theirs["results"][task][metric] - scored.mean))


def rows(names: Sequence[str], model: tuple[Any, Any]) -> Iterator[tuple[str, str, Mapping[str, Any], Compared]]:
    """Each case and metric with what came of it."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        write_tasks(folder, names)
        groups = [name for name in GROUPS if (folder / f"{name}.yaml").exists()]
        cases = {**CASES, **dict.fromkeys(groups, Case("", _arc))}
        for name in [*names, *groups]:
            case, task = cases[name], f"local_{name}"
            theirs = evaluated(folder, task, case.options, model)
            for metric in case.metrics:
                yield name, metric, case.options, compared(folder, task, metric, case.options, model, theirs)


if __name__ == "__main__":
    for name, metric, options, one in rows(tuple(CASES), make_model()):
        said = ", ".join(f"{key}: {value}" for key, value in options.items()) or "none"
        counts = f"{one.items} | {one.requests} | {one.answers} | {one.scores}"
        print(f"| {name} | `{metric}` | {said} | {counts} | {one.difference:.0e} |")
