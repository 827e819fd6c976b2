"""Read wrongly between its nodes, the recorded landscape would rank samplers on merges that are none."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from benchmarks.search.problems import PROBLEMS, SMOLLM
from benchmarks.search.recorded_landscape import RecordedLandscape

AXES = {"a": (0.0, 0.5, 1.0), "b": (0.0, 0.25, 1.0), "c": (0.0, 1.0)}
ITEMS = {"reading": ("r0", "r1"), "counting": ("c0", "c1", "c2")}


@pytest.fixture
def landscape() -> RecordedLandscape:
    margins = np.random.default_rng(0).normal(size=(3, 3, 2, 5)).astype(np.float16)
    return RecordedLandscape(AXES, ITEMS, margins, {"what": "random numbers"})


def test_a_node_has_the_margins_and_scores_that_were_measured(landscape: RecordedLandscape) -> None:
    for node in np.ndindex(3, 3, 2):
        point = {name: nodes[place] for (name, nodes), place in zip(AXES.items(), node, strict=True)}
        found = landscape.at(point)
        assert np.concatenate(list(found.values())).tolist() == landscape.margins[node].tolist()
        assert landscape.scores(point)["counting"] == (landscape.margins[node][2:] > 0).mean()


def test_between_nodes_a_margin_lies_between_its_neighbours_and_is_linear_along_an_axis(
    landscape: RecordedLandscape,
) -> None:
    margins = landscape.margins.astype(float)
    middle = np.concatenate(list(landscape.at({"a": 0.75, "b": 0.625, "c": 0.5}).values()))
    np.testing.assert_allclose(middle, margins[1:, 1:].reshape(8, 5).mean(0))
    quarter = np.concatenate(list(landscape.at({"a": 0.5, "b": 0.25, "c": 0.25}).values()))
    np.testing.assert_allclose(quarter, 0.75 * margins[1, 1, 0] + 0.25 * margins[1, 1, 1])
    for point in np.random.default_rng(1).uniform(size=(20, 3)):
        found = np.concatenate(list(landscape.at(dict(zip(AXES, point, strict=True))).values()))
        corners = margins[int(point[0] >= 0.5) :, int(point[1] >= 0.25) :][:2, :2].reshape(8, 5)
        assert (corners.min(0) - 1e-12 <= found).all() and (found <= corners.max(0) + 1e-12).all()


def test_nothing_is_said_of_what_was_not_measured(landscape: RecordedLandscape) -> None:
    with pytest.raises(ValueError, match=r"a is 1\.2; the landscape was recorded from 0\.0 to 1\.0"):
        landscape.at({"a": 1.2, "b": 0.0, "c": 0.0})


def test_what_is_saved_comes_back(landscape: RecordedLandscape, tmp_path: Path) -> None:
    landscape.save(tmp_path / "landscape.npz")
    read = RecordedLandscape.read(tmp_path / "landscape.npz")
    assert (read.axes, read.items, read.header) == (AXES, ITEMS, {"what": "random numbers"})
    assert np.array_equal(read.margins, landscape.margins)


@pytest.mark.parametrize("name", SMOLLM)
def test_the_problem_tells_a_sampler_the_recorded_items(name: str, tmp_path: Path) -> None:
    landscape, skills = RecordedLandscape.read(SMOLLM[name].landscape), SMOLLM[name].skills
    problem = PROBLEMS[name](tmp_path)
    assert (problem.name, tuple(landscape.axes)) == (name, skills)
    weights = dict(zip(skills, (1.0, 0.6, 0.4), strict=True))
    scored = problem.evaluate(problem.space.recipe({f"weight[{skill}]": w for skill, w in weights.items()}), 0, 0)
    node = landscape.margins[tuple(landscape.axes[skill].index(weight) for skill, weight in weights.items())]
    told = [margin for skill in weights for margin in scored.told.items[skill].margins or ()]
    assert told == node.astype(float).tolist()
    assert scored.told.items[skills[1]].ids == landscape.items[skills[1]]
    assert scored.true == tuple(scored.told.scores.values()) == tuple((node.reshape(3, -1) > 0).mean(1))


def test_a_margin_is_above_zero_exactly_when_greedy_generation_writes_the_answer() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.search.answer_margins import Reference, answer_margins

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                initializer_range=0.3,
            )
        ).eval()  # fmt: skip
    prompts = [(3, 7, 1), (12, 4, 9, 30, 2), (5,)]
    written = []
    for prompt in prompts:
        made = model.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False, eos_token_id=None)
        written.append(tuple(made[0, len(prompt) :].tolist()))
    for prompt, tokens in zip(prompts, written, strict=True):
        *answer, end = tokens
        right = Reference(prompt, tuple(answer))
        wrong = [
            Reference(prompt, tuple((token + (place == at)) % 50 for place, token in enumerate(answer)))
            for at in range(len(answer))
        ]
        assert answer_margins(model, [right], [end, 0])[0] > 0
        assert answer_margins(model, [right], [(end + 1) % 50])[0] < 0
        assert (answer_margins(model, wrong, [end]) < 0).all()
    several = [
        Reference(prompt, tokens[:length]) for prompt, tokens in zip(prompts, written, strict=True) for length in (1, 3)
    ]
    together = answer_margins(model, several, [0], rows=4)
    np.testing.assert_allclose(together, [answer_margins(model, [one], [0])[0] for one in several], rtol=1e-4)


@pytest.mark.parametrize("corner", list(product((0.0, 1.0), repeat=3)))
@pytest.mark.parametrize("name", SMOLLM)
def test_the_whole_space_was_recorded(name: str, corner: tuple[float, float, float]) -> None:
    landscape = RecordedLandscape.read(SMOLLM[name].landscape)
    assert all(0 <= score <= 1 for score in landscape.scores(dict(zip(landscape.axes, corner, strict=True))).values())
