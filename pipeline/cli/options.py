"""Options and arguments that several commands share, with one meaning each. Loads nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from pydantic import ValidationError
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from ...train.config import TrainConfig
from ..errors import ConfigError
from ..files.places.local import require_local, url_of
from ..files.places.store_paths import store_path
from ..messages import list_problems, printable
from .settings import help_of

# --- what holds for every command


_PLACES = frozenset({"world", "lm", "inputs"})
"""Options of text that may name a folder; all others of text are no places."""
_STORES = frozenset({"store", "stores", "cache", "target", "a", "b", "true", "draws"})
"""Options and arguments that may name a store in a bucket; a command that cannot use one there says so itself."""


_TAKE_URLS = {("precompute", "images"), ("merge", "stores"), ("push", "run")}
"""Command and parameter: paths that may lie elsewhere (files/remote.py)."""


def _without_types(params: list[Any]) -> list[Any]:
    """The parameters; help names no type for a switch, which takes no value."""
    for param in params:
        if getattr(param, "is_bool_flag", False) and param.metavar is None:
            param.metavar = ""
    return params


class Command(TyperCommand):
    """A command that takes paths of this machine, and URLs of stores and, where `_TAKE_URLS` says so, of inputs."""

    def get_params(self, ctx: Any) -> list[Any]:
        """As of Typer."""
        return _without_types(super().get_params(ctx))

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
                if (self.name, name) in _TAKE_URLS and isinstance(part, Path) and url_of(part) is not None:
                    continue  # its setting looks at the URL
                if isinstance(part, Path) and name in _STORES:
                    store_path(part)
                elif isinstance(part, Path) or (name in _PLACES and isinstance(part, str)):
                    require_local(part)
        return rest


class Group(TyperGroup):
    """A group of commands, such as `cache`."""

    def get_params(self, ctx: Any) -> list[Any]:
        """As of Typer."""
        return _without_types(super().get_params(ctx))


class Root(Group):
    """All commands; Typer prints what was typed wrong as it is, and a pattern may have typed a stranger's file name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As of Typer."""
        with _printable_errors():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """As of Typer."""
        with _printable_errors():
            return super().invoke(ctx)


@contextmanager
def _printable_errors() -> Generator[None, None, None]:
    try:
        yield
    except TyperException as error:
        error.message = printable(error.message)
        typed = getattr(error, "option_name", None) or error.message.removeprefix("No such command ").strip("'.")
        if (ours := _WORDS_OF_OTHERS.get(typed)) is not None:
            error.possibilities = None  # type: ignore[attr-defined]  # names that only look alike
            error.message = f"{error.message.rstrip('.')}. Here it is: {ours}"
        raise


_WORDS_OF_OTHERS = {
    "--fp16": "--dtype float16",
    "--bf16": "--dtype bfloat16",
    "--gpu": "--device cuda",
    "--cuda": "--device cuda",
    "--cpu": "--device cpu",
    "--num-gpus": "--workers",
    "--output": "--out (train), --cache (precompute)",
    "--output-dir": "--out (train), --cache (precompute)",
    "--num-train-epochs": "--epochs",
    "--per-device-train-batch-size": "--batch-size",
    "--gradient-accumulation-steps": "--micro-batch",
    "resume": "theworld train --resume; precompute resumes by itself",
    "eval": "theworld evaluate",
    "test": "theworld evaluate",
    "generate": "theworld precompute",
    "rollout": "theworld precompute",
    "serve": "theworld ui",
    "preview": "theworld cache preview",
    "info": "theworld cache info",
    "verify": "theworld cache verify",
}
"""What other tools call an option or a command -> what to type here."""


class Commands(typer.Typer):
    """Commands as `Command` makes them."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("cls", Group)
        super().__init__(**settings)

    def command(self, *args: Any, example: str | None = None, page: str | None = None, **settings: Any) -> Any:
        """As of Typer.

        Args:
            example: a line to type, shown below the help.
            page: the page of the documentation, from the repository's root; shown below the example.
        """
        lines = [f"{name}: {text}" for name, text in (("Example", example), ("Docs", page)) if text]
        epilog = "\n\n".join(lines) or None  # Typer starts a line at each blank one
        return super().command(*args, **{"cls": Command, "epilog": epilog, **settings})


# --- what most commands take


def _quiet_libraries(quiet: bool) -> bool:
    """Downloads draw bars of their own; their libraries ask the environment once, when they are imported."""
    if quiet:
        for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")
    return quiet


def _known_device(name: str | None) -> str | None:
    if name not in (None, "auto", "cpu", "cuda"):
        raise ConfigError(f"--device must be auto, cpu or cuda, got {name!r}")
    return name


def device_option(panel: str | None = None) -> Any:
    """`--device`, checked; None if it is left out, so that "auto" or the settings file decides."""
    return typer.Option(callback=_known_device, help="auto, cpu or cuda. (default: auto)", rich_help_panel=panel)


def device_name(typed: str | None) -> Any:
    """A `DeviceName` of what was typed."""
    return typed or "auto"


def config_option(panel: str | None = None) -> Any:
    """`--config`."""
    help = "TOML file of settings, in tables precompute and train. Flags override it."
    return typer.Option("--config", help=help, rich_help_panel=panel)


def jobs_option(default: str, panel: str | None = None) -> Any:
    """`--jobs`."""
    return typer.Option(
        min=1, help=f"Number of processes, with one thread each. (default: {default})", rich_help_panel=panel
    )


Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=_quiet_libraries, help="Print only warnings, errors and the result."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
ConfigFile = Annotated[Path | None, config_option()]
Device = Annotated[str | None, device_option()]
Store = Annotated[Path, typer.Argument(help="A store, or a cache folder with one store in it.")]
Keys = Annotated[
    list[str] | None, typer.Option(help="Only these keys: a key, or a text file with one key a line. Can be repeated.")
]
Match = Annotated[str | None, typer.Option(help="Only images whose name matches this regular expression.")]
RunFolder = Annotated[Path, typer.Argument(help="Run folder.")]

# --- what reads a run or a store


def store_typed(value: str | None) -> Any:
    """The path or the URL of a store that was typed; a callback of what is typed as text."""
    return None if value is None else store_path(value)


def moved_world(panel: str | None = None) -> Any:
    """`--world` of a command that otherwise finds the world model by its name in the recipe."""
    help = "Folder or Hub id of the world model. (default: as recorded in the recipe)"
    return typer.Option(help=help, rich_help_panel=panel)


def images_of_store(panel: str | None = None) -> Any:
    """`--images` of a command that needs the inputs a store was made from."""
    help = "The inputs that the store was made from. (default: the cache's own scenes)"
    return typer.Option(help=help, rich_help_panel=panel)


def moved_lm(panel: str | None = None) -> Any:
    """`--lm` of a command that otherwise finds the language model by its name in the run."""
    help = "The run's language model, if it has moved: a folder, a .gguf file or a Hub id. (default: as recorded)"
    return typer.Option("--lm", help=help, rich_help_panel=panel)


def left_out_option(default: str, panel: str | None = None) -> Any:
    """`--max-bad` of a command that reads questions."""
    help = help_of(TrainConfig, "max_bad")
    return typer.Option(min=0, help=f"{help} (default: {default})", rich_help_panel=panel)


MovedWorld = Annotated[str | None, moved_world()]
MovedLm = Annotated[str | None, moved_lm()]
ImagesOfStore = Annotated[Path | None, images_of_store()]
ReadSteps = Annotated[int | None, typer.Option(min=0, help="Rollout steps to read. (default: as trained)")]
Runs = Annotated[list[Path] | None, typer.Argument(help="Run folders. (default: the newest under runs)")]
Draws = Annotated[
    int | None,
    typer.Option(min=1, help="Number of rollouts to average an answer over; their agreement is its confidence."),
]
StoreOfRun = Annotated[
    str | None,
    typer.Option(
        callback=store_typed, metavar="PATH", help="A store of the same recipe. (default: the one it was trained on)"
    ),
]
QuestionsOfRun = Annotated[Path | None, typer.Option(help="Questions file. (default: the one it was trained on)")]
Split = Annotated[str, typer.Option(help="Split of the questions, such as test; 'all' for every split.")]
AnswerBatch = Annotated[
    int, typer.Option(min=1, help="Images or choices in a batch. Fewer need less memory; answers stay the same.")
]
_OF_GPU = "(default: what the GPU has; no limit on a CPU)"
Memory = Annotated[float | None, typer.Option(min=0.1, max=1e6, help=f"{help_of(TrainConfig, 'memory')} {_OF_GPU}")]
Outcomes = Annotated[
    Path | None, typer.Option(help="JSON file {scene: true or false}: whether the scene's rollout ends correctly.")
]
