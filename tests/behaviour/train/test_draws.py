"""Answers are averaged over draws of the rollout, from a store or live, and their agreement is confidence."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.miniatures.image_store import make_store
from tests.miniatures.live_run import LiveHouse
from tests.miniatures.lm import PLACES, SMALL_TRAINING, save_mini_lm
from tests.miniatures.study import save_mini_draws, save_mini_study
from theworld.pipeline.cli.main import app
from theworld.pipeline.errors import ConfigError, StoreMismatchError
from theworld.pipeline.latents.recipe import recipe_of_draw
from theworld.pipeline.latents.tensors import as_tensor
from theworld.pipeline.store.folder import open_store
from theworld.precompute.live.batches import LiveBatches
from theworld.precompute.live.world import LazyRollout
from theworld.train.config import TrainConfig
from theworld.train.evaluation.abstention import abstain
from theworld.train.evaluation.answering.many import Response
from theworld.train.evaluation.draws import DrawLatents, average, require_draws, require_draws_of
from theworld.train.evaluation.evaluate import evaluate
from theworld.train.evaluation.metrics import Prediction
from theworld.train.evaluation.report import run_page
from theworld.train.evaluation.results.rescore import rescored
from theworld.train.evaluation.results.saved import Evaluation, read_evaluation
from theworld.train.runs.meta import read_meta
from theworld.train.training.train import train


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 16 scenes, and a store of three futures of each image."""
    folder = tmp_path_factory.mktemp("draws")
    save_mini_lm(folder / "lm")
    save_mini_study(folder, train=16, test=16, ood=0)
    save_mini_draws(folder / "samples")
    sizes = {"train_steps": 60, "learning_rate": 5e-3, **SMALL_TRAINING}
    where = {"store": folder / "rollouts", "questions": folder / "questions.jsonl", "lm": str(folder / "lm")}
    sizes["futures"] = folder / "futures"
    for arm in ("rollout", "frozen", "true"):
        train(TrainConfig.model_validate({**where, **sizes, "arm": arm, "out": folder / arm}))
    return folder


@pytest.fixture(scope="module")
def drawn(place: Path) -> Evaluation:
    return evaluate(place / "rollout", store=place / "samples", draws=3, device="cpu")


def test_a_draw_of_a_store_is_frame_0_and_the_frames_of_that_draw(place: Path) -> None:
    store = open_store(place / "samples")
    whole = as_tensor(store.read(store.keys[:2]))
    for draw in range(3):
        read = DrawLatents(store, draw=draw, keys=store.keys[:2], rollout_steps=2).read([1, 0])
        frames = [0, 1 + 3 * draw, 2 + 3 * draw]
        assert torch.equal(read, whole[[1, 0]][:, :, frames])
        copied = copy.copy(DrawLatents(store, draw=draw, keys=store.keys[:2], rollout_steps=2))
        assert torch.equal(copied.read([1, 0]), read)


def test_a_run_that_learned_from_true_futures_answers_from_draws(place: Path, drawn: Evaluation) -> None:
    found = evaluate(place / "true", store=place / "samples", draws=3, device="cpu")
    assert (found.trained_arm, found.arm, found.draws) == ("true", "rollout", 3)
    assert {p.agreement for p in found.predictions} <= {1 / 3, 2 / 3, 1.0}
    assert [p.key for p in found.predictions] == [p.key for p in drawn.predictions]
    with pytest.raises(ConfigError, match=r"2 steps of the arm true show none"):
        evaluate(place / "true", arm="true", store=place / "samples", draws=2, steps=2, device="cpu")


def test_probabilities_are_the_mean_over_draws_and_agreement_is_the_share_that_say_the_answer(
    place: Path, drawn: Evaluation
) -> None:
    one = evaluate(place / "rollout", store=place / "samples", draws=1, device="cpu")
    alone = evaluate(place / "rollout", device="cpu")
    assert [p.predicted for p in one.predictions] == [p.predicted for p in alone.predictions]
    assert {p.agreement for p in one.predictions} == {1.0}
    assert {p.agreement for p in drawn.predictions} <= {1 / 3, 2 / 3, 1.0}
    assert {p.agreement for p in alone.predictions} == {None}
    assert all(sum(p.probabilities) == pytest.approx(1, abs=1e-5) for p in drawn.predictions)
    assert drawn.single_draw["all"] == pytest.approx(np.mean([drawn.single_draw[k] for k in ("temporal", "static")]))
    assert one.single_draw["all"] == pytest.approx(alone.overall.accuracy)


def test_averaging_answers_what_most_draws_say_and_abstaining_leaves_the_doubtful_ones(drawn: Evaluation) -> None:
    assert drawn.by_type["temporal"].accuracy >= drawn.single_draw["temporal"]
    curve = drawn.abstention["temporal"]
    assert curve.questions == 16
    assert curve.points[-1].coverage == 1.0
    assert curve.points[-1].accuracy == pytest.approx(drawn.by_type["temporal"].accuracy)
    assert sum(level.score.total for level in curve.levels) == 16
    assert [level.agreement for level in curve.levels] == sorted({level.agreement for level in curve.levels})[::-1]


def test_the_price_counts_every_draw(place: Path, drawn: Evaluation) -> None:
    alone = evaluate(place / "rollout", device="cpu")
    assert alone.world_tokens is not None
    assert (drawn.draws, drawn.world_tokens) == (3, 3 * alone.world_tokens)


def test_an_evaluation_of_draws_is_saved_beside_the_first_and_judged_again_alike(
    place: Path, drawn: Evaluation
) -> None:
    plain = evaluate(place / "rollout", device="cpu")
    saved = Evaluation.model_validate_json((place / "rollout" / "evaluation-draws3.json").read_bytes())
    assert saved == drawn == rescored(drawn)
    assert (read_evaluation(place / "rollout").draws, plain.abstention) == (None, {})
    page = run_page([plain, drawn])
    assert "Abstention by agreement" in page
    assert "answering 70%" in page
    assert "Abstention by agreement" not in run_page([plain])


def test_a_store_without_enough_draws_says_how_to_make_them(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"one future of each image.*--kind samples --draws 8.*--live"):
        evaluate(place / "rollout", draws=8, device="cpu")
    with pytest.raises(ConfigError, match=r"holds 3 draws of each image, and 8 are asked for. Pass --draws 3"):
        evaluate(place / "rollout", store=place / "samples", draws=8, device="cpu")
    meta, run = read_meta(place / "rollout"), place / "rollout"
    short = save_mini_draws(tmp_path / "short", rollout_steps=6)
    with pytest.raises(StoreMismatchError, match=r"reads 3 rollout steps, and a draw in .* has 2.*--steps 3"):
        require_draws(meta, run, short, 3)
    other = save_mini_draws(tmp_path / "other", seed=4)
    with pytest.raises(StoreMismatchError, match=r"another recipe than the draws.*seed 0 there, 4 here"):
        require_draws(meta, run, other, 3)
    require_draws(meta, run, open_store(place / "samples"), 2)


def test_a_run_on_other_latents_than_rollouts_has_no_draws_in_a_store(place: Path) -> None:
    samples = open_store(place / "samples")
    own = recipe_of_draw(samples.recipe, 0)
    for changes, words in (
        ({"kind": "hidden", "hidden_block": 2}, "kind hidden.*--live"),
        ({"kind": "views", "views": "zoom"}, "kind views.*Leave out --draws"),
    ):
        with pytest.raises(ConfigError, match=words):
            require_draws_of(own.model_copy(update=changes), "RUN", samples, 2, steps=own.rollout_steps)


def test_only_an_arm_that_shows_rollouts_has_draws(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"3 steps of the arm frozen show none"):
        evaluate(place / "frozen", store=place / "samples", draws=2, device="cpu")
    with pytest.raises(ConfigError, match=r"0 steps of the arm rollout show none"):
        evaluate(place / "rollout", store=place / "samples", draws=2, steps=0, device="cpu")


def test_the_command_averages_and_prints_the_curve_s_share(place: Path) -> None:
    arguments = ["evaluate", str(place / "rollout"), "--store", str(place / "samples"), "--device", "cpu"]
    shown = CliRunner().invoke(app, [*arguments, "--draws", "2"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "answering 70%, temporal" in shown.output
    found = json.loads(CliRunner().invoke(app, [*arguments, "--draws", "2", "--json"]).stdout)[0]
    assert (found["draws"], found["abstention"]["temporal"]["questions"]) == (2, 16)
    for wrong, words in ((["--live"], "--live rolls out"), (["--draws", "2", "--shown", "frozen"], "--shown shows")):
        refused = CliRunner().invoke(app, [*arguments, *wrong])
        assert isinstance(refused.exception, ConfigError), refused.output
        assert words in str(refused.exception)


def response(text: str, *probabilities: float, generated: str | None = None) -> Response:
    return Response(text, tuple(map(float, probabilities)), generated)


def test_an_average_may_give_what_fewer_draws_say() -> None:
    choices = ("left", "right")
    averaged = average([response("left", 0.51, 0.49), response("left", 0.51, 0.49), response("right", 0, 1)], choices)
    assert (averaged.text, averaged.agreement) == ("right", 1 / 3)
    assert averaged.probabilities == pytest.approx((0.34, 0.66))
    written = [response("Red."), response("blue"), response("the red")]
    assert average(written, None) == Response("Red.", (), None, 2 / 3)
    both = [response("left", 1, 0, generated="b"), response("left", 1, 0, generated="B."), response("left", 1, 0)]
    assert average(both, choices).generated == "b"


def test_questions_of_equal_certainty_count_as_much_as_one_another() -> None:
    def answered(correct: bool, agreement: float, share: float = 0.5) -> Prediction:
        said = "left" if correct else "right"
        return Prediction(
            id="1", type="temporal", predicted=said, answer="left", correct=correct, choices=("left", "right"),
            probabilities=(share, 1 - share), agreement=agreement,
        )  # fmt: skip

    curve = abstain([answered(True, 1.0), answered(False, 1.0), answered(False, 0.5), answered(False, 0.5, 0.9)])
    assert curve is not None
    assert [curve.accuracy_at(share) for share in (0.25, 0.5, 0.75, 1.0)] == [0.5, 0.5, pytest.approx(1 / 3), 0.25]
    assert [point.agreement for point in curve.points if point.coverage in (0.5, 0.75)] == [1.0, 0.5]
    assert [(level.agreement, level.score.total) for level in curve.levels] == [(1.0, 2), (0.5, 2)]
    assert abstain([answered(True, 1.0).model_copy(update={"agreement": None})]) is None


class Live(LiveHouse):
    """With a store of one future of each picture, and a run on it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.store = make_store(self.images, folder / "cache", self.world)
        self.run = self.train(self.store)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Live:
    return Live(tmp_path_factory.mktemp("live"))


def test_draws_rolled_out_on_the_spot_are_those_of_a_store_of_samples(live: Live) -> None:
    stored = evaluate(live.run, store=live.samples.path, draws=2, device="cpu")
    fresh = evaluate(
        live.run,
        draws=2,
        live=lambda store: LiveBatches(store, live.images, size=4, world=str(live.world), device="cpu"),
        device="cpu",
    )
    # its batches are others than the worker's: equal up to rounding
    for one, other in zip(stored.predictions, fresh.predictions, strict=True):
        assert (one.predicted, one.agreement) == (other.predicted, other.agreement)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-3)
    assert fresh.rollout_seconds is not None
    assert fresh.rollout_seconds > 0
    assert stored.rollout_seconds is not None


def test_ask_averages_draws_and_tells_their_agreement_and_price(live: Live) -> None:
    arguments = ["ask", str(live.run), str(live.images / "002.png"), "where will the ball land?", "--device", "cpu"]
    arguments += ["--choices", ",".join(PLACES[:2]), "--world", str(live.world), "--draws", "2"]
    said = json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert (said["draws"], len(said["own_answers"])) == (2, 2)
    assert said["agreement"] == said["own_answers"].count(said["answer"]) / 2
    assert sum(choice["probability"] for choice in said["ranked"]) == pytest.approx(1)
    evaluated = evaluate(live.run, store=live.samples.path, draws=2, device="cpu").predictions[0]
    assert evaluated.predicted == said["answer"]
    words = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "of 2 draws of the rollout give this answer: 2 rollouts" in words.output
    refused = CliRunner().invoke(app, [*arguments, "--adaptive", "static=0"])
    assert "choose one" in str(refused.exception)


def test_a_draw_live_is_the_recipe_s_own_future_first_and_what_predicts_nothing_has_none(live: Live) -> None:
    sight = LazyRollout(live.store.recipe, live.images / "001.png", world=str(live.world), device="cpu")
    own, second = sight.see_draw(2, 0), sight.see_draw(2, 1)
    assert torch.equal(own, sight.see(2))
    assert torch.equal(own[:, :, 0], second[:, :, 0])
    assert not torch.equal(own, second)
    assert recipe_of_draw(live.samples.recipe, 0) == live.store.recipe
    with pytest.raises(ConfigError, match="kind views hold no predicted future"):
        recipe_of_draw(live.store.recipe.model_copy(update={"kind": "views"}), 0)
