"""A batch learns the answer's tokens and nothing else, in an order the seed decides, with each image's own latents."""

from pathlib import Path

import numpy as np
import pytest
import torch

from theworld.pipeline.errors import QuestionError
from theworld.pipeline.latents.keys import key_of_bytes
from theworld.pipeline.store.reading.buffer import BatchBuffer
from theworld.train.data.batches import (
    check_answers,
    count_right_answers,
    encode,
    pad_rows,
    supervised_tokens,
    texts,
    with_latents,
)
from theworld.train.data.loader import LatentDataset
from theworld.train.language.lm import LanguageModel
from theworld.train.language.weights import Weights
from theworld.train.questions.record import Question, read_questions
from theworld.train.reader.model import IGNORED

from ...miniatures.lm import mini_lm, mini_tokenizer, save_mini_store

SHORT = Question(id="a", image="a.png", question="where is the ball now?", answer="left")
LONG = Question(id="b", image="b.png", question="where will the ball be?", answer="upper right corner")


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel(mini_lm(), mini_tokenizer(), Weights(Path("mini"), "mini", "sha256:mini"))


def test_labels_cover_the_answer_and_its_end_and_nothing_else(lm: LanguageModel) -> None:
    rows = [[encode(SHORT, "k", lm, answer="left")], [encode(LONG, "k", lm, answer=LONG.answer)]]
    batch = pad_rows(rows, lm.pad_id)
    for row, answer in zip(batch["labels"], ["left <eos>", "upper right corner <eos>"], strict=True):
        assert lm.tokenizer.decode(row[row != IGNORED]) == answer
    learned = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][learned], batch["input_ids"][learned])
    assert supervised_tokens(batch["labels"]) == 2 + 4
    assert int(batch["attention_mask"].sum()) == 13 + 15
    assert not bool((batch["attention_mask"][learned] == 0).any())


@pytest.mark.parametrize("packed", [False, True])
def test_an_answer_is_right_when_each_of_its_tokens_is_the_likeliest(lm: LanguageModel, packed: bool) -> None:
    asked = [encode(SHORT, "k", lm, answer="left"), encode(LONG, "k", lm, answer=LONG.answer)]
    batch = pad_rows([asked, asked[:1]] if packed else [[one] for one in [*asked, asked[0]]], lm.pad_id)
    labels, segments = batch["labels"], batch.get("segments")
    said = torch.nn.functional.one_hot(labels[:, 1:][labels[:, 1:] != IGNORED], 64).float()
    assert count_right_answers(said, labels, segments) == (3, 3)
    said[4] = said[0]  # one word of the long answer
    assert count_right_answers(said, labels, segments) == (2, 3)
    said[1], said[-1] = 0, 0  # the ends of the others
    assert count_right_answers(said, labels, segments) == (0, 3)


def test_prompts_start_with_bos_and_end_where_the_answer_begins(lm: LanguageModel) -> None:
    assert lm.tokenizer.decode(lm.prompt_ids("where is the ball?")) == "<bos> question : where is the ball ? answer :"


def test_a_chat_template_decides_prompt_and_end_where_there_is_one() -> None:
    tokenizer = mini_tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }}{% for turn in messages %}{{ 'model' if turn.role == 'assistant' else turn.role }} : "
        "{{ turn.content }} .\n{% endfor %}{% if add_generation_prompt %}model : {% endif %}"
    )
    chat = LanguageModel(mini_lm(), tokenizer, Weights(Path("mini"), "mini", "sha256:mini"))
    assert tokenizer.decode(chat.prompt_ids("where is the ball?")) == "<bos> user : where is the ball ? . model :"
    assert tokenizer.decode(chat.answer_ids("upper left")) == "upper left ."
    assert chat.end_id == tokenizer.convert_tokens_to_ids(".")
    assert chat.decode([*chat.answer_ids("upper left"), 5, 5]) == "upper left"


def test_every_row_gets_the_latents_of_its_own_image_each_image_read_once(lm: LanguageModel, tmp_path: Path) -> None:
    store, _ = save_mini_store(tmp_path)
    keys = [key_of_bytes(f"picture {number}".encode()) for number in (5, 0, 5)]
    images = LatentDataset(store, keys=keys[:2], rollout_steps=2)
    asked: list[list[int]] = []
    read = images.read

    def counted(indices: list[int], buffer: BatchBuffer | None = None) -> torch.Tensor:
        asked.append(indices)
        return read(indices, buffer)

    images.read = counted  # type: ignore[method-assign, assignment]
    rows = texts([[encode(SHORT, key, lm, answer="left")] for key in keys], lm.pad_id)
    [batch] = with_latents([rows], images, keep=1, device=None)
    assert asked == [[0, 1]]
    assert batch["latents"].shape == (3, 16, 3, 4, 6)
    assert batch["latents"].dtype == torch.float16
    assert np.array_equal(batch["latents"].numpy(), store.read(keys, rollout_steps=2))


def test_reading_ahead_gives_each_batch_its_own_latents(lm: LanguageModel, tmp_path: Path) -> None:
    store, _ = save_mini_store(tmp_path)
    draw = np.random.default_rng(0)
    rows = [
        [[encode(SHORT, store.keys[number], lm, answer="left")] for number in draw.integers(0, len(store), 3)]
        for _ in range(20)
    ]
    images = LatentDataset(store, rollout_steps=2)
    ahead = with_latents((texts(examples, lm.pad_id) for examples in rows), images, keep=1, device=None)
    for examples, batch in zip(rows, ahead, strict=True):
        latents = store.read([row[0].key for row in examples], rollout_steps=2)
        assert np.array_equal(batch["latents"].numpy(), latents)
        for name, tensor in pad_rows(examples, lm.pad_id).items():
            assert torch.equal(tensor, batch[name]), name


def test_a_world_that_is_not_looked_at_leaves_the_text_as_it_is(lm: LanguageModel) -> None:
    rows = texts([[encode(SHORT, "k", lm, answer="left")]], lm.pad_id)
    [batch] = with_latents([rows], None, keep=1, device=None)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_answers_outside_the_vocabulary_are_refused_with_question_and_word(lm: LanguageModel, tmp_path: Path) -> None:
    _, questions = save_mini_store(tmp_path)
    check_answers(read_questions(questions), lm)
    with pytest.raises(QuestionError, match=r"question a.*\['zebra'\].*'left zebra'"):
        check_answers([SHORT.model_copy(update={"choices": ("left", "left zebra")})], lm)


def test_a_labelled_first_token_is_not_counted_as_learned() -> None:
    assert supervised_tokens(torch.tensor([[5, 6, -100]])) == 1


def test_questions_share_their_token_ids_which_take_28_bytes_each() -> None:
    """A training keeps the ids of all its questions; Gemma's are large, so Python makes each anew."""

    class Large:
        def prompt_ids(self, question: str, _before: object) -> list[int]:
            return [int("200000"), len(question)]

        def answer_ids(self, _answer: str) -> list[int]:
            return [int("200000")]

        def shared(self, _prompt: object) -> int:
            return 1

    one, other = (encode(question, "k", Large(), answer="left") for question in (SHORT, LONG))  # type: ignore[arg-type]
    assert one.prompt[0] is other.prompt[0] is one.answer[0]
