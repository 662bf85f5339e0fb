"""Figures that a common answer, a lucky half or false confidence cannot make look good."""

import pytest

from theworld.train.evaluation.metrics import Prediction, alarms, balance, calibrate, generation, minimal_pairs, pairs
from theworld.train.questions.record import Question

YES_NO = ("yes", "no")


def told(
    number: int, predicted: str, answer: str, *, sure: float = 0.9, generated: str | None = None, **more: str
) -> Prediction:
    return Prediction(
        id=str(number), type="temporal", predicted=predicted, answer=answer, correct=predicted == answer,
        choices=YES_NO, probabilities=(sure, 1 - sure), generated=generated,
        generated_correct=None if generated is None else generated == answer, **more,
    )  # fmt: skip


def test_always_saying_the_common_answer_is_balanced_to_chance() -> None:
    always_no = [told(n, "no", "no" if n < 9 else "yes") for n in range(10)]
    found = balance(always_no)
    assert found is not None
    assert (found.accuracy, found.chance, found.questions) == (0.5, 0.5, 10)


def test_answers_to_other_choices_are_balanced_apart() -> None:
    colors = [
        Prediction(id=f"c{n}", type="static", predicted="red", answer=answer, correct=answer == "red",
                   choices=("red", "no"), probabilities=(0.6, 0.4))
        for n, answer in enumerate(("red", "no"))
    ]  # fmt: skip
    found = balance([told(0, "no", "no"), told(1, "no", "yes"), *colors])
    assert found is not None
    assert found.accuracy == 0.5  # "no" to a question about colors is another answer
    assert balance([Prediction(id="a", type="t", predicted="x", answer="x", correct=True)]) is None


def test_groups_of_questions_weigh_by_their_questions_and_the_answers_in_one_alike() -> None:
    falls = [told(n, "no", "no" if n < 5 else "yes", about="fall") for n in range(6)]  # balanced to (1 + 0) / 2
    colors = [told(n, "yes", "yes", about="color") for n in range(6, 8)]
    found = balance([*falls, *colors])
    assert found is not None
    assert found.accuracy == pytest.approx(6 / 8 * 0.5 + 2 / 8 * 1)
    assert (found.chance, found.questions) == (pytest.approx(0.5), 8)


def test_a_pair_counts_where_both_halves_are_right_and_differ() -> None:
    rows = [
        told(0, "yes", "yes", pair="1", about="fall"), told(1, "no", "no", pair="1", about="fall"),
        told(2, "no", "yes", pair="2", about="fall"), told(3, "no", "no", pair="2", about="fall"),
        told(4, "no", "no", pair="1", about="color"), told(5, "no", "no", pair="1", about="color"),  # the same answer
        told(6, "no", "no", pair="3", about="fall"),  # half a pair
    ]  # fmt: skip
    found = pairs(rows)
    assert found is not None
    assert (found.correct, found.total) == (1, 2)
    assert pairs([told(0, "no", "no")]) is None


def test_pairs_of_a_run_and_of_a_study_are_the_same_whatever_types_are_called_and_how_much_is_asked() -> None:
    asked = [
        Question(id=f"{scene} {question}", image=scene, question=question, answer=answer, type="causal", pair="1")
        for scene, answers in (("a", ("yes", "left", "red")), ("b", ("no", "right", "red")))
        for question, answer in zip(("will it fall?", "to which side?", "which color?"), answers, strict=True)
    ]
    predictions = [
        Prediction(
            id=q.id, type="causal", predicted="?", answer=q.answer, correct=False, pair="1", question=q.question
        )
        for q in asked
    ]  # fmt: skip
    assert minimal_pairs(asked) == minimal_pairs(predictions) == [(0, 3), (1, 4)]
    named = [q.model_copy(update={"about": "it", "question": q.question.upper()}) for q in asked[::3]]
    assert minimal_pairs(named) == [(0, 1)]  # the same question in other words
    assert minimal_pairs([q.model_copy(update={"pair": None}) for q in asked]) == []


def test_calibration_is_the_distance_of_confidence_from_accuracy_by_hand() -> None:
    rows = [told(n, "no", "no" if n < 2 else "yes", sure=0.95) for n in range(4)]  # sure .95, right .5
    rows += [told(n, "no", "no", sure=0.55) for n in range(4, 6)]  # sure .55, right 1
    found = calibrate(rows)
    assert found is not None
    assert found.ece == pytest.approx((4 * 0.45 + 2 * 0.45) / 6)
    assert [(b.questions, round(b.confidence, 2), b.accuracy) for b in found.bins] == [(2, 0.55, 1.0), (4, 0.95, 0.5)]
    assert calibrate([told(0, "no", "no", sure=1.0)]).bins[0].questions == 1  # type: ignore[union-attr]


def test_a_bin_of_confidence_holds_its_lower_end_and_not_its_upper() -> None:
    sures = (0.501, 0.559, 0.599, 0.6, 0.649)
    found = calibrate([told(n, "no", "no", sure=sure) for n, sure in enumerate(sures)])
    assert found is not None
    assert [b.questions for b in found.bins] == [3, 2]
    assert found.bins[1].confidence == pytest.approx((0.6 + 0.649) / 2)


def test_ranking_and_own_words_that_differ_by_more_than_two_points_raise_an_alarm() -> None:
    alike = [told(n, word, word, generated=word) for n in range(100) for word in [("no", "yes")[n % 2]]]
    assert alarms(alike) == ()
    assert alarms([*alike[:98], *(told(n, "no", "no", generated="cat") for n in range(98, 100))]) == ()  # two points
    found = alarms([*alike[:97], *(told(n, "no", "no", generated="cat") for n in range(97, 100))])
    assert len(found) == 1
    assert all(words in found[0] for words in ["100.0 % ranked, 97.0 % generated", "3 of 100", "none of the choices"])
    assert alarms([told(0, "no", "no")]) == ()  # an older evaluation has no own words
    assert generation([told(0, "no", "no")]) is None


def test_answers_that_need_no_image_raise_an_alarm() -> None:
    always = [told(n, "no", "no") for n in range(10)]
    [found] = alarms(always)
    assert "100% of all questions together" in found
    assert "does not show what it reads" in found
    assert alarms(always[:9]) == (), "too few to say"
    words = ("no", "yes")
    varied = [told(n, words[n % 2], words[n % 2]).model_copy(update={"type": "open"}) for n in range(10, 50)]
    [found] = alarms([*always, *varied])
    assert "100% of questions of type temporal" in found
    assert alarms(varied) == ()
    [found] = alarms(varied, arm="text")
    assert "without image and future, this run answers 100% correctly" in found
    wrong = [told(n, "no", "yes").model_copy(update={"type": "open"}) for n in range(50, 60)]
    assert alarms([*varied, *wrong], arm="text") == ()


def test_answers_belong_together_by_pair_else_scene_else_image_else_stand_alone() -> None:
    fields = {"pair": "p", "scene": "s", "image": "i"}
    names = []
    for known in (fields, {"scene": "s", "image": "i"}, {"image": "i"}, {}):
        names.append(told(7, "yes", "yes", **known).cluster)
    assert names == ["p", "s", "i", "7"]
    assert told(7, "yes", "yes", question="falls it?").asks == ("temporal", "falls it?")
    assert told(7, "yes", "yes", question="falls it?", about="fall").asks == ("temporal", "fall")


def test_accuracy_no_better_than_the_commonest_answer_to_each_wording_raises_an_alarm() -> None:
    asked = [told(n, "no", ("no", "yes")[n % 5 > 2], question="will it fall?") for n in range(100)]  # blind: 60 %
    near = [p.model_copy(update={"correct": n < 65}) for n, p in enumerate(asked)]
    [found] = alarms(near)
    assert "all questions 65% (interval from 55%) against 60%" in found
    assert "--shown text" in found
    assert alarms(near, arm="text") == (), "the baseline itself"
    far = [p.model_copy(update={"correct": n < 85}) for n, p in enumerate(asked)]
    assert alarms(far) == ()
    assert alarms(near[:9]) == (), "too few to say"
    static = [p.model_copy(update={"type": "static", "id": f"static {p.id}"}) for p in near]
    [found] = alarms([*[p.model_copy(update={"correct": True}) for p in asked], *static])
    assert "static 65%" in found, "a type alone is named"
    assert "all questions" not in found
    assert "temporal" not in found
