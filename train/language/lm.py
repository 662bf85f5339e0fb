"""Load and check a language model of transformers; lora.py adapts it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from ...pipeline.errors import ConfigError
from ...pipeline.files.hub.pretrained import load_pretrained, require_plain
from ...pipeline.files.limits import MAX_CONFIG_BYTES
from ...pipeline.files.plain import read_json
from ...pipeline.messages import install_extra
from ..config import AttentionName
from ..reader.attention import HeadSizes, flex_problem, use_flex
from .architectures import TEXT_PARAMETERS, TRIED, without_report_of_other_parts
from .prompt_format import PromptFormat, TokenizerOnly
from .weights import Weights
from .world_check import check_world_inputs

_log = logging.getLogger(__name__)
_PROBE = "Where will the 2 red balls land? Zwölf, 左."
_SAMPLE = 4096  # embedding vectors whose scale is measured


@dataclass(frozen=True, slots=True)
class LanguageModel(PromptFormat):
    """A frozen causal language model, perhaps with LoRA, and its prompt format."""

    model: Any
    """A `PreTrainedModel`, or the `PeftModel` around it: transformers leaves most of their attributes untyped."""
    tokenizer: Any
    weights: Weights

    @property
    def settings(self) -> Any:
        """Its `PreTrainedConfig`."""
        return self.model.config

    @property
    def generation_ends(self) -> Any:
        """`eos_token_id` of its generation config: an id, several, or None."""
        return getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)

    @property
    def hidden_size(self) -> int:
        """Width of its embedding vectors."""
        return int(self.model.get_input_embeddings().weight.shape[1])


def load_language_model(
    weights: Weights, *, device: torch.device | str, dtype: torch.dtype, attention: AttentionName = "auto"
) -> LanguageModel:
    """Load, freeze and check a language model.

    Args:
        attention: how it computes attention; auto takes what we checked for its architecture and the device.
    Raises:
        ConfigError: an attention that it computes wrongly, or cannot compute here; an architecture we did not check,
            weights that are not safetensors, a tokenizer without <bos> or <eos> or of another model, or a transformers
            release that rescales `inputs_embeds`.
    """
    _check_architecture(weights)
    transformers_logging.disable_progress_bar()  # one bar per file of weights would hide our own lines
    device = torch.device(device)
    options, way = _gguf(weights), attention_of(weights, attention, device=device, dtype=dtype)
    kind: Any = AutoModelForCausalLM
    if not weights.gguf:
        name = _architecture(weights)
        way_to_load = TRIED[name].attention if way == "flex_attention" else way
        options = {"attn_implementation": way_to_load, "use_safetensors": True}
        if (text_class := TRIED[name].text_class) is not None:
            options |= {"config": load_lm_config(weights), "key_mapping": dict(TEXT_PARAMETERS)}
        kind = getattr(transformers, text_class or name)
    with without_report_of_other_parts(kind) if _has_other_parts(weights) else nullcontext():
        model = load_pretrained(kind, weights.folder, error=ConfigError, what="language model", dtype=dtype, **options)
    if type(model).__name__ not in TRIED:
        raise _untried(weights, type(model).__name__)
    tokenizer = _load_tokenizer(weights, model.config)
    model.requires_grad_(False).eval().to(device)
    check_world_inputs(model)
    if way == "flex_attention":
        use_flex(model)
    lm = LanguageModel(model, tokenizer, weights)
    _check_tokenizer(lm)
    return lm


def _check_tokenizer(lm: LanguageModel) -> None:
    """Refuse a tokenizer with ids that the model has no embedding for: it belongs to another model."""
    embeddings = int(lm.model.get_input_embeddings().weight.shape[0])
    used = {*lm.answer_ids(_PROBE), *lm.prompt_ids(_PROBE)} - {getattr(lm.settings, "image_token_id", None)}
    if max(used) >= embeddings:
        raise ConfigError(
            f"the tokenizer in {lm.weights.folder} is another model's: it gives token {max(used)}, and the model has "
            f"{embeddings} embeddings. Put the tokenizer files beside the weights they came with"
        )


def load_tokenizer_only(weights: Weights) -> TokenizerOnly:
    """A language model's tokenizer and configuration, without its weights: a second instead of minutes.

    Raises:
        ConfigError: as `load_language_model`, except what only the weights show.
    """
    config = load_lm_config(weights)
    return TokenizerOnly(_load_tokenizer(weights, config), weights, config)


def load_lm_config(weights: Weights) -> Any:
    """A language model's `PreTrainedConfig`, or that of the part which reads text; raises as `load_tokenizer_only`."""
    _check_architecture(weights)
    kind: Any = AutoConfig if weights.gguf else getattr(transformers, _architecture(weights)).config_class
    what = "language model's config"
    config = load_pretrained(kind, weights.folder, error=ConfigError, what=what, **_gguf(weights))
    return config.get_text_config() if _has_other_parts(weights) else config


def unread_parts(weights: Weights) -> str | None:
    """A line that says what of a language model's folder is not read; None where all is read."""
    unread: list[str] = []
    if _has_other_parts(weights):
        unread.append("only its text part is read; its parts for images and sound are left out")
    if not weights.gguf and (weights.folder / "adapter_config.json").exists():
        unread.append(
            "the adapter beside its weights (adapter_config.json) is not read. If it is not in the weights yet, merge "
            "it (merge_and_unload of peft) and name the merged model"
        )
    return f"{weights.source}: {'; '.join(unread)}" if unread else None


def _has_other_parts(weights: Weights) -> bool:
    return not weights.gguf and TRIED[_architecture(weights)].text_class is not None


def _gguf(weights: Weights) -> dict[str, Any]:
    return {"gguf_file": weights.gguf} if weights.gguf else {}


def _load_tokenizer(weights: Weights, config: Any) -> Any:
    tokenizer = load_pretrained(AutoTokenizer, weights.folder, error=ConfigError, what="tokenizer", **_gguf(weights))
    start = config.get_text_config().bos_token_id
    if tokenizer.bos_token_id is None and isinstance(start, int):  # Qwen's and SmolLM3's configs alone name one
        added = tokenizer.added_tokens_decoder.get(start)
        if start in tokenizer.all_special_ids or (added is not None and added.special):
            tokenizer.bos_token = tokenizer.convert_ids_to_tokens(start)
    if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
        raise ConfigError(
            f"the tokenizer in {weights.folder} names no <bos> or no <eos>: world tokens stand behind <bos>, "
            "answers end with <eos>. Set both in its tokenizer_config.json"
        )
    return tokenizer


def attention_of(
    weights: Weights,
    wanted: AttentionName,
    *,
    device: torch.device | None,
    dtype: torch.dtype,
    say: Callable[[str], None] = _log.warning,
) -> AttentionName:
    """How a language model will compute attention; raises as `load_language_model`.

    auto is flex attention on a GPU that computes it right for this model (`flex_problem`, some seconds once a process),
    and else what each architecture computes correctly anywhere.

    Args:
        device: None is a GPU that is planned for, which is taken to compute it right.
        say: is told why a GPU does without flex attention.
    """
    if weights.gguf:
        return "eager"  # more memory than any other: only loading shows what it is
    architecture = _architecture(weights)
    if wanted == "sdpa" and TRIED[architecture].caps_scores:
        raise ConfigError(
            f"{weights.source} caps its attention scores, and sdpa does not: its answers would change. "
            "Use attention = eager, or flex_attention on a GPU"
        )
    if wanted not in ("auto", "flex_attention"):
        return wanted
    instead = TRIED[architecture].attention
    if not TRIED[architecture].takes_flex:
        if wanted == "auto":
            return instead
        raise ConfigError(
            f"flex_attention is not written for a {architecture} ({weights.source}). Use attention = auto, which takes "
            f"{instead}"
        )
    if device is not None and device.type != "cuda":  # flex attention makes all scores there
        return wanted if wanted == "flex_attention" else instead
    problem = None if device is None else flex_problem(HeadSizes.of(load_lm_config(weights)), device, dtype)
    if problem is None:
        return "flex_attention"
    if wanted == "flex_attention":
        raise ConfigError(f"flex_attention cannot be used on {device}: {problem}. Use attention = auto")
    say(f"attention: {instead}, which takes more memory, since flex attention cannot be used on {device}: {problem}")
    return instead


def _architecture(weights: Weights) -> str:
    try:
        path = require_plain(weights.folder, weights.folder / "config.json", MAX_CONFIG_BYTES)
        config = read_json(path, MAX_CONFIG_BYTES)
        name = str((config.get("architectures") or [""])[0])
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise ConfigError(f"cannot read {weights.folder / 'config.json'}: {error}") from error
    if not name:
        raise ConfigError(
            f"{weights.folder / 'config.json'} names no class of its model. Set architectures there, as the model it "
            'was tuned from has it, such as ["Gemma2ForCausalLM"]'
        )
    return name


def _check_architecture(weights: Weights) -> None:
    if weights.gguf:  # only loading shows its architecture
        if find_spec("gguf") is None:
            raise ConfigError(f"{weights.source} needs the library gguf: {install_extra('gguf')}")
    elif (architecture := _architecture(weights)) not in TRIED:
        raise _untried(weights, architecture)


def _untried(weights: Weights, architecture: str) -> ConfigError:
    *most, last = TRIED
    return ConfigError(
        f"{weights.source} is a {architecture}; world tokens are checked for {', '.join(most)} and {last}. "
        "Choose one of these, such as a Gemma"
    )


@torch.no_grad()
def embedding_rms(model: Any) -> float:
    """Root mean square over the elements of the embedding vectors, as the first layer gets them."""
    embed = model.get_input_embeddings()
    rows = embed.weight.shape[0]
    ids = torch.linspace(0, rows - 1, min(rows, _SAMPLE), device=embed.weight.device).long()
    return float(embed(ids).float().square().mean().sqrt())


def checkpoint_activations(model: Any) -> None:
    """Keep only each layer's input and recompute the rest in the backward pass. The gradients stay the same.

    Args:
        model: of a `LanguageModel`.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if hasattr(base, "activation_checkpointing_enable"):  # the name from transformers 5.2x on
        base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
