"""push and pull over HTTP, by the Hub's own client, against a small Hub of ours on the loopback device.

Large files go by git LFS: the Hub's newer way, Xet, needs a server of chunks that is not here.
"""

import os
import shutil
from pathlib import Path

import pytest

from tests.command_line import Done, theworld_process
from tests.hub_server import LARGE, TOKEN, Hub, small_hub
from tests.miniatures.training import lay_out, settings
from theworld.train.runs import hub as ours
from theworld.train.training.train import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    house = lay_out(tmp_path_factory.mktemp("secretly"))
    train(settings(house, train_steps=2))
    (house / "run" / "tensorboard").mkdir()
    (house / "run" / "tensorboard" / "events.out").write_text("of this machine")
    return house / "run"


def theworld(hub: Hub, home: Path, *words: str, token: str = TOKEN) -> Done:
    """A command in a process of its own: the Hub's client reads its environment once."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    ours = {"HF_ENDPOINT": hub.address, "HF_TOKEN": token, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return theworld_process(*words, env=kept | ours)


def test_a_run_that_was_pushed_is_pulled_as_it_was(run: Path, tmp_path: Path) -> None:
    with small_hub() as hub:
        pushed = theworld(hub, tmp_path / "one", "push", str(run), "somebody/reader", "--private", "--json")
        assert pushed.code == 0, pushed.err
        [(commit, files)] = hub.repositories["somebody/reader"].items()
        assert pushed.json["address"] == f"{hub.address}/somebody/reader/commit/{commit}"
        assert hub.private["somebody/reader"]
        assert set(files) == {*ours.WEIGHTS, *ours.TEXTS, ours.CARD}
        assert all(b"secretly" not in content for content in files.values())
        assert len(hub.objects) == sum(name.endswith(LARGE) for name in files)

        out = tmp_path / "pulled"
        pulled = theworld(hub, tmp_path / "two", "pull", f"somebody/reader@{commit}", str(out))
        assert pulled.code == 0, pulled.err
        for name in ours.WEIGHTS:
            assert (out / name).read_bytes() == (run / name).read_bytes()
        assert {path.name for path in out.iterdir()} == set(files)

        shutil.rmtree(out)
        before = len(hub.asked)
        again = theworld(hub, tmp_path / "two", "pull", "somebody/reader", str(out))
        assert again.code == 0, again.err
        assert not [line for line in hub.asked[before:] if line.startswith("GET") and LARGE in line], "downloaded twice"


def test_a_hub_that_says_no_is_quoted_with_what_to_do(run: Path, tmp_path: Path) -> None:
    with small_hub() as hub:
        pushed = theworld(hub, tmp_path, "push", str(run), "somebody/reader", token="hf_of_nobody")
        assert pushed.code == 2
        assert "cannot upload to somebody/reader" in pushed.err
        assert "hf auth login" in pushed.err
        pulled = theworld(hub, tmp_path, "pull", "somebody/else", str(tmp_path / "pulled"))
        assert pulled.code == 2
        assert "the Hub has no somebody/else that you may read" in pulled.err
    gone = theworld(hub, tmp_path, "pull", "somebody/else", str(tmp_path / "pulled"))
    assert gone.code == 2
    assert "the Hub cannot be reached" in gone.err
    assert not (tmp_path / "pulled").exists()
