"""Models of different tokens in one merge: every row of embedding and head stands for the same token in all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mergefront.adapters.checkpoints.header import Checkpoint
from mergefront.adapters.merging.transplant import matching_pursuit, transplant
from mergefront.adapters.merging.vocabulary import Alignment, TokenizerChoice, align
from mergefront.optimizer.errors import UserError

WIDTH = 6
COMMON = {"a": 0, "b": 1, "c": 2, "d": 3}


def model(
    folder: Path, tokens: Mapping[str, int] | None, rows: int, added: tuple[str, ...] = (), tied: bool = False
) -> Checkpoint:
    """A model whose row of token t in folder f is drawn from (f, t), so that rows can be told apart."""
    folder.mkdir()
    names = {at: token for token, at in (tokens or {}).items()}
    drawn = [
        torch.randn(WIDTH, generator=torch.Generator().manual_seed(hash_of(f"{folder.name} {names.get(at, at)}")))
        for at in range(rows)
    ]
    tensors = {"model.embed_tokens.weight": torch.stack(drawn), "model.layers.0.mlp.weight": torch.ones(rows, WIDTH)}
    if not tied:
        tensors |= {"lm_head.weight": -torch.stack(drawn), "lm_head.bias": torch.arange(float(rows))}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"vocab_size": rows, "tie_word_embeddings": tied}))
    if tokens is not None:
        own = {token: at for token, at in tokens.items() if token not in added}
        entries = [{"id": tokens[token], "content": token, "special": True} for token in added]
        (folder / "tokenizer.json").write_text(
            json.dumps({"added_tokens": entries, "model": {"type": "WordLevel", "vocab": own}})
        )
    return Checkpoint(folder)


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode(), "big") % 2**31


def embedding(alignment: Alignment, name: str) -> torch.Tensor:
    return alignment.models[name]["model.embed_tokens.weight"]


def chosen(value: Any, **models: Checkpoint) -> Alignment:
    return align(models, "base", TokenizerChoice.read(value))


def test_rows_that_pad_the_embedding_are_no_difference(tmp_path: Path) -> None:
    base, padded = model(tmp_path / "base", COMMON, 4), model(tmp_path / "e", COMMON, 8)
    made = chosen(None, base=base, e=padded)
    assert made.models["base"] is base and made.rows == 4
    assert torch.equal(embedding(made, "e"), padded["model.embed_tokens.weight"][:4])
    wider = chosen(None, base=padded, e=base)
    assert torch.equal(embedding(wider, "e")[:4], base["model.embed_tokens.weight"])
    assert torch.equal(embedding(wider, "e")[4:], padded["model.embed_tokens.weight"][4:])
    assert wider.models["e"]["model.layers.0.mlp.weight"].shape == (4, WIDTH)
    assert wider.models["e"].header.tensors["lm_head.bias"].shape == (8,)


def test_a_token_without_a_row_is_no_difference_and_other_tokens_are(tmp_path: Path) -> None:
    base = model(tmp_path / "base", COMMON, 8)
    assert chosen(None, base=base, e=model(tmp_path / "pad", {**COMMON, "<pad>": 8}, 8)).rows == 8
    with pytest.raises(UserError, match=r"'e' .* '<pad>' is absent in the base and 4 .*tokenizer_source: base, union"):
        chosen(None, base=base, e=model(tmp_path / "e", {**COMMON, "<pad>": 4}, 8))
    with pytest.raises(UserError, match="no tokenizer says which tokens"):
        chosen(None, base=base, e=model(tmp_path / "bare", None, 9))


def test_a_union_has_every_models_own_row_for_its_own_tokens(tmp_path: Path) -> None:
    base = model(tmp_path / "base", COMMON, 6)
    x = model(tmp_path / "x", {**COMMON, "<x>": 4, "<y>": 5}, 6, ("<x>", "<y>"))
    z = model(tmp_path / "z", {**COMMON, "<z>": 4, "<y>": 7}, 8, ("<z>", "<y>"))
    made = chosen("union", base=base, x=x, z=z)
    assert made.rows == 7 and made.tokenizer == base.path
    assert [(entry["content"], entry["id"]) for entry in made.added] == [("<x>", 4), ("<y>", 5), ("<z>", 6)]
    for name, tensor in (("embed", "model.embed_tokens.weight"), ("head", "lm_head.weight"), ("bias", "lm_head.bias")):
        of_base, of_x, of_z = (made.models[one][tensor] for one in ("base", "x", "z"))
        assert torch.equal(of_x[:6], x[tensor][:6]) and torch.equal(
            of_z[[0, 1, 2, 3, 6, 5]], z[tensor][[0, 1, 2, 3, 4, 7]]
        )
        # What a model lacks adds nothing to its task vector: one holder's row, or the mean of several.
        assert torch.equal(of_base[4], x[tensor][4]) and torch.equal(of_z[4], x[tensor][4]), name
        assert torch.equal(of_x[6], z[tensor][4]) and torch.equal(of_base[6], z[tensor][4]), name
        assert torch.allclose(of_base[5], (x[tensor][5] + z[tensor][7]) / 2), name


def test_a_tokenizer_that_has_all_tokens_is_the_union(tmp_path: Path) -> None:
    base = model(tmp_path / "base", COMMON, 4)
    larger = model(tmp_path / "e", {**COMMON, "<x>": 4}, 5)  # <x> in the vocabulary itself
    made = chosen("union", base=base, e=larger)
    assert made.tokenizer == larger.path and made.added == () and made.rows == 5 and made.models["e"] is larger
    assert made.config({"vocab_size": 4, "text_config": {"vocab_size": 4}, "vision_config": {"vocab_size": 9}}) == {
        "vocab_size": 5, "text_config": {"vocab_size": 5}, "vision_config": {"vocab_size": 9},
    }  # fmt: skip
    more = model(tmp_path / "more", {**COMMON, "<y>": 4}, 5, ("<y>",))
    other = model(tmp_path / "o", {**COMMON, "word": 4}, 5)
    with pytest.raises(UserError, match=r"o has 1 tokens in its tokenizer's own vocabulary.*'word'.*transplant: omp"):
        chosen("union", base=base, more=more, o=other)


def test_a_model_without_a_tokenizer_has_the_others_tokens(tmp_path: Path) -> None:
    bare, e = model(tmp_path / "base", None, 4), model(tmp_path / "e", {"d": 0, "c": 1, "b": 2, "a": 3}, 4)
    made = chosen("e", base=bare, e=e)
    assert made.models == {"base": bare, "e": e} and made.tokenizer == e.path
    with pytest.raises(UserError, match="has no tokenizer"):
        chosen("base", base=bare, e=e)


def test_tokens_follow_the_chosen_model_wherever_they_stand(tmp_path: Path) -> None:
    base = model(tmp_path / "base", COMMON, 4)
    e = model(tmp_path / "e", {"<x>": 0, "d": 1, "c": 2, "b": 3, "a": 4}, 5, tied=True)
    made = chosen("e", base=base, e=e)
    order = [3, 2, 1, 0]
    assert torch.equal(embedding(made, "base")[1:], base["model.embed_tokens.weight"][order])
    assert torch.equal(embedding(made, "base")[0], e["model.embed_tokens.weight"][0])
    assert torch.equal(made.models["base"]["lm_head.weight"][0], e["model.embed_tokens.weight"][0]), "tied head"
    to_base = chosen("base", base=base, e=e)
    assert torch.equal(embedding(to_base, "e"), e["model.embed_tokens.weight"][[4, 3, 2, 1]])


def test_padding_that_no_model_has_is_the_mean_of_the_tokens(tmp_path: Path) -> None:
    base = model(tmp_path / "base", COMMON, 4)
    made = chosen({"model": "base", "pad_to_multiple_of": 8}, base=base)
    assert made.rows == 8 and torch.allclose(embedding(made, "base")[4:], base["model.embed_tokens.weight"].mean(0))


def test_rules_of_single_tokens(tmp_path: Path) -> None:
    base = model(tmp_path / "base", {**COMMON, "<b>": 4}, 5)
    e = model(tmp_path / "e", {**COMMON, "<e>": 4}, 5, ("<e>",))
    rules = {
        "<e>": {"source": {"kind": "zero"}},
        "<b>": {"source": {"kind": "model_token", "model": "e", "token": "a"}},
        "c": {"source": "e", "force": True},
        "d": {"source": {"kind": "model_token", "model": "base", "token_id": 0}, "force": True},
    }
    made = chosen({"model": "union", "tokens": rules}, base=base, e=e)
    of_base, of_e = embedding(made, "base"), embedding(made, "e")
    rows_of_base, rows_of_e = base["model.embed_tokens.weight"], e["model.embed_tokens.weight"]
    assert torch.equal(of_base[5], torch.zeros(WIDTH)) and torch.equal(of_e[5], rows_of_e[4])
    assert torch.equal(of_e[4], rows_of_e[0]) and torch.equal(of_base[4], rows_of_base[4])
    assert torch.equal(of_base[2], rows_of_e[2]) and torch.equal(of_e[2], rows_of_e[2])
    assert torch.equal(of_base[3], rows_of_base[0]) and torch.equal(of_e[3], rows_of_base[0])


OF_E = {"kind": "model_token", "model": "e"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"model": "union", "transplant": "omp"}, "one model"),
        ({"model": "base", "transplant": "mean"}, "only value is omp"),
        ({"model": "base", "tokns": {}}, "did you mean 'tokens'"),
        ({"model": "base", "pad_to_multiple_of": 0}, "above 0"),
        ({"model": "base", "tokens": {"a": {"source": {"kind": "one"}}}}, "kind: zero"),
        ({"model": "base", "tokens": {"q": {"source": {"kind": "zero"}}}}, "no such token"),
        ({"model": "base", "tokens": {"a": {"source": "f"}}}, "none of the models"),
        ({"model": "base", "tokens": {"a": {"source": {**OF_E, "token": "q"}}}}, "has no token"),
        ({"model": "base", "tokens": {"a": {"source": {**OF_E, "token_id": 4}}}}, "has no token"),
        ("f", "none of the models"),
    ],
)  # fmt: skip
def test_what_a_choice_cannot_mean_is_refused(tmp_path: Path, value: Any, reason: str) -> None:
    base, e = model(tmp_path / "base", COMMON, 4), model(tmp_path / "e", COMMON, 4)
    with pytest.raises(UserError, match=reason):
        chosen(value, base=base, e=e)


def test_matching_pursuit_finds_the_atoms_that_a_vector_is_made_of() -> None:
    generator = torch.Generator().manual_seed(0)
    atoms = torch.randn(200, 64, generator=generator)
    made_of, numbers = torch.tensor([[3, 77, 150], [9, 10, 11]]), torch.tensor([[1.0, -2.0, 0.5], [3.0, 3.0, -3.0]])
    wanted = torch.einsum("mk,mkd->md", numbers, atoms[made_of])
    chosen_atoms, coefficients = matching_pursuit(atoms, wanted, 6)
    found = torch.zeros(2, 200).scatter_add_(1, chosen_atoms, coefficients)
    assert torch.allclose(found, torch.zeros(2, 200).scatter_(1, made_of, numbers), atol=1e-4)
    twice = matching_pursuit(torch.cat([atoms[:2], atoms[:2]]), atoms[:1], 4)[1]
    assert torch.allclose(twice.abs().sum(), torch.tensor(1.0), atol=1e-4), "an atom that is there twice counts once"


def test_a_transplant_is_nearer_to_the_truth_than_the_mean() -> None:
    """Two models see the same tokens: their embeddings are one set of meanings, turned and blurred apart."""
    generator = torch.Generator().manual_seed(1)
    meanings = torch.randn(600, 40, generator=generator) @ torch.randn(40, 96, generator=generator) / 40**0.5
    turn = torch.linalg.qr(torch.randn(96, 96, generator=generator))[0]
    donor = meanings + 0.05 * torch.randn(600, 96, generator=generator)
    own = meanings @ turn + 0.05 * torch.randn(600, 96, generator=generator)
    made = transplant(donor[:500], donor[500:], own[:500])
    mean = own[:500].mean(0)
    error, error_of_mean = (made - own[500:]).norm(), (mean - own[500:]).norm()
    assert error < 0.25 * error_of_mean
    assert torch.equal(transplant(donor[:0], donor[500:], own[:0]), torch.zeros(100, 96))


def test_tokens_of_another_family_are_transplanted_into_an_expert(tmp_path: Path) -> None:
    tokens = {f"t{at}": at for at in range(20)}
    base = model(tmp_path / "base", {**tokens, "new": 20}, 21)
    e = model(tmp_path / "e", {**{token: 19 - at for token, at in tokens.items()}, "own": 20}, 21)
    made = chosen({"model": "base", "transplant": "omp"}, base=base, e=e)
    for tensor in ("model.embed_tokens.weight", "lm_head.weight"):
        shared = e[tensor][list(range(19, -1, -1))]
        assert torch.equal(made.models["e"][tensor][:20], shared)
        truth = transplant(base[tensor][:20], base[tensor][20:], shared)
        assert torch.allclose(made.models["e"][tensor][20:], truth)
    assert made.models["base"] is base
