"""Tiny encoders with a word-piece tokenizer, as sentence-transformers and classifiers are saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from small_tokenizer import SENTENCES

SIZES: Mapping[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}


def make_word_pieces() -> Any:
    """BERT's kind of tokenizer: [CLS] before, [SEP] behind a text."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted({letter for text in SENTENCES for letter in text.lower() if letter.isalnum()})
    words = sorted({word.strip(".,:?!") for text in SENTENCES for word in text.lower().split()} - set(letters) - {""})
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *words, *".,:?!"][:120]
    made = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=48, **named)


def make_encoder(kind: str, seed: int = 0, **settings: Any) -> Any:
    """A model of one of transformers' classes, of random weights that grow apart with the seed."""
    import torch
    import transformers

    of = getattr(transformers, kind)
    extra = {"num_key_value_heads": 1, "head_dim": 8} if kind.startswith(("Qwen3", "Gemma3")) else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = of(of.config_class(**SIZES, **extra, pad_token_id=0, **settings))
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters() if seed else ():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def save(model: Any, tokenizer: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_sentence_modules(
    folder: Path, pooling: Mapping[str, Any], *, dense: Any = None, normalise: bool = True, **described: Any
) -> None:
    """modules.json and the folders that it names; ``dense`` is a torch layer, ``described`` the settings beside."""
    from safetensors.torch import save_file

    kinds = ["Transformer", "Pooling", *(["Dense"] if dense is not None else []), *(["Normalize"] if normalise else [])]
    entries = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{kind}" if number else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, kind in enumerate(kinds)
    ]
    for entry in entries[1:]:
        (folder / str(entry["path"])).mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **pooling}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32, "do_lower_case": False}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(described))
    if dense is not None:
        activation = "torch.nn.modules.activation.Tanh"
        (folder / "2_Dense" / "config.json").write_text(json.dumps({"activation_function": activation}))
        state = {f"linear.{name}": value.detach().clone() for name, value in dense.state_dict().items()}
        save_file(state, folder / "2_Dense" / "model.safetensors")
