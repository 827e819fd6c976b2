"""The JSON schema of study files takes what is right and refuses what people usually get wrong.

``python tests/mergefront/authoring/test_schema.py`` writes docs/study.schema.json and docs/pool.schema.json.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mergefront.study.check import check_study

ROOT = Path(__file__).parents[3]
COMMITTED = {"study.schema.json": (), "pool.schema.json": ("--pool",)}
FRAME = """
study: skills
merge: {method: dare_ties, base_model: base, models: {maths: m, french: f}, space: {weight: [0, 1]}}
tasks: {maths: {type: jsonl, path: maths.jsonl, metric: exact_match}}
objectives: [maths]
search: {sampler: mm-mo, evaluations: 20}
"""


def printed(*options: str) -> str:
    """What a new process prints: this one may know methods that other tests registered."""
    command = [sys.executable, "-m", "mergefront", "schema", *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@cache
def committed(name: str) -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(json.loads((ROOT / "docs" / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", COMMITTED)
def test_the_committed_schema_is_the_one_that_the_models_make(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert text == printed(*COMMITTED[name]), f"write it with: python {Path(__file__).relative_to(ROOT)}"
    jsonschema.Draft7Validator.check_schema(json.loads(text))


def problems(content: Any) -> list[str]:
    return [error.message for error in committed("study.schema.json").iter_errors(content)]


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*/study.yaml")), ids=lambda path: path.parent.name)
def test_every_example_begins_with_its_schema_and_is_valid(path: Path) -> None:
    first, rest = path.read_text(encoding="utf-8").split("\n", 1)
    schema = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert schema and (path.parent / schema[1]).resolve() == ROOT / "docs" / "study.schema.json"
    assert problems(yaml.safe_load(rest)) == []


BLOCKS = [
    pytest.param(page, block, id=f"{page.name} {number}")
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_every_yaml_of_the_documentation_is_valid_in_its_place(page: Path, block: str) -> None:
    content, frame = yaml.safe_load(block), yaml.safe_load(FRAME)
    if "merge_method" in content:
        return  # for 'mergefront merge', in mergekit's format: no schema of ours
    if "pool" in content:
        assert list(committed("pool.schema.json").iter_errors(content)) == []
    elif all(isinstance(entry, dict) and entry.get("type") in ("jsonl", "lm_eval") for entry in content.values()):
        assert problems({**frame, "tasks": content}) == []
    else:
        assert problems({**frame, **content}) == []


@pytest.mark.parametrize(
    ("written", "wrong"),
    [
        ("study: skills", "stduy: skills"),
        ("study: skills", "study: skills\nseed: -1"),
        ("study: skills", "study: skills\nracing: 0.2"),
        ("study: skills", "study: skills\nracing: {items: 2}"),
        ("study: skills", "study: skills\nstop: {hour: 2}"),
        ("study: skills", "study: skills\nbackend: {type: vllm, url: x}"),
        ("study: skills", "study: skills\nbackend: {type: lokal}"),
        ("study: skills", "study: skills\nbackend: {device: cuda, dytpe: float16}"),
        ("study: skills", "study: skills\nbackend: {dtype: fp16}"),
        ("dare_ties", "dare_tie"),
        ("dare_ties", "[ties, dare_tie]"),
        ("base_model: base", "base-model: base"),
        ("models: {maths: m, french: f}", "models: 3"),
        ("space: {weight: [0, 1]}", "space: {wieght: [0, 1]}"),
        ("space: {weight: [0, 1]}", "space: {density: [0, 2]}"),
        ("space: {weight: [0, 1]}", "space: {weight: [0, 0.5, 1]}"),
        ("space: {weight: [0, 1]}", "space: {weight: {low: 0}}"),
        ("space: {weight: [0, 1]}", "space: {weight: [0, 1], granularity: layer}"),
        ("method: dare_ties", "method: task_arithmetic, scope: [x]"),
        ("dare_ties", "task_arithmetic, carry: [x]"),
        ("type: jsonl", "type: json"),
        ("type: jsonl, ", ""),
        ("path: maths.jsonl, ", ""),
        ("exact_match", "exact-match"),
        ("exact_match", "exact_match, max_new_tokens: 0"),
        ("exact_match", "exact_match, report_fraction: 1"),
        ("exact_match", "exact_match, num_fewshot: 3"),
        ("objectives: [maths]", "objectives: []"),
        ("objectives: [maths]", "objectives: [{name: maths, direction: up}]"),
        ("objectives: [maths]", "objectives: [maths]\nconstraints: [{name: maths, at_mots: 1}]"),
        ("mm-mo", "mmmo"),
        ("mm-mo", "mm-mo, population: 3"),
        ("mm-mo", "random, batch: 3"),
        ("evaluations: 20", "evaluations: 0"),
        ("evaluations: 20", "evaluations: many"),
        ("evaluations: 20", "budget: slow"),
    ],
)
def test_a_usual_fault_is_marked_in_the_editor(written: str, wrong: str) -> None:
    assert problems(yaml.safe_load(FRAME)) == []
    assert written in FRAME and problems(yaml.safe_load(FRAME.replace(written, wrong)))


@pytest.mark.parametrize(
    ("written", "right"),
    [
        ("space: {weight: [0, 1]}", "space: {weight: [0, 1], 'weight[maths]': 0.5, density: {choices: [0.1, 0.5]}}"),
        ("space: {weight: [0, 1]}", "space: {granularity: {blocks: {language: 4, vision: 0}}, split: [mlp]}"),
        ("method: dare_ties", "method: mine, method_files: [mine.py]"),
        ("method: dare_ties", "method: [ties, linear]"),
        ("exact_match", "'mine:score', stop: ['a', 'b'], delimiter: null, tolerance: 0"),
        ("study: skills", "study: skills\nbackend: {device: cpu, task_vectors: 64}"),
        ("study: skills", "study: skills\nstop: {hours: 2}\nracing: {items: 0.3}"),
        ("objectives: [maths]", "objectives: [{name: maths, range: [0, 1]}]\nconstraints: ['delta_l1 <= 0.2']"),
        ("sampler: mm-mo, ", "batch: 3, "),
    ],
)
def test_less_usual_forms_are_no_faults(written: str, right: str) -> None:
    assert written in FRAME and problems(yaml.safe_load(FRAME.replace(written, right))) == []


def forms(schema: Any) -> list[Any]:
    """The forms that a value may have, besides null."""
    if "$ref" in schema:
        return forms(committed("study.schema.json").schema["$defs"][schema["$ref"].rpartition("/")[2]])
    several = schema.get("anyOf", schema.get("oneOf"))
    if several is None:
        return [] if schema.get("type") == "null" else [schema]
    return [form for one in several for form in forms(one)]


def sample(schema: Any) -> Any:
    """A value of the first form, no longer than it must be."""
    form = next(iter(forms(schema)), {})
    if "const" in form or "enum" in form:
        return form.get("const", form.get("enum", [None])[0])
    if form.get("type") == "object":
        return {key: sample(form["properties"][key]) for key in form.get("required", ())}
    if form.get("type") == "array":
        return [sample(form.get("items", {}))]
    return {"integer": max(1, form.get("minimum", 1)), "number": 0.5, "boolean": True}.get(form.get("type"), "x")


def sections(schema: Any) -> Iterator[tuple[list[Any], list[str], Any]]:
    """Every mapping of known keys in what a schema takes: where it is, its keys, and something that holds it."""
    for form in forms(schema):
        own = sample(form)
        if form.get("properties"):
            yield [], list(form["properties"]), own
        inner = {**form.get("properties", {}), "a": form.get("additionalProperties")}
        for key, schema_inside in inner.items():
            for where, keys, content in sections(schema_inside) if isinstance(schema_inside, dict) else ():
                yield [key, *where], keys, {**own, key: content}
        for where, keys, content in sections(form.get("items", {})) if form.get("type") == "array" else ():
            yield [0, *where], keys, [content]


def test_a_misspelt_key_anywhere_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    """None is read as something that users are only warned of, and none is left out without a word."""
    checked = 0
    for where, keys, content in sections(committed("study.schema.json").schema):
        written = copy.deepcopy(yaml.safe_load(FRAME) | {part: content[part] for part in where[:1]})
        right = max(keys, key=len)
        wrong = f"{right[:-1]}zz"
        reduce(getitem, where, written)[wrong] = 1
        (tmp_path / "study.yaml").write_text(json.dumps(written))
        told = check_study(tmp_path / "study.yaml").problems
        assert any(f"unknown key {wrong!r} (did you mean {right!r}?)" in line for line in told), (where, told)
        checked += 1
    assert checked > 30


if __name__ == "__main__":
    for file, options in COMMITTED.items():
        (ROOT / "docs" / file).write_text(printed(*options), encoding="utf-8")
