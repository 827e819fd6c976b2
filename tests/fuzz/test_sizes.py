"""Texts of strangers cost time in proportion to their length, whatever stands in them; nothing hangs a command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mergefront.adapters.checkpoints.lora_settings import ModulePatterns
from mergefront.adapters.tasks.lm_eval.files import task_files

MANY_TIMES_TOO_LONG = 60
"""Seconds: each of these takes well under one, and took minutes to ages before it was bounded."""

SECRETS = """
from mergefront.optimizer.foreign_text import without_secrets
for unit in ("a", "sk-", "://", "://a:", "a:/", "bearer ", "bearer", "\\t", "hf_a", "@", "a://b:c"):
    without_secrets(unit * (1_000_000 // len(unit)))
"""
YAML = """
from mergefront.optimizer.errors import StudyFileError
from mergefront.optimizer.yaml_file import load_yaml
for text in ("a: 1" + ":59" * 300_000, "a: 1" + ":59" * 300_000 + ".5", "a: " + "9" * 900_000, "0x" + "f" * 900_000):
    try:
        load_yaml(text, "study.yaml")
    except StudyFileError as error:
        assert "a number of" in str(error) and len(str(error)) < 200
    else:
        raise AssertionError(text[:10])
"""
PATTERNS = """
from mergefront.adapters.checkpoints.lora_settings import ModulePatterns
name = "a" * 900 + "!"
for pattern in (
    "(a+)+b", "(a|a)*b", "(?:a|aa)+b", ".*.*.*.*.*.*.*.*b", "(a|a)" * 100 + "b", "a*" * 400 + "b", "a?" * 400 + "b" * 9,
    "(((((a*)*)*)*)*)*b", "((((a{0,99}){0,99}){0,99}){0,99}){0,99}b", "(((((((((a?){999}){999}){999}){999}))))){999}",
    "(" * 20 + "a*" + ")*" * 20,
):
    try:
        ModulePatterns({pattern: 2}).value(name, 1)
    except ValueError as error:
        assert "too much work" in str(error), error
for patterns in ({f"{at}.*": 2 for at in range(3000)}, {f"m.{at}": 2 for at in range(20_000)}):
    try:
        made = ModulePatterns(patterns)
        for at in range(20_000):
            made.value(f"model.m.{at}", 1)
    except ValueError as error:
        assert "too much work" in str(error), error
"""


@pytest.mark.long
@pytest.mark.parametrize("program", [SECRETS, YAML, PATTERNS], ids=["secrets", "yaml", "patterns"])
def test_long_texts_end(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=MANY_TIMES_TOO_LONG, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_aliases_of_aliases_are_read_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [one, two]", *(f"a{at}: &a{at} [*a{at - 1}, *a{at - 1}]" for at in range(1, 60))]
    text = "\n".join([*lines, "itself: &own [*own]", "dataset_kwargs: {data_files: *a59}", ""])
    (tmp_path / "task.yaml").write_text(text)
    assert task_files("task.yaml", tmp_path) == ["task.yaml"]


PARTS = st.recursive(
    st.sampled_from(["a", "b", "layers", r"\.", ".", "[ab]", "[^a.]", r"\d", r"\w", "0", "^", "$", "-"]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{1,}", "{,2}", "*?"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=6,
)


@example("..", "0l")
@example("a.b", "axb")
@example(r"a\.b", "axb")
@given(PARTS, st.text("ab.0-", max_size=9).map(lambda text: text + "layers"[: len(text) % 7]))
def test_patterns_match_what_peft_matches(pattern: str, module: str) -> None:
    """peft matches with Python's expressions; these patterns are short enough for them."""
    expected = re.match(rf"(.*\.)?({pattern})$", module) is not None
    assert (ModulePatterns({pattern: 2}).value(module, 1) == 2) == expected


NOT_PLAIN = (
    "(", ")", "a)", "(a", "*", "a**", "a{3", "[z-a]", "[", "\\", r"\1", r"(a)\1", "(?=a)", "(?i)a", "(?P<n>a)",
    "x" * 1001, "(" * 30 + "a" + ")" * 30,
)  # fmt: skip


@pytest.mark.parametrize("pattern", NOT_PLAIN)
def test_what_is_no_plain_expression_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"write the modules' names instead|longer than 1000"):
        ModulePatterns({pattern: 2})


def test_the_first_of_several_patterns_counts() -> None:
    patterns = ModulePatterns({"proj": 1, "k_proj": 2, r".*\.q_proj": 3, "q_proj": 4, "q.proj": 5, "o.proj": 6})
    found = [patterns.value(f"model.layers.0.{name}", 9) for name in ("proj", "k_proj", "q_proj", "o_proj", "v_proj")]
    assert found == [1, 2, 3, 6, 9]


def test_a_layers_number_of_thousands_of_digits_is_no_layer() -> None:
    """int() refuses such a text, and a stranger's header may hold it."""
    from mergefront.adapters.checkpoints.names import is_prediction_layer
    from mergefront.optimizer.recipes.grouping import layer_of

    name = f"model.layers.{'9' * 5000}.mlp.weight"
    assert layer_of(name) is None and layer_of("model.layers.12.mlp.weight") == 12
    assert not is_prediction_layer(name, {"num_nextn_predict_layers": 1, "num_hidden_layers": 2})
