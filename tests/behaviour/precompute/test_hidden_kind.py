"""Hidden states from the images to an answer: made, kept, planned, trained on, evaluated, and never drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.miniatures.image_store import make_images, make_store
from tests.miniatures.live_run import ask_about
from tests.miniatures.lm import save_mini_lm
from tests.miniatures.world_model import save_mini_world
from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import ConfigError
from theworld.pipeline.latents.keys import key_of_bytes
from theworld.pipeline.latents.tensors import as_tensor
from theworld.pipeline.store.folder import open_store
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.planning.cost import operations_of
from theworld.precompute.job.planning.recipe import make_recipe
from theworld.precompute.live.world import LiveWorld
from theworld.precompute.preview.store_preview import preview
from theworld.precompute.worlds.cosmos.joint_diffusion import JointDiffusion
from theworld.precompute.worlds.source import WorldSource, resolve_world


class House:
    """A miniature world, a store of its hidden states, and questions beside the images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.world, self.images = save_mini_world(folder / "world"), make_images(folder / "in", 8)
        settings = {"kind": "hidden", "hidden_width": 16, "denoise_steps": None}
        self.store = make_store(self.images, folder / "cache", self.world, **settings)
        save_mini_lm(folder / "lm")
        self.questions = ask_about(self.images, train=6, test=2)

    @property
    def source(self) -> WorldSource:
        return resolve_world(str(self.world))

    def recipe(self, **changes: Any) -> Any:
        fields = {"kind": "hidden", "steps": 2, "size": "32x32", "compute_dtype": "float32", **changes}
        return make_recipe(PrecomputeConfig.model_validate(fields), self.source)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("hidden"))


def run(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_store_keeps_the_recipe_the_shape_and_the_values(house: House) -> None:
    store = open_store(house.store.path)
    assert store.recipe.kind == "hidden"
    assert (store.recipe.hidden_block, store.recipe.hidden_width) == (1, 16)  # two thirds of two blocks
    assert store.sample_shape == (16, 3, 2, 2)
    live = LiveWorld.for_store(store, world=str(house.world), device="cpu")
    for image in sorted(house.images.glob("*.png"))[:2]:
        content, _ = live.load(image)
        kept = as_tensor(store.read([key_of_bytes(content)])).float()
        assert torch.allclose(kept, live.roll_out(image), atol=2e-3)


def test_a_plan_counts_a_part_of_one_forward_and_the_bytes(house: House) -> None:
    rollout = operations_of(house.source, house.recipe(kind="rollout"))
    hidden = operations_of(house.source, house.recipe(hidden_block=1))
    assert rollout is not None
    assert hidden is not None
    assert hidden.predict == pytest.approx(rollout.predict / (house.recipe(kind="rollout").denoise_steps - 1) / 2)
    words = ("precompute", house.images, "--world", house.world, "--kind", "hidden", "--size", "32x32", "--steps", 2)
    plan = run(*words, "--hidden-width", 16, "--cache", house.folder / "planned", "--dry-run", "--device", "cpu")
    assert "hidden states behind block 1 of 2, projected from 32 to 16 channels" in plan
    assert "no pictures" in plan
    assert f"{8 * 16 * 3 * 2 * 2 * 2 / 1024:.1f} KiB" in plan
    own = run(*words, "--cache", house.folder / "planned", "--dry-run", "--device", "cpu")
    assert "projected from 32 to 32 channels" in own, "64 by default, and never more than a token has"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"hidden_block": 3}, "has 2 blocks"),
        ({"hidden_width": 33}, "have 32 numbers"),
        ({"hidden_sigma": 81.0}, "up to 80"),
        ({"steps": 0}, "at least 1"),
        ({"steps": 30}, r"Choose --steps of at most 23$"),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_can(house: House, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(Exception, match=words):
        house.recipe(**wrong)


def test_a_family_without_blocks_is_refused_by_name(house: House) -> None:
    family = type("Plain", (), {"title": "Plain World", "latent_spec": house.source.family.latent_spec})()
    plain = WorldSource(
        name="plain",
        folder=house.world,
        identity="x",
        family=family,
        card=house.source.card,  # type: ignore[arg-type]
    )
    with pytest.raises(ConfigError, match=r"Plain World, which has no blocks .* --kind rollout"):
        make_recipe(PrecomputeConfig(kind="hidden"), plain)


def test_an_engine_without_the_method_is_named_and_the_job_ends(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(JointDiffusion, "hidden")
    with pytest.raises(ConfigError, match=r"its engine CosmosWorld has no hidden\(seen, keys, recipe\)"):
        make_store(house.images, tmp_path, house.world, kind="hidden", denoise_steps=None)


def test_compile_and_offload_are_refused() -> None:
    for setting in ({"compile": True}, {"offload": "pinned"}):
        with pytest.raises(ValueError, match="hidden states"):
            PrecomputeConfig.model_validate({"kind": "hidden", **setting})


def test_there_is_no_picture_of_hidden_states(house: House) -> None:
    with pytest.raises(ConfigError, match="there is no picture of hidden states"):
        preview(house.store, house.folder / "look", images=house.images, world=str(house.world), device="cpu")


def test_a_reader_learns_from_hidden_states_and_answers_live_and_from_the_store(house: House) -> None:
    folder = house.folder / "run"
    made = ("--questions", house.questions, "--lm", house.folder / "lm", "--out", folder, "--device", "cpu")
    sizes = ("--train-steps", 2, "--batch-size", 4, "--lora-rank", 2, "--max-world-steps", 4)
    out = run("train", house.store.path, "--patch", 2, *made, *sizes)
    assert "error" not in out
    result = run("evaluate", folder, "--store", house.store.path, "--questions", house.questions, "--device", "cpu")
    assert "temporal" in result
    asked = ("ask", folder, house.images / "006.png", "where will the ball land?", "--choices", "left,right")
    where = ("--world", house.world, "--device", "cpu", "--lm", house.folder / "lm")
    assert run(*asked, *where).strip()
    refused = CliRunner().invoke(app, [str(word) for word in (*asked, *where, "--preview", house.folder / "no.png")])
    assert refused.exit_code != 0
    assert "there is no picture of hidden states" in str(refused.exception)
