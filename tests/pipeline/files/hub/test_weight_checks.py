"""Folders of weights as people have them: what would load as something else, or not at all, is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import CosmosTransformer3DModel
from safetensors.torch import load_file, save_file

from theworld.pipeline.errors import ConfigError, WorldModelError
from theworld.precompute.worlds.registry import load_world
from theworld.precompute.worlds.source import resolve_world
from theworld.train.language.lm import load_language_model, load_tokenizer_only
from theworld.train.language.weights import find_weights

from ....miniatures.lm import mini_lm, save_mini_lm
from ....miniatures.world_model import save_mini_world

FILE = "diffusion_pytorch_model.safetensors"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return save_mini_world(tmp_path / "world")


@pytest.fixture
def lm(tmp_path: Path) -> Path:
    return save_mini_lm(tmp_path / "lm")


def load_lm(folder: Path) -> object:
    return load_language_model(find_weights(str(folder)), device="cpu", dtype=torch.float32)


def change(file: Path, changes: dict[str, torch.Tensor]) -> None:
    save_file({**load_file(file), **changes}, file, {"format": "pt"})


@pytest.mark.parametrize("name", ["lora_A.weight", "lora_down.weight", "scale_weight", "weight_scale_inv"])
def test_weights_with_an_adapter_or_scales_that_no_layer_would_take_are_refused(lm: Path, name: str) -> None:
    change(lm / "model.safetensors", {f"model.layers.0.mlp.up_proj.{name}": torch.ones(2, 32)})
    with pytest.raises(ConfigError, match=rf"up_proj\.{name}, which the model has no place for"):
        load_lm(lm)


@pytest.mark.parametrize(
    ("name", "words"), [("lora_A.weight", "which the model has no place for"), ("weight", r"as whole numbers \(U8\)")]
)
def test_the_same_where_the_names_of_weights_are_those_of_a_model_without_its_head(
    lm: Path, name: str, words: str
) -> None:
    file = lm / "model.safetensors"
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    load_lm(lm)
    change(file, {f"layers.0.mlp.up_proj.{name}": torch.ones(64, 32, dtype=torch.uint8)})
    with pytest.raises(ConfigError, match=rf"up_proj\.{name},? {words}"):
        load_lm(lm)


def test_the_same_of_a_world_model_while_weights_of_parts_it_does_not_have_are_left_out(world: Path) -> None:
    file = world / "transformer" / FILE
    change(file, {"sound_decoder.conv.weight": torch.ones(3)})
    load_world(world)
    change(file, {"transformer_blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 32)})
    with pytest.raises(WorldModelError, match=r"to_q\.lora_A\.weight.*not merged"):
        load_world(world)


def test_quantised_weights_without_scales_are_refused_and_eight_bit_floats_are_read(world: Path, lm: Path) -> None:
    file = world / "transformer" / FILE
    tensors = load_file(file)
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}, file, {"format": "pt"})
    load_world(world)
    save_file({name: tensor.to(torch.int8) for name, tensor in tensors.items()}, file, {"format": "pt"})
    with pytest.raises(WorldModelError, match=r"whole numbers \(I8\): they are quantised"):
        load_world(world)
    name = "model.layers.0.mlp.up_proj.weight"
    change(lm / "model.safetensors", {name: torch.ones(64, 32, dtype=torch.uint8)})
    with pytest.raises(ConfigError, match=rf"{name} as whole numbers \(U8\)"):
        load_lm(lm)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.fp16.safetensors", "model.safetensors"])
def test_weights_of_another_name_are_named_with_that_which_is_looked_for(world: Path, name: str) -> None:
    (world / "transformer" / FILE).rename(world / "transformer" / name)
    with pytest.raises(WorldModelError, match=rf"neither {FILE} nor .* but {name}.*[Rr]ename"):
        load_world(world)
    (world / "transformer" / name).rename(world / "transformer" / FILE)
    load_world(world)


def test_a_download_that_did_not_end_is_told_by_its_files(world: Path, lm: Path) -> None:
    folder = world / "transformer"
    model = CosmosTransformer3DModel.from_pretrained(folder)
    shutil.rmtree(folder)
    model.save_pretrained(folder, max_shard_size="60KB")
    load_world(world)
    *_, last = sorted(folder.glob("*.safetensors"))
    last.unlink()
    with pytest.raises(WorldModelError, match=rf"index\.json names {last.name}, which is not there"):
        load_world(world)
    mini_lm().save_pretrained(lm, max_shard_size="20KB")
    (lm / "model.safetensors").unlink(missing_ok=True)
    (lm / "model.safetensors.index.json").unlink()
    with pytest.raises(ConfigError, match=r"in several files need the index"):
        load_lm(lm)


def test_a_pointer_of_git_lfs_is_called_so(world: Path, lm: Path) -> None:
    (world / "vae" / FILE).write_text(POINTER)
    with pytest.raises(WorldModelError, match=r"Git LFS pointer .*git lfs pull"):
        resolve_world(str(world))
    (lm / "tokenizer.json").write_text(POINTER)
    with pytest.raises(ConfigError, match=r"tokenizer\.json cannot be read: it is a Git LFS pointer"):
        find_weights(str(lm))


def test_files_that_macos_leaves_beside_others_are_not_read(world: Path, lm: Path) -> None:
    for folder, name in ((world / "transformer", FILE), (lm, "model.safetensors"), (lm, "config.json")):
        (folder / f"._{name}").write_bytes(b"\0\5\x16\7" + b"\0" * 90)
    load_world(world)
    load_lm(lm)


def test_a_language_model_that_was_saved_without_its_tokenizer_is_refused(lm: Path) -> None:
    (lm / "tokenizer.json").unlink()
    for read in (load_lm, lambda folder: load_tokenizer_only(find_weights(str(folder)))):
        with pytest.raises(ConfigError, match=r"no tokenizer\.json and no tokenizer\.model"):
            read(lm)


def test_a_language_model_of_damaged_weights_is_refused_for_that(lm: Path) -> None:
    change(lm / "model.safetensors", {"model.norm.weight": torch.full((32,), float("nan"))})
    with pytest.raises(ConfigError, match=r"no numbers in float32: its weights are damaged"):
        load_lm(lm)


def test_an_adapter_in_place_of_a_language_model_and_a_config_without_a_class_say_what_to_do(lm: Path) -> None:
    config = json.loads((lm / "config.json").read_text())
    (lm / "config.json").write_text(json.dumps({**config, "architectures": None}))
    with pytest.raises(ConfigError, match=r"names no class of its model\. Set architectures"):
        load_lm(lm)
    (lm / "config.json").rename(lm / "adapter_config.json")
    with pytest.raises(ConfigError, match=r"an adapter of peft .*merge_and_unload"):
        find_weights(str(lm))


def test_a_world_model_in_one_file_or_an_adapter_of_one_says_how_to_make_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "one" / "wan2.1_i2v_480p_14B_fp8.safetensors"
    file.parent.mkdir()
    save_file({"a": torch.ones(1)}, file)
    with pytest.raises(WorldModelError, match=r"is a file, .*from_single_file"):
        resolve_world(str(file))
    with pytest.raises(WorldModelError, match=r"only wan2\.1_i2v_480p_14B_fp8\.safetensors\. .*from_single_file"):
        resolve_world(str(file.parent))
    file.rename(file.with_name("pytorch_lora_weights.safetensors"))
    with pytest.raises(WorldModelError, match=r"only an adapter .*fuse_lora"):
        resolve_world(str(file.parent))
