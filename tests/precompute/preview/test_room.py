"""What decoding and a live rollout take is said, and compared with the device, before weights load."""

from pathlib import Path
from typing import Any

import pytest

from tests.precompute.job.planning.test_memory_plan import lay_out_configs
from theworld.pipeline.errors import ConfigError
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.progress import Progress
from theworld.precompute.preview.room import require_room_to_decode, require_room_to_roll_out
from theworld.precompute.worlds.source import WorldSource, find_autoencoder


def source(tmp_path: Path, name: str) -> WorldSource:
    return find_autoencoder(str(lay_out_configs(tmp_path / "world", name)))


def of(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {"world": "x", "height": 704, "width": 1280, "rollout_steps": 23}
    fields["compute_dtype"] = "bfloat16"
    return Recipe(**(fields | changes))


def test_decoding_says_what_the_longest_clip_takes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = source(tmp_path, "cosmos-predict2-2b")
    with caplog.at_level("INFO", logger="theworld"):
        for steps in (None, 2, 0):
            require_room_to_decode(world, of(), "cpu", steps=steps, progress=Progress.to_logger())
    assert [line.split(" (")[0] for line in caplog.messages] == [
        "memory: about 17.7 GiB",
        "memory: about 16.9 GiB",
        "memory: about 6.3 GiB",
    ]
    assert caplog.messages[0].endswith("to decode 24 latent frames of 704x1280")


def test_a_gpu_too_small_to_decode_is_refused_with_what_to_do(tmp_path: Path) -> None:
    world = source(tmp_path, "cosmos-predict2-2b")
    with pytest.raises(ConfigError, match=r"a GPU of 16 GiB is too small for .* \(--device cpu\), or fewer --steps"):
        require_room_to_decode(world, of(), "cpu", memory=16.0)
    require_room_to_decode(world, of(), "cpu", memory=24.0)


def test_a_gpu_too_small_to_roll_out_is_refused_by_what_it_holds_of_the_weights(tmp_path: Path) -> None:
    world = source(tmp_path, "cosmos-predict2-14b")
    with pytest.raises(ConfigError, match=r"to roll out one image of 704x1280 it needs about 36\.9 GiB"):
        require_room_to_roll_out(world, of(), "cpu", memory=36.0)  # for the weights there is room
    with pytest.raises(ConfigError, match=r"it needs about 1\d\.\d GiB"):
        require_room_to_roll_out(world, of(), "cpu", memory=12.0)
    require_room_to_roll_out(world, of(), "cpu", memory=24.0)  # for the weights there is none: they stay elsewhere
    require_room_to_roll_out(world, of(), "cpu", memory=48.0)


def test_of_a_family_that_says_nothing_it_is_said_that_nothing_is_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("theworld.precompute.worlds.builtin.InWanLatents.memory_of_decoding")
    with caplog.at_level("INFO", logger="theworld"):
        require_room_to_decode(source(tmp_path, "cosmos-predict2-2b"), of(), "cpu", progress=Progress.to_logger())
    assert caplog.messages == ["memory: not known, as the family of world does not say what it takes"]
