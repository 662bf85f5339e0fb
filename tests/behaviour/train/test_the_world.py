"""The Python interface of the page that the project grew from, with its names: one object, from images to answers."""

import contextlib
import copy
import io
import json
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import GenerationConfig, StoppingCriteriaList, TextStreamer, Trainer, TrainingArguments
from transformers.utils import ModelOutput

import theworld
from tests.miniatures.lm import PLACES, SMALL_TRAINING, save_mini_lm
from tests.miniatures.world_model import save_mini_world
from theworld import TheWorld
from theworld.pipeline.errors import ConfigError, LatentShapeError, RunError
from theworld.pipeline.latents.keys import key_of_file
from theworld.pipeline.store.folder import open_store
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.run import run_precompute
from theworld.train.config import TrainConfig
from theworld.train.evaluation.answer import ask
from theworld.train.language.lm import load_tokenizer_only
from theworld.train.language.weights import find_weights
from theworld.train.questions.record import read_questions
from theworld.train.runs.folder import load_run
from theworld.train.training.train import train

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


def test_a_row_of_a_model_that_pads_with_its_first_token_needs_no_mask(place: Path, tmp_path: Path) -> None:
    """As Qwen does."""
    file = save_mini_lm(tmp_path) / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pad_token": "<bos>"}))
    settings: dict[str, Any] = {"world": str(place / "world"), "size": "32x48", "layout": "spatial", "device": "cpu"}
    model = TheWorld.from_pretrained(str(tmp_path), num_world_steps=0, **settings)
    inputs = model.processor(text=[QUESTION, "what?"], images=[place / "0.png", place / "1.png"])
    logits = model(**inputs).logits
    assert not inputs["attention_mask"].all()
    assert torch.equal(model(**{**inputs, "attention_mask": None}).logits, logits)


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


@pytest.mark.parametrize("kind", ["hidden", "samples", "views"])
def test_a_run_on_another_kind_of_store_sees_images_as_its_store_has_them_or_names_the_kind(
    place: Path, tmp_path: Path, kind: str
) -> None:
    settings: dict[str, Any] = {"hidden": {"hidden_width": 4}, "samples": {"draws": 2, "denoise_steps": 3}, "views": {}}
    steps = {} if kind == "views" else {"steps": 2}
    run_precompute(
        PrecomputeConfig.model_validate(
            {"images": place, "world": str(place / "world"), "cache": tmp_path / "cache", "kind": kind, "size": "32x48",
             "in_process": True, "device": "cpu", **steps, **settings[kind]}
        )
    )  # fmt: skip
    about = {"question": QUESTION, "choices": PLACES[:2]}
    rows = [{**about, "id": f"{n}", "image": f"{place / str(n)}.png", "answer": PLACES[n]} for n in range(2)]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    small = {"store": tmp_path / "cache", "questions": questions, "lm": str(place / "lm"), "out": tmp_path / "run"}
    train(
        TrainConfig.model_validate(
            {**SMALL_TRAINING, **small, "train_steps": 1, "holdout": 0.0, "patch": 1, "max_world_steps": 13}
        )
    )
    model = TheWorld.from_pretrained(tmp_path / "run", world=str(place / "world"), device="cpu")
    store = open_store(tmp_path / "cache")
    if kind == "views":
        with pytest.raises(ConfigError, match="latents of kind views have to be precomputed"):
            model(**model.processor(text=QUESTION, images=place / "0.png"))
        return
    inputs = model.processor(text=QUESTION, images=place / "0.png")
    kept = store.read([key_of_file(place / "0.png")])
    cached = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    for shown in range(1 + store.recipe.rollout_steps):
        here = model(**inputs, num_world_steps=shown).logits
        assert torch.allclose(here, model(**cached, latents=kept, num_world_steps=shown).logits, atol=1e-3)
    if kind == "samples":
        with pytest.raises(ConfigError, match=r"hold 2 futures, 4 steps in all, and 5 are asked for"):
            model(**inputs, num_world_steps=5)


def test_a_picture_is_the_same_however_it_comes(model: TheWorld, place: Path) -> None:
    file = place / "0.png"
    picture = Image.open(file)
    forms: list[Any] = [file, str(file), file.read_bytes(), picture, np.asarray(picture), picture.convert("RGBA")]
    batches = [model.processor(QUESTION, form) for form in forms]
    assert all(torch.equal(batch["images"], batches[0]["images"]) for batch in batches)
    assert [batch["keys"][0] for batch in batches[:3]] == [key_of_file(file)] * 3
    assert len({batch["keys"][0] for batch in batches[3:]}) == 1, "what is no file is known by its pixels"
    pixels = torch.from_numpy(np.array(picture))
    forms = [pixels.permute(2, 0, 1), pixels, pixels[None], file.open("rb"), {"bytes": file.read_bytes(), "path": None}]
    forms += [[[picture]], {"bytes": None, "path": str(file)}]
    assert all(torch.equal(model.processor(QUESTION, form)["images"], batches[0]["images"]) for form in forms)
    for mode in ("L", "P", "CMYK", "YCbCr", "HSV", "I;16", "PA", "La", "RGBa", "RGBX"):
        through = {"I;16": "I", "PA": "P", "La": "LA", "RGBa": "RGBA"}.get(mode, mode)
        assert model.processor(QUESTION, picture.convert(through).convert(mode))["images"].shape == (1, 3, 32, 48)
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
    with pytest.raises(
        ConfigError, match=r"no argument 'num_world_step' \(did you mean 'num_world_steps'\?\); settings"
    ):
        TheWorld.from_pretrained(tmp_path / "run", num_world_step=1)
    with pytest.raises(ConfigError, match=r"is a folder of runs\. Name one of them: .*run"):
        TheWorld.from_pretrained(tmp_path)


def test_what_does_not_fit_is_refused_in_words(model: TheWorld, place: Path) -> None:
    with pytest.raises(ConfigError, match="no run but a language model"):
        TheWorld.from_pretrained(str(place / "lm"), lm=str(place / "lm"))
    with pytest.raises(ConfigError, match="2 texts take one image for all or 2 images, got 3"):
        model.processor([QUESTION] * 2, [place / "0.png"] * 3)
    with pytest.raises(ConfigError, match=r"uint8 of shape .* got float64.*255 \* pixels"):
        model.processor(QUESTION, np.zeros((8, 8, 3)))
    with pytest.raises(ConfigError, match=r"pixels.transpose\(1, 2, 0\)"):
        model.processor(QUESTION, np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(ConfigError, match="mode I does not say which value is white"):
        model.processor(QUESTION, Image.new("I", (8, 8)))
    with pytest.raises(ConfigError, match="is a URL"):
        model.processor(QUESTION, "https://example.org/a.png")
    with pytest.raises(ConfigError, match="text 0 has 2 images"):
        model.processor(QUESTION, [[place / "0.png", place / "1.png"]])
    with pytest.raises(ConfigError, match="return_tensors='np'"):
        model.processor(QUESTION, return_tensors="np")
    with pytest.raises(ConfigError, match="got int"):
        model.processor(QUESTION, 3)  # type: ignore[arg-type]
    for nothing in ("  ", "<image>", "<image 1> or <image 2>?"):
        with pytest.raises(ConfigError, match="one question or several, each about one image"):
            model.processor(nothing)
    marked, plain = (model.processor(text)["input_ids"].tolist() for text in (f"<image>\n{QUESTION}", QUESTION))
    assert marked == plain
    with pytest.raises(ConfigError, match="images= or latents="):
        model.rank(QUESTION, ["a", "b"])
    with pytest.raises(ConfigError, match="a list of texts, got the text 'left'"):
        model.rank(QUESTION, "left", images=place / "0.png")
    with pytest.raises(ConfigError, match="one question as a text"):
        model.rank([QUESTION], ["a", "b"], images=place / "0.png")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="gemma_model_name=NAME"):
        TheWorld()
    with pytest.raises(ConfigError, match="from_pretrained makes one"):
        TheWorld(model.lm, model.reader, max_world_steps=8).processor  # noqa: B018


def test_a_model_is_loaded_with_the_arguments_of_transformers(place: Path) -> None:
    settings: dict[str, Any] = {"world": place / "world", "size": "32x48", "layout": "spatial", "lora_rank": 2}
    model = TheWorld.from_pretrained(place / "lm", device_map={"": "cpu"}, torch_dtype=torch.bfloat16, **settings)
    assert (model.dtype, model.device, model.config.model_type) == (torch.bfloat16, torch.device("cpu"), "gemma2")
    assert {p.shape[0] for name, p in model.lm.named_parameters() if "lora_A" in name} == {2}
    assert model.float()(**model.processor(QUESTION)).logits.dtype == torch.float32
    assert model.to(torch.bfloat16)(**model.processor(QUESTION, place / "0.png")).logits.dtype == torch.bfloat16
    for wrong, words in {
        "load_in_8bit": "no argument 'load_in_8bit'; settings are coarse, ",
        "torch_dtype": "dtype='float16': the language model computes in float32, bfloat16",
        "device_map": "device='tpu'",
        "patch": "patch should be greater than or equal to 1, got 0",
        "revision": "is of a repository on the Hub",
    }.items():
        value = {"load_in_8bit": True, "torch_dtype": "float16", "device_map": "tpu", "patch": 0, "revision": "main"}
        with pytest.raises(ConfigError, match=words):
            TheWorld.from_pretrained(place / "lm", **settings, **{wrong: value[wrong]})


def test_the_output_is_one_of_transformers(model: TheWorld, place: Path) -> None:
    inputs = model.processor([QUESTION, "what color is it now?"], place / "0.png")
    learned = model(**inputs, labels=inputs["input_ids"])
    assert isinstance(learned, ModelOutput)
    assert list(learned) == ["loss", "logits"]
    assert learned.to_tuple()[0] is learned.loss is learned[0]
    plain = model(**inputs)
    assert list(plain) == ["logits"]
    assert plain[0] is plain.logits
    [logits] = model(**inputs, return_dict=False)
    assert torch.equal(logits, plain.logits)
    without = {name: value for name, value in inputs.items() if name != "attention_mask"}
    assert torch.equal(model(**without).logits, plain.logits), "without a mask, what is not padding is text"
    with pytest.raises(ConfigError, match="2 images have 1 keys"):
        model(**{**inputs, "keys": inputs["keys"][:1]})


def test_generation_is_steered_as_that_of_transformers(
    model: TheWorld, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = model.processor(QUESTION, place / "0.png", return_tensors="pt", padding=True)
    heard = io.StringIO()
    greedy = model.generate(**inputs, max_new_tokens=4)
    with contextlib.redirect_stdout(heard):
        streamer = TextStreamer(model.processor.tokenizer, skip_prompt=True)
        streamed = model.generate(**inputs, max_new_tokens=4, streamer=streamer, top_p=None, use_cache=True)
    assert streamed.tolist() == greedy.tolist()
    assert heard.getvalue().strip() == model.processor.batch_decode(greedy, skip_special_tokens=True)[0]
    first = StoppingCriteriaList([lambda ids, _: torch.ones(len(ids), dtype=torch.bool)])
    assert model.generate(**inputs, max_new_tokens=4, stopping_criteria=first).shape == (1, 1)
    several = GenerationConfig(max_new_tokens=2, do_sample=True, num_return_sequences=3)
    assert model.generate(**inputs, generation_config=several).shape == (3, 2)
    drawing: dict[str, Any] = {"max_new_tokens": 6, "do_sample": True, "temperature": 5.0}
    torch.manual_seed(0)
    texts = {str(model.generate(**inputs, **drawing).tolist()) for _ in range(4)}
    assert len(texts) > 1, "without a seed, torch's own generator decides"
    torch.manual_seed(0)
    assert str(model.generate(**inputs, **drawing).tolist()) in texts
    ranked = [model.generate(**inputs, **drawing, top_k=9, seed=3).tolist() for _ in range(2)]
    assert ranked[0] == ranked[1]
    model.generate(**inputs, max_new_tokens=1, temperature=0.7)
    assert "no effect without do_sample=True" in caplog.text
    with pytest.raises(ConfigError, match="leave out do_sample"):
        model.generate(**inputs, do_sample=True, temperature=0)
    with pytest.raises(ConfigError, match="pass max_new_tokens"):
        model.generate(**inputs, max_length=30)
    with pytest.raises(ConfigError, match="by name"):
        model.generate(Image.new("RGB", (8, 8)), "where?")  # type: ignore[arg-type]


def test_messages_of_transformers_are_the_prompt_of_their_last_question(model: TheWorld, place: Path) -> None:
    def user(*parts: Any) -> dict[str, Any]:
        return {"role": "user", "content": list(parts)}

    asked, image = {"type": "text", "text": QUESTION}, {"type": "image", "image": Image.open(place / "0.png")}
    plain, ready = model.processor(QUESTION, image["image"]), model.processor.apply_chat_template([user(image, asked)])
    assert ready.keys() == plain.keys()
    assert all(torch.equal(ready[name], plain[name]) for name in ("input_ids", "attention_mask", "images"))
    assert ready["keys"] == plain["keys"]
    model.generate(**ready, max_new_tokens=2)

    talk = [user(image, asked), {"role": "assistant", "content": "left"}, {"role": "user", "content": "what color?"}]
    two = model.processor.apply_chat_template([talk, [user({"type": "image", "url": str(place / "1.png")}, asked)]])
    row = two["input_ids"][0][two["attention_mask"][0].bool()].tolist()
    tokenizer = load_tokenizer_only(find_weights(str(place / "lm")))
    assert row == tokenizer.prompt_ids("what color?", [(QUESTION, "left")])
    assert len(set(two["keys"])) == 2
    assert "images" not in model.processor.apply_chat_template([user(asked)])  # for latents that are passed
    for wrong, words in (
        ([talk[0], talk[1]], "the last is a question"),
        ([user(image, image, asked)], "several images"),
        ([[user(image, asked)], [user(asked)]], "1 of 2 conversations name an image"),
        ([], "no list of turns"),
    ):
        with pytest.raises(ConfigError, match=words):
            model.processor.apply_chat_template(wrong)
    with pytest.raises(ConfigError, match="no text of a prompt"):
        model.processor.apply_chat_template(talk, tokenize=False)


def test_a_processor_is_light_enough_for_the_workers_of_a_loader(model: TheWorld, place: Path) -> None:
    content = bytes(ForkingPickler.dumps(model.processor))
    assert len(content) < 100_000, "it holds no weights"
    batch = ForkingPickler.loads(content)(QUESTION, place / "0.png")
    assert torch.equal(batch["images"], model.processor(QUESTION, place / "0.png")["images"])


def test_what_was_never_trained_is_found_beside_a_language_model_that_has_moved(place: Path, tmp_path: Path) -> None:
    lm = save_mini_lm(tmp_path / "lm")
    settings: dict[str, Any] = {"world": place / "world", "device": "cpu"}
    TheWorld.from_pretrained(lm, size="32x48", layout="spatial", **settings).save_pretrained(tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "theworld.json").read_text())["lm"]
    assert recorded["content"] == recorded["identity"] == find_weights(str(lm)).content
    lm.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="Say where it lies now"):
        TheWorld.from_pretrained(tmp_path / "run", **settings)
    assert TheWorld.from_pretrained(tmp_path / "run", lm=tmp_path / "elsewhere", **settings).num_world_steps == 4
    with pytest.raises(RunError, match="Adapters fit only the model"):
        TheWorld.from_pretrained(tmp_path / "run", lm=save_mini_lm(tmp_path / "other", seed=1), **settings)


def test_transformers_trainer_keeps_checkpoints_of_a_model_with_tied_weights(
    model: TheWorld, place: Path, tmp_path: Path
) -> None:
    head, table = model.lm.get_output_embeddings().weight, model.lm.get_input_embeddings().weight
    assert head is table, "else this says nothing"
    ours = copy.deepcopy(model)
    kept = TrainingArguments(str(tmp_path), max_steps=1, report_to=[], use_cpu=True, remove_unused_columns=False)

    def collate(rows: list[str]) -> dict[str, Any]:
        batch = ours.processor(rows, place / "0.png")
        return {**batch, "labels": batch["input_ids"]}

    Trainer(ours.train(), kept, train_dataset=[QUESTION], data_collator=collate).train()  # type: ignore[arg-type]
    weights = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    again = copy.deepcopy(model)
    assert not any(again.load_state_dict(weights))
    moved = {name for name, weight in again.state_dict().items() if not torch.equal(weight, model.state_dict()[name])}
    assert moved == {n for n, w in ours.state_dict().items() if not torch.equal(w, model.state_dict()[n])}
    assert moved
    assert again.lm.get_output_embeddings().weight is again.lm.get_input_embeddings().weight


def test_a_path_may_be_a_text(tmp_path: Path) -> None:
    row = {"id": "1", "image": "a.png", "question": "where?", "answer": "left"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    assert read_questions(str(tmp_path / "q.jsonl"))[0].answer == "left"
