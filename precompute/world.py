"""Which weights: from what a user types to a local folder, the identity in the recipe, and the card's defaults.

Lives here: resolving `--world` (the embedded worldlet, a Hub id, a folder) *before* anything is loaded.
Elsewhere: running them (cosmos.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..pipeline.errors import WorldModelError
from ..pipeline.latent_spec import LatentSpec
from ..pipeline.weights import fetch, hash_files, is_hub_id

WORLDLET = "worldlet"
COSMOS = "nvidia/Cosmos-Predict2-2B-Video2World"
PARTS = ("vae", "transformer", "scheduler")
TEXT_PARTS = ("text_encoder", "tokenizer")


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What a world model says of itself: the settings it was trained for. A folder's `card.json` overrides these."""

    height: int = 224
    """Pixels."""
    width: int = 224
    denoise_steps: int = 10
    window: int = 24
    """Latent frames of its training clips; one joint diffusion cannot go beyond. Cosmos-Predict2: 93 video frames."""
    fps: float = 16.0
    """Video frames per second of its training clips, for the horizon in seconds."""
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """What its transformer is run in; the same on every device, since it changes the latents."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldSource:
    """A world model that was found, named, and not loaded yet."""

    name: str
    """For people and folder names."""
    folder: Path
    """Local folder in the stock layout."""
    identity: str
    """What enters the recipe: `hub:ORG/NAME@<commit>` or `sha256:<hash of weights and configs>`."""
    card: Card

    def latent_spec(self) -> LatentSpec:
        """The space its latents will live in, from the VAE's config."""
        path = self.folder / "vae" / "config.json"
        return latent_spec_of(_read_json(path, f"{path} cannot be read"))


def resolve_world(world: str | None, *, with_text: bool = False, with_weights: bool = True) -> WorldSource:
    """Find a world model's files and fix their identity; loads no weights.

    Args:
        world: None or "worldlet" for the embedded one, a folder, or a Hub id, `ORG/NAME` or `ORG/NAME@REVISION`.
        with_weights: False fetches only the configs from the Hub: enough to know what would be rolled out.
        with_text: also fetch (and, for folders, hash) the text encoder; only a recipe with a prompt needs its 10 GB.
    Raises:
        WorldModelError: no such folder, parts missing, or the Hub cannot be reached and nothing is cached.
    """
    if world is None or world == WORLDLET:
        folder = Path(__file__).parent / "worldlet" / "weights"
        return _from_folder(folder, WORLDLET, with_text=with_text)
    path = Path(world).expanduser()
    if path.is_dir():
        return _from_folder(path.resolve(), path.resolve().name, with_text=with_text)
    if not is_hub_id(world):
        raise WorldModelError(
            f"there is no folder {world}, and it is not a Hub id (ORG/NAME) either. "
            f"Give a folder with {', '.join(f'{part}/' for part in PARTS)}, or an id such as {COSMOS}"
        )
    snapshot = fetch(
        world,
        [f"{part}/*{'' if with_weights else '.json'}" for part in _parts(with_text)],
        error=WorldModelError,
        instead="pass a local folder as --world, or leave --world out to use the embedded worldlet",
    )
    check_parts(snapshot.folder)
    name = snapshot.repository.split("/")[1]
    return WorldSource(name=name, folder=snapshot.folder, identity=snapshot.identity, card=_card(snapshot.folder))


def _from_folder(folder: Path, name: str, *, with_text: bool) -> WorldSource:
    check_parts(folder)
    if with_text and not all((folder / part).is_dir() for part in TEXT_PARTS):
        raise WorldModelError(
            f"the world model in {folder} has no text encoder, so it cannot follow a prompt. "
            "Leave --prompt out, or choose a world model that has one"
        )
    files = [
        path
        for part in _parts(with_text)
        for path in (folder / part).iterdir()
        if path.suffix in {".json", ".safetensors", ".model"}
    ]
    return WorldSource(name=name, folder=folder, identity=hash_files(folder, files), card=_card(folder))


def _parts(with_text: bool) -> tuple[str, ...]:
    return PARTS + (TEXT_PARTS if with_text else ())


def latent_spec_of(config: Mapping[str, Any]) -> LatentSpec:
    """The latent space of an `AutoencoderKLWan` with this config.

    Raises:
        WorldModelError: the config does not describe one.
    """
    try:
        stages = config["temperal_downsample"]  # diffusers' spelling
        return LatentSpec(
            channels=config["z_dim"],
            spatial_stride=2 ** len(stages),
            temporal_stride=2 ** sum(stages),
            mean=tuple(config["latents_mean"]),
            std=tuple(config["latents_std"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WorldModelError(f"the VAE's config describes no latent space: {error!r}") from error


def check_parts(folder: Path) -> None:
    """Check that a folder is a Cosmos-Predict2 pipeline in the stock layout, by its configs alone.

    Raises:
        WorldModelError: a part is missing or is of another class.
    """
    wanted = {
        "vae": ("config.json", "AutoencoderKLWan"),
        "transformer": ("config.json", "CosmosTransformer3DModel"),
        "scheduler": ("scheduler_config.json", "FlowMatchEulerDiscreteScheduler"),
    }
    for part, (name, expected) in wanted.items():
        config = _read_json(folder / part / name, f"the world model in {folder} has no readable {part}/{name}")
        found = config.get("_class_name")
        if found != expected:
            raise WorldModelError(f"{folder}/{part} holds a {found}, expected {expected}: not a Cosmos-Predict2 model")
        if part == "scheduler" and not config.get("use_karras_sigmas"):
            raise WorldModelError(f"{folder}/{part} does not use Karras sigmas, as Cosmos-Predict2 does")


def _card(folder: Path) -> Card:
    path = folder / "card.json"
    if not path.is_file():
        return Card()
    defaults = _read_json(path, f"{path} cannot be read").get("defaults", {})
    known = {name: defaults[name] for name in Card.__dataclass_fields__ if defaults.get(name) is not None}
    return Card(**known)


def _read_json(path: Path, problem: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorldModelError(f"{problem}: {error}") from error
    if not isinstance(value, dict):
        raise WorldModelError(f"{problem}: it is not a JSON object")
    return value
