"""push and pull over HTTP, by the Hub's own client, against a small Hub of ours on the loopback device.

Large files go by git LFS: the Hub's newer way, Xet, needs a server of chunks that is not here.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from theworld.train.runs import hub as ours
from theworld.train.training.train import train

from ..hub_server import LARGE, TOKEN, Hub, small_hub
from ..miniatures.training import lay_out, settings
from ..patience import patience

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    house = lay_out(tmp_path_factory.mktemp("secretly"))
    train(settings(house, train_steps=2))
    (house / "run" / "tensorboard").mkdir()
    (house / "run" / "tensorboard" / "events.out").write_text("of this machine")
    return house / "run"


def theworld(hub: Hub, home: Path, *words: str, token: str = TOKEN) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-m", "theworld.pipeline.cli", *words],
        env={**kept, "HF_ENDPOINT": hub.address, "HF_TOKEN": token, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"},
        capture_output=True, text=True, timeout=patience(120), check=False,
    )  # fmt: skip


def test_a_run_that_was_pushed_is_pulled_as_it_was(run: Path, tmp_path: Path) -> None:
    with small_hub() as hub:
        pushed = theworld(hub, tmp_path / "one", "push", str(run), "somebody/reader", "--private", "--json")
        assert pushed.returncode == 0, pushed.stderr
        [(commit, files)] = hub.repositories["somebody/reader"].items()
        assert json.loads(pushed.stdout)["address"] == f"{hub.address}/somebody/reader/commit/{commit}"
        assert hub.private["somebody/reader"]
        assert set(files) == {*ours.WEIGHTS, *ours.TEXTS, ours.CARD}
        assert all(b"secretly" not in content for content in files.values())
        assert len(hub.objects) == sum(name.endswith(LARGE) for name in files)

        out = tmp_path / "pulled"
        pulled = theworld(hub, tmp_path / "two", "pull", f"somebody/reader@{commit}", str(out))
        assert pulled.returncode == 0, pulled.stderr
        for name in ours.WEIGHTS:
            assert (out / name).read_bytes() == (run / name).read_bytes()
        assert {path.name for path in out.iterdir()} == set(files)

        shutil.rmtree(out)
        before = len(hub.asked)
        again = theworld(hub, tmp_path / "two", "pull", "somebody/reader", str(out))
        assert again.returncode == 0, again.stderr
        assert not [line for line in hub.asked[before:] if line.startswith("GET") and LARGE in line], "downloaded twice"


def test_a_hub_that_says_no_is_quoted_with_what_to_do(run: Path, tmp_path: Path) -> None:
    with small_hub() as hub:
        pushed = theworld(hub, tmp_path, "push", str(run), "somebody/reader", token="hf_of_nobody")
        assert pushed.returncode == 2
        assert "cannot upload to somebody/reader" in pushed.stderr
        assert "hf auth login" in pushed.stderr
        pulled = theworld(hub, tmp_path, "pull", "somebody/else", str(tmp_path / "pulled"))
        assert pulled.returncode == 2
        assert "the Hub has no somebody/else that you may read" in pulled.stderr
    gone = theworld(hub, tmp_path, "pull", "somebody/else", str(tmp_path / "pulled"))
    assert gone.returncode == 2
    assert "the Hub cannot be reached" in gone.stderr
    assert not (tmp_path / "pulled").exists()
