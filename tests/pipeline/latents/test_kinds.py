"""What the latent frames of each kind are: pictures or not, observed or predicted, together or alone; their names."""

import pytest

from theworld.pipeline.latents.kinds import KINDS, PYRAMIDS, KindName
from theworld.pipeline.latents.recipe import Recipe

from ...miniatures.store import TINY


def of(kind: KindName, **values: object) -> Recipe:
    return TINY.model_copy(update={"kind": kind, **values})


def labels(recipe: Recipe, fps: float | None = 16.0) -> list[str]:
    return [recipe.traits.label(recipe, t, fps) for t in range(1 + recipe.rollout_steps)]


def test_one_diffusion_makes_a_rollout_and_a_continuation_and_only_the_first_of_an_image() -> None:
    def kinds(trait: str) -> set[str]:
        return {name for name, kind in KINDS.items() if getattr(kind, trait)}

    assert kinds("predicts") == {"rollout", "samples", "continuation", "hidden"}
    assert kinds("is_one_diffusion") == {"rollout", "continuation", "hidden"}
    assert kinds("is_image_rollout") == {"rollout", "hidden"}
    assert kinds("begins_with_encoding") == {"rollout"}
    assert kinds("is_hidden") == {"hidden"}
    assert kinds("is_real_video") == {"frames"}
    assert kinds("is_clip") == {"rollout", "samples", "continuation", "frames", "hidden"}
    assert kinds("has_draws") == {"samples"}
    assert kinds("is_distribution") == {"posterior"}
    assert {name for name, kind in KINDS.items() if kind.takes == "video"} == {"continuation", "frames"}


def test_every_kind_names_its_latent_frames() -> None:
    assert labels(of("rollout", rollout_steps=2)) == ["now", "+0.25 s", "+0.50 s"]
    draws = of("samples", rollout_steps=4, draws=2, draw=3)
    assert labels(draws) == ["now", "draw 3 +0.25 s", "draw 3 +0.50 s", "draw 4 +0.25 s", "draw 4 +0.50 s"]
    seen = of("continuation", rollout_steps=3, observed_frames=5)
    assert labels(seen) == ["frame 0", "frame 4", "+0.25 s", "+0.50 s"]  # the first predicted one packs frames 5 to 8
    assert labels(seen, fps=None) == ["frame 0", "frame 4", "frame +4", "frame +8"]
    pyramid = labels(of("views", rollout_steps=13))
    assert [pyramid[t] for t in (0, 1, 4, 5, 13)] == ["whole", "2x2 tile 1", "2x2 tile 4", "3x3 tile 1", "3x3 tile 9"]
    assert labels(of("views", views="zoom", rollout_steps=2)) == ["whole", "1.41x", "2x"]
    assert labels(of("posterior", rollout_steps=1)) == ["mean", "log-variance"]


def test_frames_of_one_clip_are_decoded_together_and_pictures_of_their_own_alone() -> None:
    def together(recipe: Recipe) -> list[list[int]]:
        return recipe.traits.frames_decoded_together(recipe)

    assert together(of("rollout", rollout_steps=2)) == together(of("frames", rollout_steps=2)) == [[0, 1, 2]]
    assert together(of("samples", rollout_steps=4, draws=2)) == [[0, 1, 2], [0, 3, 4]]
    assert together(of("views", views="zoom", rollout_steps=2)) == [[0], [1], [2]]
    assert together(of("posterior", rollout_steps=1)) == [[0]]
    assert [KINDS["posterior"].pictures(frames) for frames in (0, 1, 2)] == [0, 1, 1]  # a log-variance is none
    assert KINDS["rollout"].pictures(2) == 2


def test_predictions_begin_behind_what_is_observed() -> None:
    first = {name: kind.first_predicted_frame(of(name, observed_frames=9)) for name, kind in KINDS.items()}
    nothing = {"frames": None, "views": None, "posterior": None}
    assert first == {"hidden": 1, "rollout": 1, "samples": 1, "continuation": 9, **nothing}


def test_steps_divide_into_what_the_kind_is_made_of() -> None:
    assert PYRAMIDS == (0, 4, 13, 29, 54, 90)
    KINDS["samples"].check_steps(of("samples", rollout_steps=6, draws=3))
    KINDS["views"].check_steps(of("views", views="zoom", rollout_steps=5))
    for wrong in (
        of("samples", rollout_steps=5, draws=2),
        of("samples", rollout_steps=0, draws=2),
        of("views", rollout_steps=5),
        of("posterior", rollout_steps=2),
    ):
        with pytest.raises(ValueError, match="rollout_steps"):
            wrong.traits.check_steps(wrong)
