"""Classes and vectors of texts are those of plain transformers, one text at a time, by sentence-transformers' files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_tokenizer import SENTENCES
from tiny_encoders import make_encoder, make_word_pieces, save, write_sentence_modules

from mergefront.adapters.local.reading.pipeline import read_pipeline
from mergefront.adapters.local.reading.reader import TextReader
from mergefront.optimizer.errors import UserError

TEXTS = [*SENTENCES, "Sort", " ".join(SENTENCES)]
"""Of many lengths, the last longer than the model reads."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_word_pieces()


def hidden_states(model: Any, tokenizer: Any, text: str) -> tuple[list[int], torch.Tensor]:
    """Tokens of one text and the model's last hidden states of them, asked by themselves."""
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=32)
    with torch.no_grad():
        return inputs["input_ids"][0].tolist(), model(**inputs).last_hidden_state[0]


POOLINGS = {
    "cls": ("pooling_mode_cls_token", lambda rows: rows[0]),
    "mean": ("pooling_mode_mean_tokens", lambda rows: rows.mean(0)),
    "max": ("pooling_mode_max_tokens", lambda rows: rows.amax(0)),
    "sqrt": ("pooling_mode_mean_sqrt_len_tokens", lambda rows: rows.sum(0) / len(rows) ** 0.5),
    "last": ("pooling_mode_lasttoken", lambda rows: rows[-1]),
    "weighted": (
        "pooling_mode_weightedmean_tokens",
        lambda rows: (rows * torch.arange(1, len(rows) + 1)[:, None]).sum(0) / sum(range(len(rows) + 1)),
    ),
}


@pytest.mark.parametrize("kind", ["BertModel", "XLMRobertaModel", "ModernBertModel", "Qwen3Model", "Gemma3TextModel"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_is_what_its_name_says(kind: str, pooling: str, tokenizer: Any, tmp_path: Path) -> None:
    model = make_encoder(kind, **({"use_bidirectional_attention": True} if "Gemma" in kind else {}))
    key, pooled = POOLINGS[pooling]
    write_sentence_modules(save(model, tokenizer, tmp_path), {key: True})
    made = TextReader(model, tokenizer, tmp_path).embed(TEXTS, "")
    for text, vector in zip(TEXTS, made, strict=True):
        expected = torch.nn.functional.normalize(pooled(hidden_states(model, tokenizer, text)[1]), dim=0)
        np.testing.assert_allclose(vector, expected.numpy(), atol=2e-6)


def test_prompts_projections_and_poolings_side_by_side(tokenizer: Any, tmp_path: Path) -> None:
    """As instructed embedders are saved: queries have a prompt whose tokens are read and not pooled."""
    model, dense = make_encoder("BertModel"), torch.nn.Linear(32, 5)
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True, "include_prompt": False}
    write_sentence_modules(
        save(model, tokenizer, tmp_path),
        modes,
        dense=dense,
        normalise=False,
        prompts={"query": "Question: what is ", "passage": ""},
        similarity_fn_name="dot",
    )
    reader = TextReader(model, tokenizer, tmp_path)
    assert reader.similarity == "dot"
    skipped = len(tokenizer("Question: what is")["input_ids"]) - 1
    (asked,) = reader.embed(["two plus two"], "query")
    _, rows = hidden_states(model, tokenizer, "Question: what is two plus two")
    expected = torch.tanh(dense(torch.cat([rows[0], rows[skipped:].mean(0)])))
    np.testing.assert_allclose(asked, expected.detach().numpy(), atol=2e-6)
    np.testing.assert_allclose(reader.embed(["two"], "document"), reader.embed(["two"], ""), atol=1e-7)


def test_a_folder_without_modules_is_pooled_by_the_mean(tokenizer: Any, tmp_path: Path) -> None:
    model = make_encoder("BertModel")
    (vector,) = TextReader(model, tokenizer, save(model, tokenizer, tmp_path)).embed(["Sort 23"], "query")
    np.testing.assert_allclose(vector, hidden_states(model, tokenizer, "Sort 23")[1].mean(0).numpy(), atol=2e-6)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("modules.json", [{"path": "0_T", "type": "sentence_transformers.models.Transformer"}], "in the folder itself"),
        (
            "modules.json",
            [{"path": "", "type": "x.Transformer"}, {"path": "1_LSTM", "type": "x.LSTM"}],
            "a module LSTM, which cannot be asked here",
        ),
        ("modules.json", {"a": 1}, "must be a list of modules"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "cosin"}, "'cosin'.*cosine"),
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "unknown pooling 'median'"),
    ],
)
def test_modules_that_are_not_known_are_refused_by_name(
    file: str, content: Any, said: str, tokenizer: Any, tmp_path: Path
) -> None:
    """A vector that is made otherwise than the user's would be optimised, and nobody would see it."""
    write_sentence_modules(tmp_path, {"pooling_mode_cls_token": True})
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        read_pipeline(tmp_path)


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "Qwen3ForSequenceClassification"])
def test_classes_are_scored_as_one_text_at_a_time_is(kind: str, tokenizer: Any) -> None:
    model = make_encoder(kind, num_labels=3)
    pairs = [(text, "") for text in SENTENCES] + [("Sort", "It is B!"), ("naive", SENTENCES[0])]
    reader = TextReader(model, tokenizer, None)
    for (text, pair), scores in zip(pairs, reader.classify(pairs), strict=True):
        inputs = tokenizer(text, pair or None, return_tensors="pt")
        inputs = {key: value for key, value in inputs.items() if key != "token_type_ids" or "Bert" in kind}
        with torch.no_grad():
            expected = model(**inputs).logits[0]
        np.testing.assert_allclose(scores, expected.numpy(), atol=2e-6)
    assert reader.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
