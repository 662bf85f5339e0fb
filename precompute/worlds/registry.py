"""The families of world models, built in or added by entry points, and the choice of one by a folder's configs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from rich.table import Table

from ...pipeline.errors import WorldModelError
from ...pipeline.messages import list_problems, name_some
from .builtin import BUILT_IN
from .family import (
    INDEX,
    OTHER_PIPELINE,
    ROOT,
    Card,
    Configs,
    HasCards,
    WorldFamily,
    class_of,
    read_config,
    read_configs,
    settings_of,
)

if TYPE_CHECKING:
    from ...pipeline.latents.world_model import WorldModel
    from .text_embeddings import TextEmbeddings

GROUP = "theworld.worlds"
CARD = "card.json"
"""The file beside a world model that corrects its card; it decides no latent."""
_WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".gguf")
_ADAPTERS = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""How diffusers and peft name the weights of an adapter."""
_Defaults, _Card = TypeAdapter(dict[str, Any]), TypeAdapter(Card)
_MEMBERS = (*WorldFamily.__annotations__, "mismatch", "latent_spec", "check", "load")


@dataclass(frozen=True, slots=True)
class Registered:
    """A family, its name, and the package it comes from."""

    name: str
    family: WorldFamily
    origin: str
    """`theworld`, or the package and its version."""


def registered() -> dict[str, Registered]:
    """Every family by its name.

    Raises:
        WorldModelError: an entry point cannot be loaded or is no family, or two claim one name; it says whose they are.
    """
    families = {name: Registered(name, family, "theworld") for name, family in BUILT_IN.items()}
    for point in _entry_points(_state_of_the_path()):
        origin = _origin(point)
        if (other := families.get(point.name)) is not None:
            raise WorldModelError(
                f"two packages bring a world family named {point.name}: {other.origin} and {origin} "
                f"(entry points of the group {GROUP}). Uninstall one, or give it another name"
            )
        families[point.name] = Registered(point.name, _load(point, origin), origin)
    owners: dict[str, Registered] = {}
    for entry in families.values():
        for name in entry.family.names:
            if (other := owners.setdefault(name, entry)) is not entry:
                raise WorldModelError(
                    f"--world {name} would mean two things: the families {other.name} ({other.origin}) and "
                    f"{entry.name} ({entry.origin}) both claim it. Uninstall one, or give it another name"
                )
    return families


def _state_of_the_path() -> tuple[tuple[str, int], ...]:
    """The places where packages are looked for, and when each was last changed: installing one changes its place."""
    places = {place: Path(place or ".") for place in sys.path}
    return tuple((place, folder.stat().st_mtime_ns) for place, folder in places.items() if folder.is_dir())


@lru_cache(maxsize=1)
def _entry_points(_: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    """Those of the group. Reading the metadata of some 150 packages takes 5 ms, and a job asks several times."""
    return tuple(entry_points(group=GROUP))


def named_worlds() -> dict[str, str]:
    """Names that `--world` takes -> the folder or Hub id each stands for."""
    return {name: place for entry in registered().values() for name, place in entry.family.names.items()}


def identify(configs: Configs, where: Path) -> Registered:
    """The one family that a folder with these configs is of.

    Args:
        where: the folder, for messages.
    Raises:
        WorldModelError: none is, with each one's reason; or several are.
    """
    families = registered()
    reasons = {name: _mismatch(entry, configs) for name, entry in families.items()}
    fitting = [families[name] for name, reason in reasons.items() if reason is None]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        claims = " and ".join(f"{entry.name} ({entry.origin})" for entry in fitting)
        raise WorldModelError(f"the world model in {where} is claimed by {claims}. Uninstall one of these packages")
    if not configs and (weights := _lone_weights(where)):
        raise WorldModelError(f"the world model in {where} has no parts with configs, only {weights}")
    stated = {name: reason for name, reason in reasons.items() if reason is not None}
    raise WorldModelError(
        f"the world model in {where} is of no supported family. {_explanation(stated, families, configs)}. Supported "
        f"are {', '.join(families)}: `theworld worlds` lists them; docs/worlds.md says how to add another"
    )


def _lone_weights(folder: Path) -> str | None:
    """What lies in a folder without configs in place of a world model, and what to do; None where it is no weights."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix in _WEIGHTS and not path.name.startswith("."))
    if not names:
        return None
    if any(name in _ADAPTERS for name in names):
        return (
            f"an adapter ({name_some(names)}). Merge it into its base model (load_lora_weights, fuse_lora and "
            "save_pretrained of diffusers) and name the folder of the merged model"
        )
    return (
        f"{name_some(names)}. Weights in one file become a folder that is read by diffusers' from_single_file and "
        "save_pretrained; on the Hub, repositories with such folders are often named …-Diffusers"
    )


def _explanation(reasons: Mapping[str, str], families: Mapping[str, Registered], configs: Configs) -> str:
    """Why no family takes it; each reason once."""
    # where the pipeline is that of a family, only what is said by it helps
    near = {name: reason for name, reason in reasons.items() if not reason.startswith(OTHER_PIPELINE)}
    layout = "diffusers has a folder for each part; on the Hub, such repositories are often named …-Diffusers"
    if not near and INDEX in configs:
        return f"Its pipeline is a {class_of(configs[INDEX])}, which none of them runs"
    if not near:
        return f"It is a {class_of(configs.get(ROOT, {}))} without parts, which none of them runs ({layout})"
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in near.items():
        names_by_reason.setdefault(reason, []).append(f"{name} ({families[name].family.title})")
    lacking = "; ".join(f"no {' and no '.join(names)}: {reason}" for reason, names in names_by_reason.items())
    return f"It is {lacking}" if configs else f"It is {lacking} ({layout})"


def load_world(
    folder: Path, *, device: str = "cpu", compute_dtype: str = "float32", text: TextEmbeddings | None = None
) -> WorldModel:
    """The engine of whatever world model lies in a folder.

    Args:
        text: embeddings of the recipe's prompts.
    Raises:
        WorldModelError: it is of no family, or cannot be loaded.
    """
    family = identify(read_configs(folder), folder).family
    return family.load(folder, device=device, compute_dtype=compute_dtype, text=text)


def card_of(folder: Path, family: WorldFamily) -> Card:
    """The card of a folder: its `card.json` over what its configs say, or the family's defaults.

    Raises:
        WorldModelError: `card.json` has an invalid value, or a size that the model cannot take.
    """
    card = family.card_of(read_configs(folder)) if isinstance(family, HasCards) else family.card
    path = folder / CARD
    if not path.is_file():
        return card
    defaults = read_config(path).get("defaults", {})
    try:
        values = _Defaults.validate_python(defaults)
        stated = {name: values[name] for name in Card.__dataclass_fields__ if values.get(name) is not None}
        corrected = _Card.validate_python({**asdict(card), **stated})
    except ValidationError as error:
        raise WorldModelError(f"{path}, defaults: {list_problems(error)}") from error
    settings = settings_of(family)
    has, wants = ((each.height, each.width) for each in (card, corrected))
    if settings is not None and settings.size == "card" and has != wants:
        raise WorldModelError(
            f"{path}, defaults: height {wants[0]} and width {wants[1]}, but this {family.title} takes pictures of "
            f"{has[0]}x{has[1]} pixels only. Take them out of the file"
        )
    return corrected


def list_worlds() -> list[dict[str, Any]]:
    """One plain record for each name that `--world` takes, and one for each family that has none."""
    rows: list[dict[str, Any]] = []
    for entry in registered().values():
        names: Mapping[str | None, str | None] = {**entry.family.names} or {None: None}
        for name, place in names.items():
            folder = Path(place) if place is not None else None
            embedded = folder is not None and folder.is_dir()
            card = card_of(folder, entry.family) if folder is not None and embedded else entry.family.card
            text, settings = entry.family.text, settings_of(entry.family)
            rows.append(
                {
                    "world": name,
                    "at": place,
                    "family": entry.name,
                    "title": entry.family.title,
                    "from": entry.origin,
                    **asdict(card),
                    "settings": None if settings is None else {**asdict(settings), "solvers": list(settings.solvers)},
                    "prompts": text is not None and (not embedded or _has_text(folder, text.parts)),
                }
            )
    return rows


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of `list_worlds` as a table for a terminal."""
    origins = {row["family"]: row["from"] for row in rows if row["from"] != "theworld"}
    captions = [
        "--world takes a folder or a Hub id of any family, too.",
        "Windows: latent frames; steps: of denoising.",
        *(f"* {family}: of the package {origin}." for family, origin in origins.items()),
    ]
    table = Table(box=None, pad_edge=False, caption=" ".join(captions), caption_justify="left")
    for column in ("--world", "family"):
        table.add_column(column, overflow="fold")  # names of any length; numbers and their heads stay whole
    for column in ("size", "window", "fps", "steps", "prompts"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(
            row["world"] or "a folder",
            row["family"] + "*" * (row["family"] in origins),
            f"{row['height']}x{row['width']}",
            str(row["window"]),
            f"{row['fps']:g}",
            str(row["denoise_steps"]) if (row["settings"] or {}).get("noise", True) else "none",
            "yes" if row["prompts"] else "no",
        )
    return table


def _has_text(folder: Path | None, parts: tuple[str, ...]) -> bool:
    return folder is not None and all((folder / part).is_dir() for part in parts)


def _origin(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an unnamed package"


def _load(point: EntryPoint, origin: str) -> WorldFamily:
    entry = f"the entry point {point.name} = {point.value} of {origin} (group {GROUP})"
    try:
        family = point.load()
    except Exception as error:  # a package's import may raise anything
        raise WorldModelError(
            f"{entry} cannot be loaded: {type(error).__name__}: {error}. Repair or uninstall {origin}"
        ) from error
    if missing_members := [name for name in _MEMBERS if not hasattr(family, name)]:
        raise WorldModelError(
            f"{entry} is no world family: it has no {', '.join(missing_members)}. "
            f"docs/worlds.md shows a whole one; repair or uninstall {origin}"
        )
    return family


def _mismatch(entry: Registered, configs: Configs) -> str | None:
    try:
        return entry.family.mismatch(configs)
    except WorldModelError as error:  # configs that contradict themselves
        return str(error)
    except Exception as error:
        raise WorldModelError(
            f"the world family {entry.name} of {entry.origin} broke on these configs: {type(error).__name__}: {error}. "
            f"Repair or uninstall {entry.origin}"
        ) from error
