"""Models with recurrent states answer as transformers has them answer, whatever else is asked with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mergefront.adapters.language_model import GenerationRequest, ScoringRequest
from mergefront.adapters.local.model import HuggingFaceModel
from mergefront.optimizer.errors import EvaluationError

LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_hidden_layers": 4,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
KINDS: dict[str, dict[str, Any]] = {
    "Mamba": {"state_size": 8},
    "Mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 8},
    "RecurrentGemma": {"attention_window_size": 8, "lru_width": 32, "num_hidden_layers": 3, "head_dim": 8},
    "FalconH1": {**MAMBA, "mamba_d_ssm": 32, "mamba_n_heads": 4},
    "Qwen3Next": {**LINEAR, **EXPERTS, "head_dim": 8, "shared_expert_intermediate_size": 16},
    "OlmoHybrid": LINEAR,
    "Lfm2": {"full_attn_idxs": [1], "block_multiple_of": 8},
    "Jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 4,
        "mamba_d_state": 8,
        "use_mamba_kernels": False,
    },
    "Bamba": {**MAMBA, "attn_layer_indices": [1]},
    "GraniteMoeHybrid": {
        **MAMBA,
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 32,
    },
    "NemotronH": {
        "layers_block_type": ["mamba", "attention", "moe"],
        "num_hidden_layers": 3,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 1,
        "ssm_state_size": 8,
        "chunk_size": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 16,
        "head_dim": 8,
    },
    "MiniMax": {
        "layer_types": ["linear_attention", "full_attention"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "block_size": 8,
        "head_dim": 8,
    },
}
PROMPTS = ["Sort 23 43 83 44 38:", "A", "B", "Question: what is two plus two? Answer:", "naïve", "Write 425"]
CHOICES = [" four", " five hundred of them", " 23 38"]


@pytest.mark.parametrize("kind", KINDS)
def test_choices_and_answers_are_those_of_transformers(
    random_model: Callable[..., Any], tokenizer: Any, kind: str
) -> None:
    """Padding would go into a state, and such a state cannot be cut into rows as keys and values can."""
    model = random_model(kind, **KINDS[kind])
    asked = HuggingFaceModel(model, tokenizer, max_length=64)
    answers = asked.generate([GenerationRequest(prompt, 12) for prompt in PROMPTS])
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        tokens = torch.tensor([tokenizer.encode(prompt)])
        settings = {"do_sample": False, "pad_token_id": 0, "use_cache": tokens.shape[1] > 1}
        whole = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=12, **settings)
        reference = whole[0, tokens.shape[1] :]
        assert (answer.text, answer.tokens) == (
            tokenizer.decode(reference, skip_special_tokens=True),
            len(reference),
        )
    pairs = [(prompt, choice) for prompt in PROMPTS for choice in CHOICES]
    for (prompt, choice), score in zip(
        pairs, asked.loglikelihood([ScoringRequest(*pair) for pair in pairs]), strict=True
    ):
        context, tokens = tokenizer.encode(prompt), tokenizer.encode(prompt + choice)
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1)
        rows, targets = logprobs[len(context) - 1 : -1], torch.tensor(tokens[len(context) :])
        assert score.logprob == pytest.approx(float(rows.gather(1, targets[:, None]).sum()), abs=1e-4)
        assert score.is_greedy == bool((rows.argmax(1) == targets).all())


def test_an_answer_does_not_depend_on_what_was_asked_before(random_model: Callable[..., Any], tokenizer: Any) -> None:
    """RecurrentGemma keeps its states in its layers."""
    asked = HuggingFaceModel(random_model("RecurrentGemma", **KINDS["RecurrentGemma"]), tokenizer)
    first = asked.generate([GenerationRequest("B", 12)])
    asked.generate([GenerationRequest(PROMPTS[0], 12)])
    assert asked.generate([GenerationRequest("B", 12)]) == first


def test_a_recurrent_model_stops_at_stop_strings_and_end_tokens(
    random_model: Callable[..., Any], tokenizer: Any
) -> None:
    model = random_model("Mamba2", **KINDS["Mamba2"])
    asked = HuggingFaceModel(model, tokenizer, max_length=64)
    free = asked.generate([GenerationRequest(prompt, 12) for prompt in PROMPTS])
    stopped = asked.generate(
        [GenerationRequest(prompt, 12, (said.text[2:4],)) for prompt, said in zip(PROMPTS, free, strict=True)]
    )
    for said, cut in zip(free, stopped, strict=True):
        assert (cut.text, cut.finish) == (said.text[: said.text.index(said.text[2:4])], "stop")
    model.generation_config.eos_token_id = tokenizer.encode(free[0].text)[0]
    (ended,) = HuggingFaceModel(model, tokenizer, max_length=64).generate([GenerationRequest(PROMPTS[0], 12)])
    assert (ended.tokens, ended.finish) == (1, "stop")


def test_a_recurrent_model_whose_weights_are_no_numbers_is_a_failed_candidate(
    random_model: Callable[..., Any], tokenizer: Any
) -> None:
    model = random_model("Mamba", **KINDS["Mamba"])
    with torch.no_grad():
        model.backbone.norm_f.weight.fill_(float("nan"))
    with pytest.raises(EvaluationError) as failure:
        HuggingFaceModel(model, tokenizer).generate([GenerationRequest("A", 4)])
    assert failure.value.kind == "not finite"
