"""From `--world` to a local folder, the identity in the recipe, and the card; loads no weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...pipeline.errors import ConfigError, WorldModelError
from ...pipeline.files.hub.pretrained import require_plain
from ...pipeline.files.hub.transfers import Snapshot, fetch, is_hub_id
from ...pipeline.files.hub.weight_hashes import hash_weights
from ...pipeline.files.limits import MAX_CONFIG_BYTES, MAX_WEIGHT_BYTES
from ...pipeline.latents.hidden_space import hidden_spec
from ...pipeline.latents.recipe import Recipe
from ...pipeline.latents.spec import LatentSpec
from ...pipeline.progress import Progress
from .blocks import Blocks, HasBlocks
from .builtin import BUILT_IN, COSMOS, WORLDLET
from .family import (
    CONFIG_FILES,
    INDEX,
    ROOT,
    Ability,
    Card,
    HasAutoencoder,
    HasDimensions,
    HasIndexSettings,
    HasLimits,
    HasRest,
    WorldFamily,
    read_config,
    read_configs,
    require_ability,
)
from .registry import CARD, card_of, identify, named_worlds

if TYPE_CHECKING:
    from ...pipeline.latents.world_model import Encoder


CONFIGS = [f"{INDEX}.json", CONFIG_FILES[0], "*/*config.json"]
"""Patterns of what tells a repository's family."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldSource:
    """A world model on disk, named and identified, not loaded."""

    name: str
    """For people and folder names."""
    folder: Path
    """Local folder in the stock layout."""
    identity: str
    """Its name in the recipe: `hub:ORG/NAME@<commit>` or `sha256:<hash of weights and configs>`; empty where these
    were not read (`find_autoencoder`)."""
    family: WorldFamily
    """Its family, which has its engine."""
    card: Card

    def latent_spec(self) -> LatentSpec:
        """The space of its latents, from its configs."""
        return self.family.latent_spec(read_configs(self.folder))

    def spec_of(self, recipe: Recipe) -> LatentSpec:
        """The space of the recipe's latents: that of the autoencoder, or of the network's hidden states.

        Raises:
            ConfigError: it has no blocks to take hidden states from.
        """
        spec = self.latent_spec()
        if not recipe.traits.is_hidden:
            return spec
        blocks = self.blocks()
        return hidden_spec(spec, recipe, width=blocks.width, patch=blocks.patch)

    def blocks(self) -> Blocks:
        """The blocks of its network.

        Raises:
            ConfigError: its family says of none.
        """
        if not isinstance(self.family, HasBlocks):
            raise ConfigError(
                f"--kind hidden: {self.name} is of the family {self.family.title}, which has no blocks to take hidden "
                "states from. Choose --kind rollout, or another world model (theworld worlds)"
            )
        try:
            return self.family.blocks(read_configs(self.folder))
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise WorldModelError(f"the config of {self.folder} does not say which blocks it has: {error!r}") from error

    def weight_bytes(self) -> int:
        """Bytes of the weights that a worker holds on its device, as large as they are on disk."""
        sizes = {
            part: sum(path.stat().st_size for path in (self.folder / part).glob("*.safetensors"))
            for part in self.family.parts
        }
        held: Mapping[str, float] = {}
        if isinstance(self.family, HasRest):
            with suppress(LookupError, TypeError, ValueError, ArithmeticError):  # of no such class: loading says why
                held = self.family.held_share(read_configs(self.folder))
        return sum(round(size * held.get(part, 1.0)) for part, size in sizes.items())

    @property
    def knows_scenes_alone(self) -> bool:
        """Whether it is the worldlet, or a miniature that `theworld worldlet build` made: its card names scenes."""
        path = self.folder / CARD
        data = read_config(path).get("data") if path.is_file() else None
        return isinstance(data, dict) and bool(data.get("families"))

    def can(self, ability: Ability) -> bool:
        """Whether engines of its family have the ability."""
        return not isinstance(self.family, HasLimits) or ability not in self.family.lacks

    def require(self, ability: Ability, what: str) -> None:
        """Refuse what engines of its family cannot do.

        Args:
            what: that needs it, for the message.
        Raises:
            ConfigError: they lack the ability.
        """
        require_ability(self.family, ability, what)

    def load_autoencoder(self, *, device: str) -> Encoder:
        """Its autoencoder; the whole world model where the family cannot load the autoencoder alone.

        Raises:
            WorldModelError: its weights cannot be loaded.
        """
        if isinstance(self.family, HasAutoencoder):
            return self.family.load_autoencoder(self.folder, device=device)
        return self.family.load(self.folder, device=device, compute_dtype=self.card.compute_dtype, text=None)


def resolve_world(
    world: str | None,
    *,
    with_text: bool = False,
    with_weights: bool = True,
    progress: Progress | None = None,
    trust: bool = True,
) -> WorldSource:
    """Find a world model's files and fix their identity; loads no weights.

    Args:
        world: None for the embedded one, a name such as "worldlet" (`named_worlds`), a folder, or a Hub id,
            `ORG/NAME` or `ORG/NAME@REVISION`.
        with_weights: False fetches only the configs from the Hub: enough to know what would be rolled out.
        with_text: also fetch (and, for folders, hash) what reads prompts; for a family whose empty prompt is free, only
            a recipe with a prompt needs its 10 GB.
        progress: is told what is hashed, where that takes long; None is `Progress.to_logger()`.
        trust: False hashes a folder's weights also where they have not changed since they were hashed.
    Raises:
        WorldModelError: no such folder, parts missing, of no supported family, or the Hub cannot be reached and
            nothing is cached.
    """
    place = _locate(world)
    configs = read_configs(place.folder)
    family = identify(configs, place.folder).family
    parts = _parts(family, with_text, place.folder)
    folder = place.folder
    if place.snapshot is not None:
        # at the commit its configs came from
        identity, patterns = place.snapshot.identity, files_of_parts(parts, with_weights=with_weights)
        folder = _fetch(place.snapshot.name, patterns).folder
    else:
        if missing_parts := [part for part in parts if not (folder / part).is_dir()]:
            raise WorldModelError(f"the world model in {folder} has no {missing_parts[0]}/")
        try:
            files = [
                require_plain(folder, path, MAX_WEIGHT_BYTES)
                for part in parts
                for path in (folder / part).iterdir()
                if path.suffix in {".json", ".safetensors", ".model", ".jinja"} and path != folder / CARD
            ]
            if isinstance(family, HasIndexSettings):
                files.append(require_plain(folder, folder / f"{INDEX}.json", MAX_CONFIG_BYTES))
            identity = hash_weights(folder, files, progress=progress, trust=trust)
        except (OSError, ValueError) as error:
            raise WorldModelError(f"the world model in {folder} cannot be read: {error}") from error
    card = card_of(folder, family)
    return WorldSource(name=place.name, folder=folder, identity=identity, family=family, card=card)


def find_autoencoder(world: str | None) -> WorldSource:
    """A world model of which only the autoencoder is fetched or read.

    The identity of a Hub id is its commit; that of a folder stays empty, since it is a hash of all its weights.

    Args:
        world: as of `resolve_world`.
    Raises:
        WorldModelError: as there.
    """
    place = _locate(world)
    family = identify(read_configs(place.folder), place.folder).family
    parts = family.autoencoder_parts if isinstance(family, HasAutoencoder) else family.parts
    folder, identity = place.folder, ""
    if place.snapshot is not None:
        identity = place.snapshot.identity
        folder = _fetch(place.snapshot.name, [*CONFIGS, *files_of_parts(parts)]).folder
    card = card_of(folder, family)
    return WorldSource(name=place.name, folder=folder, identity=identity, family=family, card=card)


def find_family(world: str | None) -> WorldFamily:
    """The family of a world model, as `resolve_world` finds it, from its configs alone."""
    folder = _locate(world).folder
    return identify(read_configs(folder), folder).family


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The sizes that decide how many numbers a latent has."""

    height: int
    """Default height in pixels."""
    width: int
    channels: int
    spatial_stride: int
    """Pixels per latent row or column."""


def find_dimensions(world: str | None) -> Dimensions:
    """The dimensions of a world model, from its configs alone; for known names, without the network.

    Raises:
        WorldModelError: as `resolve_world`.
    """
    for family in BUILT_IN.values():
        for name, hub_id in family.names.items():
            if world in (name, hub_id) and not Path(hub_id).is_dir() and isinstance(family, HasDimensions):
                return Dimensions(family.card.height, family.card.width, family.channels, family.spatial_stride)
    place = _locate(world)
    configs = read_configs(place.folder)
    family = identify(configs, place.folder).family
    card, spec = card_of(place.folder, family), family.latent_spec(configs)
    return Dimensions(card.height, card.width, spec.channels, spec.spatial_stride)


@dataclass(frozen=True, slots=True)
class _Place:
    """A folder with a world model's configs; from the Hub it holds only these."""

    name: str
    folder: Path
    snapshot: Snapshot | None = None


def _locate(world: str | None) -> _Place:
    world = world or WORLDLET
    place_by_name = named_worlds()
    place = place_by_name.get(world, world)
    try:
        path = Path(place).expanduser()
        if path.is_dir():
            return _Place(world if world in place_by_name else path.resolve().name, path.resolve())
        is_file = path.is_file()
    except (OSError, RuntimeError) as error:  # of no such user, or not for this one to see
        raise WorldModelError(f"--world {place} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if is_file:
        raise WorldModelError(
            f"--world {place} is a file, and a world model is a folder with a subfolder for each part. Weights in one "
            "file become such a folder by diffusers' from_single_file and save_pretrained"
        )
    if not is_hub_id(place):
        raise WorldModelError(
            f"there is no folder {place}, and it is neither a Hub id (ORG/NAME) nor one of {', '.join(place_by_name)}. "
            f"Give a folder, an id such as {COSMOS}, or one of these names (`theworld worlds`)"
        )
    snapshot = _fetch(place, CONFIGS)
    return _Place(snapshot.repository.split("/")[1], snapshot.folder, snapshot)


def _fetch(hub_id: str, patterns: list[str]) -> Snapshot:
    instead = "pass a local folder as --world, or use the embedded --world worldlet"
    return fetch(hub_id, patterns, error=WorldModelError, instead=instead)


def files_of_parts(parts: tuple[str, ...], *, with_weights: bool = True) -> list[str]:
    """Patterns of the files of these parts in a repository. Beside a model without subfolders other things may lie."""
    of_root = ["*.json", "*.safetensors"] if with_weights else ["*.json"]
    of_folder = "*" if with_weights else "*.json"
    return [pattern for part in parts for pattern in (of_root if part == ROOT else [f"{part}/{of_folder}"])]


def _parts(family: WorldFamily, with_text: bool, folder: Path) -> tuple[str, ...]:
    text = family.text
    if text is None:
        if with_text:
            raise WorldModelError(f"the world model in {folder} ({family.title}) reads no prompts. Leave --prompt out")
        return family.parts
    if not with_text and text.empty_is_free:
        return family.parts
    if with_text and (missing := [part for part in text.parts if not (folder / part).is_dir()]):
        raise WorldModelError(
            f"the world model in {folder} has no {missing[0]}/, so it cannot follow a prompt: it has no text encoder. "
            "Leave --prompt out, or choose a world model that has one"
        )
    return family.parts + text.parts
