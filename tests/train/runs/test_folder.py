"""A run folder gives back the model that was trained, and only on the language model and the recipe it belongs to."""

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from theworld.pipeline.errors import ConfigError, RunError, StoreMismatchError
from theworld.pipeline.files.hashing import hash_files
from theworld.pipeline.store.folder import create_store, open_store
from theworld.train.reader.model import TheWorld
from theworld.train.runs.folder import READER, load_run, require_same_recipe, resolve_dtype, save_run
from theworld.train.runs.meta import META, read_meta
from theworld.train.training.train import train

from ...miniatures.lm import RECIPE, SPEC, save_mini_lm
from ...miniatures.training import lay_out as lay_out_house
from ...miniatures.training import learned, settings


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    house = lay_out_house(tmp_path_factory.mktemp("house"))
    train(settings(house, train_steps=2, arm="last"))
    return house


def logits_of(model: TheWorld) -> torch.Tensor:
    ids, mask = torch.tensor([[1, 4, 11, 5]]), torch.ones(1, 4, dtype=torch.long)
    latents = torch.randn(1, 16, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    return model(ids, mask, latents=latents).logits


def test_a_run_is_refused_on_another_language_model_than_it_was_trained_on(house: Path, tmp_path: Path) -> None:
    other = save_mini_lm(tmp_path / "other", seed=1)
    with pytest.raises(RunError, match=r"trained on the language model .*lm \(sha256:.*but .*other is sha256:.*--lm"):
        load_run(house / "run", lm=str(other), device="cpu")


def test_a_language_model_that_moved_is_the_same_one(house: Path, tmp_path: Path) -> None:
    shutil.copytree(house / "lm", tmp_path / "moved")
    here, there = (load_run(house / "run", lm=lm, device="cpu").model for lm in (None, str(tmp_path / "moved")))
    assert torch.equal(logits_of(here), logits_of(there))
    assert not here.training
    assert here.reader.frames == (0, 3)  # of the arm it was trained with
    assert (here.reader.max_world_steps, here.num_world_steps, here.max_world_steps) == (4, 3, 4)
    assert here.reader.temporal_embedding.weight.shape == (5, 16)
    assert (here.reader.layout, here.recipe) == (read_meta(house / "run").reader.token_layout(), RECIPE)


def test_a_language_model_that_is_gone_is_asked_for_by_the_flag(house: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(house, tmp_path / "moved"))
    (moved / "lm").rename(moved / "elsewhere")
    about = json.loads((moved / "run" / META).read_text())
    about["lm"]["source"] = str(moved / "lm")
    (moved / "run" / META).write_text(json.dumps(about))
    with pytest.raises(ConfigError, match=r"run was trained on .*lm \(sha256:\w+\), which is not found .*: --lm PLACE"):
        load_run(moved / "run", device="cpu")
    assert load_run(moved / "run", lm=str(moved / "elsewhere"), device="cpu").lm.weights.folder == moved / "elsewhere"


@pytest.fixture
def hub_id(house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same language model in the Hub's cache on this machine, and no network."""
    place, commit = tmp_path / "cache" / "models--org--lm", "0" * 39 + "1"
    shutil.copytree(house / "lm", place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return f"org/lm@{commit}"


def test_a_run_of_a_folder_loads_beside_the_hub_s_copy_and_the_other_way_round(
    house: Path, tmp_path: Path, hub_id: str
) -> None:
    meta = read_meta(house / "run")
    assert meta.lm.content == meta.lm.identity
    assert load_run(house / "run", lm="org/lm", device="cpu").lm.weights.identity == f"hub:{hub_id}"

    train(settings(house, lm="org/lm", out=tmp_path / "of-hub", train_steps=1))
    of_hub = read_meta(tmp_path / "of-hub").lm
    assert (of_hub.source, of_hub.identity, of_hub.content) == (hub_id, f"hub:{hub_id}", meta.lm.content)
    assert load_run(tmp_path / "of-hub", device="cpu").lm.weights.source == hub_id
    (house / "lm" / "notes.json").write_text("{}")
    assert load_run(tmp_path / "of-hub", lm=str(house / "lm"), device="cpu").lm.weights.folder == house / "lm"
    other = save_mini_lm(tmp_path / "other", seed=1)
    told = rf"org/lm@\w+ \(hub:{hub_id}, sha256:\w+\), but .*other is sha256:\w+.*a folder with the same files"
    with pytest.raises(RunError, match=told):
        load_run(tmp_path / "of-hub", lm=str(other), device="cpu")


def test_a_name_is_no_identity(house: Path, tmp_path: Path, hub_id: str) -> None:
    """A run that noted the Hub's name alone, as earlier versions did, does not take a folder for it."""
    run = Path(shutil.copytree(house / "run", tmp_path / "run"))
    about = json.loads((run / META).read_text())
    about["lm"] = {"source": hub_id, "identity": f"hub:{hub_id}"}
    (run / META).write_text(json.dumps(about))
    assert load_run(run, device="cpu").meta.lm.content is None
    with pytest.raises(RunError, match=f"noted the Hub's name alone, .*: pass --lm {hub_id}"):
        load_run(run, lm=str(house / "lm"), device="cpu")


def test_a_run_of_an_earlier_version_is_found_by_the_identity_it_noted(house: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(house / "lm", tmp_path / "lm"))
    (moved / "notes.json").write_text("{}")
    run = Path(shutil.copytree(house / "run", tmp_path / "run"))
    about = json.loads((run / META).read_text())
    about["lm"] = {"source": str(moved), "identity": hash_files(moved, moved.iterdir())}
    assert about["lm"]["identity"] != read_meta(house / "run").lm.identity
    (run / META).write_text(json.dumps(about))
    assert load_run(run, device="cpu").lm.weights.folder == moved


def test_a_run_that_is_saved_again_holds_the_same_weights_and_no_file_of_the_library(
    house: Path, tmp_path: Path
) -> None:
    loaded = load_run(house / "run", device="cpu")
    for parameter in loaded.model.parameters():
        parameter.requires_grad_(True)
    trained = {f"lm.{name}" for name, _ in loaded.model.lm.named_parameters() if "lora_" in name}
    trained |= {f"reader.{name}" for name, _ in loaded.model.reader.named_parameters()}
    weights = {name: value.detach() for name, value in loaded.model.named_parameters() if name in trained}
    save_run(tmp_path, loaded.model, loaded.meta, weights)
    assert learned(tmp_path).keys() == learned(house / "run").keys()
    assert all(torch.equal(value, learned(house / "run")[name]) for name, value in learned(tmp_path).items())
    assert read_meta(tmp_path) == loaded.meta
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", READER, "theworld.json",
    }  # fmt: skip


@pytest.mark.parametrize("name", [READER, "adapter_model.safetensors"])
def test_weights_that_are_missing_or_cut_short_are_called_damaged(house: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(house / "run", tmp_path / "run")
    file = tmp_path / "run" / name
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match=r"weights in .*run cannot be loaded: .*It is incomplete or damaged"):
        load_run(tmp_path / "run", device="cpu")
    file.unlink()
    with pytest.raises(RunError, match=r"weights in .*run cannot be loaded|incomplete or damaged"):
        load_run(tmp_path / "run", device="cpu")


def test_a_language_model_that_cannot_be_loaded_is_not_called_a_damaged_run(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConfigError("this transformers changes inputs_embeds")

    monkeypatch.setattr("theworld.train.language.lm.check_world_inputs", refuse)
    with pytest.raises(ConfigError, match="changes inputs_embeds"):
        load_run(house / "run", device="cpu")


def test_a_store_of_another_recipe_is_refused_with_the_fields_that_differ(house: Path, tmp_path: Path) -> None:
    meta = read_meta(house / "run")
    require_same_recipe(meta, house / "run", open_store(house / "cache"))
    other = create_store(
        tmp_path, RECIPE.model_copy(update={"seed": 7, "width": 64}), SPEC, label="other", shard_size=8
    )
    with pytest.raises(StoreMismatchError, match=r"width 48 there, 64 here, seed 0 there, 7 here\. Name a store of"):
        require_same_recipe(meta, house / "run", other)


def test_a_dtype_is_the_one_named_and_auto_is_float32_on_a_cpu_and_bfloat16_on_a_gpu() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [resolve_dtype("auto", device) for device in (cpu, gpu)] == [torch.float32, torch.bfloat16]
    assert {resolve_dtype("float32", device) for device in (cpu, gpu)} == {torch.float32}
    assert {resolve_dtype("bfloat16", device) for device in (cpu, gpu)} == {torch.bfloat16}


def test_a_run_answers_in_the_dtype_it_was_trained_with_unless_another_is_asked_for(house: Path) -> None:
    plain, asked = (load_run(house / "run", device="cpu", dtype=dtype) for dtype in (None, "bfloat16"))
    assert plain.lm.model.get_input_embeddings().weight.dtype == torch.float32
    assert asked.lm.model.get_input_embeddings().weight.dtype == torch.bfloat16  # type: ignore[union-attr]
