"""What each latent frame is called, by kind of recipe."""

from theworld.pipeline.latents.kinds import KINDS
from theworld.pipeline.latents.time_axis import describe, horizon_s

from ...miniatures.store import SPEC, TINY

ROLLOUT = TINY.model_copy(update={"rollout_steps": 8, "stride": 2})
FRAMES = ROLLOUT.model_copy(update={"kind": "frames"})


def test_a_rollout_is_labelled_by_seconds_and_without_fps_by_frames() -> None:
    assert [ROLLOUT.traits.label(ROLLOUT, t, 16.0) for t in (0, 1, 8)] == ["now", "+0.50 s", "+4.00 s"]
    assert [ROLLOUT.traits.label(ROLLOUT, t, None) for t in (0, 1)] == ["now", "frame +8"]
    assert ROLLOUT.traits.label(ROLLOUT, 1, 16.0, temporal_stride=2) == "+0.25 s"
    assert horizon_s(ROLLOUT, SPEC, 16.0) == 4.0
    assert horizon_s(ROLLOUT, SPEC, None) is None
    assert describe(ROLLOUT, SPEC, 16.0) == "T = 9: now, +0.50 s, …, +4.00 s, every 2. latent frame kept"
    assert describe(ROLLOUT.model_copy(update={"rollout_steps": 0, "stride": 1}), SPEC, 16.0) == "T = 1: now"


def test_real_frames_are_labelled_by_number_as_no_recipe_knows_their_rate() -> None:
    assert [FRAMES.traits.label(FRAMES, t, 16.0) for t in (0, 1, 8)] == ["frame 0", "frame 8", "frame 64"]
    assert horizon_s(FRAMES, SPEC, 16.0) is None
    assert KINDS["rollout"].is_clip
    assert KINDS["frames"].is_clip
