"""Which model a server has under a name: a new study scores the one that is there, a study that goes on keeps its
answers and says when the model is another by now."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import mergefront as mf
from mergefront.adapters.hub.places import ModelPlaces
from mergefront.adapters.language_model import GenerationRequest
from mergefront.adapters.remote.backend_types import make_backend, read_settings
from mergefront.adapters.remote.http.cache import MemoryCache, request_key
from mergefront.adapters.remote.identity import Identity, Recognition, same_answers
from mergefront.optimizer.errors import StudyFileError, UserError
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.search.attributes import WARM_START
from mergefront.storage.database import Database
from mergefront.storage.studies import load, update
from mergefront.study.check import check_study

sys.path.insert(0, str(Path(__file__).parent / "http"))
from servers import Answer, Received, as_json, serve


class Endpoint:
    """A chat endpoint of two models that know one answer; ``asked`` has the items that it was asked."""

    def __init__(self, says: str = "Paris") -> None:
        self.says = says
        self.asked: list[str] = []
        self.is_down = False

    def __call__(self, request: Received) -> Answer:
        if self.is_down:
            return as_json({"error": {"message": "gone"}}, 404)
        prompt = request.json["messages"][-1]["content"]
        if prompt.startswith("Item"):
            self.asked.append(prompt)
        message = {"content": self.says}
        usage = {"prompt_tokens": 3, "completion_tokens": 1}
        return as_json({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})


def study_file(
    folder: Path,
    url: str,
    name: str = "closed",
    evaluations: int = 5,
    models: tuple[str, str] = ("a", "b"),
    **more: Any,
) -> Path:
    (folder / "rows.jsonl").write_text("".join(f'{{"prompt": "Item {n}?", "answer": "Paris"}}\n' for n in range(3)))
    members = {
        name: {"url": url, "model": f"model-{served}", "attempts": 1} for name, served in zip(models, "ab", strict=True)
    }
    content = {
        "study": name,
        "storage": "sqlite:///study.db",
        "merge": {"method": "task_arithmetic", "models": list(models), "space": {"weight": [0, 1]}},
        "backend": {"type": "ensemble", "members": members},
        "tasks": {"t": {"type": "jsonl", "path": "rows.jsonl", "metric": "exact_match", "report_fraction": 0}},
        "objectives": ["t"],
        "search": {"sampler": "random", "evaluations": evaluations},
        **more,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def expert(study: mf.Study) -> float:
    return next(one.scores["t"] for one in study.anchors() if str(one.anchor).startswith("expert"))


def storage(folder: Path) -> str:
    return f"sqlite:///{folder / 'study.db'}"


def test_a_new_study_scores_the_model_that_is_there(tmp_path: Path) -> None:
    """The front of a model that was replaced was handed out as the new one's, from answers of the old."""
    endpoint = Endpoint()
    with serve(endpoint) as server:
        assert expert(mf.run(study_file(tmp_path, server.url))) == 1.0
        endpoint.says = "Rome"
        assert expert(mf.run(study_file(tmp_path, server.url, "later"))) == 0.0
        endpoint.says = "Paris"
        asked = len(endpoint.asked)
        assert asked == 2 * 2 * 3
        assert expert(mf.run(study_file(tmp_path, server.url, "again"))) == 1.0
        assert len(endpoint.asked) == asked, "answers of the same model are paid for once"
        endpoint.says = "Oslo"
        assert expert(mf.run(study_file(tmp_path, server.url, "renamed", models=("c", "d")))) == 0.0


def test_a_warm_start_takes_no_scores_of_another_model_over(tmp_path: Path) -> None:
    endpoint = Endpoint()
    with serve(endpoint) as server:
        mf.run(study_file(tmp_path, server.url))
        again = mf.run(study_file(tmp_path, server.url, "again", warm_start=[{"study": "closed"}]))
        assert any(WARM_START in trial.user_attrs for trial in again.optuna.trials)
        endpoint.says = "Rome"
        later = mf.run(study_file(tmp_path, server.url, "later", warm_start=[{"study": "closed"}]))
        assert expert(later) == 0.0
        assert not any(WARM_START in trial.user_attrs for trial in later.optuna.trials)


def test_a_study_that_goes_on_keeps_its_answers_and_says_that_the_model_is_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Resumed at another price, or mixed of two models without a word."""
    endpoint = Endpoint()
    with serve(endpoint) as server, serve(endpoint) as moved:
        mf.run(study_file(tmp_path, server.url))
        asked = len(endpoint.asked)
        caplog.set_level(logging.WARNING, "mergefront")
        assert mf.resume("closed", storage=storage(tmp_path), evaluations=6).finished_count() == 6
        mf.run(study_file(tmp_path, moved.url, evaluations=7))
        assert "otherwise" not in caplog.text, "the same model, also at another address, is no news"
        endpoint.says = "Rome"
        assert any("answer otherwise" in note for note in check_study(tmp_path / "closed.yaml").notes)
        study = mf.resume("closed", storage=storage(tmp_path), evaluations=8)
        assert "a at" in caplog.text and "answers otherwise than when the study began" in caplog.text
        assert len(endpoint.asked) == asked and expert(study) == 1.0
        caplog.clear()
        endpoint.is_down = True
        assert mf.resume("closed", storage=storage(tmp_path), evaluations=9).finished_count() == 9
        assert "it is not known whether" in caplog.text


def test_a_study_of_an_earlier_version_keeps_the_key_of_its_answers(tmp_path: Path) -> None:
    """An upgrade would pay for every answer again."""
    endpoint = Endpoint()
    with serve(endpoint) as server:
        path = study_file(tmp_path, server.url)
        mf.run(path)
        database = Database(storage(tmp_path))
        record = load(database, "closed")
        assert set(record.definition["served"]) == {"a", "b"}
        old = {key: value for key, value in record.definition.items() if key != "served"}
        update(database, record, definition={**old, "scoring": 2})
        database.close()
        asked = len(endpoint.asked)
        for evaluations in (6, 7):
            mf.resume("closed", storage=storage(tmp_path), evaluations=evaluations)
        assert len(endpoint.asked) == 2 * asked, "asked under the old key once, since the new one was another"
        space = MergeSpace(["a", "b"], method="task_arithmetic", parameters={"weight": [0, 1]})
        settings = read_settings(yaml.safe_load(path.read_text())["backend"])
        cache = MemoryCache()
        backend = make_backend(settings, space, ModelPlaces(tmp_path), cache, known={})
        with backend.apply(space.recipe({"weight[a]": 1.0, "weight[b]": 0.0})) as model:
            model.generate([GenerationRequest("Item 0?", 32, ("\n",))])
        backend.close()
        assert cache.spent(f"openai {server.url}")[0] == 2


def test_a_pool_of_another_content_is_refused_when_a_study_goes_on(tmp_path: Path) -> None:
    digest = ["d1"]

    def service(_: Received) -> Answer:
        return as_json({"session_id": "s", "models": ["a"], "pool_digest": digest[0]})

    space = MergeSpace(["a"], method="task_arithmetic", parameters={"weight": [0, 1]})
    with serve(service) as server:
        settings = read_settings({"type": "merge_service", "url": server.url, "pool": "p"})

        def served(known: Any) -> Any:
            backend = make_backend(settings, space, ModelPlaces(tmp_path), MemoryCache(), known)
            backend.close()
            return backend.recognition.served

        begun = json.loads(json.dumps(served(None)))
        assert served(begun) == begun
        digest[0] = "d2"
        assert served({}) == {}, "a study that kept nothing goes on"
        with pytest.raises(UserError, match="pool 'p' has changed"):
            served(begun)


def test_a_model_that_is_not_there_is_named_for_each_member(tmp_path: Path) -> None:
    endpoint = Endpoint()
    endpoint.is_down = True
    with serve(endpoint) as server, pytest.raises(StudyFileError) as raised:
        mf.run(study_file(tmp_path, server.url))
    assert len(raised.value.problems) == 2
    assert all(f"model-{name}" in line for name, line in zip("ab", raised.value.problems, strict=True))


def test_an_address_where_nobody_answers_is_tried_once(tmp_path: Path) -> None:
    """Each model of a server that is down would be waited for, a minute and a half each."""
    with pytest.raises(StudyFileError) as raised:
        mf.run(study_file(tmp_path, "http://127.0.0.1:9/v1"))
    (problem,) = raised.value.problems
    assert "model-a" in problem and "ConnectError" in problem


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (["Paris"], ["Paris"], True),
        (["Paris"], ["Rome"], False),
        (["Paris"], ["Paris", "Rome"], False),
        ([-1.0, [-2.0]], [-1.01, [-2.015]], True),
        ([-1.0, [-2.0]], [-1.0, [-2.1]], False),
        ([{"5": -0.1, "6": -3.0}], [{"6": -3.01, "5": -0.1}], True),
        ([{"5": -0.1, "6": -3.0}], [{"5": -3.0, "6": -0.1}], False),
        ([-1.0], ["-1.0"], False),
    ],
)
def test_answers_are_one_models_up_to_the_noise_of_a_server(one: Any, two: Any, same: bool) -> None:
    assert same_answers(one, two) == same_answers(two, one) == same


def test_what_earlier_versions_kept_of_a_llama_cpp_server_is_found_again() -> None:
    """An upgrade would pay for every answer again, or take those of another file under an old name."""
    cache = MemoryCache()
    cache.keep(request_key("x", "FINGERPRINT", "0", None), "x", json.dumps([{"5": -0.1, "6": -3.0}]), (0, 0, 0))
    same, other = [{"6": -3.01, "5": -0.1}], [{"5": -2.0, "6": -3.0}]
    for answers, number in ((same, 0), (other, 1), (same, 0), (other, 1)):
        found = Recognition({}).identify("", "x", cache, lambda answers=answers: answers, always=True)
        assert found == Identity("x", number)
    assert Recognition({}).identify("", "x", cache, lambda: pytest.fail("asked for nothing")) == Identity("x", None)


def test_a_study_that_goes_on_keeps_its_number_though_the_model_is_another(caplog: pytest.LogCaptureFixture) -> None:
    cache = MemoryCache()
    begun = Recognition(None)
    assert begun.identify("", "x", cache, lambda: [-1.0]).number == 0
    assert Recognition(begun.served).identify("", "x", cache, lambda: [-1.01]).number == 0
    assert not caplog.records
    assert Recognition(begun.served).identify("", "x", cache, lambda: [-2.0]).number == 0
    assert "the model at x answers otherwise" in caplog.text
    assert Recognition(None).identify("", "x", cache, lambda: [-2.0]).number == 1
