"""A tokenizer read by the tokenizers library alone gives the ids of transformers', or leaves the reading to it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.miniatures.lm import mini_lm, save_mini_lm
from theworld.pipeline.errors import QuestionError
from theworld.train.language.lm import load_tokenizer_only
from theworld.train.language.tokenizer_files import read_prompt_format
from theworld.train.language.weights import find_weights

TEXTS = (
    "where will the ball land?",
    "  Where   will the BALL land ?\n",
    "Zwölf Bälle, 左 or right? 12,345.6 <b>x</b> \t 🎈",
    "e\u0301 is é; ﬁ is fi",
    "",
)
CHAT = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def save_bpe_lm(folder: Path, *, chat: bool, **more: Any) -> Path:
    """A language model with a byte-level tokenizer like Llama's, or one that normalizes like Gemma's."""
    special = ["<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
    inner = Tokenizer(models.BPE())
    inner.normalizer = normalizers.NFC()  # type: ignore[assignment]
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    inner.train_from_iterator(TEXTS * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", **more
    )
    if chat:
        tokenizer.chat_template = CHAT
    mini_lm(words=[f"w{n}" for n in range(inner.get_vocab_size() - 4)]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "save",
    [
        lambda _: None,
        save_mini_lm,
        lambda folder: save_bpe_lm(folder, chat=False),
        lambda folder: save_bpe_lm(folder, chat=True),
    ],
    ids=["embedded", "words", "bytes", "chat"],
)
def test_ids_counts_and_refusals_equal_those_of_transformers(
    tmp_path: Path, save: Callable[[Path], Path | None]
) -> None:
    folder = save(tmp_path / "lm")
    weights = find_weights(None if folder is None else str(folder))
    found, stock = read_prompt_format(weights), load_tokenizer_only(weights)
    assert found is not None
    for text in TEXTS:
        assert found.prompt_ids(text) == stock.prompt_ids(text)
        assert found.prompt_ids(text, [(TEXTS[0], TEXTS[1])]) == stock.prompt_ids(text, [(TEXTS[0], TEXTS[1])])
        assert found.answer_ids(text) == stock.answer_ids(text)
        assert found.unknown_words(text) == stock.unknown_words(text)
        assert found.decode(found.prompt_ids(text)) == stock.decode(stock.prompt_ids(text))
    assert (found.end_id, found.pad_id, found.context) == (stock.end_id, stock.pad_id, stock.context)
    assert found.control_tokens == stock.control_tokens
    for speech in (found, stock):
        with pytest.raises(QuestionError, match="control token"):
            speech.prompt_ids("one <eos> two")


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "GemmaTokenizer"}),
        ("tokenizer_config.json", {"extra_special_tokens": ["<x>"]}),
        ("tokenizer_config.json", {"eos_token": "ball"}),
        ("tokenizer_config.json", {"bos_token": None}),
        ("tokenizer_config.json", {"split_special_tokens": True}),
        ("config.json", {"architectures": ["GPT2LMHeadModel"]}),
        ("config.json", {"vision_config": {}}),
        ("config.json", {"max_position_embeddings": None}),
        ("special_tokens_map.json", {"bos_token": "<bos>"}),
        ("tokenizer.json", {"model": None}),
    ],
)
def test_what_the_files_leave_open_is_left_to_transformers(tmp_path: Path, file: str, changes: dict[str, Any]) -> None:
    path = save_mini_lm(tmp_path / "lm") / file
    stated = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({name: value for name, value in (stated | changes).items() if value is not None}))
    assert read_prompt_format(find_weights(str(tmp_path / "lm"))) is None


def test_questions_are_counted_without_importing_a_framework(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({"image": "a.png", "question": "where is it?", "answer": "left"}))
    code = (
        "import sys; sys.argv[1:] = ['questions', 'q.jsonl']\n"
        "from theworld.pipeline.cli.main import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'peft', 'ray', 'diffusers'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 question" in done.stdout
