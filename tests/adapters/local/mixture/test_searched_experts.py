"""How many experts each layer keeps is searched: what is scored is what is written, and transformers loads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from small_tokenizer import SENTENCES, make_tokenizer
from tiny_models import TINY_MODELS, move

import mergefront as mf
from mergefront.adapters.checkpoints.header import Checkpoint
from mergefront.adapters.local.mixture.backend import MixtureBackend
from mergefront.cli.application import cli
from mergefront.study.check import check_study

EXPERTS: dict[str, Any] = {
    "method": "subspace", "prompts": "prompts.jsonl", "space": {"keep": [2, 4], "granularity": "layers"},
}  # fmt: skip


def study(folder: Path, kind: str, dtype: torch.dtype = torch.float32, **merge: Any) -> Path:
    """A study file of a tiny mixture of four experts a layer, and all that it names."""
    model = TINY_MODELS[kind].make()
    move(model, 1)
    model.to(dtype).save_pretrained(folder / "mixture")
    make_tokenizer().save_pretrained(folder / "mixture")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES))
    items = [{"prompt": text.split()[0], "answer": " ".join(text.split()[1:])} for text in SENTENCES[:4]]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    made = {
        "study": "fewer",
        "merge": {"method": "merge_experts", "base_model": "mixture", "experts": EXPERTS, **merge},
        "backend": {"type": "local", "device": "cpu"},
        "tasks": {"loss": {"type": "jsonl", "path": "items.jsonl", "metric": "loss", "report_fraction": 0}},
        "objectives": ["loss", "parameters"],
        "search": {"sampler": "random", "evaluations": 6},
    }
    (folder / "study.yaml").write_text(json.dumps(made))
    return folder / "study.yaml"


def keeps(candidate: Any) -> list[int]:
    return [int(value) for name, value in sorted(candidate.params.items()) if name.startswith("keep[")]


@pytest.mark.parametrize(
    ("kind", "dtype"), [("mixtral", torch.float32), ("deepseek_v3", torch.bfloat16), ("lfm2_moe", torch.float32)]
)
def test_a_searched_mixture_is_written_as_it_was_scored_and_loads(
    tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    from transformers import AutoModelForCausalLM

    path = study(tmp_path, kind, dtype)
    found = mf.run(path, progress=False)
    whole = sum(tensor.numel() for tensor in TINY_MODELS[kind].make().parameters())
    by_name = {one.anchor: one for one in found.anchors()}
    assert by_name["base"].scores["parameters"] == whole
    assert by_name["most experts"].scores["loss"] == pytest.approx(by_name["base"].scores["loss"], abs=2e-3)
    uneven = next(one for one in found.candidates() if len(set(keeps(one))) > 1)
    invoked = CliRunner().invoke(
        cli, ["export", "fewer", "--storage", f"sqlite:///{tmp_path}/mergefront.db", "--trial", str(uneven.number),
              "--out", str(tmp_path / "out")]
    )  # fmt: skip
    assert invoked.exit_code == 0 and "equal the merge that was scored" in invoked.output, invoked.output
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=False)
    loaded, told = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True, output_loading_info=True, dtype="auto"
    )
    assert loaded.dtype == dtype
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    assert loaded.num_parameters() == uneven.scores["parameters"] < whole
    kept = [len(module.down_proj) for module in loaded.modules() if hasattr(module, "gate_up_proj")
            and module.down_proj.__class__ is torch.nn.Parameter and module.down_proj.dim() == 3]  # fmt: skip
    assert kept == keeps(uneven)
    tokenizer, losses = make_tokenizer(), []
    for line in (tmp_path / "items.jsonl").read_text().splitlines():
        item = json.loads(line)
        asked = tokenizer(item["prompt"])["input_ids"]
        whole_text = torch.tensor([tokenizer(f"{item['prompt']} {item['answer']}")["input_ids"]])
        with torch.no_grad():
            likely = loaded.float()(whole_text).logits[0].log_softmax(-1)
        places = range(len(asked), whole_text.shape[1])
        losses.append(-sum(float(likely[at - 1, whole_text[0, at]]) for at in places) / len(places))
    assert uneven.scores["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    backend = MixtureBackend(tmp_path / "mixture", tmp_path / "prompts.jsonl", device="cpu")
    with backend.apply(uneven.recipe):
        experts = {name: tensor for name, tensor in backend.model.state_dict().items() if ".experts." in name}
        assert experts and all(torch.equal(tensor, tensor.to(dtype).float()) for tensor in experts.values())
    with backend.apply(by_name["base"].recipe):
        assert backend.parameters == whole
    # The configuration beside it makes the same model once more.
    again = CliRunner().invoke(cli, ["merge", str(tmp_path / "out" / "mergekit_config.yml"), str(tmp_path / "again")])
    assert again.exit_code == 0, again.output
    first, second = Checkpoint(tmp_path / "out"), Checkpoint(tmp_path / "again")
    assert first.header.tensors.keys() == second.header.tensors.keys()
    assert all(torch.equal(first[name], second[name]) for name in first.header.tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": {**EXPERTS, "space": {"keep": [1, 4]}}}, "keep 2 to 4"),
        ({"experts": {**EXPERTS, "space": {"keep": [2, 5]}}}, "keep 2 to 4"),
        ({"experts": {**EXPERTS, "prompts": "none.jsonl"}}, "no such file"),
        ({"experts": {**EXPERTS, "method": "frequencies"}}, "merge.experts.method"),
        ({"experts": None}, "space: {keep"),
        ({"models": {"a": "mixture"}}, "remove models"),
        ({"method": "ties", "models": {"a": "mixture"}}, "only method merge_experts"),
    ],
)
def test_what_no_mixture_can_keep_is_refused_before_anything_runs(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = study(tmp_path, "mixtral", **change)
    checked = CliRunner().invoke(cli, ["check", str(path)])
    assert checked.exit_code == 2 and message in checked.output, checked.output
    assert not (tmp_path / "mergefront.db").exists()


@pytest.mark.parametrize(
    "backend",
    [{"type": "openai", "url": "http://127.0.0.1:9/v1"}, {"type": "external"}, {"type": "function", "call": "x:f"}],
)
def test_another_backend_is_refused_in_one_line(tmp_path: Path, backend: dict[str, Any]) -> None:
    path = study(tmp_path, "mixtral")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"backend": backend}))
    assert check_study(path).problems == [
        f"backend: {backend['type']} cannot merge the experts of a mixture; use backend: {{type: local}}"
    ]
