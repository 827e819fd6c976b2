"""The means of prompts' token embeddings, which a router reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mergefront.adapters.checkpoints.header import Checkpoint
from mergefront.adapters.checkpoints.names import embedding_name, shared_embedding_name
from mergefront.adapters.language_model import Chat
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.task import Task
from mergefront.optimizer.arrays import Array
from mergefront.optimizer.errors import UserError


def embedding_of(folder: Path) -> str:
    """The name of the input embedding of the model in a folder; raises ``UserError`` where it has none."""
    tensors = Checkpoint(folder).header.tensors
    name = embedding_name(tensors) or shared_embedding_name(tensors)
    if name is None:
        raise UserError(f"--twin: {folder} has no embedding of tokens, by whose rows a router knows prompts")
    return name


def mean_embeddings(folder: Path, texts: Sequence[str]) -> Array:
    """Of every text the mean of its tokens' rows of the embedding in a folder: ``n x width``, 0 for an empty text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    rows = Checkpoint(folder)[embedding_of(folder)]
    found = np.zeros((len(texts), rows.shape[1]))
    for index, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids:
            found[index] = rows[ids].float().mean(dim=0).numpy()
    return found


def prompts_of(task: Task, items: Sequence[Item]) -> list[str]:
    """What each item asks, without examples before it and without a chat template's words where that is known."""
    asked = task.questions(items)
    return [
        item.prompt or _text(question.prompt) or item.answers[0] for item, question in zip(items, asked, strict=True)
    ]


def _text(prompt: str | Chat) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(message.content for message in prompt.messages)
