"""Whether the world tokens of a layout fit a language model. Loads neither torch nor transformers.

There are two limits. A language model attends to no token beyond its context: such a row is refused. Gemma's windowed
layers see only the last tokens, as many as their window: a longer row gets a warning that names the frames they do not
see. World tokens stand in front of the text, the observed frame first, so that frame leaves the window first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...pipeline.errors import ConfigError
from ...pipeline.files.limits import MAX_CONFIG_BYTES
from ...pipeline.files.plain import read_json
from ..worldlet import WEIGHTS
from .layouts import TokenLayout, usual_layouts

_NAMED = 4  # layouts that a message lists


@dataclass(frozen=True, slots=True)
class ContextLimits:
    """How many tokens a language model can attend to, and in how many of its layers."""

    source: str
    context: int
    """The most tokens."""
    window: int | None
    """Tokens that its windowed layers see; None if it has no such layers."""
    windowed: int
    """Layers with a window."""
    layers: int


def _gemma2(name: str, layers: int) -> ContextLimits:
    return ContextLimits(name, 8192, 4096, (layers + 1) // 2, layers)


def _gemma3(name: str, layers: int, context: int, window: int) -> ContextLimits:
    return ContextLimits(name, context, window, layers - layers // 6, layers)


LIMITS_BY_MODEL = {
    room.source: room
    for room in (
        _gemma2("google/gemma-2-2b", 26),
        _gemma2("google/gemma-2-9b", 42),
        _gemma2("google/gemma-2-27b", 46),
        _gemma3("google/gemma-3-270m", 18, 32_768, 512),
        _gemma3("google/gemma-3-1b", 26, 32_768, 512),
        _gemma3("google/gemma-3-4b", 34, 131_072, 1024),
        _gemma3("google/gemma-3-12b", 48, 131_072, 1024),
        _gemma3("google/gemma-3-27b", 62, 131_072, 1024),
    )
}
"""From the config.json of these models on the Hub; their instruction-tuned versions (-it) have the same limits.

In Gemma-2 every other layer is windowed, the first one included; in Gemma-3 all but every sixth."""

_CLASS_DEFAULTS = {
    "gemma2": (8192, 4096, 26),
    "gemma3_text": (131_072, 4096, 26),
    "gemma4_text": (131_072, 512, 30),
    "gemma4_unified_text": (262_144, 1024, 30),
}
"""(context, window, layers) where a config.json leaves them out: classes of transformers 5.23. Others state them."""

WINDOWED_THROUGHOUT = ("mistral", "phi3")
"""Model types without `layer_types` whose layers all have the window of their config; others ignore it."""


def find_context_limits(lm: str | None) -> ContextLimits:
    """The limits of a language model, without loading its weights.

    Args:
        lm: a folder, or the Hub id of a model in `LIMITS_BY_MODEL`; None is the embedded model.

    Raises:
        ConfigError: a folder without a readable config.json, or neither a folder nor a known model.
    """
    if lm in (None, "worldlet"):
        return _read_room("worldlet", WEIGHTS)
    folder = Path(lm).expanduser()
    if folder.is_dir():
        return _read_room(str(folder), folder)
    limits = LIMITS_BY_MODEL.get(lm.partition("@")[0].removesuffix("-it").removesuffix("-pt"))
    if limits is None:
        raise ConfigError(
            f"--lm {lm} is neither a folder here nor a language model known by name: {', '.join(LIMITS_BY_MODEL)} "
            "(or with -it), worldlet. Name the folder that holds its config.json"
        )
    return replace(limits, source=lm)


def _read_room(source: str, folder: Path) -> ContextLimits:
    try:
        return context_limits_of(source, read_json(folder / "config.json", MAX_CONFIG_BYTES))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"{folder / 'config.json'} does not describe a language model: {error}") from error


def context_limits_of(source: str, config: Mapping[str, Any]) -> ContextLimits:
    """The limits that a transformers configuration states; of a multimodal model, those of its text part."""
    config = {**config, **(config.get("text_config") or {})}
    family = str(config.get("model_type"))
    family = "gemma3_text" if family == "gemma3" else family  # a multimodal one whose text part states no type
    defaults = _CLASS_DEFAULTS.get(family, (None, None, None))
    context, window, layers = (
        config.get(name, default)
        for name, default in zip(
            ("max_position_embeddings", "sliding_window", "num_hidden_layers"), defaults, strict=True
        )
    )
    types = config.get("layer_types")
    if types is not None:
        windowed = sum(kind == "sliding_attention" for kind in types)
    elif family in _CLASS_DEFAULTS:
        windowed = (layers + 1) // 2 if family == "gemma2" else layers - layers // 6
    else:
        windowed = layers if family in WINDOWED_THROUGHOUT else 0
    return ContextLimits(source, int(context), int(window) if window and windowed else None, windowed, int(layers))


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """The tokens of one question, compared with a language model's limits."""

    layout: TokenLayout
    room: ContextLimits
    cells: tuple[int, int, int]
    """(C, H, W) of a latent frame."""
    frames: tuple[int, ...]
    """The latent frames that are read."""
    text: int
    """The most text tokens of a question: <bos>, prompt and answer."""

    @property
    def world_tokens(self) -> int:
        """World tokens of one sample."""
        return self._count(self.layout, len(self.frames))

    @property
    def total(self) -> int:
        """World and text tokens."""
        return self.world_tokens + self.text

    @property
    def fits(self) -> bool:
        """Whether the tokens are within the context."""
        return self.total <= self.room.context

    @property
    def beyond_window(self) -> bool:
        """Whether windowed layers miss some tokens. False where the window is too small for the text alone."""
        return self.room.window is not None and self.text <= self.room.window < self.total

    def frames_beyond_window(self) -> tuple[list[int], list[int]]:
        """Frames of which the last token sees nothing in windowed layers, and frames of which it sees a part."""
        if not self.beyond_window:
            return [], []
        assert self.room.window is not None
        channels, height, width = self.cells
        visible = self.room.window - (self.text - 1)  # <bos> stands in front
        hidden, partly = self.layout.hidden_frames(len(self.frames), height, width, channels=channels, seen=visible)
        return [self.frames[n] for n in hidden], [self.frames[n] for n in partly]

    def require_fit(self) -> None:
        """Refuse a row that is longer than the context.

        Raises:
            ConfigError: says both numbers, and which layouts would fit.
        """
        if self.fits:
            return
        max_frames = max((n for n in range(len(self.frames)) if self._fits(self.layout, n + 1)), default=None)
        fewer = "" if max_frames is None else f"Pass --steps {max_frames} or fewer, or"
        suggestions = self._suggested_layouts(lambda tokens: tokens + self.text <= self.room.context)
        choose = "a larger patch"
        if suggestions:
            choose = f"choose a layout that fits {len(self.frames)} frames:\n{suggestions}"
        raise ConfigError(
            f"{self.world_tokens:,} world tokens ({len(self.frames)} frames, {self.layout.describe()}) and {self.text} "
            f"text tokens exceed the {self.room.context:,} tokens {self.room.source} attends to. "
            f"{fewer or 'Not even one frame fits:'} {choose}"
        )

    def warning(self) -> str | None:
        """Which frames windowed layers do not see, and what to do; None if they see all."""
        if not self.beyond_window or not self.fits:
            return None
        hidden, partly = self.frames_beyond_window()
        missing_frames = [f"nothing of {_frames(hidden)}"] if hidden else []
        missing_frames += [f"only a part of {_frames(partly)}"] if partly else []
        suggestions = self._suggested_layouts(lambda tokens: tokens + self.text <= (self.room.window or 0))
        return (
            f"{self.room.windowed} of the {self.room.layers} layers of {self.room.source} see the last "
            f"{self.room.window:,} tokens alone, and a question has {self.total:,}: there an answer sees "
            f"{' and '.join(missing_frames)}{' (frame 0 is the observed one)' if 0 in hidden else ''}. "
            + (f"Layouts that stay inside:\n{suggestions}" if suggestions else "Fewer --steps stay inside")
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        hidden, partly = self.frames_beyond_window()
        return {
            "layout": self.layout.describe(),
            "flags": flags(self.layout),
            "frames": len(self.frames),
            "world_tokens": self.world_tokens,
            "tokens": self.total,
            "fits": self.fits,
            "beyond_window": self.beyond_window,
            "frames_out_of_window": hidden,
            "frames_partly_out_of_window": partly,
        }

    def _count(self, layout: TokenLayout, frames: int) -> int:
        channels, height, width = self.cells
        return layout.count(frames, height, width, channels=channels)

    def _fits(self, layout: TokenLayout, frames: int) -> bool:
        return self._count(layout, frames) + self.text <= self.room.context

    def _suggested_layouts(self, fits: Any) -> str:
        """A line for each layout that fits, the one with the most tokens first; at most `_NAMED`."""
        candidates = [(self._count(layout, len(self.frames)), layout) for layout in usual_layouts(*self.cells[1:])]
        fitting = sorted((item for item in candidates if fits(item[0])), key=lambda item: -item[0])[:_NAMED]
        return "\n".join(f"  {tokens:>7,} world tokens  {flags(layout)}" for tokens, layout in fitting)


def flags(layout: TokenLayout) -> str:
    """The flags of `theworld train` that select this layout."""
    words = [f"--layout {layout.name}"]
    if layout.name not in ("spatial", "channel"):
        words.append(f"--patch {layout.patch}")
    if layout.pool_steps > 1 or layout.name in ("pooled", "hierarchical"):
        words.append(f"--pool {layout.pool} --pool-steps {layout.pool_steps}")
    if layout.name == "hierarchical":
        words.append(f"--coarse {layout.coarse}")
    if layout.name == "resampler":
        words.append(f"--queries {layout.queries}")
    return " ".join(words)


def _frames(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"frame {numbers[0]}"
    joined = list(numbers) == list(range(numbers[0], numbers[-1] + 1))
    return "frames " + (f"{numbers[0]}-{numbers[-1]}" if joined else ", ".join(map(str, numbers)))
