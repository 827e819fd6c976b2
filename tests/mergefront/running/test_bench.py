"""mergefront bench says what a search takes before it is begun."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from local_study import write_local_study

from mergefront.cli.application import cli
from mergefront.optimizer.errors import UserError
from mergefront.running.bench import bench
from mergefront.study.check import check_study

pytest.importorskip("transformers", reason="needs the extra 'local'")


def test_what_a_search_takes_is_measured_and_nothing_is_stored(tmp_path: Path) -> None:
    """Who starts a search for a weekend has to know that it is no week."""
    study = write_local_study(tmp_path, "timed")
    before = sorted(tmp_path.iterdir())
    done = CliRunner().invoke(cli, ["bench", str(study), "--seconds", "1", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    paces = found["tasks"].values()
    assert all(0 < pace["asked"] <= pace["items"] and pace["tokens"] > 0 for pace in paces)
    candidate = max(one["later"] for one in found["merging"].values())
    candidate += sum(pace["seconds"] / pace["asked"] * pace["items"] for pace in paces)
    assert found["seconds_of_candidate"] == pytest.approx(candidate)
    assert found["seconds_of_search"] > found["evaluations"] * candidate
    assert all(one["later"] > 0 for one in found["merging"].values())
    assert sorted(tmp_path.iterdir()) == before


def test_a_check_says_what_is_held_where_and_what_a_merge_takes(tmp_path: Path) -> None:
    """Whose experts do not fit learns it before the search, and what it costs."""
    study = write_local_study(tmp_path, "held")
    held = CliRunner().invoke(cli, ["check", str(study), "--json"])
    assert held.exit_code == 0, held.output
    memory, time = json.loads(held.stdout)["notes"][-2:]
    assert re.search(r"memory: cpu \(.+ free\) holds the live model \(.+\), base \(.+\), experts \(.+\)$", memory)
    assert re.fullmatch(r"merging a candidate: task_arithmetic under 0.1 s", time)
    content = yaml.safe_load(study.read_text())
    content["merge"] |= {"method": ["ties", "isotropic"]}
    content["merge"]["space"] |= {"density": [0.2, 1]}
    content["backend"]["max_memory"] = "10kB"
    study.write_text(yaml.safe_dump(content))
    streamed = CliRunner().invoke(cli, ["check", str(study)])
    assert "stay on disk and are read for every merge" in streamed.output
    assert re.search(
        r"merging a candidate: ties under 0.1 s; isotropic: 'mergefront bench' measures it", streamed.output
    )
    content["backend"]["max_memory"] = "plenty"
    study.write_text(yaml.safe_dump(content))
    refused = CliRunner().invoke(cli, ["check", str(study)])
    assert "backend.max_memory: 'plenty' is no size; write it as 24GB, 24GiB or 500MB" in refused.output


def test_models_elsewhere_are_not_measured(tmp_path: Path) -> None:
    """A server would be paid for it."""
    (tmp_path / "score.py").write_text("def score(recipe):\n    return {'x': 0.0}\n")
    content = {
        "study": "far", "merge": {"method": "linear", "models": ["a", "b"], "space": {"weight": [0, 1]}},
        "backend": {"type": "function", "call": "score:score"}, "objectives": [{"name": "x", "direction": "maximize"}],
    }  # fmt: skip
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="asked elsewhere"):
        bench(check_study(path))
