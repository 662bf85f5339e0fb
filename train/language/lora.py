"""LoRA: add fresh adapters to a language model, load those of a run, and merge them into the weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import BaseModel, Field, ValidationError
from safetensors.torch import load_file
from torch import nn

from ...pipeline.errors import ConfigError
from ...pipeline.files.hub.pretrained import require_plain, tensor_shapes
from ...pipeline.files.limits import MAX_CONFIG_BYTES, MAX_WEIGHT_BYTES
from ...pipeline.files.plain import read_json
from ...pipeline.messages import list_problems, name_some
from .lm import LanguageModel

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""The files of LoRA in a run folder, in peft's format."""
_VISION_PARTS = ("vision_tower", "multi_modal_projector")
"""The parts of a multimodal model that process images; never trained."""
SAVED = ".modules_to_save."
"""In the name of a parameter that is trained as a copy of one of the model's own."""


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
        layers = [module for name, module in modules if f".{name}".endswith(before + wanted)]
        if not layers or not all(is_kind(module) and module is not head for module in layers):
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
