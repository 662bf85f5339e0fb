"""The interface of a family of world models: all that other code asks about one.

`WorldFamily` is what each has. The other protocols are optional, each with what it is for; without one, the default
stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, runtime_checkable

from pydantic import Field

from ...pipeline.errors import ConfigError, WorldModelError
from ...pipeline.files.limits import MAX_CONFIG_BYTES
from ...pipeline.files.plain import read_json
from ...pipeline.latents.recipe import Recipe, Solver
from ...pipeline.latents.spec import LatentSpec
from .arithmetic import Operations

if TYPE_CHECKING:
    from ...pipeline.latents.world_model import Encoder, WorldModel
    from .text_embeddings import PromptReader, TextEmbeddings

Configs = Mapping[str, Mapping[str, Any]]
"""The configs of a folder: `model_index`, a subfolder's name, or `ROOT` -> that config's JSON."""

INDEX = "model_index"
ROOT = "."
"""The part that is the folder itself: transformers keeps a whole model so, where diffusers has a subfolder for each."""
OTHER_PIPELINE = "its pipeline is a"
"""Begins the reason of a folder that is of another line of models altogether."""
CONFIG_FILES = ("config.json", "scheduler_config.json", "preprocessor_config.json", "tokenizer_config.json")
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


@runtime_checkable
class TextForm(Protocol):
    """How a family reads prompts, and in which form its engine takes them. `TextEncoder` is that of T5 and its like."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Subfolders that it needs beyond those of the family; they decide the latents where there is text."""
        ...

    @property
    def empty_is_free(self) -> bool:
        """Whether no text needs no reading: zeros, or a constant of the weights. Where it does, the empty prompt is
        read like any other, so these parts decide the latents always, and belong to the world's identity always."""
        ...

    @property
    def guardrail(self) -> bool:
        """Whether the model's licence asks that someone checks its prompts."""
        ...

    def most_bytes(self, configs: Configs) -> int:
        """That one prompt takes on disk at the most; 0 is unknown."""
        ...

    def load(self, folder: Path, recipe: Recipe, *, device: str) -> PromptReader:
        """What reads the prompts of a recipe. It is loaded once a job, before workers start.

        Raises:
            WorldModelError: it cannot be loaded.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TextEncoder:
    """The `TextForm` of T5 and its like: the last hidden state of an encoder of its own, a row for each token."""

    class_name: str
    """Class of transformers, such as T5EncoderModel."""
    empty_is_free: bool
    """Whether no text means zero embeddings."""
    guardrail: bool
    """Whether the model's licence asks that someone checks its prompts."""
    parts: tuple[str, ...] = ("text_encoder", "tokenizer")
    clean: Callable[[str], str] = str
    """Cleans a prompt before tokenization, as the stock pipeline does."""

    def most_bytes(self, configs: Configs) -> int:
        """512 rows of the encoder's width, in float32."""
        width = configs.get(self.parts[0], {}).get("d_model")
        return 512 * width * 4 if type(width) is int else 0

    def load(self, folder: Path, recipe: Recipe, *, device: str) -> PromptReader:
        """As `TextForm` has it."""
        from .text_rows import load_reader

        del recipe  # a prompt is read alike for all
        return load_reader(folder, self.class_name, clean=self.clean, device=device)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the settings of a recipe mean for a family. What it cannot follow is refused, by its title."""

    solvers: tuple[Solver, ...] = ()
    """Those that it steps with, its default first. None: the scheduler in its folder decides, and recipes keep the
    default of the field, which then says nothing."""
    levels: str = "of its folder's scheduler"
    """Noise levels, in words."""
    guidance: str | None = "uncond + g (cond - uncond)"
    """The formula above 1; None: it has no guidance."""
    fps: Literal["refused", "optional", "card"] = "refused"
    """refused: it knows frames and no seconds. optional: None is what it was trained with. card: a recipe that names
    none has the card's, since it always enters the arithmetic."""
    most_seen: int | None = None
    """Latent frames that it can be shown; None is any number."""
    noise: bool = True
    """Whether it denoises noise into a future. Without noise there is one future: denoise steps, a seed and several
    draws are refused."""
    size: Literal["any", "card"] = "any"
    """card: it takes pictures of no other size than its card's."""


Ability = Literal["encode_video", "posterior", "decode"]
"""What an engine may be without; `encode` and `rollout` each has."""


@runtime_checkable
class WorldFamily(Protocol):
    """World models that one engine runs. An object of this form, named by an entry point of the group
    `theworld.worlds`, is all that another package needs to add; `docs/worlds.md` shows a complete one."""

    title: str
    """For people, such as `NVIDIA Cosmos-Predict2 Video2World`."""
    parts: tuple[str, ...]
    """Subfolders that decide the latents: they are fetched, hashed and loaded. Without the text encoder's."""
    text: TextForm | None
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

    def load(self, folder: Path, *, device: str, compute_dtype: str, text: TextEmbeddings | None) -> WorldModel:
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

    def load_autoencoder(self, folder: Path, *, device: str) -> Encoder:
        """These parts, their weights on the device. Raises WorldModelError where they cannot be loaded."""
        ...


@runtime_checkable
class HasSettings(Protocol):
    """Optional: what it makes of solver, fps and guidance, so that the rest is refused, planned and shown in one way.
    Without it they pass as they are, and `check` refuses."""

    settings: Settings


@runtime_checkable
class HasLimits(Protocol):
    """Optional: what its engines cannot do. Without it they can do all."""

    lacks: frozenset[Ability]
    """Without `encode_video` it makes no latents of real videos and continues none, without `posterior` no posteriors;
    without `decode` there are no pictures, and no chunks beyond its window."""


@runtime_checkable
class HasPatches(Protocol):
    """Optional: its network merges latent cells, so that not every size can be had. Without it a side is a multiple of
    the spatial stride."""

    def size_multiple(self, configs: Configs) -> int:
        """Pixels that height and width are a multiple of."""
        ...


@runtime_checkable
class HasCards(Protocol):
    """Optional: what a model was trained for stands in its configs, and differs within the family. Without it each has
    the family's card."""

    def card_of(self, configs: Configs) -> Card:
        """The card of the model with these configs. Raises WorldModelError where they do not say it."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What a world model's training clips were, where that is more than its card says."""

    sizes: tuple[tuple[int, int], ...] = ()
    """Height and width in pixels; none: the card's alone."""
    shortest: int | None = None
    """Latent frames of its shortest clips; None: all have the card's window."""


@runtime_checkable
class HasTraining(Protocol):
    """Optional: its training clips, for warnings of what is far from them. Without it they are the card's; a
    `card.json` that states size or window replaces both."""

    training: Training


@runtime_checkable
class HasSpread(Protocol):
    """Optional: how much of the latents' spread its solvers keep. Without it, the card tells few denoise steps."""

    def spread_kept(self, solver: Solver, denoise_steps: int) -> float:
        """Share of the standard deviation of unit Gaussian data; 1 is all of it."""
        ...


@runtime_checkable
class HasArithmetic(Protocol):
    """Optional: the operations of its work, for plans of time and price. Without it, no time is known before
    something has run. Both may raise what configs of no such class give: no time is known of them."""

    def encode_flops(self, configs: Configs, height: int, width: int, frames: int) -> float:
        """Encoding so many video frames of a clip; a multiply and an add are two."""
        ...

    def rollout_flops(self, configs: Configs, recipe: Recipe, seen: int, frames: int) -> Operations:
        """One rollout of `frames` latent frames, with all its forwards, that begins with `seen` video frames."""
        ...


@runtime_checkable
class HasIndexSettings(Protocol):
    """Optional: settings of `model_index.json` decide its latents. Without it, only the files of its parts do."""

    index_decides: Literal[True]
    """A folder's index counts in the world's identity."""


@runtime_checkable
class HasRest(Protocol):
    """Optional: it has parts of which a worker holds less than the files do."""

    def held_share(self, configs: Configs) -> Mapping[str, float]:
        """Part -> the share of its weights that is on the device; parts that are not named are there in full."""
        ...


@runtime_checkable
class KeepsState(Protocol):
    """Optional: the world model keeps a state, so that clips may be longer than those it was trained on.
    Without it, clips beyond the window are made of chunks that begin with decoded frames, or refused."""

    def most_frames(self, configs: Configs) -> int:
        """Latent frames of its longest clip."""
        ...


@runtime_checkable
class HasDimensions(Protocol):
    """Optional: the latent space of the models that its names stand for on the Hub, known without fetching anything."""

    channels: int
    spatial_stride: int


def settings_of(family: WorldFamily) -> Settings | None:
    """What settings mean for the family, where it says so."""
    return family.settings if isinstance(family, HasSettings) else None


def require_ability(family: WorldFamily, ability: Ability, what: str) -> None:
    """Refuse what engines of the family cannot do.

    Args:
        what: that needs it, for the message.
    Raises:
        ConfigError: they lack the ability.
    """
    if isinstance(family, HasLimits) and ability in family.lacks:
        raise ConfigError(f"{what}: {family.title} {_WITHOUT[ability]}")


_WITHOUT: Mapping[Ability, str] = {
    "encode_video": "encodes single images and no videos. Choose a kind that takes images, or another world model",
    "posterior": "encodes to points and to no distributions. Choose another kind, or another world model",
    "decode": "decodes no latents to pictures",
}


def size_multiple(family: WorldFamily, configs: Configs) -> int:
    """Pixels that height and width are a multiple of."""
    stride = family.latent_spec(configs).spatial_stride
    return family.size_multiple(configs) if isinstance(family, HasPatches) else stride


def most_frames(family: WorldFamily, configs: Configs) -> int | None:
    """Latent frames of the longest clip of a family that keeps a state; None for any other."""
    return family.most_frames(configs) if isinstance(family, KeepsState) else None


def read_configs(folder: Path) -> Configs:
    """The configs of a folder, from its JSON files alone: of its subfolders, and its own where it has no index.

    Raises:
        WorldModelError: a config is no JSON object.
    """
    configs: dict[str, dict[str, Any]] = {}
    if (index := folder / f"{INDEX}.json").is_file():
        configs[INDEX] = read_config(index)
    elif (config_file := folder / CONFIG_FILES[0]).is_file():  # beside an index it says nothing
        configs[ROOT] = read_config(config_file)
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
    if ROOT in configs and not wanted.keys() & configs.keys():
        return f"{OTHER_PIPELINE} {class_of(configs[ROOT])}, a model without parts"
    for part, classes in wanted.items():
        if part not in configs:
            if part == INDEX:
                continue
            return f"it has no {part}/ with a config"
        part_class = class_of(configs[part])
        if classes and part_class not in classes:
            if part == INDEX:
                return f"{OTHER_PIPELINE} {part_class}, not a {' or '.join(classes)}"
            return f"its {part} is a {part_class}, not a {' or '.join(classes)}"
    return None
