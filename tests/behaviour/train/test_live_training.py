"""Training with rollouts in the loop sees what training from the store sees, and costs what it should not."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.miniatures.image_store import make_images, make_store
from tests.miniatures.lm import PLACES, mini_lm, save_mini_lm
from tests.miniatures.world_model import save_mini_world
from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import ConfigError, ImageError
from theworld.pipeline.latents.tensors import as_tensor
from theworld.pipeline.store.folder import LatentStore
from theworld.precompute.inputs.lookup import InputLookup
from theworld.precompute.live.batches import LiveBatches
from theworld.precompute.live.world import LiveWorld
from theworld.train.config import TrainConfig
from theworld.train.data.arms import parse_arm
from theworld.train.data.live import LiveLatents, roll_out_live
from theworld.train.data.loader import LatentDataset
from theworld.train.reader.model import TheWorld
from theworld.train.reader.tokens import WorldReader
from theworld.train.training.train import train


class House:
    """A miniature world, a store its worker made in batches of 4, and questions beside the images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.world, self.images = save_mini_world(folder / "world"), make_images(folder / "in", 8)
        self.store: LatentStore = make_store(self.images, folder / "cache", self.world)
        save_mini_lm(folder / "lm")
        self.questions = self.images / "questions.jsonl"
        lines = [
            {"id": f"{n}", "image": f"{n:03d}.png", "question": "where will the ball land?", "answer": PLACES[n % 2],
             "choices": PLACES[:2], "type": "temporal", "split": "train" if n < 6 else "test"}
            for n in range(8)
        ]  # fmt: skip
        self.questions.write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    def config(self, out: str, **changes: Any) -> TrainConfig:
        sizes = {"train_steps": 3, "batch_size": 4, "lora_rank": 2, "patch": 2, "max_world_steps": 4, "device": "cpu"}
        where = {"store": self.store.path, "questions": self.questions, "lm": str(self.folder / "lm")}
        return TrainConfig.model_validate({**sizes, **where, "out": self.folder / out, **changes})

    def live(self, **changes: Any) -> LiveBatches:
        given: dict[str, Any] = {"images": self.images, "size": 4, "world": str(self.world), "device": "cpu", **changes}
        return LiveBatches(self.store, given.pop("images"), **given)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("house"))


@pytest.mark.parametrize("steps", [2, 1, 0])
def test_what_is_rolled_out_is_what_the_store_holds_bit_by_bit(house: House, steps: int) -> None:
    keys = house.store.keys[1:7]
    live = LiveLatents(house.store, house.live(), keys=keys, rollout_steps=steps)
    read = LatentDataset(house.store, keys=keys, rollout_steps=steps)
    assert torch.equal(live.read([4, 0, 3, 1, 2]), read.read([4, 0, 3, 1, 2]))
    assert live.read([5]).dtype == torch.float16
    assert live.facts()["images"] == 6


def test_the_same_training_leaves_the_same_weights(house: House) -> None:
    runs: dict[str, dict[str, torch.Tensor]] = {}
    for name, live in (("read", None), ("live", house.live())):
        train(house.config(name), live=live)
        runs[name] = load_file(house.folder / name / "world_reader.safetensors")
        runs[name] |= load_file(house.folder / name / "adapter_model.safetensors")
    assert all(torch.equal(runs["read"][name], runs["live"][name]) for name in runs["read"])
    metrics = json.loads((house.folder / "live" / "metrics.json").read_text())
    assert metrics["rolled_out_live"]["images"] == 4 + 2 + 4  # again in the second epoch: nothing is kept
    assert "rolled_out_live" not in json.loads((house.folder / "read" / "metrics.json").read_text())


def test_another_batch_size_stays_within_the_tolerance_of_an_audit(house: House) -> None:
    keys = house.store.keys
    fresh = house.live(size=3)(keys, 2)
    assert (fresh - as_tensor(house.store.read(keys)).float()).abs().max() < 2e-3 + 2e-3  # of float16's own rounding


def test_what_cannot_be_rolled_out_again_stops_before_training(house: House, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"8 of 8 inputs are not in .*000\.png.*--images FOLDER"):
        house.live(images=make_images(tmp_path / "none", 0)).check(house.store.keys)
    with pytest.raises(ConfigError, match="which inputs"):
        house.live(images=None)
    with pytest.raises(ImageError, match="another image now"):
        house.live(images=make_images(tmp_path / "others", 8, seed=1)).check(house.store.keys)
    with pytest.raises(ConfigError, match=r"the arm frozen shows something else"):
        train(house.config("frozen", arm="frozen"), live=house.live())
    assert not (house.folder / "frozen").exists()
    with pytest.raises(ConfigError, match="arm text"):
        roll_out_live(None, house.live(), parse_arm("text"))


def test_values_a_store_would_refuse_are_refused(house: House) -> None:
    class Bad:
        def check(self, keys: object) -> None: ...

        def __call__(self, keys: list[str], rollout_steps: int) -> torch.Tensor:
            return torch.full((len(keys), 16, 1 + rollout_steps, 4, 4), 1e6)

    bad = LiveLatents(house.store, Bad(), keys=house.store.keys)
    with pytest.raises(RuntimeError, match=r"float16 cannot.*left these images out"):
        bad.read([0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_both_live_paths_give_the_latents_of_the_store_in_its_dtype(house: House, tmp_path: Path, dtype: str) -> None:
    store = make_store(house.images, tmp_path / "cache", house.world, dtype=dtype)
    keys = list(store.keys[:4])
    stored = as_tensor(store.read(keys))
    batches = LiveBatches(store, house.images, size=4, world=str(house.world), device="cpu")
    without_cache = LiveLatents(store, batches, keys=keys).read(range(4))
    inputs = InputLookup(store, house.images)
    pixels = torch.stack([inputs.load(key).pixels for key in keys])
    world = LiveWorld.for_store(store, world=str(house.world), device="cpu").world
    reader = WorldReader(latent_shape=(16, 4, 4), hidden_size=32, embedding_rms=1.0)
    model = TheWorld(mini_lm(), reader, num_world_steps=2, world=world, recipe=store.recipe)
    from_images = model._world_latents(None, pixels, keys, None)
    assert from_images is not None
    assert stored.dtype == without_cache.dtype == from_images.dtype == getattr(torch, dtype)
    assert torch.equal(without_cache, stored)
    assert torch.equal(from_images, stored)


def test_the_commands_train_live_and_show_the_predicted_future_in_a_page(house: House) -> None:
    def theworld(*words: object) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "160"})
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output

    settings = house.folder / "train.toml"
    settings.write_text("[train]\npatch = 2\nmax_world_steps = 4\n")
    run, page = house.folder / "by-hand", house.folder / "report.html"
    flags = ["--train-steps", 2, "--device", "cpu", "--config", settings, "--questions", house.questions]
    flags += ["--lm", house.folder / "lm"]
    theworld("train", house.store.path, "--no-cache", "--world", house.world, *flags, "--out", run)
    assert json.loads((run / "metrics.json").read_text())["rolled_out_live"]["images"] > 0
    refused = CliRunner().invoke(app, ["train", str(house.store.path), "--world", "x", *map(str, flags)])
    assert "belongs to --no-cache" in str(refused.exception)
    theworld("evaluate", run, "--report", page, "--world", house.world, "--device", "cpu")
    drawn = r'alt="Frames of the predicted future[^>]* src="data:image/webp;base64,([^"]+)"'
    pictures = re.findall(drawn, page.read_text())
    assert len(pictures) == 2
    assert all(base64.b64decode(picture, validate=True) for picture in pictures)
