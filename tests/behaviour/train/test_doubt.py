"""The arm `doubt`: a reader sees how far the draws of a rollout lie apart, and learns that futures may be wrong."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import theworld
from tests.miniatures.live_run import LiveHouse
from tests.miniatures.lm import PLACES, SMALL_TRAINING, save_mini_lm
from tests.miniatures.study import save_mini_draws, save_mini_study
from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import ConfigError, LatentShapeError
from theworld.pipeline.latents.tensors import as_tensor
from theworld.pipeline.progress import Progress
from theworld.pipeline.store.folder import LatentStore, open_store
from theworld.train.config import TrainConfig
from theworld.train.data.arms import open_arm, parse_arm
from theworld.train.data.batches import Example
from theworld.train.data.doubt import DoubtLatents, Doubts
from theworld.train.evaluation.answer import ask
from theworld.train.evaluation.evaluate import evaluate
from theworld.train.questions.record import read_questions, select_split
from theworld.train.runs.folder import load_run
from theworld.train.study.arms import StudyTable
from theworld.train.study.check import check_study
from theworld.train.study.plan import Study
from theworld.train.study.run import run_study
from theworld.train.training.inputs import TrainData
from theworld.train.training.train import train
from theworld.train.training.update_order import UpdateOrder

DRAWS, STEPS = 3, 3  # of the mini study's store of samples


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 scenes to train on and 16 to test, three draws of each, and a run of the arm."""
    folder = tmp_path_factory.mktemp("doubt")
    save_mini_lm(folder / "lm")
    save_mini_study(folder, train=16, test=16, ood=0)
    save_mini_draws(folder / "samples")
    train(training(folder, out=folder / "run", train_steps=60))
    return folder


def training(folder: Path, **settings: object) -> TrainConfig:
    where = {"store": folder / "samples", "questions": folder / "questions.jsonl", "lm": str(folder / "lm")}
    how = {"arm": "doubt", "learning_rate": 5e-3, "device": "cpu", **SMALL_TRAINING}
    fields = {**where, **how, **settings}
    return TrainConfig.model_validate({name: value for name, value in fields.items() if value is not None})


def futures_of(store: LatentStore, key: str) -> tuple[Tensor, Tensor]:
    """(C, 1, H, W) and (D, C, S, H, W)."""
    latents = as_tensor(store.read([key]))[0]
    return latents[:, :1], torch.stack([latents[:, 1 + STEPS * n : 1 + STEPS * (n + 1)] for n in range(DRAWS)])


def spread_of(futures: Tensor) -> Tensor:
    """(C, 1, H, W): twice the standard deviation over draws, the mean of the later half of the steps."""
    return (2 * futures.float().std(0)[:, STEPS // 2 :].mean(1, keepdim=True)).half()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_reader_sees_frame_0_the_spread_and_the_later_frames_of_the_first_draw(place: Path, steps: int) -> None:
    store = open_store(place / "samples")
    shown = DoubtLatents(store, keys=store.keys[:5], rollout_steps=steps).read([4, 0])
    assert shown.shape[2] == 1 + steps
    for latents, key in zip(shown, (store.keys[4], store.keys[0]), strict=True):
        first, futures = futures_of(store, key)
        assert torch.equal(latents[:, :1], first)
        assert torch.allclose(latents[:, 1:2], spread_of(futures), atol=2e-3)
        assert torch.equal(latents[:, 2:], futures[0][:, 1:steps])
    assert float(shown[1, :, 1].abs().max()) > 0.1, "the draws of this scene differ, and nothing shows it"


def test_without_steps_frame_0_stands_alone(place: Path) -> None:
    store = open_store(place / "samples")
    shown = DoubtLatents(store, keys=store.keys[:2], rollout_steps=0).read([1])
    assert torch.equal(shown[0], futures_of(store, store.keys[1])[0])


def varied(store: LatentStore, **changes: object) -> DoubtLatents:
    """Scene n stands in for scene n + 2."""
    keys = store.keys
    others = {key: keys[(n + 2) % len(keys)] for n, key in enumerate(keys)}
    doubts = {"others": others, "wrong": 0.25, "frozen": 0.25, "seed": 5, **changes}
    return DoubtLatents(store, keys=keys, rollout_steps=STEPS, doubts=Doubts(**doubts))  # type: ignore[arg-type]


def test_a_training_shows_each_draw_the_other_scene_s_draws_and_frame_0_alone_with_the_own_spread(place: Path) -> None:
    store = open_store(place / "samples")
    images = varied(store)
    index, other = 8, 10
    shown = images.read([variant * len(images) + index for variant in range(2 * DRAWS + 1)])
    first, own = futures_of(store, store.keys[index])
    wrong = futures_of(store, store.keys[other])[1]
    for variant, latents in enumerate(shown):
        assert torch.equal(latents[:, :2], shown[0][:, :2]), "frame 0 and the spread are the scene's own"
        later = [*own, *wrong, first.expand_as(own[0])][variant][:, 1:]
        assert torch.equal(latents[:, 2:], later)


def test_the_shares_of_wrong_and_frozen_futures_grow_to_what_was_asked(place: Path) -> None:
    images = varied(open_store(place / "samples"))
    count, updates = len(images), 3000

    def shares(some: range) -> tuple[float, float, set[int]]:
        variants = [images.index_in_update(7, update, updates) // count for update in some]
        kinds = Counter("wrong" if DRAWS <= v < 2 * DRAWS else "frozen" if v == 2 * DRAWS else "own" for v in variants)
        return kinds["wrong"] / len(some), kinds["frozen"] / len(some), set(variants)

    wrong, frozen, variants = shares(range(1000, 3000))
    assert (wrong, frozen) == (pytest.approx(0.25, abs=0.04), pytest.approx(0.25, abs=0.04))
    assert variants == set(range(2 * DRAWS + 1))
    wrong, frozen, _ = shares(range(100))
    assert wrong + frozen < 0.1
    wrong, frozen, _ = shares(range(450, 550))
    assert 0.1 < wrong + frozen < 0.4
    assert all(images.index_in_update(7, update, updates) % count == 7 for update in range(0, updates, 100))


def test_what_an_update_shows_depends_on_seed_update_and_key_alone(place: Path) -> None:
    store = open_store(place / "samples")
    rows = [(Example(key, (1, 5), (6, 2)),) for key in store.keys[:16]]

    def shown(updates: range, *, seed: int = 5, world_size: int = 1) -> list[dict[bytes, bytes]]:
        """By update: of each first frame, all that was shown."""
        seen: list[dict[bytes, bytes]] = [{} for _ in updates]
        for rank in range(world_size):
            order = UpdateOrder(rows, batch_size=8, seed=0, rank=rank, world_size=world_size)
            data = TrainData(rows, varied(store, seed=seed))
            batches = data.batches(order, updates, pad_id=0, device=torch.device("cpu"), total=12)
            for number, batch in enumerate(batches):
                for latents in batch["latents"]:
                    seen[number][latents[:, 0].numpy().tobytes()] = latents.numpy().tobytes()
        return seen

    whole = shown(range(12))
    assert shown(range(7, 12)) == whole[7:], "a resumed training shows other futures"
    assert shown(range(12), world_size=2) == whole, "two processes show other futures than one"
    assert shown(range(12), seed=6) != whole
    evaluated = TrainData(rows, varied(store)).batches(
        UpdateOrder(rows, batch_size=16, shuffle=False), range(1), pad_id=0, device=torch.device("cpu")
    )
    assert torch.equal(next(evaluated)["latents"], varied(store).read(range(16))), "an evaluation varies nothing"


def test_a_wrong_future_is_of_another_scene_of_the_family(place: Path) -> None:
    store, file = open_store(place / "samples"), place / "questions.jsonl"
    pool = select_split(read_questions(file), "train", file)
    keys, images = open_arm(
        parse_arm("doubt"), store, pool, pool, file, rollout_steps=STEPS, doubts=(0.5, 0.0, 0)
    )  # fmt: skip
    assert isinstance(images, DoubtLatents)
    assert images._doubts is not None
    by_key = {keys[question.id]: question for question in pool}
    assert set(images._doubts.others) == set(by_key)
    for key, other in images._doubts.others.items():
        assert (by_key[key].family, by_key[key].split) == (by_key[other].family, by_key[other].split)
        assert by_key[key].cluster != by_key[other].cluster


def test_the_same_training_gives_the_same_weights_and_other_shares_other_ones(place: Path, tmp_path: Path) -> None:
    for name, settings in {"a": {}, "b": {}, "c": {"wrong_futures": 0.0, "frozen_futures": 0.0}}.items():
        train(training(place, out=tmp_path / name, train_steps=6, **settings))
    a, b, c = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_a_run_is_evaluated_asked_and_loaded_with_the_same_input(place: Path) -> None:
    store = open_store(place / "samples")
    evaluation = evaluate(place / "run", device="cpu")
    assert evaluation.by_type["temporal"].accuracy > 0.6
    assert evaluation.world_tokens == 24, "as many as of a rollout"
    model = theworld.TheWorld.from_pretrained(place / "run", device="cpu")
    for prediction in evaluation.predictions[:4]:
        latents = store.read([prediction.key])
        answer = ask(place / "run", latents, prediction.question, prediction.choices)
        by_choice = {ranked.choice: ranked.probability for ranked in answer.ranked}
        assert [by_choice[choice] for choice in prediction.choices] == pytest.approx(prediction.probabilities, abs=1e-4)
        ranked = {r.choice: r.probability for r in model.rank(prediction.question, prediction.choices, latents=latents)}
        assert ranked == pytest.approx(by_choice, abs=1e-4)
    with pytest.raises(LatentShapeError, match="reads all 3 draws of an image, 10 latent frames, got 4"):
        ask(load_run(place / "run", device="cpu"), store.read(store.keys[:1])[:, :, :4], "where will the ball land?")
    inputs = model.processor(text="where will the ball land?")
    with pytest.raises(LatentShapeError, match="reads all 3 draws"):
        model(**inputs, latents=as_tensor(store.read(store.keys[:1]))[:, :, :4])


def test_what_has_no_spread_is_refused_with_the_command_that_makes_it(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"rollouts.* holds one of each .*--kind samples --draws 4"):
        train(training(place, store=place / "rollouts", out=place / "none"))
    with pytest.raises(ConfigError, match="--draws 2 has nothing to average over"):
        evaluate(place / "run", draws=2, device="cpu")
    with pytest.raises(ConfigError, match=r"--steps 4 asks for more than .*: its rollouts have 3 steps"):
        train(training(place, steps=4, out=place / "none"))
    with pytest.raises(ValueError, match="wrong_futures belong to the arm doubt, and the arm is rollout"):
        training(place, arm="rollout", wrong_futures=0.2)
    with pytest.raises(ValueError, match="together at most 1"):
        training(place, wrong_futures=0.7, frozen_futures=0.7)
    with pytest.raises(ConfigError, match=r"the arm doubt shows something else"):
        train(training(place, out=place / "none"), live=lambda *_: None)  # type: ignore[arg-type]
    assert not (place / "none").exists()


def test_a_study_compares_it_with_a_rollout_at_equal_world_tokens(place: Path, tmp_path: Path) -> None:
    table = {
        "world_tokens": 24,
        "arms": {"doubt": {"store": str(place / "samples"), "train": {"wrong_futures": 0.2}}},
        "hypotheses": {"D": {"claim": "not_worse", "arm": "doubt", "than": "rollout"}},
    }
    settings = training(place, store=place / "rollouts", arm="rollout", train_steps=4)
    study = Study(
        arms=("rollout", "doubt"), labels=(12,), seeds=1, settings=settings, out=tmp_path / "study",
        table=StudyTable.model_validate(table),
    )  # fmt: skip
    check_study(study, Progress.silent())
    by_epochs = training(place, store=place / "rollouts", arm="rollout", train_steps=None, epochs=1)
    assert dataclasses.replace(study, settings=by_epochs).settings_of("doubt").epochs == 1
    units = {unit.arm: unit for unit in run_study(study, jobs=1, progress=Progress.silent())}
    assert set(units["doubt"].answers["test"]) == {"doubt"}


def test_a_picture_is_rolled_out_as_often_as_the_store_has_draws(tmp_path: Path) -> None:
    live = LiveHouse(tmp_path)
    run = live.train(live.samples, arm="doubt", wrong_futures=0.0)
    arguments = ["ask", str(run), str(live.images / "002.png"), "where will the ball land?", "--device", "cpu"]
    arguments += ["--choices", ",".join(PLACES[:2]), "--world", str(live.world), "--json"]
    answered = json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False).stdout)
    evaluated = evaluate(run, device="cpu").predictions[0]
    probabilities = {each["choice"]: each["probability"] for each in answered["ranked"]}
    assert [probabilities[choice] for choice in evaluated.choices] == pytest.approx(evaluated.probabilities, abs=1e-3)
    model = theworld.TheWorld.from_pretrained(run, world=str(live.world), device="cpu")
    ranked = model.rank("where will the ball land?", PLACES[:2], images=live.images / "002.png")
    assert {r.choice: r.probability for r in ranked} == pytest.approx(probabilities, abs=1e-3)
