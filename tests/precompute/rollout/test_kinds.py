"""What each kind refuses before any work is done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from theworld.pipeline.errors import ConfigError, ImageError
from theworld.pipeline.latents.kinds import KindName
from theworld.pipeline.latents.recipe import Recipe
from theworld.precompute.media.video_writing import write_video
from theworld.precompute.rollout.kinds import KINDS
from theworld.precompute.worlds.source import resolve_world


@pytest.mark.parametrize("kind", ["rollout", "continuation", "samples"])
def test_a_clip_beyond_the_window_is_refused_with_the_most_that_fits(kind: str) -> None:
    world = resolve_world(None)
    window = world.card.window

    def recipe(steps: int) -> Recipe:
        return Recipe(kind=kind, world=world.identity, height=64, width=64, rollout_steps=steps)  # pyright: ignore

    KINDS[kind].check(recipe(window - 1), world)
    with pytest.raises(ConfigError, match=f"trained on {window}.*--steps of at most {window - 1}"):
        KINDS[kind].check(recipe(window), world)


def continuation(**values: object) -> Recipe:
    world = resolve_world(None)
    whole = {"world": world.identity, "height": 64, "width": 64, "rollout_steps": 6, **values}
    return Recipe(kind="continuation", **whole)  # type: ignore[arg-type]


def refusal(recipe: Recipe) -> str:
    with pytest.raises(ConfigError) as caught:
        KINDS[recipe.kind].check(recipe, resolve_world(None))
    return str(caught.value)


def test_what_is_observed_ends_where_a_latent_frame_does_and_leaves_something_to_predict() -> None:
    world = resolve_world(None)
    KINDS["continuation"].check(continuation(rollout_steps=2, observed_frames=5), world)
    assert "1 + a multiple of 4, such as 5" in refusal(continuation(observed_frames=6))
    assert "nothing is left to predict" in refusal(continuation(rollout_steps=1, observed_frames=5))
    assert "nothing is left to predict" in refusal(continuation(rollout_steps=1, observed_frames=9))


def test_the_first_chunk_holds_all_that_is_observed_and_one_frame_more() -> None:
    world = resolve_world(None)
    chunks = {"chunk_frames": 4, "chunk_context": 1, "rollout_steps": 12}
    KINDS["continuation"].check(continuation(observed_frames=13, **chunks), world)
    assert "are more than the first chunk holds, 4 latent" in refusal(continuation(observed_frames=17, **chunks))
    assert "Choose at most 13" in refusal(continuation(observed_frames=17, **chunks))


def test_a_chunk_begins_with_whole_latent_frames_and_has_one_to_predict() -> None:
    world = resolve_world(None)

    def chunked(frames: int, context: int) -> Recipe:
        return continuation(chunk_frames=frames, chunk_context=context, rollout_steps=40)

    KINDS["continuation"].check(chunked(3, 5), world)  # two of them seen, in a clip far beyond the window
    assert "--chunk-context 3: a chunk begins with 1 + a multiple of 4" in refusal(chunked(4, 3))
    assert "--chunk-context 5: a chunk begins with" in refusal(chunked(2, 5))
    window = world.card.window
    KINDS["continuation"].check(chunked(window, 1), world)
    assert f"was trained on {window}" in refusal(chunked(window + 1, 1))


def test_a_clip_that_memory_may_not_hold_is_refused() -> None:
    world = resolve_world(None)
    large = {"kind": "frames", "world": world.identity, "height": 4096, "width": 4096}
    KINDS["frames"].check(Recipe(rollout_steps=3, **large), world)  # type: ignore[arg-type]
    assert "17 video frames of 4096x4096 are more than" in refusal(Recipe(rollout_steps=4, **large))  # type: ignore


def test_only_a_kind_that_takes_images_refuses_a_video(tmp_path: Path) -> None:
    world = resolve_world(None)
    write_video(tmp_path / "x.mp4", np.zeros((9, 64, 64, 3), np.uint8), 12)
    content = (tmp_path / "x.mp4").read_bytes()

    def load(kind: KindName, steps: int) -> tuple[int, ...]:
        recipe = Recipe(kind=kind, world=world.identity, height=64, width=64, rollout_steps=steps)
        return tuple(KINDS[kind].load(content, recipe, world.latent_spec(), "x.mp4").pixels.shape)

    assert load("frames", 2) == (3, 9, 64, 64)
    images: dict[KindName, int] = {"rollout": 2, "samples": 2, "views": 4, "posterior": 1}
    for kind, steps in images.items():
        with pytest.raises(ImageError, match=r"x\.mp4 is a video, and images are wanted; --kind frames takes videos"):
            load(kind, steps)
