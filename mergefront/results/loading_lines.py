"""The lines of a model card that load what lies beside it, by what is in the folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergefront.adapters.checkpoints.header import read_json
from mergefront.adapters.merging.output.files import TOKENIZER

_AUTO_CLASSES = {
    "AutoModelForImageTextToText": "IMAGE_TEXT_TO_TEXT",
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForSeq2SeqLM": "SEQ_TO_SEQ_CAUSAL_LM",
    "AutoModelForSpeechSeq2Seq": "SPEECH_SEQ_2_SEQ",
    "AutoModelForSequenceClassification": "SEQUENCE_CLASSIFICATION",
    "AutoModelForTokenClassification": "TOKEN_CLASSIFICATION",
    "AutoModelForQuestionAnswering": "QUESTION_ANSWERING",
    "AutoModelForMultipleChoice": "MULTIPLE_CHOICE",
    "AutoModelForMaskedLM": "MASKED_LM",
    "AutoModelForImageClassification": "IMAGE_CLASSIFICATION",
    "AutoModelForZeroShotImageClassification": "ZERO_SHOT_IMAGE_CLASSIFICATION",
    "AutoModelForPreTraining": "PRETRAINING",
}
"""transformers' auto classes, and what its tables of their models are called, in the order in which they are asked."""
_WHOLE = """```python
from transformers import {imported}

folder = "."  # this one, or its name on a hub
{lines}
```"""
_LORA = """This is a LoRA; it needs its base model.

```python
from peft import PeftModel
from transformers import {imported}

folder, base = ".", {base!r}
{lines}
model = PeftModel.from_pretrained(model, folder)
```"""
_NO_WEIGHTS = """This folder has no weights. They are made by

```
{command}
```"""


def loading_lines(folder: Path, base: str, command: str) -> str:
    """Markdown that says how to load what was exported to ``folder``.

    ``base`` is where a LoRA's base model lies; ``command`` makes the weights where there are none.
    """
    if (folder / "adapter_config.json").exists():
        return _transformers(_LORA, Path(base), "base").replace("{base!r}", repr(base))
    if (folder / "config.json").exists():
        return _transformers(_WHOLE, folder, "folder")
    if any(folder.glob("*.safetensors")):
        return "The models have no config.json, so nothing is known to load this but `safetensors.torch.load_file`."
    return _NO_WEIGHTS.format(command=command)


def _transformers(template: str, folder: Path, variable: str) -> str:
    is_here = (folder / "config.json").exists()
    config = read_json(folder / "config.json") if is_here else {}
    own = config.get("auto_map")
    trusted = ", trust_remote_code=True" if isinstance(own, Mapping) and own else ""
    model = _model_class(config) if is_here else "AutoModelForCausalLM"
    lines = [f'model = {model}.from_pretrained({variable}, dtype="auto"{trusted})']
    text = _text_class(folder) if is_here else "AutoTokenizer"
    if text is not None:
        name = "tokenizer" if text == "AutoTokenizer" else "processor"
        lines.append(f"{name} = {text}.from_pretrained({variable}{trusted})")
    made = template.replace("{imported}", ", ".join(filter(None, (model, text)))).replace("{lines}", "\n".join(lines))
    if trusted:
        made += "\n\nThe model has code of its own, which these lines run: read the Python files first."
    if (folder / "modules.json").exists():
        made += "\n\nThe whole pipeline is loaded by `SentenceTransformer(folder)` of sentence-transformers."
    return made


def _text_class(folder: Path) -> str | None:
    """What prepares a model's input: a processor, an image processor or feature extractor alone, or a tokenizer."""
    has_tokenizer = any(next(folder.glob(pattern), None) is not None for pattern in TOKENIZER[:2])
    if (folder / "processor_config.json").exists():
        return "AutoProcessor"
    if (folder / "preprocessor_config.json").exists():
        described = read_json(folder / "preprocessor_config.json")
        alone = "AutoFeatureExtractor" if "feature_extractor_type" in described else "AutoImageProcessor"
        return "AutoProcessor" if has_tokenizer else alone
    return "AutoTokenizer" if has_tokenizer else None


def _model_class(config: Mapping[str, Any]) -> str:
    """The name of the class of transformers that loads a configuration's model with the head that it has."""
    own = config.get("auto_map")
    if isinstance(own, Mapping):
        return next((name for name in _AUTO_CLASSES if name in own), "AutoModel")
    if importlib.util.find_spec("transformers") is None:
        return "AutoModelForCausalLM"
    from transformers.models.auto import modeling_auto

    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else None
    for name, table in _AUTO_CLASSES.items():
        known = getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES").get(str(config.get("model_type")))
        classes = (known,) if isinstance(known, str) else known or ()
        if classes and architecture in (None, *classes):
            return name
    return "AutoModel"
