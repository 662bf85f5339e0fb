"""What tells the kinds of recipe apart: one record of traits each, so that nobody compares a kind's name.

How latents of each kind are made stands in precompute/rollout/kinds.py.

Axes:  T latent frame; t = 0 always encodes what is observed first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from .spec import latent_frames, video_frames

KindName = Literal["rollout", "samples", "continuation", "frames", "views", "posterior", "hidden"]
Views = Literal["pyramid", "zoom"]

PYRAMIDS = tuple(sum(side**2 for side in range(2, levels + 1)) for levels in range(1, 7))
"""Tiles below the whole image in pyramids of one to six levels: 0, 4, 13, 29, 54, 90."""

_PREDICTION = frozenset(
    {
        *("denoise_steps", "solver", "guidance", "prompt", "negative_prompt", "prompts", "fps", "seed", "draw"),
        *("compute_dtype", "chunk_frames", "chunk_context"),
    }
)
"""Fields that only matter where a future is predicted."""

_HIDDEN = frozenset({"hidden_block", "hidden_sigma", "hidden_width", "hidden_projection"})
"""Fields that only matter where hidden states are kept."""


class FrameFields(Protocol):
    """The fields of a recipe that decide what its latent frames are."""

    @property
    def rollout_steps(self) -> int: ...
    @property
    def stride(self) -> int: ...
    @property
    def draw(self) -> int: ...
    @property
    def draws(self) -> int: ...
    @property
    def observed_frames(self) -> int: ...
    @property
    def clip_fps(self) -> float | None: ...
    @property
    def views(self) -> Views: ...
    @property
    def hidden_block(self) -> int: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """The traits of one kind. The methods' defaults are those of a rollout."""

    takes: Literal["image", "video"] = "image"
    """What one input is."""
    predicts: bool = True
    """Whether the world model predicts a future."""
    is_clip: bool = True
    """Whether the latent frames follow one another in time; else each is encoded alone."""
    has_draws: bool = False
    """Whether the latent frames are those of several futures, one after the other."""
    is_distribution: bool = False
    """Whether the latent frames are the mean and the log-variance of a distribution; only the mean is a picture."""
    is_hidden: bool = False
    """Whether the latent frames are in a space of their own, that of a network's hidden states: none is a picture."""
    default_steps: int = 8
    """Latent frames after the first, if the user names no number: the fewest that show what the kind is for."""
    fields_without_meaning: frozenset[str]
    """Fields that decide nothing. They hold their defaults, so that equal latents have equal recipe ids."""

    @property
    def is_one_diffusion(self) -> bool:
        """Whether one joint diffusion makes the latents, of an image or of the beginning of a video."""
        return self.predicts and not self.has_draws

    @property
    def is_image_rollout(self) -> bool:
        """Whether the latents are one image and one predicted future of it."""
        return self.is_one_diffusion and self.takes == "image"

    @property
    def begins_with_encoding(self) -> bool:
        """Whether latent frame 0 of an image is what the world model's `encode` gives."""
        return self.is_image_rollout and not self.is_hidden

    @property
    def is_real_video(self) -> bool:
        """Whether the latents are those of a real video, nothing predicted."""
        return self.takes == "video" and not self.predicts

    def check_steps(self, recipe: FrameFields) -> None:
        """Raise ValueError where rollout_steps does not divide into what the kind is made of."""
        del recipe

    def pictures(self, frames: int) -> int:
        """How many of the first `frames` latent frames can be decoded to pictures."""
        return frames

    def frames_decoded_together(self, recipe: FrameFields) -> list[list[int]]:
        """The indices t of each clip; a frame that is a picture of its own makes a clip of one."""
        frames = list(range(latent_frames(recipe.rollout_steps)))
        return [frames] if self.is_clip else [[t] for t in frames]

    def first_predicted_frame(self, recipe: FrameFields) -> int | None:
        """Index of the first decoded video frame that is a prediction, which is also how many are observed; None if
        nothing is predicted."""
        del recipe
        return 1 if self.predicts else None

    def label(self, recipe: FrameFields, t: int, fps: float | None, *, temporal_stride: int = 4) -> str:
        """What latent frame t is: `now`, `+1.33 s`, `draw 2 +0.33 s`, `frame 16`, `2x2 tile 3`, `log-variance`.

        Args:
            fps: video frames per second that the world model's frames stand for; None where they are unknown.
            temporal_stride: video frames of a latent frame.
        """
        return "now" if t == 0 else seconds_ahead(_video_frame(recipe, t, temporal_stride), fps)

    def seconds(self, recipe: FrameFields, t: int, fps: float | None, *, temporal_stride: int = 4) -> float | None:
        """When latent frame t is, in seconds after what is observed last; of a real clip, after its first frame.

        Args:
            fps, temporal_stride: as for `label`.
        Returns:
            None where the rate is unknown, or the frame is at no time: a view, a log-variance.
        """
        if not self.is_clip:
            return None
        return _per_second(_video_frame(recipe, t, temporal_stride), fps)


class _Samples(Kind):
    __slots__ = ()

    def check_steps(self, recipe: FrameFields) -> None:
        if not recipe.rollout_steps or recipe.rollout_steps % recipe.draws:
            raise ValueError(f"{recipe.rollout_steps} rollout_steps cannot be shared by {recipe.draws} draws equally")

    def frames_decoded_together(self, recipe: FrameFields) -> list[list[int]]:
        steps_per_draw = recipe.rollout_steps // recipe.draws
        return [[0, *range(1 + draw * steps_per_draw, 1 + (draw + 1) * steps_per_draw)] for draw in range(recipe.draws)]

    def label(self, recipe: FrameFields, t: int, fps: float | None, *, temporal_stride: int = 4) -> str:
        if t == 0:
            return "now"
        draw, step = divmod(t - 1, recipe.rollout_steps // recipe.draws)
        time_ahead = seconds_ahead(_video_frame(recipe, 1 + step, temporal_stride), fps)
        return f"draw {recipe.draw + draw} {time_ahead}"

    def seconds(self, recipe: FrameFields, t: int, fps: float | None, *, temporal_stride: int = 4) -> float | None:
        step = t and 1 + (t - 1) % (recipe.rollout_steps // recipe.draws)
        return super().seconds(recipe, step, fps, temporal_stride=temporal_stride)


class _Continuation(Kind):
    __slots__ = ()

    def first_predicted_frame(self, recipe: FrameFields) -> int | None:
        return recipe.observed_frames

    def label(self, recipe: FrameFields, t: int, fps: float | None, *, temporal_stride: int = 4) -> str:
        frame = _video_frame(recipe, t, temporal_stride)
        if frame < recipe.observed_frames:
            return _video_time(recipe, frame)
        return seconds_ahead(frame - recipe.observed_frames + 1, fps)

    def seconds(self, recipe: FrameFields, t: int, fps: float | None, *, temporal_stride: int = 4) -> float | None:
        ahead = _video_frame(recipe, t, temporal_stride) - recipe.observed_frames + 1
        return _per_second(ahead, fps if ahead > 0 else recipe.clip_fps)


class _Frames(Kind):
    __slots__ = ()

    def label(self, recipe: FrameFields, t: int, fps: float | None, *, temporal_stride: int = 4) -> str:
        del fps  # the world model's, which predicts nothing here
        return _video_time(recipe, _video_frame(recipe, t, temporal_stride))

    def seconds(self, recipe: FrameFields, t: int, fps: float | None, *, temporal_stride: int = 4) -> float | None:
        del fps
        return _per_second(_video_frame(recipe, t, temporal_stride), recipe.clip_fps)


class _Views(Kind):
    __slots__ = ()

    def check_steps(self, recipe: FrameFields) -> None:
        if recipe.views == "pyramid" and recipe.rollout_steps not in PYRAMIDS:
            raise ValueError(
                f"rollout_steps is {recipe.rollout_steps}, and beside the whole image a pyramid of whole levels has "
                f"{', '.join(map(str, PYRAMIDS))} views"
            )

    def label(self, recipe: FrameFields, t: int, fps: float | None, *, temporal_stride: int = 4) -> str:
        del fps, temporal_stride
        if t == 0:
            return "whole"
        if recipe.views == "zoom":
            return f"{2 ** (t / 2):.3g}x"
        side = 2
        while t > side**2:
            t, side = t - side**2, side + 1
        return f"{side}x{side} tile {t}"


class _Posterior(Kind):
    __slots__ = ()

    def check_steps(self, recipe: FrameFields) -> None:
        if recipe.rollout_steps != 1:
            raise ValueError("a posterior is two frames, mean and log-variance: rollout_steps is 1")

    def pictures(self, frames: int) -> int:
        return min(frames, 1)

    def frames_decoded_together(self, recipe: FrameFields) -> list[list[int]]:
        del recipe
        return [[0]]

    def label(self, recipe: FrameFields, t: int, fps: float | None, *, temporal_stride: int = 4) -> str:
        del recipe, fps, temporal_stride
        return ("mean", "log-variance")[t]


class _Hidden(Kind):
    __slots__ = ()

    def check_steps(self, recipe: FrameFields) -> None:
        if not recipe.rollout_steps:
            raise ValueError("hidden states are those of a future: rollout_steps is at least 1")
        if recipe.hidden_block < 1:
            raise ValueError("hidden_block says after which block, 1 for the first, hidden states are taken")

    def pictures(self, frames: int) -> int:
        del frames
        return 0


KINDS: dict[KindName, Kind] = {
    "rollout": Kind(fields_without_meaning=_HIDDEN | {"draws", "observed_frames", "clip_fps", "views"}),
    "samples": _Samples(has_draws=True, fields_without_meaning=_HIDDEN | {"observed_frames", "clip_fps", "views"}),
    "continuation": _Continuation(takes="video", fields_without_meaning=_HIDDEN | {"draws", "views"}),
    "frames": _Frames(
        takes="video",
        predicts=False,
        fields_without_meaning=_PREDICTION | _HIDDEN | {"draws", "observed_frames", "views"},
    ),
    "views": _Views(
        predicts=False,
        is_clip=False,
        default_steps=13,
        fields_without_meaning=_PREDICTION | _HIDDEN | {"draws", "observed_frames", "clip_fps", "stride"},
    ),
    "posterior": _Posterior(
        predicts=False,
        is_clip=False,
        is_distribution=True,
        default_steps=1,
        fields_without_meaning=_PREDICTION | _HIDDEN | {"draws", "observed_frames", "clip_fps", "views", "stride"},
    ),
    "hidden": _Hidden(
        is_hidden=True,
        fields_without_meaning=frozenset(
            {
                *("denoise_steps", "solver", "guidance", "negative_prompt", "chunk_frames", "chunk_context"),
                *("draws", "observed_frames", "clip_fps", "views"),
            }
        ),
    ),
}
"""What a latent of each kind is made of, and what its T axis counts.

rollout: an image and its predicted future. samples: an image and several futures, one after the other.
continuation: the first frames of a real video and its predicted future. frames: those of a real video, nothing
predicted. views: an image and crops of it, each encoded alone. posterior: the mean and the log-variance of an image's
encoding. hidden: an image's encoding and, for each frame of its future, the tokens behind one block of the network, in
the first forward of a rollout: nothing is denoised.
"""


def seconds_ahead(frames: int, fps: float | None) -> str:
    """`+0.25 s` for 4 video frames at 16 a second; `frame +4` where the rate is unknown."""
    return f"frame +{frames}" if fps is None else f"+{frames / fps:.2f} s"


def _per_second(frames: int, fps: float | None) -> float | None:
    return 0.0 if frames == 0 else None if fps is None else frames / fps


def _video_time(recipe: FrameFields, frame: int) -> str:
    """`0.25 s` into the clip; `frame 4` where frames are taken as they are stored, whatever their times."""
    return f"frame {frame}" if recipe.clip_fps is None else f"{frame / recipe.clip_fps:.2f} s"


def _video_frame(recipe: FrameFields, t: int, temporal_stride: int) -> int:
    """The last video frame that latent frame t stands for."""
    return video_frames(t, stride=recipe.stride, temporal_stride=temporal_stride) - 1
