"""`mergefront merge`: a whole folder or none, and one message for everything that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mergefront.adapters.checkpoints.header import read_header
from mergefront.adapters.merging.output.directory import merge_to_directory
from mergefront.adapters.merging.output.references import read_reference
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.recipe import Recipe

GOLDENS = Path(__file__).parents[3] / "fixtures" / "goldens"


def config(**changes: Any) -> dict[str, Any]:
    models = [
        {"model": "models/math", "parameters": {"weight": 0.5}},
        {"model": "models/code", "parameters": {"weight": 0.5}},
    ]
    return {"merge_method": "task_arithmetic", "base_model": "models/base", "models": models} | changes


def test_the_folder_is_a_hugging_face_model(tmp_path: Path) -> None:
    out = merge_to_directory(config(dtype="bfloat16"), tmp_path / "deep" / "out", GOLDENS)
    names = {file.name for file in out.iterdir()}
    assert names == {"model.safetensors", "config.json", "generation_config.json", "mergekit_config.yml"}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16


def test_out_dtype_casts_once_at_the_end(tmp_path: Path) -> None:
    exact = load_file(merge_to_directory(config(), tmp_path / "a", GOLDENS) / "model.safetensors")
    cast = load_file(merge_to_directory(config(out_dtype="bfloat16"), tmp_path / "b", GOLDENS) / "model.safetensors")
    assert all(torch.equal(tensor.to(torch.bfloat16), cast[name]) for name, tensor in exact.items())


def test_shards_hold_the_same_tensors(tmp_path: Path) -> None:
    whole = load_file(merge_to_directory(config(), tmp_path / "a", GOLDENS) / "model.safetensors")
    out = merge_to_directory(config(), tmp_path / "b", GOLDENS, shard_bytes=50_000)
    header = read_header(out)
    assert len(header.files) > 2
    parts: dict[str, torch.Tensor] = {}
    for file in header.files:
        parts |= load_file(file)
    assert parts.keys() == whole.keys() and all(torch.equal(parts[name], whole[name]) for name in whole)


def test_layers_can_be_dropped_repeated_and_taken_from_either_model(tmp_path: Path) -> None:
    slices = [
        {"sources": [{"model": "models/math", "layer_range": [0, 2]}]},
        {"sources": [{"model": "models/code", "layer_range": [1, 4]}]},
    ]
    content = {"merge_method": "linear", "slices": slices, "parameters": {"weight": 1.0}}
    out = merge_to_directory(content, tmp_path / "out", GOLDENS)
    made = load_file(out / "model.safetensors")
    maths, code = (load_file(GOLDENS / "models" / name / "model.safetensors") for name in ("math", "code"))
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 5
    name = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(made[name.format(1)], maths[name.format(1)])
    assert torch.equal(made[name.format(2)], code[name.format(1)])
    assert torch.equal(made[name.format(4)], code[name.format(3)])
    assert torch.equal(made["model.embed_tokens.weight"], maths["model.embed_tokens.weight"])
    assert torch.equal(made["model.norm.weight"], code["model.norm.weight"])


def test_filters_choose_by_tensor_name_and_fall_through(tmp_path: Path) -> None:
    rules = [{"filter": "mlp", "value": 1.0}, {"filter": "self_attn", "value": 0.0}]
    models = [{"model": "models/math", "parameters": {"weight": rules}}]
    made = load_file(
        merge_to_directory(config(models=models, parameters={"weight": 0.5}), tmp_path / "o", GOLDENS)
        / "model.safetensors"
    )
    base, maths = (load_file(GOLDENS / "models" / name / "model.safetensors") for name in ("base", "math"))
    for name, tensor in made.items():
        share = 1.0 if "mlp" in name else 0.0 if "self_attn" in name else 0.5
        assert torch.allclose(tensor, base[name] + share * (maths[name] - base[name]), atol=1e-6), name


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"merge_methd": 1, "tokenizer": {"surce": "union"}, "dtype": "float31", "chat_template": "auto"},
         ["merge_methd", "surce", "float31", "auto"]),
        ({"tokenizer_source": "models/chat"}, ["models/chat", "none of the models"]),
        ({"parameters": {"desnity": 0.4}}, ["desnity"]),
        ({"models": None}, ["at least one model"]),
        ({"slices": []}, ["either 'models' or 'slices'"]),
        ({"base_model": None}, ["needs a base_model"]),
        ({"base_model": "models/absent"}, ["models/absent"]),
        ({"models": [{"model": "models/math"}]}, ["weight"]),
        ({"models": [{"model": "models/math", "parameters": {"weight": "heavy"}}]}, ["heavy"]),
        ({"models": 2 * [{"model": "models/math", "parameters": {"weight": 0.4}}]}, ["models/math is listed twice"]),
        ({"merge_method": "tis"}, ["did you mean 'ties'"]),
    ],
)  # fmt: skip
def test_everything_wrong_is_named_and_nothing_is_written(
    tmp_path: Path, changes: dict[str, Any], reasons: list[str]
) -> None:
    content = {key: value for key, value in config(**changes).items() if value is not None or key == "models"}
    with pytest.raises(UserError) as caught:
        merge_to_directory(content, tmp_path / "out", GOLDENS)
    assert all(reason in str(caught.value) for reason in reasons)
    assert list(tmp_path.iterdir()) == []


def test_a_filter_that_is_in_no_name_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rules = [{"filter": "self_atn", "value": 0.0}, {"filter": "mlp", "value": 1.0}, {"value": 0.5}]
    models = [{"model": "models/math", "parameters": {"weight": rules}}]
    merge_to_directory(config(models=models), tmp_path / "out", GOLDENS)
    said = [record.message for record in caplog.records if "filter" in record.message]
    assert len(said) == 1 and "'self_atn'" in said[0]


def evolved(method: str, models: list[str], **more: Any) -> dict[str, Any]:
    """What mergekit-evolve writes: one slice, a base_model of its own, switches as numbers, int8_mask everywhere."""
    sources = [{"model": f"models/{name}", "layer_range": [0, 4], "parameters": {"weight": 0.5}} for name in models]
    if method == "slerp":
        sources = [{key: value for key, value in source.items() if key != "parameters"} for source in sources]
    parameters = {"int8_mask": 1.0, "normalize": 1.0}
    return {"merge_method": method, "parameters": parameters, "slices": [{"sources": sources, **more}]}


@pytest.mark.parametrize("method", ["slerp", "linear"])
def test_what_mergekit_evolve_writes_is_read_as_mergekit_reads_it(tmp_path: Path, method: str) -> None:
    names = ["math", "code"]
    more = {"base_model": "models/math", "parameters": {"t": 0.3}} if method == "slerp" else {}
    numbers = {"parameters": {"t": 0.3}} if method == "slerp" else {"parameters": {"weight": 0.5, "normalize": True}}
    plain = {"merge_method": method, "models": [{"model": f"models/{name}"} for name in names], **numbers}
    made = [
        load_file(merge_to_directory(content, tmp_path / str(number), GOLDENS) / "model.safetensors")
        for number, content in enumerate((evolved(method, names, **more), plain))
    ]
    assert made[0].keys() == made[1].keys() and all(torch.equal(made[0][name], made[1][name]) for name in made[1])
    recipe, same = (Recipe.from_mergekit(content) for content in (evolved(method, names, **more), plain))
    assert list(recipe.models) == list(same.models)
    asked, value = ("t", 0.3) if method == "slerp" else ("normalize", True)
    assert recipe.coefficient(asked, None, "lm_head.weight") == value


def test_a_path_may_hold_a_plus_and_a_lora_follows_the_last_one(tmp_path: Path) -> None:
    for name in ("c++", "c++/a", "c++/b+c", "c++/a/b"):
        (tmp_path / name).mkdir()
    expected = {
        "c++/a": f"{tmp_path}/c++/a",
        "c++/b+c": f"{tmp_path}/c++/b+c",
        "c++/a+c++/a/b": f"{tmp_path}/c++/a+{tmp_path}/c++/a/b",
        "hub/model+hub/x": "hub/model+hub/x",
    }
    assert {text: str(read_reference(text, (tmp_path,))) for text in expected} == expected
    assert read_reference("c++/a+c++/a/b", (tmp_path,)) == (f"{tmp_path}/c++/a", f"{tmp_path}/c++/a/b")


def test_a_failure_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    source = tmp_path / "models" / "bad"
    source.mkdir(parents=True)
    tensors = load_file(GOLDENS / "models" / "math" / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    from safetensors.torch import save_file

    save_file(tensors, source / "model.safetensors")
    (source / "config.json").write_text((GOLDENS / "models" / "math" / "config.json").read_text())
    models = [{"model": str(source), "parameters": {"weight": 0.5}}]
    with pytest.raises(UserError, match=r"model\.norm\.weight"):
        merge_to_directory(config(models=models), tmp_path / "out", GOLDENS)
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_an_existing_result_is_not_overwritten(tmp_path: Path) -> None:
    out = merge_to_directory(config(), tmp_path / "out", GOLDENS)
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        merge_to_directory(config(parameters={"weight": 1.0}), out, GOLDENS)
    assert (out / "model.safetensors").read_bytes() == before
