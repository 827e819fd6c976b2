"""Chat templates with the shapes of ten families, in short forms of our own, and a tokenizer that knows their marks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALTERNATION = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}{% endfor %}"
)
FAMILIES: Mapping[str, str] = {
    "llama 3": (  # a begin token, trimmed content, a date
        "{{ bos_token }}{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}"
        "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
        "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}\n\n{{ system }}<|eot_id|>"
        "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
        "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "qwen 2.5": (  # a system message of its own, where there is none
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
        + CHATML
    ),
    "qwen 3": (  # thoughts that an option shuts out, and that earlier turns lose
        "{%- set ns = namespace(last=messages | length - 1) -%}"
        "{%- for m in messages[::-1] if m.role == 'user' -%}"
        "{%- if loop.first -%}{%- set ns.last = messages.index(m) -%}{%- endif -%}{%- endfor -%}"
        "{%- for m in messages -%}{%- if m.role == 'assistant' and loop.index0 > ns.last -%}"
        "{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + m.content.split('</think>')[-1].lstrip('\n') -}}"
        "{%- elif m.role == 'assistant' -%}"
        "{{- '<|im_start|>assistant\n' + m.content.split('</think>')[-1].lstrip('\n') -}}"
        "{%- else -%}{{- '<|im_start|>' + m.role + '\n' + m.content -}}{%- endif -%}{{- '<|im_end|>\n' -}}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}"
        "{%- if enable_thinking is defined and enable_thinking is false -%}"
        "{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}{%- endif -%}"
    ),
    "gemma": (  # no system role, an assistant called model
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}" + ALTERNATION +
        "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
        "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "mistral": (  # a system message inside the first turn, an end token after answers
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}"
        "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}" + ALTERNATION +
        "{% for m in messages %}{% if m.role == 'user' %}"
        "{{ '[INST] ' + (system if loop.first else '') + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"
    ),
    "phi": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "smollm 2": CHATML,
    "zephyr": (
        "{% for m in messages %}\n{% if m.role == 'user' %}\n{{ '<|user|>\n' + m.content + eos_token }}\n"
        "{% elif m.role == 'system' %}\n{{ '<|system|>\n' + m.content + eos_token }}\n"
        "{% elif m.role == 'assistant' %}\n{{ '<|assistant|>\n' + m.content + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    "deepseek r1": (  # a prompt that opens the thoughts, answers without those they had
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
        "{{ '<｜User｜>' + m.content }}{% else %}"
        "{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
    ),
    "granite": (  # a date, an option, blocks for training
        "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set rest = messages[1:] %}"
        "{%- else %}{%- set system = 'Today is ' + strftime_now('%B %d, %Y') + '.' %}"
        "{%- if thinking %}{%- set system = system + ' Think first.' %}{%- endif %}"
        "{%- set rest = messages %}{%- endif %}"
        "{{- '<|start_of_role|>system<|end_of_role|>' + system + eos_token + '\n' }}{%- for m in rest %}"
        "{{- '<|start_of_role|>' + m.role + '<|end_of_role|>' }}{% generation %}{{- m.content + eos_token }}"
        "{% endgeneration %}{{- '\n' }}"
        "{%- if loop.last and add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"
        "{%- endfor %}"
    ),
    "olmo": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|assistant|>\n' + m.content }}"
        "{{ eos_token if not loop.last else '' }}{% else %}{{ '<|' + m.role + '|>\n' + m.content + '\n' }}{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
    ),
}  # fmt: skip
MARKS = (
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<think>", "</think>",
    "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>",
    "<｜User｜>", "<｜Assistant｜>", "<|start_of_role|>", "<|end_of_role|>",
)  # fmt: skip


def chat_tokenizer(template: str | dict[str, str] | None) -> Any:
    """The small tokenizer with every family's marks, and a begin token that it puts before each text by itself."""
    from small_tokenizer import make_tokenizer
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens(
        {"bos_token": "<begin>", "additional_special_tokens": [mark for mark in MARKS if "think" not in mark]}
    )
    tokenizer.add_tokens([mark for mark in MARKS if "think" in mark])
    begin = ("<begin>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<begin> $A", special_tokens=[begin])
    tokenizer.chat_template = template
    return tokenizer
