"""Each arm shows exactly what its name says, behind the image's own first frame, whatever the batch."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from theworld.pipeline.errors import ConfigError, QuestionError, StoreMismatchError
from theworld.pipeline.latents.keys import key_of_bytes
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.store.folder import LatentStore, create_store
from theworld.train.data.arms import NAMES, future_is_right, open_arm, parse_arm, sees_substitute, substitute_scenes
from theworld.train.data.loader import LatentDataset, Prefetcher
from theworld.train.questions.record import Question, read_questions, resolve_keys, select_split

from ...miniatures.lm import RECIPE, SPEC
from ...miniatures.study import FUTURES, save_mini_study

Study = tuple[LatentStore, LatentStore, Path]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return save_mini_study(tmp_path_factory.mktemp("study"))


def questions_of(study: Study, split: str = "test") -> tuple[Question, ...]:
    return select_split(read_questions(study[2]), split, study[2])


def show(study: Study, name: str, *, steps: int = 3, split: str = "test") -> LatentDataset:
    asked = questions_of(study, split)
    arm, (store, futures, file) = parse_arm(name), study
    _, images = open_arm(arm, store, asked, asked, file, rollout_steps=arm.steps(steps), futures=futures.path)
    assert images is not None
    return images


def everything(images: LatentDataset) -> torch.Tensor:
    return images.read(range(len(images))).clone()


def own(study: Study, images: LatentDataset) -> torch.Tensor:
    return torch.from_numpy(study[0].read(list(images.keys)).copy())


@pytest.mark.parametrize("name", [*(name for name in NAMES if name not in ("text", "doubt")), "true@0.5"])
def test_the_first_frame_is_the_images_own_in_every_arm(study: Study, name: str) -> None:
    images = show(study, name)
    assert torch.equal(everything(images)[:, :, 0], own(study, images)[:, :, 0])


def test_arms_that_only_rearrange_show_the_own_frames_in_another_order(study: Study) -> None:
    rollout = own(study, show(study, "rollout"))
    assert torch.equal(everything(show(study, "rollout")), rollout)
    assert torch.equal(everything(show(study, "steps0")), rollout[:, :, :1])
    assert torch.equal(everything(show(study, "frozen")), rollout[:, :, [0, 0, 0, 0]])
    assert torch.equal(everything(show(study, "reversed")), rollout[:, :, [0, 3, 2, 1]])
    assert parse_arm("last").frames(3) == (0, 3)
    assert parse_arm("rollout").frames(3) is None


def test_the_true_future_is_the_one_of_the_scenes_own_video(study: Study) -> None:
    images = show(study, "true")
    asked = questions_of(study)
    videos = resolve_keys(asked, study[2], study[1], field="future").keys
    latents = study[1].read(list(dict.fromkeys(videos[question.id] for question in asked)))
    assert np.array_equal(everything(images)[:, :, 1:].numpy(), latents[:, :, 1:])


def test_shuffled_futures_are_those_of_other_scenes_each_shown_once(study: Study) -> None:
    images = show(study, "shuffled")
    shown, rollout = everything(images), own(study, images)
    scene_of = questions_of(study)[::2]
    sources = []
    for number in range(len(images)):
        [source] = [other for other in range(len(images)) if torch.equal(shown[number, :, 1:], rollout[other, :, 1:])]
        assert scene_of[source].pair != scene_of[number].pair
        assert scene_of[source].family == scene_of[number].family
        sources.append(source)
    assert sorted(sources) == list(range(len(images)))


def test_noise_has_the_mean_and_spread_of_the_futures_and_belongs_to_the_key(study: Study) -> None:
    images = show(study, "noise")
    noise, rollout = everything(images)[:, :, 1:].float(), own(study, images)[:, :, 1:].float()
    for channel in range(16):  # the blob is in the first four
        assert float(noise[:, channel].mean()) == pytest.approx(float(rollout[:, channel].mean()), abs=0.05)
        assert float(noise[:, channel].std()) == pytest.approx(float(rollout[:, channel].std()), rel=0.15)
    assert torch.equal(images.read([5])[0], everything(images)[5])
    assert not torch.equal(noise[0], noise[1])


def test_what_is_shown_does_not_depend_on_batch_or_order(study: Study) -> None:
    for name in ("shuffled", "noise", "true@0.5"):
        images = show(study, name)
        whole = everything(images)
        batches = [[3, 1], [7], [0, 2, 5]]
        with Prefetcher(images, batches, keep=1) as ahead:
            for indices, latents in ahead:
                assert torch.equal(latents, whole[list(indices)])


def test_a_share_of_the_scenes_sees_a_wrong_future_and_keeps_it_as_the_share_grows(study: Study) -> None:
    true = everything(show(study, "true"))
    wrong: dict[float, set[int]] = {}
    for share in (0.25, 0.5, 1):
        shown = everything(show(study, f"true@{share}"))
        wrong[share] = {number for number in range(len(true)) if not torch.equal(shown[number], true[number])}
    assert wrong[0.25] <= wrong[0.5] <= wrong[1] == set(range(len(true)))
    keys = [f"{number:032x}"[::-1] for number in range(4096)]
    assert sum(sees_substitute(key, 0.2) for key in keys) / 4096 == pytest.approx(0.2, abs=0.02)


def test_a_stand_in_says_nothing_about_the_scene_it_stands_for() -> None:
    # the worst case: the first half of every pair falls, the second stays
    asked = [
        Question(
            id=f"{pair}-{half}", image=f"{pair}-{half}", question="?", answer="yes" if half == 0 else "no",
            split="test", family="tower", pair=f"{pair}p",
        )
        for pair in range(1000) for half in range(2)
    ]  # fmt: skip
    answer = {question.image: question.answer for question in asked}
    same = Counter(answer[scene] == answer[other] for scene, other in substitute_scenes(asked).items())
    assert same[True] / 2000 == pytest.approx(0.5, abs=0.05)
    assert substitute_scenes(asked) == substitute_scenes(list(reversed(asked)))


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["train", "test"]), st.sampled_from(["tower", "race"])),
        st.lists(st.integers(1, 3), min_size=1, max_size=7),
    )
)
def test_stand_ins_are_each_used_once_within_family_and_split_and_outside_the_pair(
    pairs: dict[tuple[str, str], list[int]],
) -> None:
    asked = [
        Question(
            id=f"{split} {family} {pair} {half}", image=f"{split} {family} {pair} {half}", question="?", answer="a",
            split=split, family=family, pair=f"{split} {family} {pair}",
        )
        for (split, family), halves in pairs.items() for pair, count in enumerate(halves) for half in range(count)
    ]  # fmt: skip
    if any(sum(halves) < 2 * max(halves) for halves in pairs.values()):
        with pytest.raises(QuestionError, match="Make more scenes"):
            substitute_scenes(asked)
        return
    of = {question.scene_id: question for question in asked}
    chosen = substitute_scenes(asked)
    assert sorted(chosen) == sorted(chosen.values()) == sorted(of)
    for one, other in ((of[scene], of[stand_in]) for scene, stand_in in chosen.items()):
        assert (one.split, one.family) == (other.split, other.family)
        assert one.pair != other.pair


def test_what_cannot_be_shown_is_refused_with_what_to_do(study: Study, tmp_path: Path) -> None:
    store, _, file = study
    with pytest.raises(ConfigError, match=r"no arm 'frosen'.*frozen.*true@P"):
        parse_arm("frosen")
    asked = questions_of(study)
    with pytest.raises(ConfigError, match="--futures"):
        open_arm(parse_arm("true"), store, asked, asked, file, rollout_steps=3)
    with pytest.raises(QuestionError, match=r"2 scenes of family 'drop'.*at least 4"):
        open_arm(parse_arm("shuffled"), store, asked[:4], asked[:4], file, rollout_steps=3)
    larger = FUTURES.model_copy(update={"width": RECIPE.width + 16})
    other = create_store(tmp_path, larger, SPEC, label="mini", shard_size=8)
    with pytest.raises(StoreMismatchError, match=r"width is 64 there, 48 here"):
        open_arm(parse_arm("true"), store, asked, asked, file, rollout_steps=3, futures=other.path)
    silent = [question.model_copy(update={"future": None}) for question in asked]
    with pytest.raises(QuestionError, match="names no future"):
        open_arm(parse_arm("true"), store, silent, silent, file, rollout_steps=3, futures=study[1].path)


def test_a_true_future_answers_every_question_of_its_scene_also_where_the_file_does_not_say_what_they_are_about(
    study: Study,
) -> None:
    pool = questions_of(study)
    images = resolve_keys(pool, study[2], study[0]).keys
    bare = tuple(question.model_copy(update={"about": None}) for question in pool)
    assert all(future_is_right(parse_arm("true"), bare, images).values())
    for arm in map(parse_arm, ("true@0.5", "true@1")):
        assert future_is_right(arm, bare, images) == future_is_right(arm, pool, images)


def test_no_scene_sees_a_substitute_where_the_share_is_none() -> None:
    assert not sees_substitute("0" * 64, 0.0)
    assert sees_substitute("f" * 64, 1.0)


@pytest.mark.parametrize("field", ["world", "height", "fit", "stride"])
def test_true_futures_of_another_space_than_the_rollouts_are_refused(study: Study, tmp_path: Path, field: str) -> None:
    values = {"world": "sha256:" + "1" * 64, "height": RECIPE.height + 16, "fit": "pad", "stride": 2}
    other = create_store(tmp_path, FUTURES.model_copy(update={field: values[field]}), SPEC, label="mini", shard_size=8)
    store, _, file = study
    asked = questions_of(study)
    with pytest.raises(StoreMismatchError, match=rf"do not belong to the rollouts .*{field} is .* there, .* here"):
        open_arm(parse_arm("true"), store, asked, asked, file, rollout_steps=3, futures=other.path)


def test_true_futures_may_have_more_steps_than_are_read_and_never_fewer(study: Study, tmp_path: Path) -> None:
    store, _, file = study
    asked = questions_of(study)
    assert show(study, "true", steps=2).read([0]).shape[2] == 3
    short = create_store(tmp_path, FUTURES.model_copy(update={"rollout_steps": 2}), SPEC, label="mini", shard_size=8)
    with pytest.raises(StoreMismatchError, match="have 2 steps, 3 are read"):
        open_arm(parse_arm("true"), store, asked, asked, file, rollout_steps=3, futures=short.path)


def test_a_store_of_posteriors_shows_what_it_holds_and_nothing_in_its_place(tmp_path: Path) -> None:
    recipe = Recipe(kind="posterior", world=RECIPE.world, height=32, width=48, rollout_steps=1)
    store = create_store(tmp_path, recipe, SPEC, label="mini", shard_size=8)
    with store.new_shard() as shard:
        shard.add(key_of_bytes(b"picture"), np.ones(store.sample_shape, np.float32))
        shard.commit({})
    (tmp_path / "a.png").write_bytes(b"picture")
    asked = [Question(id="q", image="a.png", question="?", answer="left", future="a.png")]
    for name in NAMES:
        arm = parse_arm(name)
        if name in ("text", "steps0", "rollout"):
            open_arm(arm, store, asked, asked, tmp_path / "q.jsonl", rollout_steps=arm.steps(1))
        else:
            with pytest.raises(ConfigError, match=f"holds posteriors and no futures, .* to show as {name}"):
                open_arm(arm, store, asked, asked, tmp_path / "q.jsonl", rollout_steps=arm.steps(1), futures=store.path)


def test_only_the_text_and_the_first_frame_read_no_rollout() -> None:
    assert {name for name in NAMES if parse_arm(name).steps(3) == 0} == {"text", "steps0"}
    assert {parse_arm(name).steps(3) for name in NAMES} == {0, 3}
    assert (parse_arm("text").frames(3), parse_arm("last").frames(0)) == ((), (0,))
    with pytest.raises(ConfigError, match="no arm"):
        parse_arm("true@1.5")
