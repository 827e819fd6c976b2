"""A candidate of a pool of LoRAs: the second merge, after what the first had to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from benchmarks.growth.rows import Row

HIDDEN, INNER, LAYERS, RANK = 576, 1536, 30, 16
"""SmolLM2-135M's layers without its vocabulary: 106 million parameters; a LoRA has 2.2 million in bfloat16, 4.4 MB."""
SHAPES = {
    "q_proj": (HIDDEN, HIDDEN),
    "o_proj": (HIDDEN, HIDDEN),
    "up_proj": (INNER, HIDDEN),
    "down_proj": (HIDDEN, INNER),
}


def pool(url: str, loras: int) -> None:
    """A base and so many LoRAs of it, in the database's folder."""
    import torch
    from safetensors.torch import save_file

    folder, generator = _folder(url), torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * 0.02).bfloat16()

    names = {f"model.layers.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in SHAPES.items()}
    (folder / "base").mkdir(parents=True)
    save_file({f"{name}.weight": normal(*shape) for name, shape in names.items()}, folder / "base/model.safetensors")
    for index in range(loras):
        place = folder / f"lora{index}"
        place.mkdir()
        factors = {}
        for name, (rows, columns) in names.items():
            factors[f"base_model.model.{name}.lora_A.weight"] = normal(RANK, columns)
            factors[f"base_model.model.{name}.lora_B.weight"] = normal(rows, RANK)
        save_file(factors, place / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(SHAPES)}
        (place / "adapter_config.json").write_text(json.dumps(settings))


def _folder(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///")).parent / "pool"


def candidate(method: str) -> Callable[[str], Callable[[], object]]:
    def ready(url: str) -> Callable[[], object]:
        from safetensors.torch import load_file

        import mergefront as mf
        from mergefront.adapters.merging.engine import MergeEngine

        folder = _folder(url)
        loras = sorted(str(path) for path in folder.glob("lora*"))
        names = [Path(path).name for path in loras]
        engine = MergeEngine(folder / "base", dict(zip(names, loras, strict=True)))
        space = mf.MergeSpace(names, method=method, base_model="base")
        state = np.random.default_rng(0)
        live = load_file(folder / "base/model.safetensors")

        def work() -> None:
            params = {name: float(state.uniform(0.2, 0.9)) for name in space.distributions()}
            engine.merge_into(space.recipe(params), live)

        work()
        return work

    return ready


ROWS: Mapping[str, Row] = {
    f"a candidate of LoRAs, {method}": Row(pool, candidate(method), size, of="LoRAs", drawn=drawn)
    for method, size, drawn in (("task_arithmetic", 30, (3, 10, 30)), ("ties", 30, (3, 10, 30)))
}
