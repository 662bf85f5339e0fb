"""Whether weight files are those that a library loads, and whether it loads all that is in them.

The libraries look for one name, and leave out in silence what a class has no place for: scales of quantised weights and
adapters among it, without which the weights are others.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ...messages import name_some

if TYPE_CHECKING:
    from torch import nn

_STEMS: Mapping[str, str] = {"transformers": "model", "diffusers": "diffusion_pytorch_model"}
"""Library -> how its files of weights are called, before `.safetensors` or `.safetensors.index.json`."""
_WHOLE_NUMBERS = ("BOOL", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")
"""Types of safetensors that hold no floating-point weights."""


class RefusedError(ValueError):
    """A model that is not what its folder says."""


def check_weight_files(library: str, folder: Path) -> None:
    """Refuse a folder where the library would not find its weights, or not all of them.

    Args:
        library: transformers or diffusers.
        folder: with the files that it will see.
    Raises:
        RefusedError: the files have other names, or some that the index names are missing.
    """
    file, index = (f"{_STEMS[library]}.safetensors{end}" for end in ("", ".index.json"))
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if file in names:
        return
    if not (folder / index).is_file():
        raise RefusedError(
            f"it has neither {file} nor {index}, but {name_some(names)}. Rename one file with all weights, also of a "
            f"variant such as fp16, to {file}; weights in several files need the index, so finish the download"
        )
    listed = json.loads((folder / index).read_text(encoding="utf-8")).get("weight_map")
    wanted = set(map(str, cast(dict[str, object], listed).values())) if isinstance(listed, dict) else set[str]()
    if missing := sorted(wanted - set(names)):
        raise RefusedError(f"{index} names {name_some(missing)}, which is not there. Finish the download")


def check_number_types(types: Mapping[str, str], model: nn.Module) -> None:
    """Refuse weights that are whole numbers where the model computes with others: they are quantised.

    Args:
        types: tensor -> its type, as safetensors writes it.
        model: as its config describes it.
    Raises:
        RefusedError: some are.
    """
    floating = {_plain(model, name) for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    if whole := sorted(name for name in types if types[name] in _WHOLE_NUMBERS and _plain(model, name) in floating):
        raise RefusedError(
            f"its weights hold {name_some(whole)} as whole numbers ({types[whole[0]]}): they are quantised, and what "
            "they stand for is not known. Use the weights in bfloat16, float16 or float32"
        )


def check_left_out(model: nn.Module, left_out: Collection[str]) -> None:
    """Refuse weights of which a layer was loaded without all that belongs to it.

    What belongs to other parts (a vision tower, a decoder) may be left out.

    Args:
        left_out: tensors that the library found no place for.
    Raises:
        RefusedError: one of them belongs to a layer that the model has.
    """
    modules = cast(Iterator[tuple[str, "nn.Module"]], model.named_modules())
    leaves = [name for name, module in modules if not [*module.children()] and [*module.parameters(recurse=False)]]
    layers = {_plain(model, name) for name in leaves}
    if lost := sorted(name for name in left_out if not layers.isdisjoint(_owners(_plain(model, name)))):
        raise RefusedError(
            f"its weights hold {name_some(lost)}, which the model has no place for, so its layers would compute "
            "something else: they are quantised, or have an adapter (LoRA) that is not merged. Use the weights in "
            "bfloat16, float16 or float32, with the adapter merged into them"
        )


def _plain(model: nn.Module, name: str) -> str:
    """A name without `model.`, say: names in files of a model without its head lack it, and transformers adds it."""
    return name.removeprefix(f"{getattr(model, 'base_model_prefix', '')}.")


def _owners(name: str) -> list[str]:
    """The modules that a tensor's name lies in."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
