"""The README's commands, typed in its order in one empty folder, `make demo` first; its figures, looked up.

In place of weights from the Hub: miniature folders of the same classes. In place of PHOTOS, VIDEOS, QUESTIONS: a few
small files. What is added to a command makes it small; a cluster, SLURM, Wan and the worldlet at 224x224 are asked for
the plan alone (`--dry-run`). Rollouts are made in this process but for the demo's; installing is left out.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.miniatures.cosmos3 import save_mini_cosmos3
from tests.miniatures.image_store import make_images
from tests.miniatures.world_model import save_mini_world
from theworld.pipeline.cli.main import app
from theworld.precompute.media.video_writing import write_video
from theworld.train.language.weights import find_weights

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```sh\n(.*?)```", README.replace("\\\n", " "), re.DOTALL)
    for line in block.splitlines()
    if line
]
HUB = "nvidia/Cosmos-Predict2-2B-Video2World"
SMALL = ["--size", "32x32", "--denoise-steps", "2", "--device", "cpu"]
MORE = [
    ("demo", ["--scenes", "18", "--train-steps", "2", "--device", "cpu"]),
    ("precompute --steps 8", ["--scenes", "12", "--in-process"]),
    ("train --cache", ["--train-steps", "2"]),
    ("train photos", ["--train-steps", "2", "--device", "cpu", "--lm", "EMBEDDED"]),
    (f"precompute PHOTOS --steps 8 --world {HUB} --cache photos --address", [*SMALL, "--dry-run"]),
    (f"precompute PHOTOS --steps 8 --world {HUB}", [*SMALL, "--in-process"]),
    ("precompute PHOTOS --config", [*SMALL, "--world", "COSMOS3", "--dry-run"]),
    ("precompute PHOTOS --steps 4", ["--dry-run"]),
    ("precompute VIDEOS", ["--in-process"]),
    ("ask runs/photos", ["--world", HUB]),
]
"""How a command begins, and what is added to it; the first that fits."""
SLURM_ADDS = ["--address", "10.0.0.1:20000", "--events", "theworld-1.jsonl"]


def as_run_here(words: list[str]) -> list[str]:
    """What `theworld` is given; of sbatch, what configs/slurm.sh gives it: "$@", and where the head is."""
    program, *words = words
    if program == "make":
        assert words == ["demo"]  # which the Makefile turns into `theworld demo`; checked below
        return as_run_here(["theworld", *words])
    if program == "sbatch":
        script, *words = words
        assert (ROOT / script).is_file()
        return ["precompute", *words, *SLURM_ADDS, *SMALL, "--dry-run"]
    assert program == "theworld"
    return [*words, *next((more for begin, more in MORE if " ".join(words).startswith(begin)), [])]


@dataclass
class Typed:
    """What the commands of the page left behind."""

    folder: Path
    ran: list[str]
    output: dict[str, str]
    """Of the last command of each name."""


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Typed:
    """The page's commands, run one after another."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    photos = make_images(folder / "in", 4)
    Image.open(photos / "000.png").save(folder / "photo.jpg")
    asked = {"question": "where will the ball land?", "answer": "left", "choices": ["left", "right"]}
    lines = (json.dumps({"id": f"{n}", "image": f"in/{n:03d}.png", **asked}) for n in range(4))
    (folder / "QUESTIONS.jsonl").write_text("\n".join(lines))
    (folder / "videos").mkdir()
    write_video(folder / "videos" / "0.mp4", np.zeros((33, 64, 64, 3), np.uint8), 12)
    places = {
        HUB: str(save_mini_world(folder / "cosmos")),
        "COSMOS3": str(save_mini_cosmos3(folder / "cosmos3")),
        "EMBEDDED": str(find_weights(None).folder),
        "PHOTOS": str(photos),
        "VIDEOS": str(folder / "videos"),
        "demo/latents/scenes/images/test-buckets-000018.png": "demo/latents/scenes/images/test-buckets-000003.png",
    }
    typed = Typed(folder, [], {})
    with chdir(folder):
        for command in COMMANDS:
            if command[0] in ("theworld", "sbatch") or command == ["make", "demo"]:
                words = [places.get(word, word) for word in as_run_here(command)]
                done = CliRunner().invoke(app, words)
                assert done.exit_code == 0, (words, done.output, done.exception)
                typed.ran.append(words[0])
                typed.output[words[0]] = done.output
    return typed


@pytest.mark.slow
def test_the_commands_run_in_their_order(typed: Typed) -> None:
    assert set(typed.ran) >= {"demo", "precompute", "train", "evaluate", "ask", "tokens", "cache"}
    assert {"1", "2", "photos"} == {path.name for path in (typed.folder / "runs").iterdir()}
    for file in ("answer.png", "rollout.png", "report.html"):
        assert (typed.folder / file).stat().st_size > 1000


@pytest.mark.slow
def test_the_demo_ends_with_a_page_and_goes_on_where_it_was_cut(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(typed.folder)
    demo = typed.folder / "demo"
    page = (demo / "index.html").read_text()
    assert str(demo / "index.html") in typed.output["demo"].replace("\n", "")
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "Rollouts, questions and answers", "Figures", "What to try next", "Details",
    ]  # fmt: skip
    assert {"Accuracy by question type", "Ablations", "Cost of this demo"} <= set(re.findall(r"<h3>(.*?)</h3>", page))
    for words in ("rollouts in the store", "steps8", "steps0", "shuffled", "frozen", "noise", "theworld ask demo/"):
        assert words in page
    trained = {path: path.stat().st_mtime_ns for path in (demo / "runs").glob("*/*.safetensors")}
    assert len(trained) == 4
    again = CliRunner().invoke(app, [*as_run_here(["make", "demo"]), "--json", "--quiet"])
    assert again.exit_code == 0, (again.output, again.exception)
    said = json.loads(again.stdout)
    assert said["page"] == str(demo / "index.html")
    assert [one["arm"] for one in said["evaluations"]] == ["rollout", "frozen", "shuffled", "noise", "rollout"]
    assert {path: path.stat().st_mtime_ns for path in trained} == trained


def test_what_make_is_asked_for_is_what_it_does() -> None:
    asked = list(dict.fromkeys(words[1] for words in COMMANDS if words[0] == "make"))
    assert asked == ["install", "demo", "test"]
    torch = [words[2].partition("=")[::2] for words in COMMANDS if words[:2] == ["make", "install"] and words[2:]]
    tested = re.search(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert {(name, build.split()[0]) for name, build in torch} == {("TORCH", tested.group() if tested else "")}
    makefile = (ROOT / "Makefile").read_text()
    rules = {target: makefile.partition(f"\n{target}: ")[2].partition("\n\n")[0] for target in asked}
    assert rules["demo"].endswith("$(BIN)/theworld demo")  # run above, smaller
    assert "pytest" in rules["test"]
    assert "$(VENV)/.installed" in makefile.partition("\ninstall: ")[2].partition("\n")[0]


def test_every_extra_of_a_user_is_named() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    install = README.partition("## Install")[2].partition("\n## ")[0]
    assert all(f"`{name}`" in install for name in extras.keys() - {"test", "dev", "docs"})


@pytest.mark.parametrize("page", ["README.md", "docs/peers.md"])
def test_every_figure_of_a_comparison_stands_in_the_benchmarks(page: str) -> None:
    text = (ROOT / page).read_text()
    measured = (ROOT / "benchmarks" / "README.md").read_text()
    known = {number.strip(".,") for number in re.findall(r"[\d.,]*\d", measured)}
    if page == "README.md":
        text = text.partition("## Measured")[2].partition("## The rooms")[0]
        cells = [row.split("|")[2] for row in re.findall(r"^\| .*\|$", text, re.MULTILINE)]
    else:
        rows = re.findall(r"^\| .*\|$", text.partition("## The job as a whole")[0], re.MULTILINE)
        cells = [cell for row in rows for cell in row.split("|")[2:]]
    figures = {figure for cell in cells for figure in re.findall(r"\d[\d.,]*\d|\d", cell)}
    assert len(figures) > 8
    assert figures - known == set()
    commands = set(re.findall(r"`python -m (benchmarks\.\w+)", text))
    assert all((ROOT / f"{command.replace('.', '/')}.py").is_file() for command in commands)
