"""How servers are told to draw an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergefront.adapters.language_model import GenerationRequest


def drawing(request: GenerationRequest) -> Mapping[str, Any]:
    """The fields of a request whose answer is drawn; nothing for the likeliest one. Seeds have 31 bits, as all servers
    take them."""
    if request.temperature == 0:
        return {}
    top_p = {} if request.top_p == 1 else {"top_p": request.top_p}
    return {"temperature": request.temperature, **top_p, "seed": request.seed % 2**31}
