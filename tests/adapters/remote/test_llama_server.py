"""llama.cpp's server, the real one: exact scores, honest scales, no harm from a bad line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from mergefront.adapters.evaluator import TaskEvaluator
from mergefront.adapters.hub.places import ModelPlaces
from mergefront.adapters.language_model import Chat, GenerationRequest, Message, ScoringRequest
from mergefront.adapters.remote.llama_server.backend import LlamaServerBackend
from mergefront.adapters.remote.settings import LlamaServerSection
from mergefront.adapters.tasks.jsonl import JsonlTask
from mergefront.optimizer.errors import EvaluationError, UserError
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.evaluation import EvaluationRequest

sys.path.insert(0, str(Path(__file__).parent / "http"))
sys.path.insert(0, str(Path(__file__).parent))
from conftest import LORAS, Tiny
from servers import faulty_proxy

SCORED = [
    ScoringRequest("The capital of France is", " Paris"),
    ScoringRequest("The capital of France is", " Rome"),
    ScoringRequest("Write 1941-09-29 in Finnish:", " 29. syyskuuta 1941"),
    ScoringRequest("Say it twice, slowly", ' "héhé" and \\ again\nnow'),
    ScoringRequest("A name in another script:", " 東京 and more"),
    ScoringRequest("", "Hello there"),
    ScoringRequest("A space at the end ", "moves on"),
]
GENERATED = [GenerationRequest("The capital of France is", 8), GenerationRequest("Once upon a time", 12, ("e",))]
SCALES = [
    dict.fromkeys(LORAS, 0.0),
    {"plain": 1.0, "patterned": 0.0, "rank_stabilised": 0.0},
    {"plain": 0.5, "patterned": -0.7, "rank_stabilised": 1.3},
]


def recipe(scales: Mapping[str, float], method: str = "task_arithmetic") -> Recipe:
    return Recipe(method, {name: name for name in scales}, {f"weight[{k}]": v for k, v in scales.items()}, "base")


def backend(url: str, **settings: Any) -> LlamaServerBackend:
    models = {name: name for name in LORAS}
    section = {"type": "llama_server", "url": url, "longest_wait": 0.05, "concurrency": 2, **settings}
    return LlamaServerBackend(LlamaServerSection.model_validate(section), MergeSpace(models), ModelPlaces(Path()))


def peft_model(tiny: Tiny) -> Any:
    """The same merge by transformers and peft in float32: scales multiply each LoRA's own scaling."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny.checkpoint, dtype=torch.float32)
    first, *others = LORAS
    model = PeftModel.from_pretrained(base, str(tiny.loras[first]), adapter_name=first)
    for name in others:
        model.load_adapter(str(tiny.loras[name]), adapter_name=name)
    model.base_model.set_adapter(list(LORAS))
    return model.eval()


def peft_logprobs(model: Any, scales: Mapping[str, float], prompt: list[int], following: list[int]) -> float:
    import torch

    for module in model.modules():
        if hasattr(module, "lora_A") and hasattr(module, "scaling"):
            own = module.__dict__.setdefault("own_scaling", dict(module.scaling))
            for name in scales:
                module.scaling[name] = own[name] * scales[name]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + following])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + k, token]) for k, token in enumerate(following))


@pytest.mark.long
def test_scores_are_those_of_transformers_and_peft(url: str, tiny: Tiny):
    """Conversion and forcing together: every linear layer, rank and alpha patterns, rsLoRA, any sign of scale."""
    reference = peft_model(tiny)
    opened = backend(url)
    pairs = opened._tokenization.pairs([(one.context, one.continuation) for one in SCORED])
    for scales in SCALES:
        with opened.apply(recipe(scales)) as model:
            answers = model.loglikelihood(SCORED)
        for answer, (context, continuation) in zip(answers, pairs, strict=True):
            exact = peft_logprobs(reference, scales, list(context), list(continuation))
            assert answer.tokens == len(continuation)
            assert answer.logprob == pytest.approx(exact, abs=2e-3 * max(1, len(continuation)) ** 0.5)
    opened.close()


TEXTS = (
    " 15 août", " 31 décembre", " 1 octobre", " forty-two kilometres", " 12 345 km", " the cat and the other cat",
    "\n    return x + y", " no, no, no", " el niño come pan", " 15. Februar 2024", "yes", " A B C",
)  # fmt: skip


def test_an_answer_of_several_tokens_takes_one_request(url: str):
    """Otherwise a search over a server takes twice the time: each token that was spelled otherwise is asked alone."""
    opened = backend(url)
    asked = {}
    with opened.apply(recipe(SCALES[1])) as model:
        for text in TEXTS:
            request = ScoringRequest("What comes next?", text)
            opened._tokenization.pairs([(request.context, request.continuation)])
            before = opened.client.usage.requests
            (answer,) = model.loglikelihood([request])
            asked[text] = opened.client.usage.requests - before
            assert answer.tokens == len(opened._tokenization.pairs([(request.context, text)])[0][1])
    opened.close()
    # Its last space could begin its second word as well.
    assert asked == {**dict.fromkeys(TEXTS, 1), " 15. Februar 2024": 2}


def test_a_conversation_is_read_as_the_servers_chat_route_reads_it(url: str, tiny: Tiny):
    """By its own template and tokens; the answer that is scored is what the assistant's turn would be."""
    chat = Chat((Message("system", "Be brief."), Message("user", "What is the capital?")))
    messages = [{"role": one.role, "content": one.content} for one in chat.messages]
    prompt = httpx.post(f"{url}/apply-template", json={"messages": messages}).json()["prompt"]
    told = {"content": f"{prompt}Paris it is", "add_special": True, "parse_special": True}
    whole = httpx.post(f"{url}/tokenize", json=told).json()["tokens"]
    opened = backend(url)
    with opened.apply(recipe(SCALES[2])) as model:
        (scored,) = model.loglikelihood([ScoringRequest(chat, " Paris it is")])
        (written,) = model.generate([GenerationRequest(chat, 8)])
    opened.close()
    context, answer = whole[: -scored.tokens], whole[-scored.tokens :]
    exact = peft_logprobs(peft_model(tiny), SCALES[2], context, answer)
    assert scored.logprob == pytest.approx(exact, abs=2e-3 * len(answer) ** 0.5)
    loras = [{"id": number, "scale": scale} for number, scale in enumerate(SCALES[2].values())]
    asked = {"messages": messages, "max_tokens": 8, "temperature": 0, "lora": loras, "cache_prompt": False}
    said = httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=60).json()["choices"][0]["message"]["content"]
    assert written.text.strip() == said.strip()


def test_drawn_answers_depend_on_their_seeds_alone(url: str):
    opened = backend(url)
    requests = [GenerationRequest("Once upon a time", 6, temperature=1.5, top_p=0.95, seed=seed) for seed in range(6)]
    with opened.apply(recipe(SCALES[2])) as model:
        together, alone = model.generate(requests), [model.generate([request])[0] for request in requests]
        (likeliest,) = model.generate([GenerationRequest("Once upon a time", 6)])
        (cold,) = model.generate([GenerationRequest("Once upon a time", 6, temperature=0.001, seed=3)])
    opened.close()
    assert [one.text for one in together] == [one.text for one in alone]
    assert len({one.text for one in together}) > 3
    assert cold.text == likeliest.text


@pytest.mark.long
def test_a_line_that_damages_every_third_call_changes_no_score(url: str):
    quiet = backend(url)
    with quiet.apply(recipe(SCALES[2])) as model:
        scored, generated = model.loglikelihood(SCORED), model.generate(GENERATED)
    quiet.close()
    with faulty_proxy(url, 0.3, seed=3) as proxy:
        noisy = backend(proxy.url)
        with noisy.apply(recipe(SCALES[2])) as model:
            again, generated_again = model.loglikelihood(SCORED), model.generate(GENERATED)
        noisy.close()
        assert sum(proxy.damaged.values()) > 10
    assert [one.logprob for one in again] == pytest.approx([one.logprob for one in scored], abs=1e-4)
    assert generated_again == generated


def test_generation_stops_where_a_local_model_would(url: str):
    opened = backend(url)
    with opened.apply(recipe(SCALES[1])) as model:
        whole, cut = model.generate(
            [GenerationRequest("Once upon", 12), GenerationRequest("Once upon", 12, ("e", "a"))]
        )
    opened.close()
    assert whole.finish == "length" and whole.tokens == 12
    assert "e" not in cut.text and "a" not in cut.text and whole.text.startswith(cut.text)


def test_a_prompt_that_loses_its_beginning_says_so(url: str):
    """The question may stand there; its item would be wrong without a word."""
    opened = backend(url)
    with opened.apply(recipe(SCALES[1])) as model:
        prompts = [" one" * size for size in (9, 600)]
        scored = model.loglikelihood([ScoringRequest(prompt, " two") for prompt in prompts])
        written = model.generate([GenerationRequest(prompt, 4) for prompt in prompts])
    opened.close()
    assert [one.shortened for one in scored] == [one.shortened for one in written] == [False, True]


def test_tasks_run_unchanged(url: str, tmp_path: Path):
    (tmp_path / "items.jsonl").write_text(
        "".join(f'{{"prompt": "2 + {n} =", "choices": ["{n}", "{n + 2}"], "answer": 1}}\n' for n in range(1, 7))
    )
    task = JsonlTask.read("sums", "items.jsonl", "loglikelihood", folder=tmp_path)
    opened = backend(url)
    evaluation = TaskEvaluator(opened, [task]).evaluate(recipe(SCALES[2]), EvaluationRequest(("sums",)))
    opened.close()
    assert set(evaluation.scores) == {"sums"} and len(evaluation.items["sums"].scores) == 3


def test_the_canary_catches_a_server_whose_prompts_outlive_a_change_of_global_scales(url: str):
    with pytest.raises(UserError, match="another merge"):
        backend(url, scales="global", prompt_cache=True)


def test_the_canary_passes_the_settings_that_are_exact(url: str):
    for settings in ({"scales": "global"}, {"prompt_cache": True}, {}):
        opened = backend(url, **settings)
        assert opened.canary.error < 1e-3 < opened.canary.distance
        opened.close()


@pytest.mark.long
@pytest.mark.parametrize(("slots", "megabytes"), [(1, 256), (2, 64), (4, 1)])
def test_the_canary_catches_a_server_that_restores_prompts_read_under_other_scales(
    start_server: Callable[..., str], slots: int, megabytes: int
):
    """llama.cpp's default: a prompt cache in memory, which does not know about scales."""
    careless = start_server(prompt_cache_mib=megabytes, slots=slots)
    with pytest.raises(UserError, match="another merge"):
        backend(careless, prompt_cache=True)
    opened = backend(careless)
    opened.close()


def test_global_scales_give_the_same_scores_and_are_guarded(start_server: Callable[..., str]):
    own = start_server()
    per_request, globally = backend(own), backend(own, scales="global")
    for scales in SCALES[1:]:
        with per_request.apply(recipe(scales)) as one, globally.apply(recipe(scales)) as two:
            expected = [answer.logprob for answer in one.loglikelihood(SCORED[:3])]
            assert [answer.logprob for answer in two.loglikelihood(SCORED[:3])] == pytest.approx(expected, abs=1e-3)
    with pytest.raises(EvaluationError, match="somebody else"), globally.apply(recipe(SCALES[1])) as model:
        model.loglikelihood(SCORED[:1])
        httpx.post(f"{own}/lora-adapters", json=[{"id": 0, "scale": 0.25}], trust_env=False)
    per_request.close()
    globally.close()


def test_overflowing_scales_fail_instead_of_scoring(url: str):
    opened = backend(url)
    for scale in (1e5, 1e30):
        with opened.apply(recipe({**SCALES[0], "plain": scale, "patterned": -scale})) as model:
            try:
                answers = model.loglikelihood(SCORED[:2])
            except EvaluationError as error:
                assert error.kind in ("not finite", "weights")
            else:
                assert scale < 1e30 and all(answer.logprob <= 0 for answer in answers)
    opened.close()


def test_wrong_names_and_other_methods_are_refused_with_what_would_be_right(url: str):
    with pytest.raises(UserError, match=r"no LoRA called 'maths'.*plain\.gguf"):
        LlamaServerBackend(LlamaServerSection(type="llama_server", url=url), MergeSpace(["maths"]), ModelPlaces(Path()))
    opened = backend(url)
    with pytest.raises(UserError, match="task_arithmetic"):
        opened.apply(recipe(SCALES[1], "ties"))
    opened.close()


def test_a_closed_port_is_one_clear_message():
    with pytest.raises(UserError, match="ConnectError"):
        backend("http://127.0.0.1:9", attempts=2)
