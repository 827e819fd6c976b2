"""The whole job without weights on the client's side: `python examples/api_only/run.py [--evaluations N]`.

Starts llama.cpp's server with three LoRAs, runs `mergefront run study.yaml` against it, scores the result
on items that the search never saw, and prints it beside each LoRA alone and the uniform mix.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from llama_cpp_setup.base_gguf import write_base_gguf
from llama_cpp_setup.local_server import ServerOptions, local_server
from llama_cpp_setup.lora_gguf import write_lora_gguf

from mergefront.optimizer.scores.evaluation import EvaluationRequest
from mergefront.study.stored_study import Candidate, Study

HERE = Path(__file__).resolve().parent
SMOLLM = HERE.parent / "smollm"
BUILT = HERE / "built"
LORAS = ("finnish", "french", "sorting")
TASK = "skills"
PORT = 8190


def build() -> tuple[Path, dict[str, Path]]:
    """Base model and LoRAs as GGUF, written once."""
    import tempfile

    sys.path.insert(0, str(SMOLLM))
    from make_base import find_gguf, make_base

    BUILT.mkdir(exist_ok=True)
    base = BUILT / "base-f16.gguf"
    if not base.is_file():
        print("writing the base model as GGUF", file=sys.stderr)
        with tempfile.TemporaryDirectory() as scratch:
            write_base_gguf(make_base(), find_gguf(Path(scratch)), base)
    loras = {}
    for name in LORAS:
        loras[name] = BUILT / f"{name}.gguf"
        if not loras[name].is_file():
            write_lora_gguf(SMOLLM / "loras" / name, SMOLLM / "base", loras[name], "f16")
    return base, loras


def shown(study: Study) -> dict[str, Candidate]:
    """The searched recipe of least loss on the search items, each LoRA alone, the uniform mix, the base."""
    named = {candidate.anchor: candidate for candidate in study.anchors()}
    searched = min((one for one in study.candidates() if one.anchor is None), key=lambda one: one.scores[TASK])
    rows = {"best scales found": searched}
    rows |= {f"{name} alone": named[f"expert {name}"] for name in LORAS}
    return rows | {"uniform mix": named["uniform average"], "base model": named["base"]}


def report(study: Study) -> None:
    """Score those on the report items and print a table."""
    from mergefront.study.evaluators import make_evaluator

    print(f"{'':18} {' '.join(LORAS):24} loss on report items")
    with make_evaluator(study.definition, lambda: study.database) as evaluator:
        for label, candidate in shown(study).items():
            found = evaluator.evaluate(candidate.recipe, EvaluationRequest((TASK,), "report"))
            scales = " ".join(f"{candidate.params[f'weight[{name}]']:+7.2f}" for name in LORAS)
            print(f"{label:18} {scales:24} {found.scores[TASK]:.3f} +- {found.standard_errors[TASK]:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=int, default=None)
    parser.add_argument("--threads", type=int, default=1, help="of the server; more than one only on a quiet machine")
    given = parser.parse_args()
    base, loras = build()
    more = [] if given.evaluations is None else ["--evaluations", str(given.evaluations)]
    with local_server(base, loras, ServerOptions(slots=2, threads=given.threads), port=PORT):
        study_file = str(HERE / "study.yaml")
        subprocess.run([sys.executable, "-m", "mergefront", "run", study_file, *more], check=True)
        import mergefront as mf

        report(mf.load_study("api-only", storage=f"sqlite:///{HERE / 'api_only.db'}"))


if __name__ == "__main__":
    main()
