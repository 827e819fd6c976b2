"""Items with an image are put to a model as its processor puts them; items without one as to any causal model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llava import CHAT, make_llava

from mergefront.adapters.counted_model import CountedModel
from mergefront.adapters.language_model import GenerationRequest, ScoringRequest
from mergefront.adapters.local.asked import asked_model
from mergefront.adapters.local.image_text import ImageTextModel
from mergefront.adapters.local.model import HuggingFaceModel
from mergefront.optimizer.errors import EvaluationError, UserError

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")
QUESTION = "What is two plus two?"


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{number}.png") for number in range(2)]
    for number, path in enumerate(paths):
        numbers = torch.randint(256, (16, 16, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(numbers.numpy()).save(path)
    return paths


@pytest.mark.parametrize("chat_template", [CHAT, None], ids=["chat template", "image token"])
def test_an_image_is_put_as_the_processor_puts_it(tokenizer: Any, images: list[str], chat_template: str | None) -> None:
    model, processor = make_llava(tokenizer, chat_template)
    asked = asked_model(model, processor)
    assert isinstance(asked, ImageTextModel)
    written = asked.generate([GenerationRequest(QUESTION, 8, (), image) for image in images])
    scores = asked.loglikelihood([ScoringRequest(QUESTION, " four", image) for image in images])
    for path, answer, score in zip(images, written, scores, strict=True):
        prompt, continuation = "<image>" + QUESTION, " four"
        if chat_template is not None:
            prompt, continuation = f"USER: <image>{QUESTION}\nBOT:", "four"
        inputs = processor(images=[Image.open(path)], text=[prompt], return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        reference = model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, length:]
        assert answer.text == processor.tokenizer.decode(reference, skip_special_tokens=True)
        whole = processor(images=[Image.open(path)], text=[prompt + continuation], return_tensors="pt")
        with torch.no_grad():
            logprobs = model(**whole).logits[0, length - 1 : -1].double().log_softmax(-1)
        targets = whole["input_ids"][0, length:]
        expected = float(logprobs.gather(1, targets[:, None]).sum())
        assert (score.logprob, score.tokens) == (pytest.approx(expected, abs=1e-4), len(targets))
    assert scores[0].logprob != scores[1].logprob, "what is in the image counts"


def test_items_without_an_image_are_asked_as_of_any_causal_model(tokenizer: Any, images: list[str]) -> None:
    model, processor = make_llava(tokenizer, CHAT)
    prompts = [GenerationRequest(QUESTION, 8), GenerationRequest("A", 8)]
    pairs = [ScoringRequest(QUESTION, " four"), ScoringRequest("A", " five of them")]
    asked = asked_model(model, processor)
    mixed = asked.generate([GenerationRequest(QUESTION, 8, (), images[0]), *prompts])
    scored = asked.loglikelihood([pairs[0], ScoringRequest(QUESTION, " four", images[0]), pairs[1]])
    alone = HuggingFaceModel(model, processor.tokenizer)
    assert mixed[1:] == alone.generate(prompts)
    assert [scored[0], scored[2]] == alone.loglikelihood(pairs)


def test_a_prompt_with_the_image_token_is_taken_as_it_is_written(tokenizer: Any, images: list[str]) -> None:
    model, processor = make_llava(tokenizer, CHAT)
    asked = asked_model(model, processor)
    by_hand, by_template = asked.generate(
        [GenerationRequest(text, 8, (), images[0]) for text in (f"USER: <image>{QUESTION}\nBOT:", QUESTION)]
    )
    assert by_hand == by_template


def test_an_image_is_never_left_out_in_silence(tiny_llama: Any, tokenizer: Any, images: list[str]) -> None:
    asked = CountedModel(HuggingFaceModel(tiny_llama, tokenizer))
    for ask in (
        lambda: asked.generate([GenerationRequest(QUESTION, 8, (), images[0])]),
        lambda: asked.loglikelihood([ScoringRequest(QUESTION, " four", images[0])]),
    ):
        with pytest.raises(UserError, match="reads no images"):
            ask()


def test_a_file_that_is_no_image_is_a_failed_candidate(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(EvaluationError, match=r"text\.png: is no image"):
        asked_model(*make_llava(tokenizer, CHAT)).generate(
            [GenerationRequest(QUESTION, 8, (), str(tmp_path / "text.png"))]
        )
