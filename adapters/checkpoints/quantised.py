"""Quantised checkpoints, recognised by configuration or packed tensors: no integer is merged as a weight."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mergefront.adapters.checkpoints.header import CheckpointHeader

_SAVED = "save_pretrained(folder, save_original_format=False) in bfloat16"  # else transformers 5 packs them again
_LOADED_SO = f"load it with transformers, quantization_config={{}}(dequantize=True), and {_SAVED}"
_ASKED_SO = f"load it with transformers, model.dequantize(), and {_SAVED}"
_BY_ITS_LIBRARY = "dequantise it with {} and save it in bfloat16"
_REMEDIES: Mapping[str, str] = {
    "fp8": _LOADED_SO.format("FineGrainedFP8Config"),
    "mxfp4": _LOADED_SO.format("Mxfp4Config"),
    "compressed-tensors": _LOADED_SO.format("CompressedTensorsConfig"),
    "bitsandbytes": _ASKED_SO,
    "higgs": _ASKED_SO,
    "gptq": _BY_ITS_LIBRARY.format("gptqmodel"),
    "awq": _BY_ITS_LIBRARY.format("the library that packed it (autoawq, llm-awq, gptqmodel)"),
    "hqq": _BY_ITS_LIBRARY.format("hqq"),
    "torchao": _BY_ITS_LIBRARY.format("torchao"),
}
"""How each method's weights become numbers again; others: by the library that owns the format."""
_PACKED: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), method)
    for pattern, method in (
        (r"\.g_idx$", "gptq"),
        (r"\.weight_packed$|\.weight_zero_point$|\.weight_global_scale$", "compressed-tensors"),
        (r"\.quant_state\.|\.absmax$|\.SCB$|\.nested_quant_map$|\.weight_format$", "bitsandbytes"),
        (r"_scale_inv$", "fp8"),
        (r"\.W_q$", "hqq"),
        (r"\.weight_scales$", "eetq"),
        (r"\.codebooks$", "aqlm"),
        (r":_data$|:_weight_qdata$|_weight_qdata$|\.weight\._data$", "torchao or quanto"),
    )
)  # fmt: skip
"""Names of tensors that only one method has; the first that matches names the method."""
_GPTQ_OR_AWQ = re.compile(r"\.(qweight|qzeros)$")
_BLOCKS = re.compile(r"_blocks$")
_FLOAT8_OR_LESS = re.compile(r"^F[468]_")
_WEIGHT = re.compile(r"(^|[._])(weight|proj|experts\.\w+)$")
_INTEGERS = ("U8", "I8", "I16", "I32", "U16", "U32")


def quantisation(header: CheckpointHeader) -> str | None:
    """The method by which a checkpoint's weights are quantised, or None where they are numbers as trained."""
    return _configured(header.config) or _packed(header)


def refuse_quantised(header: CheckpointHeader, whose: str) -> list[str]:
    """Why a checkpoint cannot be merged because it is quantised: at most one sentence, with the way out."""
    method = quantisation(header)
    if method is None:
        return []
    remedy = _REMEDIES.get(method, _BY_ITS_LIBRARY.format("the library that owns the format"))
    return [f"{whose} is quantised ({method}): its stored numbers are no weights; {remedy}; merge that"]


def _configured(config: Mapping[str, Any], depth: int = 3) -> str | None:
    """What a configuration or one of its sections says; a section that names no method is quantised all the same."""
    for key in ("quantization_config", "quantization"):
        said = config.get(key)
        if isinstance(said, Mapping) and said:
            method = said.get("quant_method") or said.get("quant_algo")
            if method is None and any(str(option).startswith(("load_in_", "bnb_")) for option in said):
                method = "bitsandbytes"
            return str(method or "by a method that config.json does not name").lower()
    sections = [value for value in config.values() if isinstance(value, Mapping)] if depth else []
    return next((method for section in sections if (method := _configured(section, depth - 1)) is not None), None)


def _packed(header: CheckpointHeader) -> str | None:
    """What the tensors say where the configuration says nothing."""
    tensors = header.tensors
    for pattern, method in _PACKED:
        if any(pattern.search(name) for name in tensors):
            return method
    if any(_GPTQ_OR_AWQ.search(name) for name in tensors):
        return "gptq or awq"
    if any(_BLOCKS.search(name) and info.dtype == "U8" for name, info in tensors.items()):
        return "mxfp4"
    for name, info in tensors.items():
        if _FLOAT8_OR_LESS.match(info.dtype):
            return "fp8" if info.dtype.startswith("F8") else info.dtype.lower()
        if info.dtype in _INTEGERS and _WEIGHT.search(name):
            return f"{name} is {info.dtype}"
    return None
