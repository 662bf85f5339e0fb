"""The interface of a family of world models, and how its configs are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, runtime_checkable

from pydantic import Field

from ...pipeline.errors import WorldModelError
from ...pipeline.files.limits import MAX_CONFIG_BYTES
from ...pipeline.files.plain import read_json
from ...pipeline.latents.recipe import Recipe
from ...pipeline.latents.spec import LatentSpec

if TYPE_CHECKING:
    from ...pipeline.latents.world_model import Autoencoder, WorldModel
    from .text_embeddings import TextEmbeddings

Configs = Mapping[str, Mapping[str, Any]]
"""The configs of a folder: `model_index`, or a subfolder's name -> that config's JSON."""

INDEX = "model_index"
CONFIG_FILES = ("config.json", "scheduler_config.json", "preprocessor_config.json", "tokenizer_config.json")
_MAX_STAGES = 16
"""The strides are two to the power of their number; Wan's autoencoder has three."""
"""File names of a part's config, in the order they are tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """The settings a world model was trained for. A folder's `card.json` overrides them."""

    height: int = 224
    """Pixels."""
    width: int = 224
    denoise_steps: int = 10
    window: Annotated[int, Field(ge=1)] = 24
    """Latent frames of its training clips; one joint diffusion cannot go beyond. Cosmos-Predict2: 93 video frames."""
    fps: Annotated[float, Field(gt=0)] = 16.0
    """Video frames per second of its training clips, for the horizon in seconds."""
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of its transformer; the same on every device, since it changes the latents."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextEncoder:
    """How a family reads prompts."""

    class_name: str
    """Class of transformers, such as T5EncoderModel."""
    empty_is_free: bool
    """Whether no text means zero embeddings. Where it does not, the empty prompt is embedded like any other, so the
    encoder decides the latents always, and belongs to the world's identity always."""
    guardrail: bool
    """Whether the model's licence asks that someone checks its prompts."""
    parts: tuple[str, ...] = ("text_encoder", "tokenizer")
    clean: Callable[[str], str] = str
    """Cleans a prompt before tokenization, as the stock pipeline does."""


class WorldFamily(Protocol):
    """World models that one engine runs. An object of this form, named by an entry point of the group
    `theworld.worlds`, is all that another package needs to add; `docs/worlds.md` shows a complete one."""

    title: str
    """For people, such as `NVIDIA Cosmos-Predict2 Video2World`."""
    parts: tuple[str, ...]
    """Subfolders that decide the latents: they are fetched, hashed and loaded. Without the text encoder's."""
    text: TextEncoder | None
    """None: it reads no prompts."""
    card: Card
    engine: int
    """Version of its arithmetic; enters the recipe. One more whenever the same weights give other latents."""
    names: Mapping[str, str]
    """What may be typed as `--world` in place of a folder or a Hub id -> that folder or Hub id."""

    def mismatch(self, configs: Configs) -> str | None:
        """None where a folder with these configs is one of this family; otherwise why it is not."""
        ...

    def latent_spec(self, configs: Configs) -> LatentSpec:
        """The space its latents live in."""
        ...

    def check(self, recipe: Recipe) -> None:
        """Raise ConfigError where this family cannot do what the recipe says."""
        ...

    def load(
        self, folder: Path, *, device: str, compute_dtype: str, text: TextEmbeddings | None
    ) -> WorldModel:
        """The engine, its weights on the device. Raises WorldModelError where they cannot be loaded.

        Args:
            text: embeddings of the recipe's prompts; None where it has none and no text is free.
        """
        ...


@runtime_checkable
class HasAutoencoder(Protocol):
    """Optional for a family: loading its autoencoder alone, to decode latents without the whole world model."""

    autoencoder_parts: tuple[str, ...]
    """The parts that encode and decode."""

    def load_autoencoder(self, folder: Path, *, device: str) -> Autoencoder:
        """These parts, their weights on the device. Raises WorldModelError where they cannot be loaded."""
        ...


def read_configs(folder: Path) -> Configs:
    """The configs of a folder, from its JSON files alone.

    Raises:
        WorldModelError: a config is no JSON object.
    """
    configs: dict[str, dict[str, Any]] = {}
    if (index := folder / f"{INDEX}.json").is_file():
        configs[INDEX] = read_config(index)
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        for name in CONFIG_FILES:
            if (part / name).is_file():
                configs[part.name] = read_config(part / name)
                break
    return configs


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        WorldModelError: there is none.
    """
    try:
        value = read_json(path, MAX_CONFIG_BYTES)
    except (OSError, ValueError) as error:
        raise WorldModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise WorldModelError(f"{path} cannot be read: it is not a JSON object")
    return value


def class_of(config: Mapping[str, Any]) -> str:
    """The class of a part: diffusers' class name, or transformers' model type."""
    return str(config.get("_class_name") or config.get("model_type") or "part of no stated class")


def mismatched(configs: Configs, wanted: Mapping[str, tuple[str, ...]]) -> str | None:
    """The first part that is missing or of another class, in words; None where there is none.

    Args:
        wanted: part -> the classes that `class_of` may find there; if empty, the part only has to exist. The entry
            `model_index` is compared only if the folder has an index.
    """
    for part, classes in wanted.items():
        if part not in configs:
            if part == INDEX:
                continue
            return f"it has no {part}/ with a config"
        part_class = class_of(configs[part])
        if classes and part_class not in classes:
            name = "pipeline" if part == INDEX else part
            return f"its {name} is a {part_class}, not a {' or '.join(classes)}"
    return None


_MAX_STAGES = 8
"""Halvings of an autoencoder; the models we know have three."""


def _finite(number: Any) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise ValueError(f"{str(number)[:80]} is no finite number")
    return number


def latent_spec_of(config: Mapping[str, Any]) -> LatentSpec:
    """The latent space of an `AutoencoderKLWan` with this config.

    Raises:
        WorldModelError: the config does not describe one.
    """
    try:
        channels, stages = config["z_dim"], config["temperal_downsample"]  # diffusers' spelling
        mean, std = (tuple(map(_finite, config[name])) for name in ("latents_mean", "latents_std"))
        if type(channels) is not int or not isinstance(stages, list) or len(stages) > _MAX_STAGES:
            raise ValueError("z_dim is no whole number, or temperal_downsample no list of a few stages")
        if not all(stage in (False, True) for stage in stages) or min(std, default=1.0) <= 0:  # of more, 2 ** sum hangs
            raise ValueError("temperal_downsample holds more than true and false, or latents_std a number not above 0")
        return LatentSpec(
            channels=channels,
            spatial_stride=2 ** len(stages) * (config.get("patch_size") or 1),
            temporal_stride=2 ** sum(stages),
            mean=mean,
            std=std,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WorldModelError(f"the VAE's config describes no latent space: {error!r}") from error
