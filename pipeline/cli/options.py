"""Options and arguments that several commands share, with one meaning each. Loads nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from pydantic import ValidationError
from typer.core import TyperCommand

from ..errors import ConfigError
from ..files.local import require_local
from ..messages import list_problems

DEFAULT_CACHE = Path("latents")
RUNNING = "How it runs"
SHAPES_LATENT = "Decides the latents (enters the recipe)"
WORLD_TOKENS = "World tokens"

# --- what holds for every command


_PLACES = frozenset({"world", "lm", "wanted"})
"""Options of text that may name a folder; all others of text are no places."""


class Command(TyperCommand):
    """A command that takes paths of this machine alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse a URL wherever a path is expected, before the command begins."""
        try:
            rest = super().parse_args(ctx, args)
        except typer.BadParameter as error:
            if not isinstance(error.__cause__, ValidationError) or error.param is None:
                raise
            raise ConfigError(list_problems(error.__cause__, value=error.param.opts[0])) from error
        for name, value in ctx.params.items():
            parts = cast(list[Any], value) if isinstance(value, list | tuple) else [value]
            for part in parts:
                if isinstance(part, Path) or (name in _PLACES and isinstance(part, str)):
                    require_local(part)
        return rest


class Commands(typer.Typer):
    """Commands as `Command` makes them."""

    def command(self, *args: Any, **settings: Any) -> Any:
        """As of Typer."""
        return super().command(*args, **{"cls": Command, **settings})


# --- what most commands take


def _quiet_libraries(wanted: bool) -> bool:
    """Downloads draw bars of their own; their libraries ask the environment once, when they are imported."""
    if wanted:
        for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")
    return wanted


def _known_device(name: str | None) -> str | None:
    if name not in (None, "auto", "cpu", "cuda"):
        raise ConfigError(f"--device must be auto, cpu or cuda, got {name!r}")
    return name


def device_option(panel: str | None = None) -> Any:
    """`--device`, checked; left out it is None, for "auto" or what a file says."""
    return typer.Option(callback=_known_device, help="auto, cpu or cuda. (default: auto)", rich_help_panel=panel)


def device_name(given: str | None) -> Any:
    """A `DeviceName` of what was typed."""
    return given or "auto"


def config_option(panel: str | None = None) -> Any:
    """`--config`."""
    help = "TOML file of settings, tables precompute and train; flags win over it."
    return typer.Option("--config", help=help, rich_help_panel=panel)


def jobs_option(default: str, panel: str | None = None) -> Any:
    """`--jobs`."""
    return typer.Option(min=1, help=f"Processes, of one thread each. (default: {default})", rich_help_panel=panel)


Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=_quiet_libraries, help="Print only warnings, errors and the result."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
ConfigFile = Annotated[Path | None, config_option()]
Device = Annotated[str | None, device_option()]
Store = Annotated[Path, typer.Argument(help="A store, or a cache folder with one store in it.")]
RunFolder = Annotated[Path, typer.Argument(help="Run folder.")]

# --- what reads a run or a store


def moved_world(panel: str | None = None) -> Any:
    """`--world` of a command that finds the world model by what a recipe says."""
    help = "The world model's folder or Hub id. (default: where the recipe says)"
    return typer.Option(help=help, rich_help_panel=panel)


def images_of_store(panel: str | None = None) -> Any:
    """`--images` of a command that needs the inputs a store was made from."""
    help = "What the store was made from. (default: the cache's own scenes)"
    return typer.Option(help=help, rich_help_panel=panel)


def left_out_option(default: str, panel: str | None = None) -> Any:
    """`--max-bad` of a command that reads questions."""
    help = "Questions that may be left out: wrong rows, too long, without latents. Each is reported."
    return typer.Option(min=0, help=f"{help} (default: {default})", rich_help_panel=panel)


MovedWorld = Annotated[str | None, moved_world()]
ImagesOfStore = Annotated[Path | None, images_of_store()]
ReadSteps = Annotated[int | None, typer.Option(min=0, help="Rollout steps to read. (default: as trained)")]
LanguageModel = Annotated[
    str | None,
    typer.Option("--lm", "--model", help="Language model: a Hub id, a folder, a .gguf file. (default: embedded)"),
]
Columns = Annotated[str | None, typer.Option(help="question=Q,answer=A,choices=C,image=I,type=T: a table's own names.")]

# --- what decides latents: `precompute`, and `cache explain`, which compares


def _recipe_option(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=SHAPES_LATENT)


Kind = Annotated[
    str | None,
    _recipe_option(
        "rollout: images and their predicted future. samples: several futures. continuation: videos and their "
        "future. frames: real videos, encoded. views: crops of images. posterior: mean and log-variance of images. "
        "(default: rollout)"
    ),
]
Steps = Annotated[
    int | None,
    _recipe_option("Future latent frames per image; T = 1 + steps. (default: 8; 13 views, 1 posterior)"),
]
World = Annotated[
    str | None, _recipe_option("World model: a Hub id, a folder, or a name. (default: the embedded worldlet)")
]
Size = Annotated[str | None, _recipe_option("HEIGHTxWIDTH in pixels. (default: the world model's)")]
Fit = Annotated[str | None, _recipe_option("cover, pad or stretch. (default: cover)")]
Stride = Annotated[int | None, _recipe_option("Keep every stride-th latent frame. (default: 1)")]
DenoiseSteps = Annotated[
    int | None,
    _recipe_option("Diffusion steps. (default: the world model's)", "--denoise-steps", "--num-inference-steps"),
]
Solver = Annotated[str | None, _recipe_option("euler, or 2ab, of second order. (default: euler)")]
Guidance = Annotated[
    float | None,
    _recipe_option("Classifier-free guidance; 1 is off. (default: 1)", "--guidance", "--guidance-scale"),
]
Prompt = Annotated[str | None, _recipe_option("Text that conditions the rollout; needs --guardrail.")]
NegativePrompt = Annotated[str | None, _recipe_option("Text to steer away from, with guidance.")]
PromptField = Annotated[str | None, _recipe_option("Column of a list with a prompt for each input.")]
NoiseSeed = Annotated[int | None, _recipe_option("Seed of the noise. (default: 0)")]
Draws = Annotated[
    int | None, _recipe_option("Futures of kind samples, --steps each. (default: 4)", "--draws", "--num-samples")
]
ObservedFrames = Annotated[int | None, _recipe_option("Video frames that kind continuation is shown. (default: 5)")]
Views = Annotated[str | None, _recipe_option("Of kind views: pyramid or zoom. (default: pyramid)")]
ChunkContext = Annotated[
    int | None,
    _recipe_option(
        "Beyond the world model's window: chunks that begin with 1 or 5 decoded frames; 0 refuses. (default: 0)"
    ),
]
ComputeDtype = Annotated[
    str | None, _recipe_option("float32 or bfloat16, of the transformer. (default: the world model's)")
]
StoredDtype = Annotated[str | None, _recipe_option("float16, bfloat16 or float32, of the store. (default: float16)")]

# --- what the reader gets: `train`, and `tokens`, which counts


LAYOUTS = ("spatial", "patch", "pooled", "hierarchical", "channel", "resampler")
"""Names for help and for shells that complete them; what they mean stands in train/reader/layouts.py."""


def _tokens_option(help: str, *, min: int | None = None) -> Any:
    return typer.Option(min=min, help=help, rich_help_panel=WORLD_TOKENS)


def _layout_option(help: str) -> Any:
    named = f"{', '.join(LAYOUTS[:-1])} or {LAYOUTS[-1]}. {help}"
    return typer.Option(help=named, rich_help_panel=WORLD_TOKENS, autocompletion=lambda: list(LAYOUTS))


Layout = Annotated[str | None, _layout_option("Counted by `theworld tokens`. (default: patch)")]
SomeLayout = Annotated[str | None, _layout_option("(default: the usual ones, side by side)")]
Patch = Annotated[int | None, _tokens_option("Cells per side of a token. (default: 4)", min=1)]
Pool = Annotated[str | None, _tokens_option("mean, max, minmax or stride. (default: minmax)")]
PoolSteps = Annotated[
    int | None, _tokens_option("Future frames that share tokens. (default: 1; 2 pooled, 4 hierarchical)", min=1)
]
Coarse = Annotated[
    int | None, _tokens_option("hierarchical: patches per side that share a token in between. (default: 2)", min=1)
]
Queries = Annotated[int | None, _tokens_option("resampler: world tokens in all. (default: 32)", min=1)]
