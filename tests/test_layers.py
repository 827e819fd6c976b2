"""The house stays a house: no import cycles, and every room knows those below it (docs/explanation/architecture.md)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_FILES = 12
"""Of one folder, beside its ``__init__.py``: a reader takes in a dozen names at a glance."""

ROOMS: Mapping[str, str] = {
    "mergefront": (
        "optimizer adapters storage versions formatting notebook study results tracking running serving chat authoring "
        "demo cli __main__"
    ),
    "mergefront.optimizer": (
        "errors foreign_text seeding arrays yaml_file sections recipes scores racing search samplers"
    ),
    "mergefront.optimizer.samplers": (
        "options common gaussian_process base baselines map evo_merging mmmo registry lazy"
    ),
    "mergefront.adapters": (
        "backend language_model counted_model thoughts chat_templates tokenization hub checkpoints gguf merging tasks "
        "evaluator local starting remote"
    ),
    "mergefront.adapters.merging": (
        "offload coefficients transplant modalities vocabulary sources compression tensor_pool importance "
        "task_vectors reference whole_models loras engine checkpoint_merges forecast output"
    ),
}
"""Lower rooms first: a room imports from itself and from rooms before it. Type-only imports count."""


@pytest.fixture(scope="module")
def imports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Every module of the package and the modules of the package that it imports, anywhere in it."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "mergefront", folder / "mergefront")  # grimp follows no links
    for name in ("optimizer", "adapters", "storage"):
        shutil.copytree(ROOT / name, folder / "mergefront" / name)
    script = (
        "import grimp, json; graph = grimp.build_graph('mergefront', cache_dir=None); "
        "print(json.dumps({name: sorted(graph.find_modules_directly_imported_by(name)) for name in graph.modules}))"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = json.loads(ran.stdout)
    assert "mergefront.optimizer.samplers.registry" in found and "mergefront.storage.ledger" in found
    return found


def room(module: str, package: str) -> str | None:
    """The room of ``package`` that a module is in; None for a module elsewhere and for the package itself."""
    return module.removeprefix(f"{package}.").split(".")[0] if module.startswith(f"{package}.") else None


def test_there_are_no_import_cycles(imports: dict[str, list[str]]) -> None:
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the modules


@pytest.mark.parametrize("package", ROOMS)
def test_a_room_only_knows_the_rooms_below_it(imports: dict[str, list[str]], package: str) -> None:
    order = {name: place for place, name in enumerate(ROOMS[package].split())}
    modules = {module: where for module in imports if (where := room(module, package)) is not None}
    assert set(modules.values()) <= set(order), "a room that the picture does not show"
    upwards = [
        f"{module} imports {imported}"
        for module, where in modules.items()
        for imported in imports[module]
        if (there := room(imported, package)) is not None and order[there] > order[where]
    ]
    assert upwards == []


FOLDERS = [
    init.parent
    for top in ("mergefront", "optimizer", "adapters", "storage")
    for init in (ROOT / top).rglob("__init__.py")
]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_folder_is_small_and_says_what_lives_there(folder: Path) -> None:
    files = [entry for entry in folder.glob("*.py") if entry.name != "__init__.py"]
    assert len(files) <= MOST_FILES
    text = (folder / "__init__.py").read_text(encoding="utf-8")
    documented = text.split('"""')[1] if text.count('"""') >= 2 else ""
    assert documented.strip(), "the folder does not say what lives here and what never does"
    assert len(documented.strip().splitlines()) <= 5


def test_a_recipe_and_a_study_file_are_followed_through_few_files_and_each_room_once(tmp_path: Path) -> None:
    """A reader who wonders where a recipe goes must not climb up and down the house."""
    import reading_path

    recipes, study_files = reading_path.followed(tmp_path)
    assert 0 < len({callee for callee, _ in recipes}) <= 12
    rooms = reading_path.entrances(study_files)
    assert len(rooms) == len(set(rooms)) <= 12
