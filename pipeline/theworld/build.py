"""Build the parts of `theworld.TheWorld` from a trained run, or from a language model alone."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import ValidationError

from theworld.pipeline.errors import ConfigError, RunError
from theworld.pipeline.files.hub.transfers import fetch, is_hub_id
from theworld.pipeline.machine import DeviceName, resolve_device
from theworld.pipeline.messages import list_problems, name_some
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.planning.recipe import make_recipe
from theworld.precompute.worlds.source import resolve_world
from theworld.train.config import DtypeName, TrainConfig
from theworld.train.language.lm import LanguageModel, load_language_model, unread_parts
from theworld.train.language.lora import add_lora
from theworld.train.language.weights import find_weights
from theworld.train.runs import hub
from theworld.train.runs.folder import build_reader, load_run, resolve_dtype
from theworld.train.runs.meta import META, LMFacts, QuestionFacts, ReaderFacts, RunMeta, StoreFacts, runs_in, versions

_log = logging.getLogger(__name__)

_NOTHING = sha256().hexdigest()

SETTINGS = frozenset(
    {"max_world_steps", "layout", "patch", "pool", "pool_steps", "coarse", "queries"}
    | {"lora_rank", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save"}
)
"""Those of `TrainConfig` that a model has before it learns; a run's are fixed."""

Device = str | int | torch.device
"""`auto`, `cpu`, `cuda`, `cuda:1`, the number of a GPU, or torch's own."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a model, and the facts of its run."""

    lm: LanguageModel
    reader: Any
    meta: RunMeta
    path: Path
    """The run folder; a name for messages where there is none yet."""
    world: str | None
    """Where the world model lies; None is what the recipe names."""

    @property
    def meta_with_content(self) -> RunMeta:
        """The facts of the run, with the digest of its language model's files: it finds them in another place."""
        lm = self.meta.lm
        if lm.content is not None:
            return self.meta
        return self.meta.model_copy(update={"lm": lm.model_copy(update={"content": self.lm.weights.content})})


def parts_of_run(run: Path, *, lm: str | None, world: str | None, device: Device, dtype: Any) -> Parts:
    """A trained run. Raises as `load_run`."""
    name, where = _device_of(device)
    with where:
        loaded = load_run(run, lm=lm, device=name, dtype=_dtype_of(dtype))
    return Parts(loaded.lm, loaded.model.reader, loaded.meta, run, world)


def parts_untrained(
    name: str,
    *,
    world: str | None = None,
    num_world_steps: int | None = None,
    size: str | None = None,
    device: Device = "auto",
    dtype: Any = None,
    seed: int = 0,
    **settings: Any,
) -> Parts:
    """A language model with fresh adapters and a fresh reader.

    Args:
        settings: of `TrainConfig`; None is its default.
    Raises:
        ConfigError, WorldModelError: one of them cannot be found or loaded, or does not fit.
    """
    device_name, where = _device_of(device)
    dtype = _dtype_of(dtype) or "auto"
    weights = find_weights(None if name == "worldlet" else name)
    if unread := unread_parts(weights):
        _log.warning(unread)
    steps = 4 if num_world_steps is None else num_world_steps
    source = resolve_world(world)
    recipe = make_recipe(
        PrecomputeConfig(world=source.name if world is None else world, steps=steps, size=size), source
    )
    channels, _, height, width = source.spec_of(recipe).sample_shape(recipe.height, recipe.width, steps)
    require_settings(settings)
    chosen = {setting: value for setting, value in settings.items() if value is not None}
    try:
        config = TrainConfig(store=Path(), questions=Path(), seed=seed, **chosen)
    except ValidationError as error:
        raise ConfigError(list_problems(error)) from error
    form = config.token_layout()
    form.grid(height, width)
    with where:
        on = resolve_device(device_name)
        base = load_language_model(weights, device=on, dtype=resolve_dtype(dtype, on))
        facts = ReaderFacts.of_layout(
            form,
            latent_shape=(channels, height, width),
            hidden_size=base.hidden_size,
            max_world_steps=config.max_world_steps,
            num_world_steps=steps,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            reader = build_reader(facts, base).to(on)
            adapted = add_lora(base, **config.lora())
    meta = RunMeta(
        recipe=recipe, recipe_id=recipe.id,
        store=StoreFacts(path="", shards=0, samples=0, keys_sha256=_NOTHING),
        lm=LMFacts(source=weights.source, identity=weights.identity),
        reader=facts,
        questions=QuestionFacts(path="", sha256=_NOTHING, train=0),
        config={"dtype": dtype, "batch_size": 0, "seed": seed}, versions=versions(), created="",
    )  # fmt: skip
    return Parts(adapted, reader, meta, Path(name), world)


def require_settings(names: Iterable[str]) -> None:
    """Refuse arguments of `from_pretrained` that are none.

    Raises:
        ConfigError: names the first of them, and the settings.
    """
    if strange := sorted(set(names) - SETTINGS):
        near = get_close_matches(strange[0], [*SETTINGS, "num_world_steps", "device", "dtype", "revision", "size"], n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(
            f"from_pretrained has no argument {strange[0]!r}{hint}; settings are {', '.join(sorted(SETTINGS))}"
        )


def find_run(name: str, revision: str | None = None) -> Path | None:
    """The folder of a run; None where the name is that of a language model.

    Args:
        revision: of a repository on the Hub.
    Raises:
        RunError: there is no such repository, or it cannot be reached.
        ConfigError: it is a folder of several runs.
    """
    path = Path(name)
    if path.is_dir() or not is_hub_id(name):
        if revision is not None:
            raise ConfigError(f"revision={revision!r} is of a repository on the Hub, and {name} is none")
        if not (path / META).is_file() and (runs := runs_in(path)):
            raise ConfigError(f"{name} is a folder of runs. Name one of them: {name_some(runs)}")
        return path if (path / META).is_file() else None
    snapshot = fetch(
        with_revision(name, revision),
        [*hub.WEIGHTS, *hub.TEXTS],
        error=RunError,
        instead=f"name a folder: there is none at {name} (looked from {Path.cwd()})",
    )
    return snapshot.folder if (snapshot.folder / META).is_file() else None


def with_revision(name: str, revision: str | None) -> str:
    """ORG/NAME@REVISION."""
    return name if revision is None else f"{name}@{revision}"


def one_device(device: Device | None, device_map: Any) -> Device:
    """`device_map` of transformers as the one device that it must name.

    Raises:
        ConfigError: it spreads a model over several, or both are given.
    """
    if device_map is None:
        return "auto" if device is None else device
    if device is not None:
        raise ConfigError(f"device={device!r} and device_map={device_map!r} say the same: pass one of them")
    if isinstance(device_map, Mapping):
        named = list(dict.fromkeys(device_map.values()))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        if len(named) != 1:
            raise ConfigError(f"device_map names {len(named)} devices; this model is on one: pass device='cuda'")
        return named[0]
    return "auto" if device_map in ("balanced", "balanced_low_0", "sequential") else device_map


def _device_of(device: Device) -> tuple[DeviceName, Any]:
    """The kind of device, and a context in which it means the GPU of that number."""
    device_names = get_args(DeviceName)
    if device in device_names:
        return device, nullcontext()  # pyright: ignore[reportReturnType]
    try:
        torch_device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device={device!r} is none of {', '.join(device_names)}, cuda:1: {error}") from error
    if torch_device.type not in device_names:
        raise ConfigError(f"device={device!r}: this runs on cpu or cuda")
    name: DeviceName = "cpu" if torch_device.type == "cpu" else "cuda"
    resolve_device(name)
    return name, nullcontext() if torch_device.index is None or name == "cpu" else torch.cuda.device(torch_device)


def _dtype_of(dtype: Any) -> DtypeName | None:
    """The name of a dtype, also of torch's own."""
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in get_args(DtypeName):
        raise ConfigError(
            f"dtype={dtype!r}: the language model computes in {', '.join(get_args(DtypeName)[1:])}, or auto"
        )
    return name  # pyright: ignore[reportReturnType]
