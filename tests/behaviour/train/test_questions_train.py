"""From other people's layouts to a trained run: what is left out is said, and a Gemma with eyes learns too."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.miniatures.lm import PLACES, RECIPE, SMALL_TRAINING, SPEC, blob_latents, save_mini_lm, save_mini_store
from tests.miniatures.vision_lm import save_eyes_lm
from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import ConfigError, QuestionError
from theworld.pipeline.latents.keys import key_of_file
from theworld.pipeline.progress import Progress
from theworld.pipeline.store.folder import create_store, open_store
from theworld.train.config import TrainConfig
from theworld.train.evaluation.answer import ask
from theworld.train.evaluation.evaluate import evaluate
from theworld.train.runs.folder import load_run
from theworld.train.training.train import train


def config(folder: Path, **changes: object) -> TrainConfig:
    settings = {
        "store": folder / "cache",
        "questions": folder / "cache" / "questions.jsonl",
        "lm": str(folder / "lm"),
        "out": folder / "run",
        "train_steps": 2,
        **SMALL_TRAINING,
    }
    return TrainConfig.model_validate(settings | changes)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    save_mini_store(tmp_path / "cache")
    save_mini_lm(tmp_path / "lm")
    return tmp_path


def add(house: Path, **record: object) -> None:
    with (house / "cache" / "questions.jsonl").open("a") as lines:
        lines.write(json.dumps({"image": "0.png", "question": "where is the ball now?", "answer": "left", **record}))
        lines.write("\n")


def conversations(house: Path) -> Path:
    def talk(number: int) -> list[dict[str, str]]:
        said = ["<image>\nwhere is the ball now?", "left", "where will the ball land?", PLACES[number % 3]]
        return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(said)]

    rows = [{"id": str(n), "image": f"{n}.png", "conversations": talk(n)} for n in range(8)]
    file = house / "cache" / "llava.json"
    file.write_text(json.dumps([*rows, {"id": "text", "conversations": talk(0)}]))
    return file


def test_conversations_are_learned_turn_by_turn(house: Path) -> None:
    summary = train(config(house, questions=conversations(house), holdout=0))
    assert summary.questions == 16
    run = load_run(house / "run", device="cpu")
    assert evaluate(house / "run", split="train", device="cpu").overall.total == 16
    first, second = run.lm.prompt_ids("where is the ball now?"), run.lm.answer_ids("left")
    alone = run.lm.prompt_ids("where will the ball land?")
    assert run.lm.prompt_ids("where will the ball land?", (("where is the ball now?", "left"),)) == [
        *(*first, *second, *alone[1:]),
    ]


def test_what_is_wrong_is_refused_or_left_out_by_name(house: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(house, id="empty", answer=" ")
    with pytest.raises(QuestionError, match=r"line 25: answer.*--max-bad 1"):
        train(config(house))
    add(house, id="gone", image="gone.png")
    with pytest.raises(QuestionError, match=r"1 of 17 questions .*gone\.png"):
        train(config(house, max_bad=0, questions=strip(house, "empty")))
    add(house, id="long", question="left " * 4100)
    with pytest.raises(QuestionError, match=r"1 of 17 questions are too long: behind 24 .*long \(4,1\d\d tokens"):
        train(config(house, max_bad=0, questions=strip(house, "empty", "gone")))
    assert {path.name for path in house.iterdir()} == {"cache", "lm"}
    summary = train(config(house, max_bad=1))
    assert summary.questions == 16
    said = caplog.text
    for words in (
        "1 wrong lines are left out: line 25",
        "without latents are left out: gone",
        "too long are left out: long",
    ):
        assert words in said
    assert evaluate(house / "run", device="cpu").overall.total == 8
    add(house, id="unanswerable", question="left " * 4100, split="test")
    add(house, id="unseen", image="nowhere.png", split="test")
    with pytest.raises(QuestionError, match=r"1 of 10 questions .*nowhere\.png"):
        evaluate(house / "run", device="cpu", max_bad=0, questions=strip(house, "empty"))
    with pytest.raises(QuestionError, match=r"1 of 9 questions are too long: with 24 .*: unanswerable\. .*--max-bad 1"):
        evaluate(house / "run", device="cpu", max_bad=0, questions=strip(house, "empty", "unseen"))
    caplog.clear()
    found = evaluate(house / "run", device="cpu")
    assert (found.overall.total, found.left_out) == (8, 2)  # as many left out as in training
    for words in ("without latents are left out: unseen", "too long are left out: unanswerable"):
        assert words in caplog.text


def test_validation_goes_by_the_same_rules(house: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        add(house, id=f"watched-{number}", image=f"{number}.png", split="validation")
    add(house, id="long", image="4.png", question="left " * 4100, split="validation")
    with pytest.raises(QuestionError, match=r"1 of 5 questions are too long: behind 24 .*long \(4,1\d\d tokens"):
        train(config(house, validate_every=1))
    assert {path.name for path in house.iterdir()} == {"cache", "lm"}
    assert train(config(house, validate_every=1, max_bad=1)).questions == 16
    assert "too long are left out: long" in caplog.text


def test_questions_none_of_which_has_latents_are_refused_however_many_may_be_left_out(house: Path) -> None:
    train(config(house))
    file = house / "elsewhere.jsonl"
    file.write_text((house / "cache" / "questions.jsonl").read_text().replace('"image": "', '"image": "gone-'))
    for refused in (
        lambda: train(config(house, questions=file, out=house / "other", max_bad=100)),
        lambda: evaluate(house / "run", questions=file, max_bad=100, device="cpu"),
    ):
        with pytest.raises(QuestionError, match=r"(16 of 16|8 of 8) questions .*gone-"):
            refused()


def strip(house: Path, *ids: str) -> Path:
    """The questions without some."""
    file = house / "cache" / "without.jsonl"
    lines = (house / "cache" / "questions.jsonl").read_text().splitlines()
    file.write_text("\n".join(line for line in lines if json.loads(line)["id"] not in ids))
    return file


def test_before_a_training_its_questions_are_described(house: Path) -> None:
    console = Console(record=True, width=200, highlight=False)
    train(config(house), progress=Progress(console))
    said = console.export_text()
    for words in (
        "16 questions about 8 images",
        "temporal 8: left 38%",
        "longest 0-land: 24 world tokens + 15 of the 4,096",
    ):
        assert words in said


def test_the_command_reports_and_its_exit_code_says_whether_a_training_would_go(house: Path) -> None:
    (house / "c.toml").write_text("[train]\npatch = 2\n")
    words = ["questions", str(house / "cache" / "questions.jsonl"), str(house / "cache")]
    words += ["--config", str(house / "c.toml"), "--lm", str(house / "lm")]
    sound = CliRunner().invoke(app, words)
    assert sound.exit_code == 0, sound.output
    assert "24 questions about 12 images" in sound.stdout
    add(house, id="gone", image="gone.png")
    result = CliRunner().invoke(app, [*words, "--json", "--write", str(house / "ours")])
    assert result.exit_code == 3
    assert json.loads(result.stdout)["without_latents"].keys() == {"gone"}
    assert CliRunner().invoke(app, [*words, "--max-bad", "1"]).exit_code == 0
    assert len((house / "ours" / "questions.jsonl").read_text().splitlines()) == 25


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real image files, their latents, and a Gemma-3 that sees."""
    folder, rng = tmp_path_factory.mktemp("eyes"), np.random.default_rng(0)
    cache = folder / "cache"
    cache.mkdir()
    store = create_store(cache, RECIPE, SPEC, label="mini", shard_size=8)
    lines: list[dict[str, Any]] = []
    with store.new_shard() as shard:
        for number in range(6):
            path = cache / f"{number}.png"
            Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)
            shard.add(key_of_file(path), blob_latents(number % 3, number))
            asked = {"image": path.name, "split": "test" if number > 3 else "train", "answer": PLACES[number % 3]}
            lines.append({**asked, "id": f"{number}", "question": "where will the ball land?", "choices": PLACES})
            lines.append({**asked, "id": f"{number}-open", "question": "where will the ball be?"})
        shard.commit({})
    (cache / "questions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    save_eyes_lm(folder / "lm")
    train(config(folder))
    return folder


def test_a_gemma_with_eyes_is_trained_evaluated_and_asked(eyes: Path) -> None:
    names = load_file(eyes / "run" / "adapter_model.safetensors")
    assert all("language_model" in name for name in names)
    result = evaluate(eyes / "run", device="cpu")
    assert result.overall.total == 4
    run, store = load_run(eyes / "run", device="cpu"), open_store(eyes / "cache")
    import torch

    for number in (4, 5):
        file = eyes / "cache" / f"{number}.png"
        latents = torch.from_numpy(store.read([key_of_file(file)]))
        said = {prediction.id: prediction.predicted for prediction in result.predictions}
        assert ask(run, latents, "where will the ball land?", PLACES, image=file).text == said[f"{number}"]
        assert ask(run, latents, "where will the ball be?", image=file).text == said[f"{number}-open"]
    with pytest.raises(ConfigError, match="pass the image as well"):
        ask(run, latents, "where will the ball be?")


def test_a_gemma_with_eyes_needs_the_image_files(eyes: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "questions.jsonl"  # latents are found by recorded names; the images are not here
    store = open_store(eyes / "cache")
    store.record_sources([(f"{number}.png", key_of_file(eyes / "cache" / f"{number}.png")) for number in range(6)])
    elsewhere.write_text((eyes / "cache" / "questions.jsonl").read_text())
    with pytest.raises(QuestionError, match=r"looks at the images itself, and 4 of 4 are no files beside"):
        train(config(eyes, questions=elsewhere, out=tmp_path / "run"))
