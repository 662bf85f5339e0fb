"""A multimodal Gemma-3 keeps seeing the image as it always did, and reads the world beside it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Gemma3Processor

from theworld.pipeline.errors import ConfigError, QuestionError
from theworld.train.data.batches import Example, encode, pad_rows
from theworld.train.data.vision import VisionInputs, open_vision_inputs
from theworld.train.language.lm import LanguageModel, load_language_model, load_tokenizer_only
from theworld.train.language.lora import add_lora
from theworld.train.language.weights import Weights, find_weights
from theworld.train.questions.record import Question
from theworld.train.reader.model import IGNORED, TheWorld
from theworld.train.reader.segments import FLEX
from theworld.train.reader.tokens import WorldReader

from ...miniatures.lm import mini_lm
from ...miniatures.vision_lm import IMAGE_TOKENS, eyes_lm, eyes_processor, eyes_tokenizer, save_eyes_lm

ASKED = "where will the ball land?"
BEFORE = (("where is the ball now?", "left"),)


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = save_eyes_lm(tmp_path_factory.mktemp("eyes"))
    return load_language_model(find_weights(str(folder)), device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = {name: folder / f"{name}.png" for name in "ab"}
    for path in paths.values():
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return paths


def reader() -> WorldReader:
    torch.manual_seed(1)
    return WorldReader(latent_shape=(16, 4, 6), hidden_size=32, embedding_rms=1.0)


def latents(rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, 16, 4, 4, 6, generator=torch.Generator().manual_seed(3))


def asked(lm: LanguageModel, key: str, question: str = ASKED, answer: str | None = "left") -> Example:
    return encode(Question(id="q", image="i", question=question, answer="left"), key, lm, answer=answer)


def test_prompts_and_pixels_are_those_of_its_own_processor(lm: LanguageModel, files: dict[str, Path]) -> None:
    processor = Gemma3Processor(eyes_processor(), eyes_tokenizer(), image_seq_length=IMAGE_TOKENS)
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": BEFORE[0][0]}]}]
    turns += [{"role": "assistant", "content": BEFORE[0][1]}, {"role": "user", "content": ASKED}]
    text = eyes_tokenizer().apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    theirs = processor(images=[Image.open(files["a"])], text=text, add_special_tokens=False, return_tensors="pt")
    assert lm.prompt_ids(ASKED, BEFORE) == theirs["input_ids"][0].tolist()
    assert torch.equal(VisionInputs(lm, files)(["a"]), theirs["pixel_values"])


def test_with_the_world_off_the_logits_are_its_own_bit_by_bit(lm: LanguageModel, files: dict[str, Path]) -> None:
    batch = pad_rows([[asked(lm, "a")], [asked(lm, "b", "where is the ball?")]], lm.pad_id)
    ids, mask, pixels = batch["input_ids"], batch["attention_mask"], VisionInputs(lm, files)(["a", "b"])
    kinds = (ids == lm.settings.image_token_id).long()
    own = lm.model(input_ids=ids, attention_mask=mask, pixel_values=pixels, token_type_ids=kinds).logits
    ours = TheWorld(lm.model, reader())(ids, mask, pixel_values=pixels).logits
    assert torch.equal(ours[mask == 1], own[mask == 1])
    fresh = add_lora(LanguageModel(eyes_lm(), lm.tokenizer, lm.weights), rank=2, alpha=4, dropout=0.0)
    assert torch.equal(
        TheWorld(fresh.model, reader())(ids, mask, pixel_values=pixels).logits[mask == 1], own[mask == 1]
    )
    other = TheWorld(lm.model, reader())(ids, mask, pixel_values=pixels.flip(0)).logits
    assert not torch.allclose(ours, other)  # it does look


def test_the_world_stands_before_the_image_which_stays_in_its_place(lm: LanguageModel, files: dict[str, Path]) -> None:
    batch, pixels = pad_rows([[asked(lm, "a")]], lm.pad_id), VisionInputs(lm, files)(["a"])
    model = TheWorld(lm.model, reader(), num_world_steps=3)
    vectors, mask = model.embed(batch["input_ids"], batch["attention_mask"], latents(1), pixels)
    place = batch["input_ids"][0].tolist().index(lm.settings.image_token_id)
    own = lm.model.get_image_features(pixels, return_dict=True).pooler_output
    assert torch.equal(vectors[:, 1:25], model.reader(latents(1)))
    assert torch.equal(vectors[:, 24 + place : 24 + place + IMAGE_TOKENS], own)
    assert int(mask.sum()) == 24 + int(batch["attention_mask"].sum())


def test_questions_packed_behind_one_image_get_what_they_would_get_alone(
    lm: LanguageModel, files: dict[str, Path]
) -> None:
    model = TheWorld(lm.model, reader(), num_world_steps=3)
    examples = [asked(lm, "a"), asked(lm, "a", "where is the ball now?", "upper right corner"), asked(lm, "b")]
    packed = pad_rows([examples[:2], examples[2:]], lm.pad_id)
    assert "segments" in packed
    assert (packed["input_ids"] == lm.settings.image_token_id).sum(1).tolist() == [IMAGE_TOKENS] * 2
    alone = pad_rows([[example] for example in examples], lm.pad_id)
    pictures, world = VisionInputs(lm, files), latents()
    for latent, three in ((world, world[[0, 0, 1]]), (None, None)):
        together = model(**packed, latents=latent, pixel_values=pictures(["a", "b"])).logits
        apart = model(**alone, latents=three, pixel_values=pictures(["a", "a", "b"])).logits
        torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_with_flex_attention_it_sees_the_same(lm: LanguageModel, files: dict[str, Path], tmp_path: Path) -> None:
    folder, cpu = save_eyes_lm(tmp_path), torch.device("cpu")
    flex = load_language_model(find_weights(str(folder)), device=cpu, dtype=torch.float32, attention="flex_attention")
    plain_model, flex_model = (TheWorld(of.model, reader(), num_world_steps=3) for of in (lm, flex))
    examples = [asked(lm, "a"), asked(lm, "a", "where is the ball now?", "upper right corner"), asked(lm, "b")]
    pixels = VisionInputs(lm, files)(["a", "b"])
    for rows in ([examples[:2], examples[2:]], [examples[:1], examples[2:]]):
        batch = pad_rows(rows, lm.pad_id)
        with torch.no_grad():
            plain, ours = (
                of(**batch, latents=latents(), pixel_values=pixels).logits for of in (plain_model, flex_model)
            )
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    assert flex.settings.get_text_config()._attn_implementation == FLEX
    assert flex.settings.vision_config._attn_implementation == lm.settings.vision_config._attn_implementation


@pytest.mark.parametrize("world_on", [True, False])
def test_its_answers_are_the_likeliest_tokens_whatever_the_padding(
    lm: LanguageModel, files: dict[str, Path], world_on: bool
) -> None:
    model, pixels = TheWorld(lm.model, reader(), num_world_steps=3).eval(), VisionInputs(lm, files)(["a", "b"])
    batch = pad_rows([[asked(lm, "a", answer=None)], [asked(lm, "b", "where?", answer=None)]], lm.pad_id)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    world = latents() if world_on else None
    generated = model.generate(ids, mask, end_id=2, max_new_tokens=4, latents=world, pixel_values=pixels)
    for row in range(2):
        text = ids[row : row + 1, : int(mask[row].sum())]
        for expected in generated[row].tolist():
            one = None if world is None else world[row : row + 1]
            logits = model(text, torch.ones_like(text), latents=one, pixel_values=pixels[row : row + 1]).logits
            assert int(logits[0, -1].argmax()) == expected
            if expected == 2:
                break
            text = torch.cat([text, torch.tensor([[expected]])], 1)


def test_only_the_language_is_adapted_and_gradients_reach_the_reader(lm: LanguageModel, files: dict[str, Path]) -> None:
    adapted = add_lora(LanguageModel(eyes_lm(), lm.tokenizer, lm.weights), rank=2, alpha=4, dropout=0.0)
    model = TheWorld(adapted.model, reader(), num_world_steps=3)
    names = [name for name, _ in model.trainable_parameters() if "lora_" in name]
    assert len(names) == 2 * 7 * 2
    assert all("language_model" in name for name in names)
    batch = pad_rows([[asked(lm, "a")], [asked(lm, "b")]], lm.pad_id)
    loss = model(**batch, latents=latents(), pixel_values=VisionInputs(lm, files)(["a", "b"])).loss
    loss.backward()
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if "vision" in name)
    assert float(model.reader.projector.out.weight.grad.abs().sum()) > 0  # type: ignore[union-attr]


def test_pixels_and_their_place_go_together(lm: LanguageModel, files: dict[str, Path]) -> None:
    batch = pad_rows([[asked(lm, "a")]], lm.pad_id)
    with pytest.raises(ConfigError, match="pass its pixel_values"):
        TheWorld(lm.model, reader())(**batch)
    pixels = VisionInputs(lm, files)(["a"])
    with pytest.raises(ConfigError, match="has no vision tower"):
        TheWorld(mini_lm(), reader())(torch.tensor([[1, 4]]), torch.ones(1, 2, dtype=torch.long), pixel_values=pixels)
    with pytest.raises(QuestionError, match=r"contains '<image_soft_token>'.*a control token"):
        lm.prompt_ids("what is <image_soft_token>?")


def test_without_a_chat_template_the_image_comes_before_the_question() -> None:
    plain = LanguageModel(eyes_lm(), eyes_tokenizer(chat=False), Weights(Path("mini"), "mini", "sha256:mini"))
    words = plain.tokenizer.convert_ids_to_tokens(plain.prompt_ids("where is the ball?", BEFORE))
    seen = ["<start_of_image>", *["<image_soft_token>"] * IMAGE_TOKENS, "<end_of_image>"]
    said = "question : where is the ball now ? answer : left <eos> question : where is the ball ? answer :"
    assert words == ["<bos>", *seen, *said.split()]


def test_what_its_folder_lacks_is_said(tmp_path: Path, files: dict[str, Path]) -> None:
    folder = save_eyes_lm(tmp_path / "lm")
    for path in folder.glob("*processor_config.json"):
        path.unlink()
    book = load_tokenizer_only(find_weights(str(folder)))
    with pytest.raises(ConfigError, match=r"no preprocessor_config\.json"):
        VisionInputs(book, files)
    question = Question(id="q", image="gone.png", question=ASKED, answer="left")
    with pytest.raises(QuestionError, match=r"looks at the images itself.*gone\.png.*--write"):
        open_vision_inputs(book, [question], {"q": "k"}, tmp_path / "q.jsonl")
    bare = eyes_tokenizer()
    bare.chat_template = "{{ bos_token }}{% for turn in messages %}{{ turn.role }} {% endfor %}"
    with pytest.raises(ConfigError, match="leaves images out"):
        LanguageModel(eyes_lm(), bare, book.weights).prompt_ids(ASKED)


def test_a_phrasebook_says_what_the_whole_model_says(lm: LanguageModel) -> None:
    book = load_tokenizer_only(lm.weights)
    assert book.prompt_ids(ASKED, BEFORE) == lm.prompt_ids(ASKED, BEFORE)
    assert (
        (book.context, book.image_tokens, book.end_id)
        == (lm.context, lm.image_tokens, lm.end_id)
        == (256, 4, lm.end_id)
    )


def test_labels_stand_on_answers_alone(lm: LanguageModel) -> None:
    batch = pad_rows([[asked(lm, "a"), asked(lm, "a", "where is the ball now?")]], lm.pad_id)
    learned = batch["labels"] != IGNORED
    assert lm.tokenizer.decode(batch["labels"][learned]) == "left . left ."
