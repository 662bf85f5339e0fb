"""Load, check and adapt a language model of transformers, with peft's LoRA."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import BaseModel, Field, ValidationError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from ...pipeline.errors import ConfigError
from ...pipeline.files.hub.pretrained import load_pretrained, require_plain, tensor_shapes
from ...pipeline.files.limits import MAX_CONFIG_BYTES, MAX_WEIGHT_BYTES
from ...pipeline.files.plain import read_json
from ...pipeline.messages import install_extra, list_problems, name_some
from ..config import AttentionName
from ..reader.attention import HeadSizes, flex_problem, use_flex
from .architectures import TEXT_PARAMETERS, TRIED, without_report_of_other_parts
from .prompt_format import PromptFormat, TokenizerOnly
from .weights import Weights
from .world_check import check_world_inputs

_log = logging.getLogger(__name__)

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""The files of LoRA in a run folder, in peft's format."""

_VISION_PARTS = ("vision_tower", "multi_modal_projector")
"""The parts of a multimodal model that process images; never trained."""

SAVED = ".modules_to_save."
"""In the name of a parameter that is trained as a copy of one of the model's own."""

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
    with without_report_of_other_parts(kind) if unread_parts(weights) else nullcontext():
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
    is_whole = weights.gguf or TRIED[_architecture(weights)].text_class is None
    return config if is_whole else config.get_text_config()


def unread_parts(weights: Weights) -> str | None:
    """A line that says which parts of a multimodal model are not read; None where all is read."""
    if weights.gguf or TRIED[_architecture(weights)].text_class is None:
        return None
    return f"{weights.source}: only its text part is read; its parts for images and sound are left out"


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
        return str((config.get("architectures") or ["none named"])[0])
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise ConfigError(f"cannot read {weights.folder / 'config.json'}: {error}") from error


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


def add_lora(
    lm: LanguageModel,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    target_modules: Sequence[str] | None = None,
    modules_to_save: Sequence[str] | None = None,
) -> LanguageModel:
    """The same model with LoRA on its linear layers. Its own weights stay frozen.

    Args:
        target_modules: names of the layers, as of peft: `q_proj`, or `layers.0.self_attn.q_proj` for a single one; None
            is all except the output head.
        modules_to_save: ends of the names of norms of which a copy is trained, in float32.
    Raises:
        ConfigError: the model has no such layer, or it is of another kind.
    """
    _require_layers(lm, "target_modules", target_modules, "a linear layer", _is_linear, before=".")
    _require_layers(lm, "modules_to_save", modules_to_save, "a norm", _is_norm, before="")
    commit = None
    if lm.weights.identity.startswith("hub:"):  # else peft would record this machine's cache folder as the base model
        lm.model.name_or_path, _, commit = lm.weights.source.partition("@")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType] - peft divides it by the rank, whole or not
        lora_dropout=dropout,
        target_modules="all-linear" if target_modules is None else list(target_modules),
        modules_to_save=list(modules_to_save) if modules_to_save else None,
        exclude_modules=rf".*\b({'|'.join(_VISION_PARTS)})\b.*" if lm.image_tokens else None,
        task_type="CAUSAL_LM",
        revision=commit,
    )
    with _quiet_peft():
        adapted = get_peft_model(lm.model, config)
    for name, parameter in adapted.named_parameters():
        if SAVED in name:
            parameter.data = parameter.data.float()  # as what else is trained: bfloat16 would lose small updates
    return LanguageModel(adapted, lm.tokenizer, lm.weights)


def _require_layers(
    lm: LanguageModel,
    setting: str,
    names: Sequence[str] | None,
    kind: str,
    is_kind: Callable[[Any], bool],
    *,
    before: str,
) -> None:
    """Refuse names of no layer: peft is silent where one of several fits none.

    Args:
        before: what stands before such an end of a module's name, as peft compares it.
    """
    modules = [
        (name, module) for name, module in lm.model.named_modules() if not any(part in name for part in _VISION_PARTS)
    ]
    head = lm.model.get_output_embeddings()
    for wanted in names or ():
        found = [module for name, module in modules if f".{name}".endswith(before + wanted)]
        if not found or not all(is_kind(module) and module is not head for module in found):
            fitting = sorted({n.rpartition(".")[2] for n, m in modules if is_kind(m) and m is not head})
            raise ConfigError(
                f"{setting}: {wanted!r} is not the name of {kind} in {lm.weights.source}, which may be adapted; these "
                f"are {name_some(fitting, most=16)}"
            )


def _is_linear(module: Any) -> bool:
    return isinstance(module, nn.Linear)


def _is_norm(module: Any) -> bool:
    """A copy of one is small. One of the embeddings or the head would be as large as the model, and untie the two."""
    return type(module).__name__.endswith("Norm")


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


def merge_adapters(lm: LanguageModel) -> None:
    """Merge LoRA into the model's weights if these are float32: an answer takes a quarter less work.

    Weights of fewer bits would round away some of what LoRA adds, so they stay unmerged.
    """
    if isinstance(lm.model, PeftModel) and lm.model.get_input_embeddings().weight.dtype == torch.float32:
        lm.model.merge_adapter()


def load_adapter(lm: LanguageModel, folder: Path) -> LanguageModel:
    """The same model with the LoRA adapters of a run folder; all of it is frozen.

    Of `adapter_config.json` only rank, alpha, dropout and modules_to_save are used, and whatever else would change the
    adapter is refused. peft's own loader would import modules that the file names, and take a file that is missing
    from the Hub.

    Raises:
        OSError: a file is missing.
        ValueError: a file is damaged, or is not what `add_lora` makes for this model.
    """
    lora = _read_lora_config(require_plain(folder, folder / ADAPTER_CONFIG, MAX_CONFIG_BYTES))
    weights = require_plain(folder, folder / ADAPTER, MAX_WEIGHT_BYTES)
    shapes = tensor_shapes(weights)
    ranks = {shape[0] for name, shape in shapes.items() if name.endswith(".lora_A.weight") and len(shape) == 2}
    if ranks != {lora.r}:
        raise ValueError(f"{ADAPTER} holds ranks {sorted(ranks) or 'none'}, and {ADAPTER_CONFIG} says {lora.r}")
    saved = [name for name in shapes if ".lora_" not in name]
    ends = tuple(lora.modules_to_save or ())
    if not all(name.removesuffix(".weight").endswith(ends) for name in saved):
        raise ValueError(f"{ADAPTER} does not hold the modules_to_save of {ADAPTER_CONFIG}")
    try:
        adapted = add_lora(
            lm,
            rank=lora.r,
            alpha=lora.lora_alpha,
            dropout=lora.lora_dropout,
            target_modules=_targets_in(lm, shapes),
            modules_to_save=lora.modules_to_save,
        )
    except ConfigError as error:
        raise ValueError(f"{ADAPTER} and {ADAPTER_CONFIG} are of another model: {error}") from error
    parameters = {
        name: parameter for name, parameter in adapted.model.named_parameters() if ".lora_" in name or SAVED in name
    }
    tensors = {
        name.removesuffix(".weight") + (f"{SAVED}default.weight" if name in saved else ".default.weight"): tensor
        for name, tensor in load_file(weights).items()
    }
    if tensors.keys() != parameters.keys():
        differ = name_some(sorted(tensors.keys() ^ parameters.keys()))
        raise ValueError(f"{ADAPTER} is of another model, or of adapters that theworld does not train: {differ}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != tensors[name].shape:
                raise ValueError(f"{ADAPTER}: {name} is {tuple(tensors[name].shape)}, not {tuple(parameter.shape)}")
            parameter.copy_(tensors[name])
    adapted.model.requires_grad_(False).eval()
    return adapted


def _targets_in(lm: LanguageModel, shapes: Mapping[str, Any]) -> list[str] | None:
    """The layers that a file has adapters of, as `add_lora` takes them; None is all.

    Their names are taken from the tensors: a stranger's `adapter_config.json` may set a regular expression.
    """
    head = "base_model.model."
    layers = {name[len(head) :].partition(".lora_")[0] for name in shapes if name.startswith(head) and ".lora_" in name}
    linear = {
        name
        for name, module in lm.model.named_modules()
        if _is_linear(module)
        and module is not lm.model.get_output_embeddings()
        and not any(part in name for part in _VISION_PARTS)
    }
    if layers == linear:
        return None
    kinds = sorted(set(map(_last_name, layers)))
    is_all_of_them = layers == {name for name in linear if _last_name(name) in kinds}
    return kinds if is_all_of_them else sorted(layers)


def _last_name(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]


class _LoraFile(BaseModel):
    """The part of `adapter_config.json` that `add_lora` needs."""

    r: Annotated[int, Field(ge=1, le=4096, strict=True)]
    lora_alpha: Annotated[float, Field(gt=0, le=2**20)]
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    modules_to_save: Annotated[list[str], Field(max_length=64)] | None = None


_NOT_USED = frozenset(
    {"base_model_name_or_path", "peft_version", "target_modules", "exclude_modules", "task_type", "revision"}
    | {"inference_mode", *_LoraFile.model_fields}
)
"""Fields that change nothing here: the names of the tensors say which layers have adapters."""


def _read_lora_config(path: Path) -> _LoraFile:
    try:
        fields = read_json(path, MAX_CONFIG_BYTES)
        config = _LoraFile.model_validate(fields)
    except ValidationError as error:
        raise ValueError(f"{path.name}: {list_problems(error)}") from error
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    defaults = LoraConfig().to_dict()
    for name, value in fields.items():
        if name not in _NOT_USED and value and value != defaults.get(name):
            raise ValueError(
                f"{path.name} sets {name}, which `theworld train` never does, so these adapters would work otherwise "
                "than they were trained"
            )
    return config


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Ignore a deprecation warning: peft 0.21 reads an attribute of transformers 5.23 by its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield
