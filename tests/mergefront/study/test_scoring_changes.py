"""Stored studies that would now be scored differently are refused, and the others go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergefront.optimizer.errors import UserError
from mergefront.study.rules import changes_since


@pytest.mark.parametrize(
    ("dtype", "lora", "refused"),
    [(torch.bfloat16, True, True), (torch.bfloat16, False, False), (torch.float32, True, False)],
)
def test_a_study_that_rounded_task_vectors_of_loras_is_refused(
    tmp_path: Path, dtype: torch.dtype, lora: bool, refused: bool
) -> None:
    (tmp_path / "base").mkdir()
    save_file({"model.norm.weight": torch.ones(4, dtype=dtype)}, tmp_path / "base" / "model.safetensors")
    (tmp_path / "expert").mkdir()
    if lora:
        (tmp_path / "expert" / "adapter_config.json").write_text(json.dumps({"r": 2}))
    stored = {
        "scoring": 1,
        "space": {"base_model": "base", "models": {"x": "expert"}, "granularity": "global"},
        "evaluator": {"type": "local"},
        "sampler": {"name": "sobol"},
    }
    if refused:
        with pytest.raises(UserError, match="LoRAs were rounded to bfloat16"):
            changes_since("s", stored, tmp_path)
    else:
        assert changes_since("s", stored, tmp_path) == []


@pytest.mark.parametrize(("granularity", "refused"), [({"blocks": 2}, True), ("global", False)])
def test_a_study_whose_final_norm_changes_blocks_is_refused(tmp_path: Path, granularity: object, refused: bool) -> None:
    (tmp_path / "base").mkdir()
    save_file({"model.embedding_norm.weight": torch.ones(4)}, tmp_path / "base" / "model.safetensors")
    stored = {
        "scoring": 1,
        "space": {"base_model": "base", "models": {"x": "base"}, "granularity": granularity},
        "evaluator": {"type": "local"},
        "sampler": {"name": "sobol"},
    }
    if refused:
        with pytest.raises(UserError, match="embedding_norm"):
            changes_since("s", stored, tmp_path)
    else:
        assert changes_since("s", stored, tmp_path) == []
