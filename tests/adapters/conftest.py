"""A tiny real Llama with a byte-level BPE tokenizer, made in a moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

SENTENCES = [
    "The merge of two experts keeps what both of them know.",
    "Question: what is two plus two? Answer: four",
    "Write 425 in French: quatre cent vingt-cinq",
    "Sort 23 43 83 44 38: 23 38 43 44 83",
    "Is it A, B or C? It is B!",
    "Über den Wolken, naïve café.",
]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Byte-level BPE with an end token and no BOS token, like GPT-2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    # Only the bytes of these sentences, so that a random model writes mostly whole characters.
    trainer = trainers.BpeTrainer(vocab_size=160, special_tokens=["<end>"], show_progress=False)
    made.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", clean_up_tokenization_spaces=False)


@pytest.fixture(scope="session")
def random_model(tokenizer: Any) -> Callable[..., Any]:
    """Makes a new random model (2 layers, tied embeddings, at most 64 tokens) whose logits are well apart.

    ``random_model("Mistral", sliding_window=8)``: the kind by its name in transformers, and what is not as usual.
    """
    import torch
    import transformers

    def make(kind: str = "Llama", **settings: Any) -> Any:
        usual = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "initializer_range": 0.3,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": None,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = getattr(transformers, f"{kind}Config")(**(usual | settings))
            return getattr(transformers, f"{kind}ForCausalLM")(config).eval()

    return make


@pytest.fixture
def tiny_llama(random_model: Callable[..., Any]) -> Any:
    """A new random Llama."""
    return random_model()
