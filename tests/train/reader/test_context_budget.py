"""What a language model has room for is known before it is loaded; what does not fit is refused with what would."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import Gemma2Config, Gemma3Config, Gemma3TextConfig, Gemma4TextConfig
from typer.testing import CliRunner

from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import ConfigError, TheWorldError
from theworld.pipeline.latents.spec import usual_patch
from theworld.train.config import TrainConfig
from theworld.train.reader.context_budget import Budget, ContextLimits, context_limits_of, find_context_limits, flags
from theworld.train.reader.layouts import TokenLayout

from ...installed import drift_code, install, save_drift
from ...patience import patience
from .test_layouts import LAYOUT

CELLS = (16, 28, 28)


def budget(layout: TokenLayout | None = None, *, steps: int = 8, lm: str | None = "google/gemma-2-2b-it") -> Budget:
    """Of 224 x 224 pixels and 7 tokens of text."""
    layout = layout or TokenLayout(name="spatial")
    return Budget(layout=layout, room=find_context_limits(lm), cells=CELLS, frames=tuple(range(1 + steps)), text=7)


def rows(*words: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, ["tokens", *words, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["rows"]


def test_the_first_document_s_table_is_the_row_of_the_layout_spatial() -> None:
    spatial = rows("--layout", "spatial", "--steps", "0,4,8,16", "--size", "224x224")
    assert [row["world_tokens"] for row in spatial] == [784, 3920, 7056, 13328]
    assert [row["fits"] for row in spatial] == [True, True, True, False]
    assert [row["beyond_window"] for row in spatial] == [False, False, True, True]
    patches = rows("--layout", "patch", "--patch", "2", "--steps", "8,16")
    assert [(row["world_tokens"], row["beyond_window"]) for row in patches] == [(1764, False), (3332, False)]


def test_the_table_marks_what_is_refused_and_what_is_warned_of_and_names_every_layout() -> None:
    shown = CliRunner().invoke(app, ["tokens"], env={"COLUMNS": "200"}).stdout
    for piece in ("13,328!", "7,056~", "spatial", "patch 4x4", "pooled", "hierarchical", "channel", "resampler",
                  "8,192 tokens google/gemma-2-2b-it attends to", "13 of its 26 layers"):  # fmt: skip
        assert piece in shown


def test_counting_loads_nothing_heavy_and_needs_no_network() -> None:
    code = (
        "import sys; from theworld.pipeline.cli.main import app\n"
        "for words in ([], ['--world', 'wan2.1-i2v-480p'], ['--world', 'worldlet']):\n"
        "    try: app(['tokens', *words])\n"
        "    except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'ray', 'diffusers', 'transformers', 'numpy', 'zarr', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(60))
    assert done.returncode == 0, done.stderr
    for piece in ("3,920", "latent frames of 16x60x104", "latent frames of 16x8x8"):
        assert piece in done.stdout


def test_a_world_model_of_one_s_own_says_itself_how_many_cells_an_image_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", monkeypatch, package="drift-world", code=drift_code(), name="drift")
    world = save_drift(tmp_path / "drift")
    (world / "cells" / "model.safetensors").unlink()  # of the folder, configs are enough
    counted = rows("--world", str(world), "--layout", "spatial", "--steps", "0,8")
    assert [row["world_tokens"] for row in counted] == [8 * 12, 9 * 8 * 12]  # 32x48 pixels in cells of 4x4
    assert rows("--world", str(world), "--layout", "channel", "--steps", "8")[0]["world_tokens"] == 9 * 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--size", "225x224"], "multiple of 16"),
        (["--size", "big"], "HEIGHTxWIDTH"),
        (["--steps", "many"], "0,4,8"),
        (["--lm", "llama"], "google/gemma-2-2b"),
        (["--layout", "pyramid"], "hierarchical"),
        (["--pool", "median"], "minmax"),
        (["--world", "sora"], "cosmos"),
        (["--layout", "patch", "--patch", "5"], "do not divide"),
    ],
)
def test_what_cannot_be_counted_is_refused_with_what_can(words: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["tokens", *words])
    assert isinstance(done.exception, TheWorldError)
    assert told in str(done.exception)


def test_a_folder_says_itself_what_it_has_room_for(tmp_path: Path) -> None:
    for config in (Gemma2Config(), Gemma3TextConfig(num_hidden_layers=26, sliding_window=512), Gemma3Config()):
        stated = config.to_dict()
        text = stated.get("text_config", stated)
        kinds = text["layer_types"]
        room = context_limits_of("here", stated)
        assert (room.windowed, room.layers) == (kinds.count("sliding_attention"), len(kinds))
        assert (room.context, room.window) == (text["max_position_embeddings"], text["sliding_window"])
        for name in ("layer_types", "max_position_embeddings"):  # which the Hub's older files leave out
            text.pop(name)
        assert context_limits_of("here", stated) == room
        (tmp_path / "config.json").write_text(json.dumps(stated))
        assert find_context_limits(str(tmp_path)).windowed == room.windowed
    assert find_context_limits("google/gemma-3-1b-it@main").windowed == 22
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"config\.json does not describe"):
        find_context_limits(str(tmp_path))


def test_half_of_gemma_2_s_layers_see_five_of_nine_raw_frames_and_not_the_observed_one() -> None:
    hidden, partly = budget().frames_beyond_window()
    assert (hidden, partly) == ([0, 1, 2], [3])
    warning = budget().warning()
    assert warning is not None
    for piece in ("13 of the 26 layers", "4,096 tokens", "nothing of frames 0-2", "a part of frame 3", "observed",
                  "1,764 world tokens  --layout patch --patch 2"):  # fmt: skip
        assert piece in warning
    assert budget(steps=4).warning() is None


def test_a_window_too_small_for_the_text_alone_is_no_reason_to_warn() -> None:
    assert find_context_limits(None).window == 8
    windowed = find_context_limits(None)
    budget_of_text = Budget(layout=TokenLayout(), room=windowed, cells=(16, 8, 8), frames=tuple(range(9)), text=12)
    assert budget_of_text.warning() is None


@given(LAYOUT, st.integers(1, 8), st.integers(0, 300))
def test_frames_out_of_sight_are_those_that_no_token_still_seen_is_of(
    layout: TokenLayout, frames: int, seen: int
) -> None:
    if layout.name == "resampler":
        return
    tokens = layout.by_slot(frames, 4, 8, channels=3)
    slot_of = [slot for slot, count in zip(layout.slots(frames), tokens, strict=True) for _ in range(count)]
    inside, outside = slot_of[max(len(slot_of) - seen, 0) :], slot_of[: max(len(slot_of) - seen, 0)]
    hidden, partly = layout.hidden_frames(frames, 4, 8, channels=3, seen=seen)
    assert list(hidden) == [t for s in layout.slots(frames) if s not in inside for t in range(s.start, s.stop)]
    assert list(partly) == [
        t for s in layout.slots(frames) if s in inside and s in outside for t in range(s.start, s.stop)
    ]


def test_too_much_is_refused_with_the_layouts_that_fit_and_their_flags() -> None:
    with pytest.raises(ConfigError) as refused:
        budget(steps=16).require_fit()
    for piece in ("13,328 world tokens (17 frames, spatial)", "8,192 tokens google/gemma-2-2b-it", "--steps 9 or fewer",
                  "3,332 world tokens  --layout patch --patch 2\n"):  # fmt: skip
        assert piece in str(refused.value) + "\n"
    with pytest.raises(ConfigError, match=r"(?s)32,000.*worldlet.*Not even one frame.*--layout channel"):
        Budget(
            layout=TokenLayout(name="spatial"),
            room=find_context_limits(None),
            cells=(16, 128, 250),
            frames=(0,),
            text=7,
        ).require_fit()


@given(LAYOUT)
def test_the_flags_a_table_names_are_those_that_train_takes(layout: TokenLayout) -> None:
    words = flags(layout).split()
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert given["--layout"] == layout.name
    assert all(str(getattr(layout, name[2:].replace("-", "_"))) == value for name, value in list(given.items())[1:])


def test_plans_and_stores_count_the_patches_that_train_makes_by_default_where_they_divide_the_frame() -> None:
    default = TokenLayout(name="patch", patch=TrainConfig.model_fields["patch"].default)
    assert usual_patch(28, 52) == default.patch
    assert default.grid(28, 52) == (7, 13)
    assert [usual_patch(30, 28), usual_patch(4, 6), usual_patch(7, 28)] == [2, 2, 1]
    with pytest.raises(ConfigError, match="do not divide"):
        default.grid(30, 28)


PAGE = (Path(__file__).parents[3] / "docs" / "training.md").read_text()


def test_the_page_s_table_is_what_the_command_counts() -> None:
    lines = re.findall(r"^\| `(--layout [^`]*)` \|[^|]*((?:\| [\d,]+ )+)\|$", PAGE, re.MULTILINE)
    assert len(lines) == 8
    for words, counts in lines:
        counted = [row["world_tokens"] for row in rows(*words.split(), "--steps", "0,4,8,16")]
        assert counted == [int(count.replace(",", "")) for count in counts.split("|")[1:]], words


def test_the_page_s_commands_that_count_run() -> None:
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    counting = [command for command in commands if command.startswith("theworld tokens")]
    assert len(counting) == 3
    for command in counting:
        done = CliRunner().invoke(app, command.split()[1:])
        assert done.exit_code == 0, done.output


def test_other_language_models_have_the_windows_that_their_configs_state() -> None:
    gemma_4 = Gemma4TextConfig().to_dict()
    assert context_limits_of("here", gemma_4) == ContextLimits("here", 131_072, 512, 25, 30)
    llama = {"model_type": "llama", "max_position_embeddings": 8192, "num_hidden_layers": 16, "sliding_window": 512}
    assert context_limits_of("here", llama) == ContextLimits("here", 8192, None, 0, 16)  # which ignores one
    mistral = {**llama, "model_type": "mistral"}
    assert context_limits_of("here", mistral) == ContextLimits("here", 8192, 512, 16, 16)
