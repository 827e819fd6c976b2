"""An exported merge is the evaluated merge, can be read by mergekit, and says how it was found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import mergefront as mf
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.results.export import export_candidate, map_references, merge_config

FUNCTION = """
def score(recipe):
    return {"maths": recipe.params["weight[maths]"], "french": recipe.params["weight[french]"]}
"""
STUDY = """
study: weights
seed: 3
merge:
  method: dare_ties
  base_model: models/base
  models: {maths: models/some-folder, french: models/other-folder}
  space: {weight: [0, 1], density: [0.3, 0.8]}
backend: {type: function, call: "export_scoring:score"}
objectives: [maths, french]
search: {sampler: random, evaluations: 8}
"""


def write_checkpoint(folder: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    tensors = {f"model.layers.{layer}.mlp.up_proj.weight": torch.randn(8, 6, generator=generator) for layer in (0, 1)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 2}))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> mf.Study:
    root = tmp_path_factory.mktemp("export")
    for seed, name in enumerate(("base", "some-folder", "other-folder")):
        write_checkpoint(root / "models" / name, seed)
    (root / "models" / "base" / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    (root / "export_scoring.py").write_text(FUNCTION)
    (root / "study.yaml").write_text(STUDY)
    return mf.run(root / "study.yaml")


def test_exported_weights_are_the_evaluated_merge_random_masks_included(study: mf.Study, tmp_path: Path) -> None:
    candidate = study.candidates()[-1]
    assert candidate.recipe.method == "dare_ties" and candidate.anchor is None
    out = export_candidate(study, candidate, tmp_path / "merged")
    root = study.root
    engine = MergeEngine(
        str(root / "models/base"), {name: str(root / path) for name, path in candidate.recipe.models.items()}
    )
    exported = load_file(out / "model.safetensors")
    expected = dict(engine.iterate(candidate.recipe, list(exported), torch.float32))
    assert set(expected) == set(exported) and len(exported) == 2
    for name, tensor in exported.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
    assert (out / "tokenizer.json").exists() and (out / "config.json").exists()
    assert not [path for path in tmp_path.iterdir() if path != out]


def test_exported_files_say_exactly_what_was_evaluated(study: mf.Study, tmp_path: Path) -> None:
    candidate = study.candidates()[-1]
    out = export_candidate(study, candidate, tmp_path / "merged", config_only=True)
    assert Recipe.from_json(json.loads((out / "recipe.json").read_text())) == candidate.recipe
    config = yaml.safe_load((out / "mergekit_config.yml").read_text())
    references = {config["base_model"], *(entry["model"] for entry in config["models"])}
    assert all(Path(reference).is_absolute() and Path(reference).is_dir() for reference in references)
    weights = [entry["parameters"]["weight"] for entry in config["models"]]
    assert weights == [candidate.params["weight[maths]"], candidate.params["weight[french]"]]


def test_the_model_card_has_scores_objectives_anchors_and_method(study: mf.Study, tmp_path: Path) -> None:
    candidate = study.knee()
    card = (export_candidate(study, candidate, tmp_path / "merged", config_only=True) / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["tags"] == ["merge", "mergekit", "mergefront"] and "base_model" not in metadata
    for said in ("maths ↑", "**this merge**", "uniform average", "objectives: maths (maximize)",
                 "sampler: random, seed 3", f"trial {candidate.number}", "8 evaluations", "hypervolume",
                 "merge_method:"):  # fmt: skip
        assert said in card


def test_a_folder_in_use_is_left_alone(study: mf.Study, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        export_candidate(study, study.knee(), out, config_only=True)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_a_failed_export_leaves_nothing_behind(study: mf.Study, tmp_path: Path) -> None:
    weights = study.root / "models/some-folder/model.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes(content[:40])
        with pytest.raises(UserError):
            export_candidate(study, study.candidates()[-1], tmp_path / "merged")
    finally:
        weights.write_bytes(content)
    assert not list(tmp_path.iterdir())


def test_models_known_by_name_only_have_no_weights_to_export(storage: str, tmp_path: Path) -> None:
    named = mf.load_study("skills", storage=storage)
    with pytest.raises(UserError, match="--config-only"):
        export_candidate(named, named.knee(), tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def test_merge_reads_paths_from_the_current_folder_or_the_files_own(
    study: mf.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = study.root
    config = root / "linear.yaml"
    entries = [{"model": f"models/{name}", "parameters": {"weight": 0.5}} for name in ("some-folder", "other-folder")]
    config.write_text(yaml.safe_dump({"merge_method": "linear", "models": entries}))
    monkeypatch.chdir(tmp_path)
    made = load_file(merge_config(config, tmp_path / "merged") / "model.safetensors")
    first, second = (load_file(root / entry["model"] / "model.safetensors") for entry in entries)
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2)
    monkeypatch.chdir(root)
    merge_config("linear.yaml", tmp_path / "again")
    with pytest.raises(UserError, match="there is no such file"):
        merge_config("none.yaml", tmp_path / "third")


def test_references_are_changed_wherever_a_configuration_has_them() -> None:
    config = {"base_model": "a", "slices": [{"sources": [{"model": "b", "layer_range": [0, 2]}]}], "merge_method": "a"}
    assert map_references(config, str.upper) == {
        "base_model": "A", "slices": [{"sources": [{"model": "B", "layer_range": [0, 2]}]}], "merge_method": "a",
    }  # fmt: skip
