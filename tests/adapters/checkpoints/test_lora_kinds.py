"""Every kind of LoRA that peft saves is merged as peft merges it, or refused by the name of what is not."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import IMAGE_TEXT, TINY_MODELS, TinyModel

from mergefront.adapters.checkpoints import lora_settings as tables
from mergefront.adapters.checkpoints.compatibility import compare_headers
from mergefront.adapters.checkpoints.header import read_header
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.adapters.merging.loras.pool import merge_loras
from mergefront.adapters.merging.output.directory import merge_to_directory
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.recipe import Recipe

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 24, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
LLAMA = dict(SIZES, num_attention_heads=2, num_key_value_heads=2, attention_bias=True)
GPT2 = {"vocab_size": 24, "n_embd": 8, "n_inner": 8, "n_layer": 1, "n_head": 2}
WHISPER = {
    "vocab_size": 24, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "num_mel_bins": 4,
    "max_source_positions": 6, "max_target_positions": 6, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip
VISION = {
    "depth": 1,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_heads": 2,
    "out_hidden_size": 8,
    "fullatt_block_indexes": [0],
}
QWEN_VL = {
    "text_config": dict(
        SIZES, num_attention_heads=2, num_key_value_heads=2, rope_scaling={"type": "mrope", "mrope_section": [1, 1, 0]}
    ),
    "vision_config": VISION, "image_token_id": 5, "video_token_id": 6,
    "vision_start_token_id": 7, "vision_end_token_id": 8,
}  # fmt: skip
MOE = dict(SIZES, num_attention_heads=2, num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2)
GPT_OSS = dict(MOE, head_dim=4)
QWEN_MOE = dict(MOE, moe_intermediate_size=6, num_experts=3, head_dim=4)
MINIMAX_VL = TinyModel(
    "minimax_m3_vl",
    {
        "text_config": {
            **SIZES, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4, "num_local_experts": 3,
            "num_experts_per_tok": 2, "shared_intermediate_size": 6, "dense_intermediate_size": 10,
        },
        "vision_config": {
            "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14,
        },
        "projector_hidden_size": 8, "image_token_id": 5,
    },
    IMAGE_TEXT,
)  # fmt: skip
MAKERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)),
    "tied": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, tie_word_embeddings=False)),
    "whisper": lambda: transformers.WhisperModel(transformers.WhisperConfig(**WHISPER)),
    "gpt-oss": lambda: transformers.GptOssForCausalLM(transformers.GptOssConfig(**GPT_OSS)),
    "gpt-oss, square": lambda: transformers.GptOssForCausalLM(
        transformers.GptOssConfig(**{**GPT_OSS, "intermediate_size": 8})
    ),
    "qwen-moe": lambda: transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**QWEN_MOE)),
    "mixtral": lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**MOE)),
    "qwen-vl": lambda: transformers.Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(**QWEN_VL)),
    **{
        name: TINY_MODELS[name].make
        for name in ("vit", "phimoe", "granitemoe", "gpt_neox", "olmo_hybrid", "modernbert", "t5", "bart")
    },
    "minimax-vl": MINIMAX_VL.make,
    "masked": TINY_MODELS["bert"].make,
    "modern encoder": dataclasses.replace(TINY_MODELS["modernbert"], auto="AutoModel").make,
    "encoder": dataclasses.replace(TINY_MODELS["roberta"], auto="AutoModel").make,
    "classifier": dataclasses.replace(TINY_MODELS["gemma"], auto="AutoModelForSequenceClassification").make,
}
Q = ["q_proj"]
EXPERTS_OF_GRANITE = ["block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, maker in MAKERS.items():
        torch.manual_seed(0)
        made[name] = tmp_path_factory.mktemp(name)
        maker().save_pretrained(made[name])
    torch.manual_seed(1)
    resized = MAKERS["llama"]()
    resized.resize_token_embeddings(30, mean_resizing=False)
    made["resized"] = tmp_path_factory.mktemp("resized")
    resized.save_pretrained(made["resized"])
    return made


def load(name: str, folder: Path) -> Any:
    return type(MAKERS["llama" if name == "resized" else name]()).from_pretrained(folder, dtype=torch.float32)


def train(name: str, base: Path, out: Path, settings: dict[str, Any]) -> None:
    """A LoRA with random numbers in everything that it trains."""
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(load(name, base), peft.LoraConfig(**{"r": 2, "lora_alpha": 6, **settings}))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
        model.save_pretrained(out)


def merged_by_peft(name: str, base: Path, lora: Path, out: Path) -> dict[str, torch.Tensor]:
    """What peft's own merge of the saved adapter is stored as."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.PeftModel.from_pretrained(load(name, base), lora).merge_and_unload().save_pretrained(out)
    return load_file(out / "model.safetensors")


ACCEPTED: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"target_modules": ["q_proj", "down_proj"]}),
    "rslora": ("llama", {"target_modules": Q, "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "k_proj", "up_proj"],
            "rank_pattern": {"k_proj": 1, r"^model\.layers\.0\.self_attn\.q_proj": 3, "proj": 4},
            "alpha_pattern": {r".*\.1\.self_attn\.(q|k)_proj": 32},
        },
    ),
    "layers": ("llama", {"target_modules": Q, "layers_to_transform": [1], "exclude_modules": ["k_proj"]}),
    "lora_bias": ("llama", {"target_modules": ["q_proj", "o_proj"], "lora_bias": True, "use_rslora": True}),
    "bias all": ("llama", {"target_modules": Q, "bias": "all"}),
    "bias lora_only": ("llama", {"target_modules": Q, "bias": "lora_only"}),
    "gaussian": ("llama", {"target_modules": Q, "init_lora_weights": "gaussian"}),
    "orthogonal": ("llama", {"target_modules": Q, "init_lora_weights": "orthogonal"}),
    "mica": ("llama", {"target_modules": Q, "init_lora_weights": "mica"}),
    "velora": ("llama", {"target_modules": Q, "velora_config": {"num_groups": 2}}),
    "monteclora": ("llama", {"target_modules": Q, "monteclora_config": {}}),
    "embedding": ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    "embedding of an encoder": ("encoder", {"target_modules": ["query", "word_embeddings"]}),
    "embedding of a modern encoder": ("modern encoder", {"target_modules": ["Wo", "tok_embeddings"]}),
    "embedding of a classifier": ("classifier", {"target_modules": ["q_proj", "embed_tokens"]}),
    "saved embedding of a classifier": ("classifier", {"target_modules": Q, "modules_to_save": ["embed_tokens"]}),
    "head": ("llama", {"target_modules": ["q_proj", "lm_head"]}),
    "modules_to_save": ("llama", {"target_modules": Q, "modules_to_save": ["embed_tokens", "lm_head", "norm"]}),
    "saved tied": ("tied", {"target_modules": Q, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "saved both tied": (
        "tied",
        {"target_modules": Q, "modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    ),
    "added tokens": ("resized", {"target_modules": Q, "modules_to_save": ["embed_tokens", "lm_head"]}),
    "conv1d beside linear": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc", "lm_head"]}),
    "convolution": ("whisper", {"target_modules": ["conv1", "conv2", "q_proj"]}),
    "parameters of linear layers": ("llama", {"target_modules": Q, "target_parameters": ["mlp.up_proj.weight"]}),
    "experts stored together": ("gpt-oss", {"target_modules": Q, "target_parameters": EXPERTS}),
    "experts of equal sides": ("gpt-oss, square", {"target_modules": Q, "target_parameters": EXPERTS}),
    "experts stored one by one": (
        "qwen-moe",
        {"target_modules": Q, "target_parameters": EXPERTS, "rank_pattern": {"experts.down_proj": 3}},
    ),
    "experts of other names": ("mixtral", {"target_modules": [], "target_parameters": EXPERTS, "use_rslora": True}),
    "a router of another name": ("mixtral", {"target_modules": ["q_proj", "gate"]}),
    "experts alone": ("mixtral", {"target_modules": Q, "target_parameters": ["experts.down_proj"]}),
    "every module renamed at load": (
        "vit",
        {
            "target_modules": "all-linear",
            "bias": "lora_only",
            "lora_bias": True,
            "modules_to_save": ["layernorm_after"],
        },
    ),
    "a router renamed at load": ("phimoe", {"target_modules": ["q_proj", "router"]}),
    "experts renamed at load": (
        "granitemoe",
        {"target_modules": [], "target_parameters": ["gate_up_proj", "down_proj"]},
    ),
    "a head renamed at load": ("gpt_neox", {"target_modules": ["dense", "lm_head"]}),
    "a saved head renamed at load": ("gpt_neox", {"target_modules": ["dense"], "modules_to_save": ["lm_head"]}),
    "matrices and experts put together at load": (
        "minimax-vl",
        {
            "target_modules": "all-linear",
            "target_parameters": EXPERTS,
            "rank_pattern": {r".*shared_experts\.gate_up_proj": 3},
            "modules_to_save": ["norm"],
        },
    ),
    "renamed at load": ("qwen-vl", {"target_modules": ["q_proj", "qkv"], "modules_to_save": ["norm"]}),
}


@pytest.mark.cases(10)
@pytest.mark.parametrize("kind", ACCEPTED)
def test_kinds_are_merged_as_peft_merges_them(bases: dict[str, Path], tmp_path: Path, kind: str) -> None:
    name, settings = ACCEPTED[kind]
    base, lora = bases[name], tmp_path / "lora"
    train(name, base, lora, settings)
    wanted = merged_by_peft(name, base, lora, tmp_path / "peft")
    recipe = Recipe("task_arithmetic", {"lora": "lora"}, {"weight[lora]": 1.0}, str(base))
    live = dict(MergeEngine(base, {"lora": lora}).iterate(recipe))
    written = merge_to_directory(
        {
            "merge_method": "task_arithmetic", "base_model": str(base), "dtype": "float32",
            "models": [{"model": f"{base}+{lora}", "parameters": {"weight": 1.0}}],
        },
        tmp_path / "out",
    )  # fmt: skip
    stored = load_file(written / "model.safetensors")
    origin = load_file(base / "model.safetensors")
    assert wanted.keys() <= live.keys() and wanted.keys() <= stored.keys()
    changed = 0
    for tensor, expected in wanted.items():
        torch.testing.assert_close(live[tensor], expected, atol=1e-6, rtol=1e-5, msg=tensor)
        torch.testing.assert_close(stored[tensor], expected, atol=1e-6, rtol=1e-5, msg=tensor)
        changed += not torch.equal(expected, origin[tensor])
    assert 0 < changed < len(wanted)


@pytest.mark.cases(12)
@pytest.mark.parametrize(
    "kind", [kind for kind in ACCEPTED if not ACCEPTED[kind][0].startswith(("gpt-oss", "granite"))]
)
def test_lora_methods_see_the_same_kinds(bases: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """Factors alone would leave out biases of B and tensors that were saved whole."""
    name, settings = ACCEPTED[kind]
    train(name, bases[name], tmp_path / "lora", settings)
    made = [
        dict(MergeEngine(bases[name], {"lora": tmp_path / "lora"}).iterate(
            Recipe(method, {"lora": "lora"}, {"weight[lora]": 0.5}, str(bases[name]))
        ))
        for method in ("task_arithmetic", "lora_cat")
    ]  # fmt: skip
    for tensor, expected in made[0].items():
        torch.testing.assert_close(made[1][tensor], expected, atol=1e-5, rtol=1e-5, msg=tensor)


REFUSED_WHEN_TRAINED: dict[str, tuple[str, dict[str, Any], str]] = {
    "dora": ("llama", {"target_modules": Q, "use_dora": True}, "use_dora"),
    "pissa": ("llama", {"target_modules": Q, "init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
    "pissa_niter": ("llama", {"target_modules": Q, "init_lora_weights": "pissa_niter_2"}, "pissa_niter_2"),
    "olora": ("llama", {"target_modules": Q, "init_lora_weights": "olora"}, "olora"),
    "kasa": ("llama", {"target_modules": Q, "kasa_config": {}}, "kasa_config"),
    "bdlora": ("llama", {"target_modules": Q, "use_bdlora": {"target_modules_bd_b": Q, "nblocks": 2}}, "use_bdlora"),
    "activated": (
        "llama",
        {"target_modules": Q, "alora_invocation_tokens": [3], "task_type": "CAUSAL_LM"},
        "alora_invoc",
    ),
    "rows": ("llama", {"target_modules": Q, "trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    "replicated layers": ("llama", {"target_modules": Q, "layer_replication": [(0, 2), (1, 2)]}, "layer_replication"),
    "parameters": ("gpt-oss", {"target_modules": [], "target_parameters": ["experts.down_proj_bias"]}, "target_par"),
    "tied embedding": ("tied", {"target_modules": ["q_proj", "embed_tokens"]}, "untie the base"),
    "tied embedding of an encoder": ("masked", {"target_modules": ["query", "word_embeddings"]}, "untie the base"),
    "tied embedding, saved alone": (
        "modernbert",
        {"target_modules": ["Wo"], "modules_to_save": ["tok_embeddings"]},
        "untie",
    ),
    "shared embedding, saved": ("t5", {"target_modules": ["q"], "modules_to_save": ["shared"]}, "encoder and decoder"),
    "shared in another": ("bart", {"target_modules": Q, "modules_to_save": ["shared"]}, "encoder and decoder"),
    "tied head": ("tied", {"target_modules": ["q_proj", "lm_head"]}, "untie the base"),
    "tied, saved alone": ("tied", {"target_modules": Q, "modules_to_save": ["embed_tokens"]}, "untie the base"),
    "tied, saved apart": ("tied", {"target_modules": Q, "modules_to_save": ["embed_tokens", "lm_head"]}, "untie the"),
    "saved of pieces": ("olmo_hybrid", {"target_modules": Q, "modules_to_save": ["conv1d"]}, "conv1d.weight.*at load"),
    "bias of a layer without": ("llama", {"target_modules": ["down_proj"], "lora_bias": True}, "lora_bias"),
}


@pytest.mark.parametrize("kind", REFUSED_WHEN_TRAINED)
def test_kinds_that_are_no_differences_are_refused_by_name(bases: dict[str, Path], tmp_path: Path, kind: str) -> None:
    name, settings, said = REFUSED_WHEN_TRAINED[kind]
    train(name, bases[name], tmp_path / "lora", settings)
    with pytest.raises(UserError, match=said) as refusal:
        MergeEngine(bases[name], {"lora": tmp_path / "lora"})
    assert "\n" not in str(refusal.value)


def plain(folder: Path, **settings: Any) -> Path:
    folder.mkdir()
    key = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{key}.lora_A.weight": torch.ones(2, 8), f"{key}.lora_B.weight": torch.ones(8, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, **settings}))
    return folder


@pytest.mark.parametrize("start", ["corda", "loftq", "lora_ga", "pissa_niter_16", "a start of tomorrow"])
def test_starts_that_change_the_base_are_refused(tmp_path: Path, start: str) -> None:
    with pytest.raises(UserError, match=start):
        read_header(plain(tmp_path / "lora", init_lora_weights=start))


@pytest.mark.parametrize("key", [*tables.REFUSED, "a_kind_of_tomorrow"])
def test_keys_of_other_kinds_are_refused_by_name_and_are_harmless_when_off(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=key):
        read_header(plain(tmp_path / "on", **{key: [1]}))
    for number, off in enumerate((None, False, {}, [], 0)):
        assert read_header(plain(tmp_path / f"off{number}", **{key: off})).kind == "lora"


def test_every_setting_of_peft_is_in_one_table() -> None:
    """A release of peft with a new setting must be looked at before its LoRAs are merged."""
    every = [tables.READ, tables.SEEN_IN_TENSORS, tables.WITHOUT_EFFECT, frozenset(tables.REFUSED)]
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert fields <= frozenset.union(*every)
    assert sum(len(table) for table in every) == len(frozenset.union(*every))


@pytest.mark.parametrize("kind", [kind.value for kind in peft.PeftType if kind.value != "LORA"])
def test_other_adapters_are_refused_by_their_type(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UserError, match=f"type {kind}"):
        read_header(plain(tmp_path / "lora", peft_type=kind))


def test_added_tokens_on_the_smaller_base_say_what_to_do(bases: dict[str, Path], tmp_path: Path) -> None:
    train("resized", bases["resized"], tmp_path / "lora", ACCEPTED["added tokens"][1])
    problems = compare_headers(read_header(bases["llama"]), read_header(tmp_path / "lora"), "lora")
    assert len(problems) == 1 and "resize_token_embeddings(30)" in problems[0]


def test_factors_of_all_experts_are_no_matrices_that_lora_methods_or_servers_take(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    train("gpt-oss", bases["gpt-oss"], tmp_path / "lora", ACCEPTED["experts stored together"][1])
    recipe = Recipe("lora_cat", {"lora": "lora"}, {"weight[lora]": 1.0}, str(bases["gpt-oss"]))
    with pytest.raises(UserError, match="holds all experts; use task_arithmetic"):
        dict(MergeEngine(bases["gpt-oss"], {"lora": tmp_path / "lora"}).iterate(recipe))
    with pytest.raises(UserError, match="fold it into the base"):
        merge_loras({"lora": tmp_path / "lora"}, {"lora": 1.0})


def test_experts_of_equal_sides_are_refused_where_their_layout_is_not_known(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    train("gpt-oss, square", bases["gpt-oss, square"], tmp_path / "lora", ACCEPTED["experts of equal sides"][1])
    base = read_header(bases["gpt-oss, square"])
    stranger = dataclasses.replace(base, config={**base.config, "model_type": "another"})
    (problem,) = compare_headers(stranger, read_header(tmp_path / "lora"), "lora")
    assert "target_parameters" in problem


def test_names_of_a_model_that_transformers_does_not_know_are_refused_in_a_line(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    train("vit", bases["vit"], tmp_path / "lora", {"target_modules": "all-linear"})
    shutil.copytree(bases["vit"], tmp_path / "stranger")
    for settings in ({"model_type": "another"}, {"patch_size": 0}, {"hidden_size": "many"}):
        config = json.loads((bases["vit"] / "config.json").read_text())
        (tmp_path / "stranger" / "config.json").write_text(json.dumps({**config, **settings}))
        problems = compare_headers(read_header(tmp_path / "stranger"), read_header(tmp_path / "lora"), "lora")
        assert len(problems) == 1 and "adapts tensors that the base lacks: vit.layers.0.attention" in problems[0]
