"""The Python interface of the page that the project grew from, with its names: one object, from images to answers."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import theworld
from theworld import TheWorld
from theworld.pipeline.errors import ConfigError, LatentShapeError
from theworld.pipeline.latents.keys import key_of_file
from theworld.pipeline.store.folder import open_store
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.run import run_precompute
from theworld.train.evaluation.answer import ask
from theworld.train.questions.record import read_questions
from theworld.train.runs.folder import load_run

from ..miniatures.lm import save_mini_lm
from ..miniatures.world_model import save_mini_world

QUESTION = "where is the ball?"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("house")
    save_mini_world(folder / "world")
    save_mini_lm(folder / "lm")
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> TheWorld:
    settings: dict[str, Any] = {"world": str(place / "world"), "size": "32x48", "layout": "spatial", "device": "cpu"}
    return TheWorld.from_pretrained(str(place / "lm"), num_world_steps=2, max_world_steps=8, **settings)


def test_the_names_of_the_first_page_are_there(model: TheWorld) -> None:
    assert theworld.__version__
    assert (model.num_world_steps, model.max_world_steps, model.device) == (2, 8, torch.device("cpu"))
    trainable, total = model.get_trainable_parameters()
    assert 0 < trainable < total


@pytest.mark.parametrize("steps", [0, 2, 4, 8])
def test_each_number_of_steps_is_read_as_so_many_frames_of_tokens(model: TheWorld, place: Path, steps: int) -> None:
    inputs = model.processor(text=QUESTION, images=place / "0.png")
    assert inputs["images"].shape == (1, 3, 32, 48)
    assert -1 <= float(inputs["images"].min()) < float(inputs["images"].max()) <= 1
    out = model(**inputs, num_world_steps=steps)
    assert out["logits"] is out.logits
    assert out.logits.shape[1] == inputs["input_ids"].shape[1] + (1 + steps) * 4 * 6
    with pytest.raises(ConfigError, match="max_world_steps=8"):
        model(**inputs, num_world_steps=9)


def test_a_rollout_made_here_and_one_of_a_store_give_equal_logits(model: TheWorld, place: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"world": str(place / "world"), "size": "32x48", "steps": 2, "device": "cpu"}
    report = run_precompute(PrecomputeConfig(images=place, cache=tmp_path / "c", in_process=True, **settings))
    store, file = open_store(report.store), place / "1.png"
    inputs = model.processor(text=[QUESTION, "what color?"], images=[place / "0.png", file])
    assert inputs["keys"][1] == key_of_file(file)
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    for steps in (0, 1, 2):
        cached = model(**text, latents=store.read(inputs["keys"]), num_world_steps=steps).logits
        torch.testing.assert_close(model(**inputs, num_world_steps=steps).logits, cached, rtol=1e-4, atol=1e-4)
    live = model.rank(QUESTION, ["left", "right"], images=file)
    stored = model.rank(QUESTION, ["left", "right"], latents=store.read([key_of_file(file)]))
    assert [one.choice for one in live] == [one.choice for one in stored]
    assert live[0].probability == pytest.approx(stored[0].probability, abs=1e-4)


def test_a_picture_is_the_same_however_it_comes(model: TheWorld, place: Path) -> None:
    file = place / "0.png"
    picture = Image.open(file)
    forms: list[Any] = [file, str(file), file.read_bytes(), picture, np.asarray(picture), picture.convert("RGBA")]
    batches = [model.processor(QUESTION, form) for form in forms]
    assert all(torch.equal(batch["images"], batches[0]["images"]) for batch in batches)
    assert [batch["keys"][0] for batch in batches[:3]] == [key_of_file(file)] * 3
    assert len({batch["keys"][0] for batch in batches[3:]}) == 1, "what is no file is known by its pixels"
    lossless = io.BytesIO()
    picture.save(lossless, "TIFF")
    assert model.processor(QUESTION, Image.open(lossless))["keys"] == batches[3]["keys"]


def test_generation_takes_the_arguments_of_transformers_and_images_or_latents(model: TheWorld, place: Path) -> None:
    inputs = model.processor([QUESTION, "what color is it now?"], place / "0.png")
    greedy = model.generate(**inputs, max_new_tokens=4)
    assert greedy.shape[0] == 2
    assert greedy.shape[1] <= 4
    assert model.generate(**inputs, max_new_tokens=4, num_beams=1).tolist() == greedy.tolist()
    assert all(isinstance(text, str) for text in model.processor.batch_decode(greedy))
    drawn = [model.generate(**inputs, max_new_tokens=4, do_sample=True, temperature=5.0, seed=3) for _ in range(2)]
    assert drawn[0].tolist() == drawn[1].tolist()
    alone = model.generate(**model.processor(QUESTION), max_new_tokens=2)  # no image: the language model alone
    assert alone.shape[0] == 1


def test_a_model_comes_back_from_its_folder_and_others_read_it(model: TheWorld, place: Path, tmp_path: Path) -> None:
    with torch.no_grad():
        for name, parameter in model.trainable_parameters():
            if "lora_B" in name:
                parameter.add_(0.01)
    model.save_pretrained(str(tmp_path / "run"))
    again = TheWorld.from_pretrained(str(tmp_path / "run"), world=str(place / "world"), device="cpu")
    inputs = model.processor(QUESTION, place / "0.png")
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    loaded = load_run(str(tmp_path / "run"), device="cpu")
    latents = np.zeros((1, *loaded.meta.reader.latent_shape[:1], 3, *loaded.meta.reader.latent_shape[1:]), np.float16)
    assert ask(loaded, latents, QUESTION, ["left", "right"]).text in ("left", "right")
    with pytest.raises(LatentShapeError, match=r"latents of one image, \(1, C, T, H, W\), got \(2"):
        ask(loaded, np.concatenate([latents, latents]), QUESTION)
    with pytest.raises(ConfigError, match="layout: decided when"):
        TheWorld.from_pretrained(tmp_path / "run", layout="patch")


def test_what_does_not_fit_is_refused_in_words(model: TheWorld, place: Path) -> None:
    with pytest.raises(ConfigError, match="no run but a language model"):
        TheWorld.from_pretrained(str(place / "lm"), lm=str(place / "lm"))
    with pytest.raises(ConfigError, match="2 texts take one image for all or 2 images, got 3"):
        model.processor([QUESTION] * 2, [place / "0.png"] * 3)
    with pytest.raises(ConfigError, match=r"uint8 of shape .* got float64"):
        model.processor(QUESTION, np.zeros((8, 8, 3)))
    with pytest.raises(ConfigError, match="got int"):
        model.processor(QUESTION, 3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="one question or several"):
        model.processor("  ")
    with pytest.raises(ConfigError, match="images= or latents="):
        model.rank(QUESTION, ["a", "b"])
    with pytest.raises(ConfigError, match="from_pretrained makes one"):
        TheWorld(model.lm, model.reader, max_world_steps=8).processor  # noqa: B018


def test_a_path_may_be_a_text(tmp_path: Path) -> None:
    row = {"id": "1", "image": "a.png", "question": "where?", "answer": "left"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    assert read_questions(str(tmp_path / "q.jsonl"))[0].answer == "left"
