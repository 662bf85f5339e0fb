"""The language models that were tried, by the name of their class: what each needs from us to read a world.

All of them are held against the same check when they load (`check.py`), so that a release of transformers that changes
one is refused in words; docs/questions.md says with which weights each was tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..config import AttentionName


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What the class of a language model needs."""

    attention: AttentionName = "sdpa"
    """One that it computes correctly, on every device."""
    text_class: str | None = None
    """The class of its text part, which is loaded alone; None loads the whole model."""
    caps_scores: bool = False
    """Whether it caps its attention scores, which sdpa leaves out."""
    takes_flex: bool = False
    """Whether our flex attention computes what its layers ask for, which is then checked on the device."""


TRIED: Mapping[str, Architecture] = {
    "Gemma2ForCausalLM": Architecture(attention="eager", caps_scores=True, takes_flex=True),
    "Gemma3ForCausalLM": Architecture(takes_flex=True),
    "Gemma3ForConditionalGeneration": Architecture(takes_flex=True),
    "Gemma4ForCausalLM": Architecture(),
    "Gemma4UnifiedForCausalLM": Architecture(),
    "Gemma4ForConditionalGeneration": Architecture(text_class="Gemma4ForCausalLM"),
    "Gemma4UnifiedForConditionalGeneration": Architecture(text_class="Gemma4UnifiedForCausalLM"),
    "LlamaForCausalLM": Architecture(),
    "MistralForCausalLM": Architecture(),
    "Olmo2ForCausalLM": Architecture(),
    "Phi3ForCausalLM": Architecture(),
    "Qwen2ForCausalLM": Architecture(),
    "Qwen3ForCausalLM": Architecture(),
    "SmolLM3ForCausalLM": Architecture(),
}
"""By the class that `architectures` in config.json names."""

TEXT_PARAMETERS = {r"^model\.language_model\.": "model.", r"^language_model\.": ""}
"""What the text part's parameters are called in a checkpoint of the whole model -> their names without it."""

_OTHER_PARTS = r"^(model\.)?(vision_|audio_|embed_vision|embed_audio)"
"""The parameters of the whole model that its text part has no use for."""


@contextmanager
def without_report_of_other_parts(kind: Any) -> Iterator[None]:
    """Inside, transformers does not list hundreds of parameters of parts that we leave out; others it still reports."""
    before = kind._keys_to_ignore_on_load_unexpected
    kind._keys_to_ignore_on_load_unexpected = [*(before or ()), _OTHER_PARTS]
    try:
        yield
    finally:
        kind._keys_to_ignore_on_load_unexpected = before
