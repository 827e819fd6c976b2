"""What becomes of one architecture when it is merged, searched, exported and adapted by a LoRA.

    python tests/support/architecture_row.py             the table in docs/reference/models.md, made anew
    python tests/support/architecture_row.py llama t5    those rows, printed

A cell is "yes", "no: " and the reason that a user is told before anything runs, or "WRONG: " and what was seen.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_models import CAUSAL, IMAGE_TEXT, SEQ2SEQ, TINY_MODELS, TinyModel, move

COLUMNS = ("merge", "run", "layers", "export", "LoRA")
DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "models.md"
BEGIN, END = "<!-- architectures -->", "<!-- end of architectures -->"
WEIGHTS = {"first": 0.3, "second": 0.5}
STUDY = """
study: tiny
merge:
  method: task_arithmetic
  base_model: base
  models: {{first: first, second: second}}
  space: {{weight: [0, 1]}}
backend: {{type: local, device: cpu}}
tasks:
  task: {task}
objectives: [task]
search: {{sampler: random, evaluations: 5}}
"""
CLOZE = "{type: jsonl, path: items.jsonl, metric: loglikelihood}"
PYTHON = "{type: python, call: 'scoring:first_numbers'}"
SCORING = """
def first_numbers(model, processor):
    total = sum(float(parameter.double().abs().sum()) for parameter in model.parameters())
    return {"one": total, "two": -total, "three": total / 2, "four": 1.0}
"""


class WrongError(Exception):
    """Something came out that is not what it should be."""


def row(tiny: TinyModel, tokenizer: Any, folder: Path) -> dict[str, str]:
    """The cells of one architecture; ``folder`` is filled with its models."""
    for seed, name in enumerate(("base", *WEIGHTS)):
        model = tiny.make()
        if seed:
            move(model, seed)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    items = [{"prompt": f"Sort {n}:", "choices": [f" {n}", " 38 4"], "answer": 0} for n in (23, 43, 83, 44)]
    (folder / "items.jsonl").write_text("\n".join(json.dumps(item) for item in items) + "\n")
    (folder / "scoring.py").write_text(SCORING)
    task = CLOZE if tiny.auto in (CAUSAL, IMAGE_TEXT, SEQ2SEQ) else PYTHON
    (folder / "study.yaml").write_text(STUDY.format(task=task))
    cells = {"merge": _cell(lambda: _merge(tiny, folder))}
    studies: list[Any] = []
    cells["run"] = _cell(lambda: studies.append(_run(tiny, folder)))
    cells["layers"] = _cell(lambda: _layers(folder)) if studies else "-"
    cells["export"] = _cell(lambda: _export(tiny, studies[0], folder)) if studies else "-"
    cells["LoRA"] = _cell(lambda: _lora(tiny, folder))
    return {column: cell.replace(f"{folder}/", "") for column, cell in cells.items()}


def _cell(work: Callable[[], object]) -> str:
    from mergefront.optimizer.errors import MergefrontError

    try:
        work()
    except WrongError as error:
        return f"WRONG: {error}"
    except MergefrontError as error:
        return "no: " + _in_a_cell(str(error))
    except Exception as error:  # a user would see a traceback
        return f"WRONG: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return "yes"


def _in_a_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "/").replace("study.yaml: 1 problem - ", "")


def _merge(tiny: TinyModel, folder: Path) -> None:
    """By tensor name the merge is the arithmetic done by hand, and transformers loads it whole."""
    from mergefront.results.export import merge_config

    models = [{"model": str(folder / name), "parameters": {"weight": weight}} for name, weight in WEIGHTS.items()]
    config = {"merge_method": "task_arithmetic", "base_model": str(folder / "base"), "models": models}
    (folder / "merge.yaml").write_text(json.dumps(config))
    merge_config(folder / "merge.yaml", folder / "merged")
    base, first, second, merged = (
        load_file(folder / name / "model.safetensors") for name in ("base", "first", "second", "merged")
    )
    if merged.keys() != base.keys():
        raise WrongError(f"tensors {sorted(merged.keys() ^ base.keys())[:3]} are in one of base and merge only")
    for name, origin in base.items():
        expected = origin + 0.3 * (first[name] - origin) + 0.5 * (second[name] - origin)
        if not torch.allclose(merged[name].float(), expected.float(), atol=1e-6, rtol=1e-5):
            raise WrongError(f"{name} is not the arithmetic done by hand")
    loaded(tiny, folder / "merged")


def _run(tiny: TinyModel, folder: Path) -> Any:
    """What check says is what run does; the live merge equals the stored one; an expert alone is that expert."""
    import mergefront as mf
    from mergefront.adapters.local.backend import LocalBackend
    from mergefront.optimizer.errors import MergefrontError, StudyFileError
    from mergefront.optimizer.recipes.recipe import Recipe
    from mergefront.study.check import check_study

    problems = check_study(folder / "study.yaml").problems
    if problems:
        raise StudyFileError("study.yaml", problems)
    try:
        study = mf.run(folder / "study.yaml")
    except MergefrontError as error:
        raise WrongError(f"sound, then refused: {error}") from None
    if study.failures():
        raise WrongError(f"sound, then failed: {study.failures()[0].reason}")
    backend = LocalBackend.from_checkpoints(folder / "base", {name: folder / name for name in WEIGHTS}, device="cpu")
    for name in WEIGHTS:
        alone = Recipe("linear", {name: name}, {f"weight[{name}]": 1.0}, "base")
        with backend.apply(alone):
            _compare(backend.model.state_dict(), loaded(tiny, folder / name).state_dict(), f"expert {name} alone")
    both = Recipe(
        "task_arithmetic", dict.fromkeys(WEIGHTS, ""), {f"weight[{n}]": w for n, w in WEIGHTS.items()}, "base"
    )
    if (folder / "merged").exists():
        with backend.apply(both):
            _compare(backend.model.state_dict(), loaded(tiny, folder / "merged").state_dict(), "the live merge")
    return study


def _layers(folder: Path) -> None:
    """A coefficient of one layer moves every tensor of that layer in the stacks that read text, and no other one."""
    from mergefront.adapters.checkpoints.header import read_header
    from mergefront.adapters.checkpoints.stacks import text_stacks
    from mergefront.adapters.merging.engine import MergeEngine
    from mergefront.optimizer.errors import StudyFileError
    from mergefront.study.check import check_study

    text = (folder / "study.yaml").read_text()
    (folder / "layers.yaml").write_text(
        text.replace("study: tiny", "study: layers").replace("[0, 1]", "[0, 1], granularity: layers")
    )
    report = check_study(folder / "layers.yaml")
    if report.problems:
        raise StudyFileError("layers.yaml", report.problems)
    space = report.definition_or_raise().space
    recipe = space.recipe({name: float(name == "weight[first, block 1]") for name in space.searched})
    base, first = (load_file(folder / name / "model.safetensors") for name in ("base", "first"))
    engine = MergeEngine(folder / "base", {name: folder / name for name in WEIGHTS})
    moved = {name for name, tensor in engine.iterate(recipe) if not torch.equal(tensor, base[name])}
    read_text = text_stacks(read_header(folder / "base")).values()
    of_layer = {name for layers in read_text for name in layers.get(1, {}).values()}
    expected = {name for name in of_layer if not torch.equal(first[name], base[name])}
    if moved != expected:
        raise WrongError(
            f"the coefficient of layer 1 moves {sorted(moved ^ expected)[:3]} otherwise than its name says"
        )


def _export(tiny: TinyModel, study: Any, folder: Path) -> None:
    """Whatever run accepts is exported, and loads as it was scored."""
    from mergefront.adapters.local.backend import LocalBackend
    from mergefront.optimizer.errors import MergefrontError
    from mergefront.results.export import export_candidate

    chosen = study.candidates()[-1]
    try:
        out = export_candidate(study, chosen, folder / "exported")
    except MergefrontError as error:
        raise WrongError(f"searched, then not exported: {error}") from None
    backend = LocalBackend.from_checkpoints(folder / "base", {name: folder / name for name in WEIGHTS}, device="cpu")
    with backend.apply(chosen.recipe):
        _compare(backend.model.state_dict(), loaded(tiny, out).state_dict(), "the export")


def _lora(tiny: TinyModel, folder: Path) -> None:
    """A LoRA of every linear layer is merged as peft merges it."""
    from peft import LoraConfig, PeftModel, get_peft_model

    from mergefront.adapters.local.backend import LocalBackend
    from mergefront.optimizer.recipes.recipe import Recipe

    torch.manual_seed(5)
    # What peft itself refuses on state-space models.
    settings = LoraConfig(
        r=2, lora_alpha=6, target_modules="all-linear", exclude_modules=r".*(out_proj|conv1d)", init_lora_weights=False
    )
    try:
        get_peft_model(loaded(tiny, folder / "base"), settings).save_pretrained(folder / "lora")
        peft_merged = PeftModel.from_pretrained(loaded(tiny, folder / "base"), folder / "lora").merge_and_unload()
    except (ValueError, NotImplementedError, RuntimeError, KeyError) as error:
        raise WrongError(f"peft itself: {error}") from None
    backend = LocalBackend.from_checkpoints(folder / "base", {"lora": folder / "lora"}, device="cpu")
    with backend.apply(Recipe("task_arithmetic", {"lora": ""}, {"weight[lora]": 1.0}, "base")):
        _compare(backend.model.state_dict(), peft_merged.state_dict(), "the LoRA's merge")


def loaded(tiny: TinyModel, folder: Path) -> Any:
    """The folder as transformers loads it; nothing may be missing, unexpected or of another shape."""
    import transformers

    model, found = getattr(transformers, tiny.auto).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    faults = {kind: sorted(map(str, names))[:3] for kind, names in found.items() if names}
    if faults:
        raise WrongError(f"{folder.name} loads with {faults}")
    return model.eval()


def _compare(ours: Mapping[str, Any], theirs: Mapping[str, Any], what: str) -> None:
    if ours.keys() != theirs.keys():
        raise WrongError(f"{what} has other tensors: {sorted(ours.keys() ^ theirs.keys())[:3]}")
    for name, tensor in theirs.items():
        if not torch.allclose(ours[name].float(), tensor.float(), atol=2e-6, rtol=1e-5):
            raise WrongError(f"{what} differs in {name}")


def markdown(rows: Mapping[str, Mapping[str, str]]) -> str:
    """The table of docs/reference/models.md."""
    lines = [f"| architecture | {' | '.join(COLUMNS)} |", "| -- " * (len(COLUMNS) + 1) + "|"]
    lines += [f"| `{name}` | {' | '.join(cells[column] for column in COLUMNS)} |" for name, cells in rows.items()]
    return "\n".join(lines)


def documented() -> dict[str, dict[str, str]]:
    """The table of docs/reference/models.md: cells by column, by architecture."""
    table = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| `")
    ]
    return {name.strip("`"): dict(zip(COLUMNS, cells, strict=True)) for name, *cells in rows}


@contextmanager
def a_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def main() -> None:
    from small_tokenizer import make_tokenizer

    names = sys.argv[1:] or list(TINY_MODELS)
    tokenizer = make_tokenizer()
    rows = {}
    for name in sorted(names):
        with a_folder() as folder:
            rows[name] = row(TINY_MODELS[name], tokenizer, folder)
        print(name, json.dumps(rows[name]), flush=True)
    if sys.argv[1:]:
        return
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{markdown(rows)}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
