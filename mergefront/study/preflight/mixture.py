"""Preflight of a study of the experts inside one mixture."""

from __future__ import annotations

from mergefront.optimizer.scores.objectives import PARAMETERS
from mergefront.study.preflight.findings import Findings
from mergefront.study.study_file import LocalBackendSection


def check_mixture(found: Findings) -> None:
    """Whether the base is a mixture of which so many experts can be kept, and what nothing can be done with here."""
    file, experts = found.file, found.file.merge.experts
    if experts is None:
        return
    assert isinstance(file.backend, LocalBackendSection)  # others are refused before
    # The others are of merges that are planned tensor by tensor.
    defaults = LocalBackendSection().model_dump(exclude={"type", "device"})
    unlike = [key for key, value in defaults.items() if file.backend.model_dump()[key] != value]
    if unlike or "," in file.backend.device:
        found.problems.append(
            f"backend: merge_experts holds one model on one device, in its own dtype; remove "
            f"{', '.join(unlike) or 'all devices but one'}"
        )
    if PARAMETERS in file.tasks:
        found.problems.append(f"tasks: {PARAMETERS!r} is what a mixture is left with; give the task another name")
    from mergefront.adapters.checkpoints.header import read_header
    from mergefront.adapters.local.mixture.backend import mixture_layers, read_texts, refuse_counts

    with found.catch("merge.experts.prompts: "):
        read_texts(found.root / experts.prompts, experts.prompts)
    if file.merge.base_model is None:
        return  # said already
    with found.catch("merge: "):
        found.expert_layers, count, sent = mixture_layers(read_header(found.models.folder(file.merge.base_model)))
        searched = experts.as_space()["keep"]
        refuse_counts(searched.get("choices") or [searched["low"], searched["high"]], count, sent)
        found.notes.append(f"{len(found.expert_layers)} layers of {count} experts, of which a token is sent to {sent}")
