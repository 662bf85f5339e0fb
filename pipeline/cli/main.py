"""The command line. Thin: parse, call one library function, print. torch and ray load only inside the commands.

Results go to stdout, progress and warnings to stderr. Exit codes: 0 all done; 1 damage found; 2 wrong use or
configuration, nothing written; 3 finished, but more inputs failed than --max-bad allows; 10 not a store; 11 locked;
75 interrupted, run the same command again to resume.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from typing import Annotated

import typer

from ..errors import ConfigError, TheWorldError
from ..streams import secure_streams
from .ask import ask
from .cache.commands import cache_app
from .demo import demo
from .doctor.command import doctor, worlds
from .evaluate import evaluate
from .hub import pull, push
from .options import Commands, Root
from .policies import policies
from .precompute import precompute
from .questions import questions
from .scenes import scenes, worldlet_build
from .status import status
from .study import study
from .tokens import tokens
from .train import train
from .ui.command import ui

_BEGIN, _WORK, _LOOK = "Start here", "Predict, train, evaluate", "Inspect stores, costs, models"
_EXPERIMENT, _SHARE = "Experiments", "Share a run"
"""Groups of commands in --help."""

app = Commands(
    name="theworld",
    cls=Root,
    help="Predict what happens after an image, train a language model to read the prediction, measure if it helps.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cache_app, name="cache", rich_help_panel=_LOOK)
worldlet_app = Commands(help="Train the small models of this package again.", no_args_is_help=True)
app.add_typer(worldlet_app, name="worldlet", rich_help_panel=_EXPERIMENT)


@cache
def freeze_once() -> None:
    """Modules live until the end: they are not looked through for garbage again, a quarter of the time of --help."""
    gc.freeze()


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Which a write meets, and a write does not know its file's name."""
_OF_THE_PLACE = _FULL | {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
}
"""What an OSError says of where a user wants something; of others, a traceback says more."""


def main() -> None:
    """Entry point: our errors, and those of places that cannot be written, become one message and an exit code."""
    freeze_once()
    secure_streams()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked workers would warn about it
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="surrogateescape")  # a path that is not UTF-8 goes out as it came in
    try:
        _require_working_folder()
        app()
    except TheWorldError as error:
        from ..progress import print_error

        print_error(f"error: {error}")
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in _OF_THE_PLACE or (error.filename is None and error.errno not in _FULL):
            raise
        from ..progress import print_error

        print_error(
            f"error: {error.filename or 'the place of the output'} cannot be used: {error.strerror}. Name another "
            "place, or see to it that this one may be written and has room"
        )
        sys.exit(2)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # a mistake, ours or a library's (Rust's are no Exception), may quote a stranger
        from ..machine import is_out_of_memory
        from ..progress import print_error, print_lines

        if is_out_of_memory(error):
            print_error(f"error: {memory_message(error, sys.argv[1:2])}")
            sys.exit(1)
        print_lines(*traceback.format_exc().rstrip("\n").split("\n"), err=True)
        sys.exit(1)


def _require_working_folder() -> None:
    """Refuse a folder that was removed: no relative path means anything there, and torch ends the process."""
    try:
        os.getcwd()  # noqa: PTH109 - before pathlib is needed
    except OSError as error:
        raise ConfigError(
            f"the working folder cannot be used ({error.strerror}). Change to one that is there"
        ) from error


_FIT = {
    "train": "--micro-batch 1 gives the same updates, one image at a time; --gradient-checkpointing takes much less "
    "memory and a third more time; larger patches (--patch) or a smaller --lm also help",
    "evaluate": "--batch-size 4, or fewer, changes no answer",
    "policies": "--batch-size 4, or fewer, changes no answer",
    "precompute": "choose --batch-size 1, fewer --workers, a smaller --size or fewer --steps",
}
"""Command -> what makes it fit."""


def memory_message(error: BaseException, command: Sequence[str]) -> str:
    """What a person can do whose command has run out of memory.

    Args:
        command: its first word, if there is one.
    """
    line = (str(error).strip().splitlines() or ["main memory is full"])[0]
    fit = next((_FIT[word] for word in command if word in _FIT), "use a device with more memory, or a smaller model")
    return f"out of memory: {line[:300]}. To make it fit: {fit}. See also what else uses the memory (nvidia-smi, top)"


def _print_version(typed: bool) -> None:
    if typed:
        from importlib.metadata import version

        from ..progress import print_lines

        print_lines(f"theworld {version('theworld')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


# in the order in which one meets them
app.command(rich_help_panel=_BEGIN, example="theworld demo", page="README.md")(demo)
app.command(rich_help_panel=_BEGIN, example="theworld doctor", page="docs/conventions.md")(doctor)
app.command(rich_help_panel=_WORK, example="theworld precompute photos --steps 8", page="docs/inputs.md")(precompute)
app.command(rich_help_panel=_WORK, example="theworld status latents", page="docs/cluster.md")(status)
app.command(rich_help_panel=_WORK, example="theworld questions questions.jsonl latents", page="docs/questions.md")(
    questions
)
app.command(rich_help_panel=_WORK, example="theworld train --cache", page="docs/training.md")(train)
app.command(rich_help_panel=_WORK, example="theworld evaluate runs/1 --report page.html", page="docs/evaluation.md")(
    evaluate
)
_ASK = "theworld ask runs/1 photo.jpg 'where will the ball land?' --choices left,middle,right"
app.command(rich_help_panel=_WORK, example=_ASK, page="docs/evaluation.md")(ask)
app.command(rich_help_panel=_WORK, example="theworld ui runs/1", page="docs/evaluation.md")(ui)
app.command(
    rich_help_panel=_LOOK, example="theworld tokens --steps 0,8 --lm google/gemma-2-2b-it", page="docs/training.md"
)(tokens)
app.command(rich_help_panel=_LOOK, example="theworld worlds --json", page="docs/worlds.md")(worlds)
_STUDY = "theworld study bench/latents --questions bench/questions.jsonl --arms text,steps0,rollout"
app.command(rich_help_panel=_EXPERIMENT, example=_STUDY, page="docs/benchmark.md")(study)
app.command(rich_help_panel=_EXPERIMENT, example="theworld policies runs/1 --rule static=0", page="docs/training.md")(
    policies
)
app.command(
    rich_help_panel=_EXPERIMENT, example="theworld scenes bench --train 1000 --test 500", page="docs/benchmark.md"
)(scenes)
app.command(rich_help_panel=_SHARE, example="theworld push runs/1 ORG/NAME --private", page="docs/training.md")(push)
app.command(rich_help_panel=_SHARE, example="theworld pull ORG/NAME runs/theirs", page="docs/training.md")(pull)
worldlet_app.command("build", example="theworld worldlet build my-world --world-minutes 60", page="docs/benchmark.md")(
    worldlet_build
)


if __name__ == "__main__":
    main()
