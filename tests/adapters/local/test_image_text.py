"""Items with an image are put to a model as its processor puts them; items without one as to any causal model."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from mergefront.adapters.counted_model import CountedModel
from mergefront.adapters.language_model import GenerationRequest, ScoringRequest
from mergefront.adapters.local.asked import asked_model
from mergefront.adapters.local.image_text import ImageTextModel
from mergefront.adapters.local.model import HuggingFaceModel
from mergefront.optimizer.errors import EvaluationError, UserError

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")
CHAT = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}BOT:{% endif %}"
)
TEXT_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION_SIZES = {**TEXT_SIZES, "image_size": 16, "patch_size": 8, "projection_dim": 32}
QUESTION = "What is two plus two?"


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{number}.png") for number in range(2)]
    for number, path in enumerate(paths):
        numbers = torch.randint(256, (16, 16, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(numbers.numpy()).save(path)
    return paths


def make(tokenizer: Any, chat_template: str | None) -> tuple[Any, Any]:
    """A tiny LLaVA and its processor."""
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = deepcopy(tokenizer)
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    words.pad_token = words.eos_token
    processor = transformers.LlavaProcessor(
        CLIPImageProcessorPil(size={"height": 16, "width": 16}, do_center_crop=False),
        words,
        patch_size=8,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=1,
        chat_template=chat_template,
    )
    text = {**TEXT_SIZES, "vocab_size": len(words), "max_position_embeddings": 128, "initializer_range": 0.3}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION_SIZES),
        text_config=transformers.LlamaConfig(**text, bos_token_id=None, eos_token_id=0, pad_token_id=None),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.LlavaForConditionalGeneration(config).eval(), processor


@pytest.mark.parametrize("chat_template", [CHAT, None], ids=["chat template", "image token"])
def test_an_image_is_put_as_the_processor_puts_it(tokenizer: Any, images: list[str], chat_template: str | None) -> None:
    model, processor = make(tokenizer, chat_template)
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
    model, processor = make(tokenizer, CHAT)
    prompts = [GenerationRequest(QUESTION, 8), GenerationRequest("A", 8)]
    pairs = [ScoringRequest(QUESTION, " four"), ScoringRequest("A", " five of them")]
    asked = asked_model(model, processor)
    mixed = asked.generate([GenerationRequest(QUESTION, 8, (), images[0]), *prompts])
    scored = asked.loglikelihood([pairs[0], ScoringRequest(QUESTION, " four", images[0]), pairs[1]])
    alone = HuggingFaceModel(model, processor.tokenizer)
    assert mixed[1:] == alone.generate(prompts)
    assert [scored[0], scored[2]] == alone.loglikelihood(pairs)


def test_a_prompt_with_the_image_token_is_taken_as_it_is_written(tokenizer: Any, images: list[str]) -> None:
    model, processor = make(tokenizer, CHAT)
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
        asked_model(*make(tokenizer, CHAT)).generate([GenerationRequest(QUESTION, 8, (), str(tmp_path / "text.png"))])
