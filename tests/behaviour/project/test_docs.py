"""The Python in the docs runs, on stores of the shapes it speaks of.

That of worlds.md is a package: tests/behaviour/precompute/test_worlds.py installs it and takes it through the whole
house.
"""

import ast
import json
import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from tests import interop
from tests.miniatures.image_store import make_images, make_store
from tests.miniatures.lm import save_mini_lm, save_mini_store
from tests.miniatures.store import fill
from tests.miniatures.world_model import save_mini_world
from theworld.pipeline.cli.main import app
from theworld.pipeline.failures import FailureReason
from theworld.precompute.inputs.rows.manifests import COLUMNS
from theworld.precompute.live import audit
from theworld.precompute.media.video_writing import write_video
from theworld.precompute.rollout.kinds import KINDS
from theworld.precompute.worlds.builtin import BUILT_IN
from theworld.precompute.worlds.source import find_dimensions
from theworld.train.config import TrainConfig

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"


def test_the_python_of_the_store_s_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WDS_SECURE", os.environ.get("WDS_SECURE", "0"))
    store, tars = (interop.store_of(tmp_path / format, "float16", format) for format in ("zarr", "webdataset"))
    for each in (store, tars):
        fill(each, 4)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "store.md").read_text(), re.DOTALL)
    assert len(blocks) == 5
    names = {"STORE": str(store.path), "TARS": tars.payload_path(0), "KEY": store.keys[2]}
    for block in blocks[:-1]:
        exec(block, names)
    assert names["first"].shape == interop.SHAPE  # type: ignore[attr-defined]
    assert names["about"]["recipe_id"] == tars.recipe.id  # type: ignore[index]
    assert names["batch"].shape == (4, *interop.SHAPE)  # type: ignore[attr-defined]
    assert (names["latents"] == store.read(store.keys, rollout_steps=2)).all()
    assert (names["of_one_input"].values == store.read([store.keys[2]])).all()  # type: ignore[attr-defined]
    pytest.importorskip("dask")
    exec(blocks[-1], names)
    assert names["means"].dims == ("channel", "time")  # type: ignore[attr-defined]


def test_the_page_of_worlds_names_every_family_that_is_built_in() -> None:
    page = (DOCS / "worlds.md").read_text()
    for name in BUILT_IN:
        assert f"| `{name}` |" in page
    assert all(known in page for family in BUILT_IN.values() for known in ["theworld.worlds", family.title])


def test_the_commands_of_the_page_on_seeing_a_store_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    world, images = save_mini_world(tmp_path / "mini"), make_images(tmp_path / "in", 5)
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "000.mp4", np.zeros((9, 32, 32, 3), np.uint8), 16)
    frames = {"kind": "frames", "denoise_steps": None, "compute_dtype": None}
    true = make_store(tmp_path / "videos", tmp_path / "t", world, **frames)
    names = {"STORE": make_store(images, tmp_path / "c", world).path, "IMAGES": images, "TRUE": true.path}
    page = (DOCS / "store.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    looks = ("theworld cache info", "theworld cache preview", "theworld cache verify")
    commands = [line for block in blocks for line in block.splitlines() if line.startswith(looks)]
    assert len(commands) == 6
    for command in commands:
        words = [str(names.get(word, word)) for word in command.split()[1:]]
        needs_weights = "preview" in words or "--recompute" in words  # the page's store is of the embedded ones
        result = CliRunner().invoke(app, [*words, *(["--world", str(world)] if needs_weights else [])])
        assert result.exit_code == 0, (command, result.output, result.exception)
    assert {path.suffix for path in (tmp_path / "preview").iterdir()} == {".png", ".gif", ".mp4"}
    assert (tmp_path / "pictures").is_dir()
    for value in (value for pair in audit.TOLERANCE.values() for value in pair):
        assert f"{value:g}" in page


def test_the_python_of_the_inputs_page_runs(tmp_path: Path) -> None:
    page = (DOCS / "inputs.md").read_text()
    [block] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "a.png").write_bytes(b"an image")
    names = {"FOLDER": str(tmp_path)}
    exec(block, names)
    assert (names["taken"], names["wrong"]) == (["a.png"], [("list.jsonl:2", "missing")])
    assert all(name in page for name in COLUMNS)


def test_the_reasons_an_input_may_fail_for_are_those_on_the_page_of_inputs() -> None:
    page = (DOCS / "inputs.md").read_text()
    rows = [f"| `{reason}` | {reason.explanation} |" for reason in FailureReason]
    assert "\n".join(["| reason | what it is |", "|---|---|", *rows, ""]) + "\n" in page
    assert {kind.phase for kind in KINDS.values()} <= set(FailureReason)


def test_the_python_that_replaces_rollouts_in_a_training_loop_runs() -> None:
    page = (DOCS / "python.md").read_text().partition("## Replacing rollouts")[2]
    [block] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["logits"].shape[1] == names["ids"].shape[1] + 3 * 4  # three frames of 2 x 2 patches


def literals() -> str:
    """All string literals of the product, placeholders left out."""
    files = [path for room in ("pipeline", "precompute", "train") for path in (DOCS.parent / room).rglob("*.py")]
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text())))
    return "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def test_every_message_that_troubleshooting_explains_is_one_that_can_be_met() -> None:
    rows = re.findall(r"^\| `(.+?)` \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    said = literals()
    assert len(rows) > 25
    assert [row for row in rows if row not in said] == []


PAGES = sorted([DOCS.parent / "README.md", *DOCS.glob("*.md")])


def lines_of(page: Path) -> list[list[str]]:
    """The words of each line of shell."""
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.DOTALL)
    lines = (line for block in blocks for line in block.splitlines() if not line.startswith("ray()"))
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def commands_of(words: list[str]) -> Iterator[list[str]]:
    """What follows `theworld` in a line: first, after Ray's `--`, within `sbatch --wrap`, or in our SLURM scripts."""
    for number, word in enumerate(words):
        if word == "theworld" and all(re.fullmatch(r"--|nice|\w+=.*", before) for before in words[:number][-1:]):
            yield words[number + 1 :]
        elif word == "--wrap":
            yield from commands_of(shlex.split(words[number + 1]))
        elif word == "configs/slurm.sh":
            yield ["precompute", *words[number + 1 :]]
        elif word == "configs/slurm_train.sh":
            yield ["train", *words[number + 2 :], "--out", words[number + 1]]


def parse(command: Any, words: list[str]) -> None:
    """Parses and refuses; runs nothing."""
    while hasattr(command, "commands"):  # down to the one that takes options
        command = command.commands[words.pop(0)]
    command.make_context("command", words)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "containers" / "README.md"], ids=lambda page: page.name)
def test_every_command_of_a_page_is_one_that_can_be_typed(page: Path) -> None:
    for line in lines_of(page):
        for words in commands_of(line):
            parse(get_command(app), [re.sub(r"^\$\w+/", "1/", word) for word in words])


def test_every_command_of_ray_on_the_page_on_clusters_is_one_that_ray_knows() -> None:
    from ray.scripts.scripts import cli

    [ports] = re.findall(r'^ports="(.*)"$', (DOCS / "cluster.md").read_text(), re.MULTILINE)
    lines = [line for line in lines_of(DOCS / "cluster.md") if line[0] == "ray"]
    assert {" ".join(line[1:3]) for line in lines} >= {"start --head", "job submit", "job logs", "job stop"}
    for line in lines:
        parse(cli, [part for word in line[1:] for part in (ports.split() if word == "$ports" else [word])])


def test_every_page_can_be_found_from_the_readme() -> None:
    linked = re.findall(r"\]\((docs/[\w-]+\.md)\)", (DOCS.parent / "README.md").read_text())
    assert {f"docs/{page.name}" for page in DOCS.glob("*.md")} == set(linked)


def test_pages_lead_to_pages_that_are_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), (page.name, target)


@pytest.mark.parametrize("file", sorted(DOCS.parent.glob("configs/*.toml")), ids=lambda path: path.name)
def test_the_size_of_a_latent_that_a_config_states_is_the_one_it_gives(file: Path) -> None:
    stated = re.search(r"([\d.]+) (KB|MB) an image \(float16\)", file.read_text())
    if stated is None:
        return
    table = tomllib.loads(file.read_text())["precompute"]
    height, width = map(int, table["size"].split("x"))
    if "vjepa2" in table.get("world", ""):  # whose width stands in its config alone
        channels, cell = 1024, 16
    else:
        world = find_dimensions(table.get("world"))
        channels, cell = world.channels, world.spatial_stride
    cells = (height // cell) * (width // cell)
    kilobytes = channels * (1 + table["steps"]) * cells * 2 / 1000
    assert float(stated[1]) * {"KB": 1, "MB": 1000}[stated[2]] == pytest.approx(kilobytes, rel=0.04)


def test_the_page_on_python_runs_from_images_to_an_answer(tmp_path: Path) -> None:
    images = tmp_path / "in"
    images.mkdir()
    for number in range(24):
        level = 40 + 170 * (number % 2)
        pixels = np.random.default_rng(number).integers(level - 30, level + 30, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number:02d}.png")
    asked = [
        {"image": f"{n:02d}.png", "question": "what color is the ball?", "answer": "blue", "choices": ["red", "blue"]}
        for n in range(24)
    ]
    questions = images / "questions.jsonl"
    questions.write_text("".join(f"{json.dumps(one)}\n" for one in asked))
    settings = {"world": str(save_mini_world(tmp_path / "mini")), "denoise_steps": 3, "device": "cpu"}
    names: dict[str, Any] = {
        "IMAGES": images,
        "CACHE": tmp_path / "cache",
        "QUESTIONS": questions,
        "RUN": tmp_path / "run",
        "SETTINGS": settings,
        "is_bright": lambda path: np.asarray(Image.open(path)).mean() > 128,
    }
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(), re.DOTALL):
        exec(block, names)
    assert names["report"].written == len(names["store"]) == 24
    assert names["one"].shape == (1, *names["store"].sample_shape) == (1, 16, 3, 4, 4)
    assert names["shapes"] == {(16, 2, 4, 4)}
    assert names["by_frame"][0] > 0.9  # a random VAE keeps brightness
    assert names["answer"].text in ("red", "blue")


def test_the_commands_of_the_training_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_mini_lm(tmp_path / "lm")
    _, questions = save_mini_store(tmp_path / "latents")
    (tmp_path / "small.toml").write_text('[train]\nlm = "lm"\npatch = 2\nbatch_size = 4\ndevice = "cpu"\n')
    page = (DOCS / "training.md").read_text()
    commands = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    parts = [page.split(f"## {title}\n")[1].split("\n## ")[0] for title in ("Start and resume", "The Hub")]
    blocks = [block for part in parts for block in re.findall(r"```sh\n(.*?)```", part, re.DOTALL)]
    ours = [line.partition("#")[0] for block in blocks for line in block.splitlines()]
    assert len(ours) == 3
    for command in ours:
        words = [str(questions) if word == "QUESTIONS.jsonl" else word for word in command.split()[1:]]
        result = CliRunner().invoke(app, [*words, *(["--config", "small.toml"] if words[0] == "train" else [])])
        assert result.exit_code == 0, (command, result.output, result.exception)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"demo", "1"}
    launched = [command.split()[3] for command in commands if command.startswith("accelerate")]
    assert all((DOCS.parent / file).is_file() for file in launched)
    assert len(launched) == 2
    for setting in re.findall(r"--([a-z]+-[a-z-]+)", page):
        assert setting.replace("-", "_") in {*TrainConfig.model_fields, "dry_run"} or setting == "report-to"
