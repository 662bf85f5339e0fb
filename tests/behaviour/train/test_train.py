"""From a store and questions to a run that answers: what moves, what stays, what is refused, what is left behind."""

import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Gemma2ForCausalLM

from tests.miniatures.lm import PLACES, RECIPE, SMALL_TRAINING, save_mini_lm, save_mini_store
from theworld.pipeline.errors import ConfigError, QuestionError, RunError, StoreMismatchError, StoreNotFoundError
from theworld.pipeline.latents.keys import key_of_bytes
from theworld.pipeline.store.folder import open_store
from theworld.train.config import TrainConfig
from theworld.train.data.batches import Example, texts
from theworld.train.evaluation.answer import ask
from theworld.train.evaluation.evaluate import evaluate
from theworld.train.evaluation.results.saved import EVALUATION
from theworld.train.reader.model import TheWorld
from theworld.train.runs.folder import load_run
from theworld.train.runs.meta import read_meta
from theworld.train.training import inputs
from theworld.train.training import train as trainer
from theworld.train.training.train import train

FILES = {"adapter_config.json", "adapter_model.safetensors", "world_reader.safetensors"} | {
    "theworld.json",
    "metrics.json",
}


def config(folder: Path, **changes: object) -> TrainConfig:
    """A training of a few seconds on what `house` laid out in `folder`."""
    settings = {
        "store": folder / "cache",
        "questions": folder / "cache" / "questions.jsonl",
        "lm": str(folder / "lm"),
        "out": folder / "run",
        "train_steps": 3,
        **SMALL_TRAINING,
        **changes,
    }
    return TrainConfig.model_validate({name: value for name, value in settings.items() if value is not None})


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A folder with a language model, a store and questions, and nothing else."""
    save_mini_lm(tmp_path / "lm")
    save_mini_store(tmp_path / "cache")
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A house in which one run was trained, for tests that only look at it."""
    folder = tmp_path_factory.mktemp("house")
    save_mini_lm(folder / "lm")
    save_mini_store(folder / "cache")
    train(config(folder))
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_folder_holds_what_it_takes_to_use_and_to_explain_it(trained: Path) -> None:
    assert names(trained / "run") - {EVALUATION, "evaluation-steps0.json"} == FILES
    meta = read_meta(trained / "run")
    store = open_store(trained / "cache")
    assert meta.recipe == RECIPE
    assert (meta.recipe_id, meta.store.samples, meta.store.shards) == (RECIPE.id, 12, 2)
    lines = "".join(f"{key}\n" for key in sorted(store.keys))
    assert meta.store.keys_sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert meta.lm.identity.startswith("sha256:")
    assert meta.questions.train == 16
    assert meta.questions.sha256 == hashlib.sha256((trained / "cache" / "questions.jsonl").read_bytes()).hexdigest()
    assert (meta.reader.num_world_steps, meta.reader.layout, meta.reader.patch) == (3, "patch", 2)
    assert {"torch", "transformers", "peft", "theworld"} <= meta.versions.keys()
    assert meta.config["train_steps"] == 3


def test_metrics_hold_the_loss_curve_and_count_what_was_fed(house: Path) -> None:
    summary = train(config(house, train_steps=None, epochs=2))
    metrics = json.loads((house / "run" / "metrics.json").read_text())
    assert metrics["train_steps"] == summary.train_steps == 4  # 8 images of 2 questions, 4 at a time, twice
    lines = (house / "cache" / "questions.jsonl").read_text().splitlines()
    answers = [record["answer"] for record in map(json.loads, lines) if record["split"] == "train"]
    assert metrics["supervised_tokens"] == 2 * sum(len(answer.split()) + 1 for answer in answers)
    assert metrics["tokens"] > 2 * 8 * summary.world_tokens  # which the questions of an image share
    assert summary.world_tokens == 4 * 6
    assert metrics["loss"][-1]["step"] == 4
    assert summary.next_command == f"theworld evaluate {house / 'run'}"
    assert "next: theworld evaluate" in summary.summary()
    json.dumps(summary.to_json())


def test_only_temporal_embedding_projector_and_lora_move(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TheWorld] = []
    before: dict[str, torch.Tensor] = {}
    fit, save = trainer.fit, trainer.save_run

    def fit_and_look(model: TheWorld, *args: Any, **kwargs: Any) -> object:
        before.update({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
        return fit(model, *args, **kwargs)

    def save_and_look(folder: Path, model: TheWorld, *args: Any) -> None:
        seen.append(model)
        save(folder, model, *args)

    monkeypatch.setattr(trainer, "fit", fit_and_look)
    monkeypatch.setattr(trainer, "save_run", save_and_look)
    train(config(house))
    stock = AutoModelForCausalLM.from_pretrained(house / "lm").state_dict()
    frozen = {
        name.replace("base_model.model.", "").replace("base_layer.", ""): tensor
        for name, tensor in seen[0].lm.state_dict().items()
        if "lora_" not in name
    }
    assert frozen.keys() == stock.keys()
    for name, tensor in stock.items():
        assert torch.equal(frozen[name], tensor), name
    moved = {name for name, parameter in seen[0].named_parameters() if not torch.equal(parameter, before[name])}
    trainable = {name for name, _ in seen[0].trainable_parameters()}
    assert moved <= trainable
    # the first update moves only B: A's gradient is zero while B is; three updates move all
    assert moved == trainable


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21 on transformers 5.23
def test_the_adapter_loads_in_peft_alone_and_says_the_same(trained: Path) -> None:
    base = Gemma2ForCausalLM.from_pretrained(trained / "lm", attn_implementation="eager")
    alone = PeftModel.from_pretrained(base, str(trained / "run")).eval()
    ours = load_run(trained / "run", device="cpu").model
    ids = torch.tensor([[1, 4, 11, 5, 7, 8]])
    mask = torch.ones_like(ids)
    assert torch.equal(ours(ids, mask).logits, alone(input_ids=ids, attention_mask=mask).logits)
    plain = Gemma2ForCausalLM.from_pretrained(trained / "lm", attn_implementation="eager")
    assert not torch.equal(ours(ids, mask).logits, plain(input_ids=ids, attention_mask=mask).logits)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {**load_file(run / "adapter_model.safetensors"), **load_file(run / "world_reader.safetensors")}


def test_a_training_of_one_update_learns(house: Path) -> None:
    summary = train(config(house, train_steps=1))
    metrics = json.loads((house / "run" / "metrics.json").read_text())
    assert [point["learning_rate"] for point in metrics["loss"]] == [1e-3]  # half the peak
    assert any(tensor.any() for name, tensor in weights(house / "run").items() if "lora_B" in name)
    assert summary.train_steps == 1


def test_the_same_seed_gives_the_same_weights_bit_by_bit_and_another_seed_does_not(house: Path) -> None:
    for name, seed in (("one", 5), ("two", 5), ("three", 6)):
        train(config(house, out=house / name, seed=seed))
    one, two, three = (weights(house / name) for name in ("one", "two", "three"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], three[name]) for name in one)


def test_runs_are_numbered_and_never_overwritten(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(house)
    assert [train(config(house, out=None, train_steps=1)).run for _ in range(2)] == [Path("runs/1"), Path("runs/2")]
    with pytest.raises(RunError, match=r"runs/1 exists already"):
        train(config(house, out=Path("runs/1")))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"store": "nowhere"}, StoreNotFoundError, ["nowhere"]),
        ({"steps": 5}, ConfigError, ["--steps 5", "3 steps"]),
        ({"max_world_steps": 2}, ConfigError, ["3 rollout steps", "max_world_steps=2"]),
        ({"patch": 4}, ConfigError, ["4x6 cells", "4x4"]),
        ({"lm": "nowhere"}, ConfigError, ["neither a folder here nor a Hub id"]),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    house: Path, changes: dict[str, object], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        train(config(house, **changes))
    assert all(word in str(caught.value) for word in words)
    assert names(house) == {"lm", "cache"}


def test_a_question_without_latents_stops_the_training_before_anything_is_written(house: Path) -> None:
    questions = house / "cache" / "questions.jsonl"
    with questions.open("a") as file:
        file.write(json.dumps({"image": "new.png", "question": "where is the ball?", "answer": "left"}) + "\n")
    with pytest.raises(QuestionError, match=r"1 of 17 questions .*new\.png"):
        train(config(house))
    assert names(house) == {"lm", "cache"}


def test_more_tokens_than_the_model_attends_to_are_refused_with_what_would_fit(house: Path) -> None:
    settings = json.loads((house / "lm" / "config.json").read_text())
    (house / "lm" / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 36}))
    refused = r"(?s)24 world tokens \(4 frames, patch 2x2\).*36 tokens.*--steps 2 or fewer.*18 .*--layout pooled"
    with pytest.raises(ConfigError, match=refused):
        train(config(house))


def test_a_training_that_breaks_leaves_no_run_behind(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "save_run", no_space)
    with pytest.raises(OSError, match="No space"):
        train(config(house))
    assert names(house) == {"lm", "cache"}


def test_a_training_that_diverges_is_said_and_leaves_no_run_behind(house: Path) -> None:
    with pytest.raises(RunError, match=r"diverged.*learning_rate"):
        train(config(house, learning_rate=1e38))
    assert names(house) == {"lm", "cache"}


def test_each_epoch_feeds_every_question_once_in_an_order_of_its_own(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[tuple[str, tuple[int, ...]]] = []

    def noting(rows: Sequence[Sequence[Example]], **how: Any) -> dict[str, Any]:
        fed.extend((example.key, example.prompt) for row in rows for example in row)
        return texts(rows, **how)

    monkeypatch.setattr(inputs, "texts", noting)
    train(config(house, train_steps=None, epochs=2))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("latents")]
    first, second = fed[:16], fed[16:32]
    assert sorted(first) == sorted(second)
    assert len(set(first)) == 16
    assert first != second


def test_a_bfloat16_model_is_trained_through_float32_adapters(house: Path) -> None:
    train(config(house, dtype="bfloat16"))
    assert {tensor.dtype for tensor in weights(house / "run").values()} == {torch.float32}
    loaded = load_run(house / "run", device="cpu", dtype="bfloat16")
    assert loaded.model.lm.get_input_embeddings().weight.dtype == torch.bfloat16
    assert evaluate(house / "run", device="cpu").overall.total == 8


def test_two_budgets_are_one_too_many(house: Path) -> None:
    with pytest.raises(ValueError, match="both set how long to train"):
        config(house, epochs=1)


def test_a_run_is_not_put_onto_another_language_model(trained: Path, tmp_path: Path) -> None:
    other = save_mini_lm(tmp_path / "other", seed=1)
    with pytest.raises(RunError, match=r"was trained on the language model .*sha256:.*fit only the model"):
        load_run(trained / "run", lm=str(other))
    moved = save_mini_lm(tmp_path / "moved")
    assert load_run(trained / "run", lm=str(moved)).path == trained / "run"


def test_a_folder_that_is_no_run_or_a_damaged_one_is_refused(house: Path) -> None:
    with pytest.raises(RunError, match=r"not a run folder.*theworld train"):
        load_run(house)
    train(config(house, train_steps=1))
    (house / "run" / "world_reader.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(RunError, match="incomplete or damaged"):
        load_run(house / "run")
    (house / "run" / "theworld.json").write_text('{"format": 2}')
    with pytest.raises(RunError, match=r"theworld\.json does not describe a run"):
        load_run(house / "run")


def test_evaluation_counts_every_question_of_the_split_once(trained: Path) -> None:
    result = evaluate(trained / "run", device="cpu", batch_size=5)
    assert result.overall.total == len(result.predictions) == 8
    assert {kind: score.total for kind, score in result.by_type.items()} == {"temporal": 4, "untyped": 4}
    assert sum(result.predicted["temporal"].values()) == sum(result.answers["temporal"].values()) == 4
    assert result.predicted["temporal"].keys() <= set(PLACES)
    assert result.overall.correct == sum(prediction.correct for prediction in result.predictions)
    saved = json.loads((trained / "run" / EVALUATION).read_text())
    assert saved["overall"]["total"] == 8


def test_batches_do_not_change_the_answers(trained: Path) -> None:
    small, large = (evaluate(trained / "run", device="cpu", batch_size=size).predictions for size in (1, 64))
    assert small == large


def test_an_evaluation_of_fewer_steps_stands_beside_the_first(trained: Path) -> None:
    assert evaluate(trained / "run", steps=0, device="cpu").steps == 0
    assert (trained / "run" / "evaluation-steps0.json").is_file()
    with pytest.raises(ConfigError, match="4 rollout steps are asked for, the latents have 3"):
        evaluate(trained / "run", steps=4, device="cpu")


def test_latents_of_another_recipe_are_not_evaluated(trained: Path, tmp_path: Path) -> None:
    save_mini_store(tmp_path / "other", recipe=RECIPE.model_copy(update={"seed": 1}))
    with pytest.raises(StoreMismatchError, match="seed 0 there, 1 here"):
        evaluate(trained / "run", store=tmp_path / "other", device="cpu")


def test_asking_one_question_gives_the_answer_of_the_evaluation(trained: Path) -> None:
    predicted = {p.id: p.predicted for p in evaluate(trained / "run", device="cpu").predictions}
    run = load_run(trained / "run", device="cpu")
    store = open_store(trained / "cache")
    for number in range(8, 12):
        latents = torch.from_numpy(store.read([key_of_bytes(f"picture {number}".encode())]))
        answer = ask(run, latents, "where will the ball land?", PLACES)
        assert answer.text == answer.ranked[0].choice == predicted[f"{number}-land"]
        assert sum(ranked.probability for ranked in answer.ranked) == pytest.approx(1)
        assert ask(run, latents, "where is the ball now?").text == predicted[f"{number}-now"]


def test_what_cannot_be_asked_is_refused_and_words_nobody_taught_are_said(
    trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, store = load_run(trained / "run", device="cpu"), open_store(trained / "cache")
    latents = torch.from_numpy(store.read(store.keys[:1]))
    for choices in (["left"], ["left", "left"], ["left", ""]):
        with pytest.raises(ConfigError, match="two or more different answers"):
            ask(run, latents, "where will the ball land?", choices)
    with pytest.raises(QuestionError, match=r"no token for \['crimson'\] in the choice 'crimson'"):
        ask(run, latents, "where will the ball land?", ["left", "crimson"])
    with pytest.raises(ConfigError, match="the question is empty"):
        ask(run, latents, " ", PLACES)
    assert ask(run, latents, "where will the xylophone land?", PLACES).text in PLACES
    assert "no token for xylophone in the question" in caplog.text


def test_a_reader_learns_what_only_the_future_shows(tmp_path: Path) -> None:
    save_mini_lm(tmp_path / "lm")
    save_mini_store(tmp_path / "cache", images=120)
    summary = train(config(tmp_path, train_steps=80, batch_size=16, lora_rank=8, learning_rate=1e-2))
    assert summary.last_loss < summary.first_loss / 20
    seen = evaluate(tmp_path / "run", device="cpu").by_type["temporal"]
    unseen = evaluate(tmp_path / "run", steps=0, device="cpu").by_type["temporal"]
    assert seen.low > 0.8
    assert unseen.high < 0.7  # the blob appears only in the second frame
