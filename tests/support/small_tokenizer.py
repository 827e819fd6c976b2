"""A tokenizer of at most 160 tokens, trained on the spot."""

from __future__ import annotations

from typing import Any

SENTENCES = [
    "The merge of two experts keeps what both of them know.",
    "Question: what is two plus two? Answer: four",
    "Write 425 in French: quatre cent vingt-cinq",
    "Sort 23 43 83 44 38: 23 38 43 44 83",
    "Is it A, B or C? It is B!",
    "Über den Wolken, naïve café.",
]


def make_tokenizer() -> Any:
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
