"""Steps by question: a rule says them by type, a threshold is the best there is, futures that end alike agree."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theworld.pipeline.errors import ConfigError
from theworld.pipeline.store.folder import LatentStore, create_store
from theworld.train.config import TrainConfig
from theworld.train.evaluation.policies.adaptive import _lengths, _never_read, _open_draws
from theworld.train.evaluation.policies.calibration import calibration_split
from theworld.train.evaluation.policies.gates import choose_threshold, disagreement, parse_rule
from theworld.train.questions.record import Question
from theworld.train.training.schedule import draw_steps

from ...miniatures.lm import RECIPE, SPEC, blob_latents


def question(kind: str | None) -> Question:
    return Question(id="1", image="a.png", question="where?", answer="here", type=kind)


def test_a_rule_says_steps_by_type_and_all_where_it_says_nothing() -> None:
    rule = parse_rule("temporal=all, static=0, contact=2")
    assert [rule.steps(question(kind), 8) for kind in ("temporal", "static", "contact", "other")] == [8, 0, 2, 8]
    assert parse_rule("*=0,temporal=all").steps(question(None), 8) == 0
    assert parse_rule("untyped=3").steps(question(None), 8) == 3
    assert str(rule) == "temporal=all,static=0,contact=2"


@pytest.mark.parametrize("text", ["", "static", "static=", "static=-1", "=0", "static=0,static=4", "static=some"])
def test_what_is_no_rule_is_refused_with_one_that_is(text: str) -> None:
    with pytest.raises(ConfigError, match="static=0"):
        parse_rule(text)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_a_threshold_gives_most_right_answers_and_of_those_reads_least(items: list[tuple[int, bool, bool]]) -> None:
    figure, without, with_steps = (np.array(column) for column in zip(*items, strict=True))

    def right(threshold: float | None) -> int:
        reads = figure <= (-1 if threshold is None else threshold)
        return int(np.where(reads, with_steps, without).sum())

    chosen = choose_threshold(figure.astype(float), without, with_steps)
    best = max(right(threshold) for threshold in (None, *figure.tolist()))
    assert right(chosen) == best
    fewer = [None, *(value for value in figure.tolist() if chosen is not None and value < chosen)]
    assert chosen is None or all(right(threshold) < best for threshold in fewer)


def test_futures_that_end_alike_agree_however_they_got_there(tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"kind": "samples", "draws": 2, "rollout_steps": 6})
    store = create_store(tmp_path, recipe, SPEC, label="mini", shard_size=8)
    one, other = blob_latents(0, 1), blob_latents(1, 2)
    detour = np.concatenate([other[:, 1:3], one[:, 3:]], 1)
    with store.new_shard() as shard:
        for number, second in enumerate((one[:, 1:], detour, other[:, 1:])):
            shard.add(f"{number:032x}", np.concatenate([one, second], 1))
        shard.commit({})
    same, late, apart = disagreement(store, [f"{number:032x}" for number in range(3)])
    assert same == late == 0
    ends = np.stack([one[:, 3], other[:, 3]]).astype(np.float16).astype(np.float64)
    assert apart == pytest.approx(np.sqrt(ends.var(0).mean()), rel=1e-3)


def test_several_steps_are_one_setting_whose_largest_is_what_else_reads_steps() -> None:
    def steps(given: object) -> tuple[int | None, tuple[int, ...] | None]:
        config = TrainConfig.model_validate({"store": "s", "questions": "q", "steps": given})
        again = TrainConfig.model_validate(config.model_dump(mode="json"))
        assert again == config
        return config.steps, config.steps_drawn

    assert steps("8") == (8, None)
    assert steps("0, 8") == steps([8, 0]) == (8, (0, 8))
    assert steps("0,8,8,8") == (8, (0, 8, 8, 8))  # drawn three times in four
    assert steps(None) == (None, None)
    for wrong in ("0,many", "0,-8"):
        with pytest.raises(ValueError, match="steps"):
            steps(wrong)


def test_each_update_s_steps_follow_from_seed_and_update_and_every_number_comes_as_often() -> None:
    drawn = [draw_steps((0, 4, 8), 7, update) for update in range(600)]
    assert drawn == [draw_steps((0, 4, 8), 7, update) for update in range(600)]
    assert drawn != [draw_steps((0, 4, 8), 8, update) for update in range(600)]
    assert all(160 < drawn.count(steps) < 240 for steps in (0, 4, 8))


def test_no_threshold_is_chosen_on_the_questions_that_are_asked() -> None:
    splits = ("train", "train", "validation", "test")
    asked = [question(None).model_copy(update={"image": f"{n}.png", "split": split}) for n, split in enumerate(splits)]

    def chosen_on(wanted: str | None, split: str | None, learned: frozenset[str] | None = None) -> list[str | None]:
        return [one.split for one in calibration_split(asked, wanted, split, learned, Path("q.jsonl"))[0]]

    assert chosen_on(None, "test") == ["validation"]
    assert chosen_on(None, "validation") == []
    first = frozenset({asked[0].scene_id})
    assert chosen_on(None, "validation", first) == ["train"]  # a scene that was not learned from
    assert chosen_on("train", "test", first) == ["train"]
    assert chosen_on("train", "test") == ["train", "train"]  # of other questions than the run's
    with pytest.raises(ConfigError, match="flatters itself"):
        chosen_on("validation", "validation")


def test_steps_that_are_new_to_a_run_are_named_in_order() -> None:
    note = _never_read((0, 8, 16, 4), (16,))
    assert note is not None
    assert "never read 0, 4, 8 steps" in note
    assert note.endswith("train with --steps 0,4,8,16")
    assert _never_read((0, 8), (0, 4, 8)) is None


def test_only_a_store_of_several_futures_says_whether_they_agree(tmp_path: Path) -> None:
    def store(name: str, **changes: object) -> LatentStore:
        recipe = RECIPE.model_copy(update=changes)
        return create_store(tmp_path / name, recipe, SPEC, label="mini", shard_size=8)

    latents = store("rollouts")
    single = store("single", kind="samples", draws=1)
    several = store("several", kind="samples", draws=3)
    assert _open_draws(None, latents) is None
    assert _open_draws(None, single) is None
    assert _open_draws(None, several) is several
    opened = _open_draws(several.path, latents)
    assert opened is not None
    assert opened.path == several.path
    for wrong, words in ((latents, "holds rollout with 1 draw"), (single, "holds samples with 1 draw")):
        with pytest.raises(ConfigError, match=f"{words}, not several futures of each image"):
            _open_draws(wrong.path, several)


def test_a_run_reads_no_steps_the_rule_asks_for_beyond_its_own_and_needs_some_to_choose_from(tmp_path: Path) -> None:
    store = create_store(tmp_path / "rollouts", RECIPE, SPEC, label="mini", shard_size=8)
    assert _lengths(parse_rule("static=0,contact=3"), 3, store) == (0, 3)
    assert _lengths(parse_rule("static=2"), 3, store) == (0, 2, 3)
    with pytest.raises(ConfigError, match="asks for 4 steps, the run reads at most 3"):
        _lengths(parse_rule("static=4"), 3, store)
    with pytest.raises(ConfigError, match="holds rollout of 0 steps to read: there is nothing to choose from"):
        _lengths(parse_rule("static=0"), 0, store)
    recipe = RECIPE.model_copy(update={"kind": "posterior", "rollout_steps": 1})
    moments = create_store(tmp_path / "posteriors", recipe, SPEC, label="mini", shard_size=8)
    with pytest.raises(ConfigError, match="holds posterior of 1 steps to read"):
        _lengths(parse_rule("static=0"), 1, moments)
