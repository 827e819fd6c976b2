"""Data sets by their names: which file, at which commit, and what is said where it cannot be had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_server import Hub
from huggingface_hub import constants, hf_hub_download

from mergefront.adapters.hub.names import HubName, data_name, hub_name
from mergefront.adapters.hub.places import ModelPlaces, Preview
from mergefront.adapters.tasks.task_types import build_task, problems_of
from mergefront.optimizer.errors import UserError

FILE = "hf://datasets/lab/sums/main/test.jsonl"
TASK = {
    "type": "jsonl",
    "path": FILE,
    "metric": "numeric",
    "fields": {"prompt": "Q: {question}\nA:", "answer": "answer"},
}


def publish(hub: Hub, folder: Path, start: int = 0) -> str:
    (folder / "main").mkdir(parents=True)
    rows = [{"question": f"What is {n} and {n}?", "answer": f"It is #### {2 * n}"} for n in range(start, start + 8)]
    (folder / "main/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return hub.add("datasets/lab/sums", folder).shas()[-1]


@pytest.mark.parametrize(
    ("reference", "named"),
    [
        (FILE, HubName("lab/sums", None, "main/test.jsonl", "dataset")),
        ("hf://datasets/lab/sums@v1/a.parquet", HubName("lab/sums", "v1", "a.parquet", "dataset")),
        (
            "hf://datasets/lab/sums@refs/convert/parquet/default/train/0.parquet",
            HubName("lab/sums", "refs/convert/parquet", "default/train/0.parquet", "dataset"),
        ),
        ("datasets/lab/sums/test.jsonl", None),
    ],
)
def test_which_file_a_reference_names(reference: str, named: HubName | None) -> None:
    assert data_name(reference) == named


@pytest.mark.parametrize("reference", ["hf://datasets/lab/sums", "hf://lab/sums/a.jsonl", "hf://datasets/l/s/../a"])
def test_what_names_no_file_is_refused(reference: str) -> None:
    with pytest.raises(UserError, match="write hf://datasets/org/name@revision/path/of/file"):
        data_name(reference)
    with pytest.raises(UserError, match="names a data set on the Hub, and a model is needed"):
        hub_name("hf://datasets/lab/sums", None)


def test_items_of_a_data_set_stay_those_of_its_commit(hub: Hub, tmp_path: Path) -> None:
    """Without: a study that goes on is asked other items as soon as somebody pushes."""
    first = publish(hub, tmp_path / "first")
    looked = Preview(tmp_path)
    task = build_task("sums", TASK, tmp_path, 0, looked)
    assert looked.commits == {FILE: first}
    publish(hub, tmp_path / "second", start=100)
    again = build_task("sums", TASK, tmp_path, 0, ModelPlaces(tmp_path, looked.commits))
    newest = build_task("sums", TASK, tmp_path, 0)
    assert again.items("search") == task.items("search") != newest.items("search")
    assert task.items("search")[0].prompt.startswith("Q: What is ") and "####" in task.items("search")[0].answers[0]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("hf://datasets/lab/sums/main/tset.jsonl", "datasets/lab/sums has no file 'main/tset.jsonl' (did you mean"),
        ("hf://datasets/lab/smus/main/test.jsonl", "no such repository on the Hub (did you mean lab/sums?)"),
        ("hf://datasets/lab/sums@v9/main/test.jsonl", "the repository has no revision 'v9'"),
        ("hf://lab/sums/main/test.jsonl", "names no data on the Hub"),
    ],
)
def test_data_that_cannot_be_had_is_one_line(hub: Hub, tmp_path: Path, path: str, said: str) -> None:
    publish(hub, tmp_path / "first")
    build_task("sums", TASK, tmp_path)  # so that the cache knows the repository
    problems = problems_of({**TASK, "path": path}, tmp_path)
    assert len(problems) == 1 and said in problems[0] and "\n" not in problems[0]


def test_a_fault_in_the_data_is_named_by_the_reference(hub: Hub, tmp_path: Path) -> None:
    publish(hub, tmp_path / "first")
    problems = problems_of({**TASK, "fields": {"prompt": "qestion", "answer": "answer"}}, tmp_path)
    assert problems[0] == f"{FILE}:1: has no column 'qestion'; its columns are question, answer"


def test_without_a_network_the_cache_answers_or_the_command_is_said(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, tmp_path / "first")
    task = build_task("sums", TASK, tmp_path)
    hf_hub_download("lab/sums", "main/test.jsonl", repo_type="dataset")  # as the command that is said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert build_task("sums", TASK, tmp_path).items("search") == task.items("search")
    (problem,) = problems_of({**TASK, "path": "hf://datasets/lab/sums@v1/other.jsonl"}, tmp_path)
    assert problem.endswith("hf download lab/sums other.jsonl --repo-type dataset --revision v1")
