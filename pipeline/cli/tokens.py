"""`theworld tokens`: how many world tokens each layout makes, and which fit a language model. Loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...train.config import TrainConfig
from ...train.reader.layouts import LAYOUTS, POOLS
from ..config import WORLD_TOKENS
from ..errors import ConfigError
from ..latents.recipe import parse_size
from ..messages import split_names
from . import options
from .settings import settings_of

if TYPE_CHECKING:
    from ...train.reader.layouts import TokenLayout


_WORLD = "cosmos-predict2-2b"
_OF_LAYOUT = ("patch", "pool", "pool_steps", "coarse", "queries")


@settings_of(TrainConfig, *_OF_LAYOUT)
def tokens(
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH in pixels. (default: the world model's)")] = None,
    steps: Annotated[str, typer.Option(help="Rollout steps, separated by commas.")] = "0,4,8,16",
    layout: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(LAYOUTS[:-1])} or {LAYOUTS[-1]}. (default: the usual ones, side by side)",
            rich_help_panel=WORLD_TOKENS,
            autocompletion=lambda: list(LAYOUTS),
        ),
    ] = None,
    lm: Annotated[
        str, typer.Option(help="Language model: a known Hub id, a folder, or worldlet.")
    ] = "google/gemma-2-2b-it",
    world: Annotated[
        str, typer.Option(help="World model: a Hub id, a folder, or a name; only its configs are read.")
    ] = _WORLD,
    text: Annotated[int, typer.Option(min=1, help="Text tokens to allow for a question and its answer.")] = 64,
    as_json: options.Json = False,
    *,
    typed: dict[str, Any],
) -> None:
    """Print world tokens by layout and rollout steps, and whether the language model has room for them."""
    from ...precompute.worlds.source import find_dimensions
    from ...train.reader.context_budget import Budget, find_context_limits
    from ...train.reader.layouts import PATCH, POOL_STEPS, TokenLayout, usual_layouts
    from ..progress import print_json

    if layout not in (None, *LAYOUTS):
        raise ConfigError(f"--layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if (pool := typed["pool"]) not in (None, *POOLS):
        raise ConfigError(f"--pool must be one of {', '.join(POOLS)}, got {pool!r}")
    columns, room = _numbers(steps), find_context_limits(lm)
    its = find_dimensions(world)
    height, width = _cells(size or f"{its.height}x{its.width}", its.spatial_stride)
    typed_settings = {name: value for name, value in typed.items() if value is not None}
    if layout is None:
        if typed_settings:
            stray = next(iter(typed_settings)).replace("_", "-")
            raise ConfigError(f"--{stray} belongs to one layout: name it, as in --layout patch --{stray} …")
        layouts = list(usual_layouts(height, width))
    else:
        usual: dict[str, Any] = {"name": layout, "patch": PATCH, "pool_steps": POOL_STEPS.get(layout, 1)}
        layouts = [TokenLayout(**usual | typed_settings)]
        layouts[0].grid(height, width)
    cells = (its.channels, height, width)
    budgets = [
        [Budget(layout=layout_of_row, room=room, cells=cells, frames=tuple(range(1 + k)), text=text) for k in columns]
        for layout_of_row in layouts
    ]
    if as_json:
        facts = {"lm": room.source, "context": room.context, "window": room.window, "text": text}
        rows = [{"steps": k, **budget.to_json()} for row in budgets for k, budget in zip(columns, row, strict=True)]
        print_json({**facts, "cells": cells, "rows": rows})
        return
    _print(layouts, columns, budgets, cells)


def _print(layouts: list[TokenLayout], columns: list[int], budgets: list[list[Any]], cells: tuple[int, ...]) -> None:
    from rich.table import Table

    from ..progress import print_lines, print_result

    room, text = budgets[0][0].room, budgets[0][0].text
    channels, height, width = cells
    table = Table(
        "layout", "numbers a token", title=f"world tokens, latent frames of {channels}x{height}x{width}, {room.source}"
    )
    for k in columns:
        table.add_column(f"steps {k}", justify="right")
    marks: set[str] = set()
    for layout, row in zip(layouts, budgets, strict=True):
        counts: list[str] = []
        for budget in row:
            mark = "" if budget.fits and not budget.beyond_window else "~" if budget.fits else "!"
            marks.add(mark)
            counts.append(f"{budget.world_tokens:,}{mark}")
        table.add_row(layout.describe(), f"{layout.numbers(channels, height, width)}", *counts)
    print_result(table)
    if "!" in marks:
        print_lines(f"! beyond the {room.context:,} tokens {room.source} attends to, with {text} of text: refused")
    if "~" in marks:
        print_lines(
            f"~ beyond the {room.window:,} tokens that {room.windowed} of its {room.layers} layers see: these lose the "
            "earliest frames, the observed one first"
        )


def _cells(size: str, stride: int) -> tuple[int, int]:
    """Latent rows and columns of a picture."""
    height, width = parse_size(size.lower())
    if min(height, width) < stride or height % stride or width % stride:
        raise ConfigError(f"--size {size}: height and width must be multiples of {stride} pixels, a latent cell")
    return height // stride, width // stride


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in split_names(text, "--steps", example="0,4,8")]
    except ValueError as error:
        raise ConfigError(f"--steps must be numbers separated by commas, such as 0,4,8; got {text!r}") from error
    if min(numbers) < 0:
        raise ConfigError(f"--steps count from 0, got {text!r}")
    return numbers
