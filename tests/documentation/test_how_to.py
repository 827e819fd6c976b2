"""Every block of the how-to and reference pages runs, or is what a command reads; the rest says why it was not run.

Study files are checked in full against tiny models, LoRAs and data under the pages' own names. Those that name
endpoints, a GPU or data of the Hub are read, which refuses every unknown key and every value of a wrong kind.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
import yaml
from click.testing import CliRunner
from page_blocks import ROOT, all_blocks, blocks
from ports import free_port

import mergefront as mf
from mergefront.cli.application import cli
from mergefront.serving.pool_file import read_pool_file
from mergefront.study.check import check_study
from mergefront.study.study_file import read_study_file

pytest.importorskip("transformers", reason="needs the extra 'local'")

WRITTEN = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
PAGES = [page for page in WRITTEN if page.startswith(("docs/how-to/", "docs/reference/"))]
OTHERS = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/smollm/README.md", "examples/api_only/README.md"]
TESTED_ELSEWHERE = ("README.md", "docs/tutorials/", "docs/contributing/")
REASONS = {
    "installs packages": 2, "sets up and tests this checkout": 2, "minutes to hours": 5, "needs mergekit": 1,
    "needs a GPU": 1, "needs GPUs": 1, "needs PostgreSQL": 1, "needs a Ray cluster": 1, "a server that stays": 1,
    "changes the reader's shell": 1,
}  # fmt: skip
"""Why blocks are not run, and how many."""
READ_ONLY = {
    "docs/how-to/judges.md": "a paid endpoint",
    "docs/how-to/lm-eval.md": "data of the Hub",
    "docs/how-to/mixtures-and-towers.md": "models with towers",
    "docs/how-to/remote-models.md": "endpoints",
    "docs/how-to/tasks.md": "data of the Hub",
    "docs/how-to/vllm.md": "a GPU",
}
"""Study files of these pages need what is not here."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, random_model: Callable[..., Any]) -> Path:
    """Tiny models, LoRAs, encoders and data under the names that the pages use."""
    import peft
    import torch
    from tiny_encoders import make_encoder, make_word_pieces, save
    from tiny_models import move

    folder = tmp_path_factory.mktemp("desk")
    base = random_model(num_hidden_layers=4, max_position_embeddings=1024)
    for seed, name in enumerate(("base", "maths", "french")):
        move(base, seed)
        save(base, tokenizer, folder / "models" / name)
        template = (
            "{% for m in messages %}{{ m.content }} {% endfor %}{% if enable_thinking %}<think>{% endif %}Answer:"
        )
        (folder / "models" / name / "chat_template.jinja").write_text(template)
    settings = peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    for name in ("maths", "french", "finnish", "sorting"):
        model = peft.get_peft_model(random_model(num_hidden_layers=4, max_position_embeddings=1024), settings)
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.constant_(parameter, 0.01 * len(name))
        model.save_pretrained(folder / "loras" / name)
    for seed, name in enumerate(("base", "law", "medicine")):
        save(make_encoder("BertModel", seed), make_word_pieces(), folder / "encoders" / name)
    (folder / "data").mkdir()
    for name in ("maths", "french", "french_report", "logic"):
        lines = [{"prompt": f"{name} {k} + 4 =", "choices": [str(k + 4), "no"], "answer": str(k + 4)} for k in range(6)]
        (folder / "data" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name in ("law", "medicine"):
        pairs = [{"question": f"{name} {word}", "passage": f"the {word}"} for word in ("cat", "dog", "sun", "sea")]
        (folder / "data" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return folder


@pytest.fixture
def here(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own with everything of ``desk`` in it, and the working directory."""
    for path in desk.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def study_files(page: str) -> list[dict[str, Any]]:
    """The page's study files; a part of one is completed with models, a task and a budget."""
    found = []
    for text in blocks(page, "yaml"):
        content = yaml.safe_load(f"tasks:\n{text}" if text.startswith("  ") else text)
        if content and not {"pool", "merge_method"} & content.keys():
            models = {"maths": "models/maths", "french": "models/french"}
            tasks = {"maths": {"type": "jsonl", "path": "data/maths.jsonl", "metric": "numeric"}}
            merge = {"method": "task_arithmetic", "base_model": "models/base", "models": models}
            whole = {"study": "page", "merge": merge, "tasks": tasks, "search": {"evaluations": 9}} | content
            found.append({"objectives": list(whole["tasks"]), **whole})
    return found


@pytest.mark.parametrize("page", [*WRITTEN, *OTHERS])
def test_every_block_names_its_language_and_has_a_test(page: str) -> None:
    found = all_blocks(page)
    assert {one.language for one in found} <= {"bash", "python", "yaml", "json", "text"}
    if page not in PAGES and not page.startswith(TESTED_ELSEWHERE):
        assert all(one.not_run or one.language == "text" for one in found), "say why it is not run, or test it"


def test_blocks_that_no_test_runs_are_few_and_say_why() -> None:
    assert Counter(one.not_run for page in [*WRITTEN, *OTHERS] for one in all_blocks(page) if one.not_run) == REASONS


@pytest.mark.parametrize("page", [page for page in PAGES if study_files(page)])
def test_study_files_are_accepted(page: str, here: Path) -> None:
    if page == "docs/how-to/functions.md":
        (here / "models").unlink()
        (here / "models").symlink_to("encoders")
        (here / "retrieval.py").write_text(blocks(page, "python")[0])
    if "warm_start" in "".join(blocks(page, "yaml")):
        space = mf.MergeSpace(["maths", "french"], method="task_arithmetic", parameters={"weight": [0, 1]})
        mf.search(
            space=space, evaluate=lambda recipe: {"maths": 0.5}, objectives=["maths"], evaluations=3, name="first_try",
            storage="sqlite:///old.db", sampler="random", progress=False,
        )  # fmt: skip
        models = [{"model": f"models/{name}", "parameters": {"weight": 0.4}} for name in ("maths", "french")]
        recipe = {"merge_method": "task_arithmetic", "base_model": "models/base", "models": models}
        (here / "recipes").mkdir()
        (here / "recipes" / "best_so_far.yaml").write_text(yaml.safe_dump(recipe))
    for content in study_files(page):
        if "method_files" in content["merge"]:
            continue  # searched by a test below; a process learns a method once
        path = here / "study.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        problems = read_study_file(path)[1] if page in READ_ONLY else check_study(path).problems
        assert problems == []


def options(command: click.Command) -> set[str]:
    return {name for one in command.params for name in (*one.opts, *one.secondary_opts)}


@pytest.mark.parametrize("page", [*WRITTEN, *OTHERS])
def test_commands_in_sentences_and_blocks_exist_with_their_options(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert isinstance(cli, click.Group)
    inline = re.findall(r"`(mergefront [^`]+)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE))
    shell = "\n".join(one.text for one in all_blocks(page) if one.language == "bash")
    for line in [*inline, *re.findall(r"(?:^|&& |while )(mergefront [^|\n&;#]*)", shell, re.MULTILINE)]:
        _, name, *words = line.split()
        if name.strip("-").islower() and not name.startswith("-"):
            command = cli.get_command(click.Context(cli), name)
            assert command is not None, line
            used = {word.split("=")[0] for word in words if re.match(r"--[a-z]", word)}
            assert used <= {*options(command), "--help"}, line


def test_the_function_of_a_user_scores_encoders(here: Path) -> None:
    page = "docs/how-to/functions.md"
    (program,), (content,) = blocks(page, "python"), study_files(page)
    (here / "retrieval.py").write_text(program)
    (here / "models").unlink()
    (here / "models").symlink_to("encoders")
    content["search"]["evaluations"] = 6
    (here / "study.yaml").write_text(yaml.safe_dump(content))
    study = mf.run("study.yaml", progress=False)
    assert len(study.candidates()) == 6 and set(study.candidates()[0].scores) == {"law", "medicine"}


def test_a_method_of_ones_own_is_searched(here: Path) -> None:
    page = "docs/how-to/merge-settings.md"
    (program,), content = blocks(page, "python"), study_files(page)[1]
    (here / "own.py").write_text(program)
    content |= {"search": {"evaluations": 6, "sampler": "random"}, "backend": {"type": "local", "device": "cpu"}}
    (here / "study.yaml").write_text(yaml.safe_dump(content))
    assert {one.recipe.method for one in mf.run("study.yaml", progress=False).candidates()[-1:]} == {"part_way"}


def test_a_mixture_is_made_smaller(here: Path) -> None:
    from tiny_models import TinyModel
    from transformers import AutoConfig

    (config, *_) = blocks("docs/how-to/mixtures-and-towers.md", "yaml")
    (here / "small.yaml").write_text(config.replace("keep: 4", "keep: 2").replace("models/mixture", "mixture"))
    (here / "prompts.jsonl").write_text('{"text": "a b c d e f"}\n{"prompt": "a b", "answer": "c d"}\n')
    vocabulary = AutoConfig.from_pretrained(here / "models" / "base").vocab_size
    TinyModel("qwen3_moe").make(vocab_size=vocabulary).save_pretrained(here / "mixture")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (here / "mixture" / name).write_bytes((here / "models" / "base" / name).read_bytes())
    done = CliRunner().invoke(cli, ["merge", "small.yaml", "out"])
    assert done.exit_code == 0, done.output
    assert AutoConfig.from_pretrained(here / "out").num_experts == 2


@pytest.mark.long
def test_the_commands_of_a_comparison_run(here: Path) -> None:
    (commands,) = blocks("docs/how-to/compare-methods.md", "bash")
    content = study_files("docs/how-to/racing.md")[0] | {"backend": {"type": "local", "device": "cpu"}, "racing": False}
    content["merge"]["models"]["both"] = "loras/french"
    (here / "study.yaml").write_text(yaml.safe_dump(content))
    for line in commands.splitlines():
        done = CliRunner().invoke(cli, line.split()[1:])
        assert done.exit_code == 0, f"{line}\n{done.output}"


@pytest.mark.long
def test_a_pool_is_served_to_its_clients(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, port = "docs/how-to/serve-a-pool.md", str(free_port())
    (pool,) = blocks(page, "yaml")
    (here / "pool.yaml").write_text(pool.replace("8280", port).replace("base_model: base", "base_model: models/base"))
    (here / "secrets").mkdir()
    (here / "secrets" / "bob.token").write_text("b" * 40)
    assert read_pool_file(here / "pool.yaml").pool == "skills"
    monkeypatch.setenv("ALICE_TOKEN", "a" * 40)
    (program,), (serve, curl) = blocks(page, "python"), blocks(page, "bash")
    assert serve.splitlines()[-1] == "mergefront serve pool.yaml"
    server = subprocess.Popen([sys.executable, "-m", "mergefront", "serve", "pool.yaml"], stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                httpx.get(f"http://127.0.0.1:{port}/v1/health")
                break
            except httpx.TransportError:
                assert server.poll() is None, "the service ended"
                time.sleep(0.2)
        exec(compile(program.replace("8280", port), page, "exec"), {})
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(["bash", "-ec", curl.replace("8280", port)], capture_output=True, text=True,
                              env={**os.environ, "PATH": programs}, timeout=120)  # fmt: skip
        assert '"choices"' in done.stdout, done.stdout + done.stderr
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
