"""Save and load a run folder, the result of a training.

adapter_model.safetensors, adapter_config.json   LoRA; `PeftModel.from_pretrained(base, run)` loads it alone
world_reader.safetensors                         temporal embedding and projector
theworld.json                                    what it was trained on and with: `RunMeta` (meta.py)
metrics.json                                     loss curve, tokens, seconds
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...pipeline.errors import ConfigError, RunError, StoreMismatchError
from ...pipeline.files.hub.pretrained import require_plain, tensor_shapes
from ...pipeline.files.limits import MAX_WEIGHT_BYTES
from ...pipeline.files.rights import follow_umask
from ...pipeline.latents.recipe import difference
from ...pipeline.machine import DeviceName, is_out_of_memory, resolve_device
from ...pipeline.progress import Progress
from ...pipeline.store.folder import LatentStore
from ..config import DtypeName
from ..language.adapter_dtype import compute_in_model_dtype
from ..language.lm import LanguageModel, attention_of, embedding_rms, load_language_model, unread_parts
from ..language.lora import load_adapter
from ..language.weights import Weights, find_weights
from ..reader.memory import MemoryShape
from ..reader.model import TheWorld
from ..reader.tokens import WorldReader
from .meta import META, ReaderFacts, RunMeta, read_meta
from .sizes import require_room, sizes_of_run

READER = "world_reader.safetensors"


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A trained model, ready to answer."""

    path: Path
    model: TheWorld
    lm: LanguageModel
    meta: RunMeta
    device: torch.device
    sizes: MemoryShape | None = None
    """What decides how much memory an answer needs; None estimates nothing."""
    memory: float | None = None
    """Answers are planned for a GPU of so many GiB; None is what is free."""


def resolve_dtype(name: DtypeName, device: torch.device) -> torch.dtype:
    """The frozen model's dtype; "auto" is bfloat16 on a GPU, float32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def build_reader(facts: ReaderFacts, lm: LanguageModel) -> WorldReader:
    """A fresh reader for this language model; its weights are yet to be trained or loaded."""
    return WorldReader(
        latent_shape=facts.latent_shape,
        hidden_size=facts.hidden_size,
        embedding_rms=embedding_rms(lm.model),
        layout=facts.token_layout(),
        max_world_steps=facts.max_world_steps,
        frames=facts.frames,
    )


def save_run(folder: Path, model: TheWorld, meta: RunMeta, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write adapters, reader and theworld.json into a folder.

    Args:
        weights: trained parameters by their name in `model`; None takes those of `model`.
    """
    assert isinstance(model.lm, PeftModel)
    weights = weights or {name: parameter.detach().cpu() for name, parameter in model.trainable_parameters()}
    lora, reader = (
        {name.removeprefix(head): tensor.contiguous() for name, tensor in weights.items() if name.startswith(head)}
        for head in ("lm.", "reader.")
    )
    model.lm.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False, state_dict=lora)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    save_file(reader, folder / READER)
    for path in folder.glob("*.safetensors"):
        follow_umask(path)
    (folder / META).write_text(meta.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load_run(
    run: Path | str,
    *,
    lm: str | None = None,
    device: DeviceName = "auto",
    dtype: DtypeName | None = None,
    memory: float | None = None,
    progress: Progress | None = None,
) -> LoadedRun:
    """A trained model from its folder.

    Args:
        lm: where the base language model is now, if it has moved. It must be the same model.
        dtype: of the frozen model; None is what it was trained with; "auto" is resolved for this device.
        memory: plan for a GPU of so many GiB; None is what is free on the device.
        progress: is told what is hashed and, before weights load, how much memory an answer needs; None is nobody.
    Raises:
        RunError: not a run folder, damaged weights, or another base model than the one it was trained on.
        ConfigError: the base model cannot be found or loaded, or the device is too small for it.
    """
    run = Path(run)
    meta = read_meta(run)
    weights = _find_base(run, meta, lm, progress)
    torch_device = resolve_device(device)
    try:
        torch_dtype = resolve_dtype(dtype or _dtype_set(meta, "dtype", "auto"), torch_device)
        if progress is not None and (unread := unread_parts(weights)):
            progress.say(unread)
        reporting: dict[str, Any] = {} if progress is None else {"say": progress.warn}
        attention = attention_of(weights, "auto", device=torch_device, dtype=torch_dtype, **reporting)
        sizes = sizes_of_run(meta, weights, torch_dtype, attention)
        require_room(sizes, torch_device, source=weights.source, memory=memory, progress=progress)
        base = load_language_model(weights, device=torch_device, dtype=torch_dtype, attention=attention)
        reader = _load_reader(run, meta.reader, base)
        adapted = load_adapter(base, run)
        if torch_dtype == torch.bfloat16 and _dtype_set(meta, "adapter_dtype", "float32") == "bfloat16":
            compute_in_model_dtype(adapted.model)
    except (OSError, SafetensorError, RuntimeError, KeyError, ValueError) as error:
        if isinstance(error, ConfigError) or is_out_of_memory(error):
            raise
        raise RunError(f"the weights in {run} cannot be loaded: {error}. It is incomplete or damaged") from error
    steps = meta.reader.num_world_steps
    model = TheWorld(
        adapted.model,
        reader,
        num_world_steps=steps,
        max_world_steps=meta.reader.max_world_steps,
        recipe=meta.recipe,
    )
    return LoadedRun(run, model.eval().to(torch_device), adapted, meta, torch_device, sizes, memory)


def _find_base(run: Path, meta: RunMeta, lm: str | None, progress: Progress | None) -> Weights:
    """The base language model of a run, wherever it lies.

    Raises:
        ConfigError: it is not there. RunError: what is there is another model.
    """
    origin = f"{run} was trained on the language model {meta.lm.source} ({_both(meta.lm.identity, meta.lm.content)})"
    try:
        weights = find_weights(lm or meta.lm.source, progress=progress)
    except ConfigError as error:
        if lm is not None:
            raise
        raise ConfigError(f"{origin}, which is not found there: {error}. Say where it lies now: --lm PLACE") from error
    if not weights.is_same(meta.lm.identity, meta.lm.content):
        advice = "name that one with --lm: a folder with the same files, or the Hub id; or train again"
        if meta.lm.content is None and meta.lm.identity.startswith("hub:"):
            name = meta.lm.identity.removeprefix("hub:")
            advice = f"this run noted the Hub's name alone, not the content of the files: pass --lm {name}"
        raise RunError(
            f"{origin}, but {weights.source} is {_both(weights.identity, weights.content)}. Adapters fit only the "
            f"model they were trained on: {advice}"
        )
    return weights


def _both(identity: str, content: str | None) -> str:
    """A model's two identities, as far as there are two."""
    return identity if content in (None, identity) else f"{identity}, {content}"


def _dtype_set(meta: RunMeta, setting: str, earlier: DtypeName) -> DtypeName:
    """The dtype that a setting of the training names; `earlier` where its version had no such setting."""
    name = meta.config.get(setting, earlier)
    if name not in get_args(DtypeName):
        raise ValueError(f"{META} names the {setting} {name!r}; there are {', '.join(get_args(DtypeName))}")
    return name


def _load_reader(run: Path, facts: ReaderFacts, base: LanguageModel) -> WorldReader:
    """The trained reader. Sizes are compared before anything is allocated: theworld.json may state any."""
    path = require_plain(run, run / READER, MAX_WEIGHT_BYTES)
    with torch.device("meta"):
        stated = {name: tuple(tensor.shape) for name, tensor in build_reader(facts, base).state_dict().items()}
    if stated != tensor_shapes(path):
        raise ValueError(f"{READER} does not hold the reader that {META} describes")
    reader = build_reader(facts, base)
    reader.load_state_dict(load_file(path))
    return reader


def require_same_recipe(meta: RunMeta, run: Path, store: LatentStore) -> None:
    """Refuse a store of another recipe than the run's.

    Raises:
        StoreMismatchError: names the fields that differ, the run's value beside the store's.
    """
    if store.recipe.id == meta.recipe_id:
        return
    fields = difference(meta.recipe, store.recipe)
    differ = ", ".join(f"{name} {ours!r} there, {theirs!r} here" for name, (ours, theirs) in fields.items())
    raise StoreMismatchError(
        f"{run} was trained on latents of another recipe than {store.place} holds: {differ}. "
        "Name a store of the same recipe, or train on this one"
    )
