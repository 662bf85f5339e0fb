"""A model's folder is a stranger's: what it names is not run, not downloaded, not read from elsewhere, not believed."""

from __future__ import annotations

import ast
import base64
import io
import json
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from theworld.pipeline.errors import ConfigError, WorldModelError
from theworld.pipeline.files import plain
from theworld.pipeline.files.hub import tokenizer_json
from theworld.pipeline.files.hub.pretrained import require_plain, tensor_shapes
from theworld.pipeline.files.hub.tokenizer_json import check_tokenizer_json
from theworld.pipeline.latents.recipe import Recipe
from theworld.precompute.worlds.prompts import embed_prompts
from theworld.precompute.worlds.source import resolve_world
from theworld.precompute.worlds.wan.vae import load_autoencoder
from theworld.precompute.worlds.wan.wan21 import Wan21World
from theworld.train.language.lm import load_language_model, load_tokenizer_only
from theworld.train.language.weights import find_weights

from ....miniatures.lm import save_mini_lm
from ....miniatures.world_model import add_text_encoder, save_mini_wan, save_mini_world

SOURCE = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever asks for a connection fails, and says so."""

    def connect(*address: object) -> None:
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def load(folder: Path) -> Any:
    return load_language_model(find_weights(str(folder)), device=torch.device("cpu"), dtype=torch.float32)


def edit(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def code_that_leaves(mark: Path) -> str:
    classes = "PreTrainedTokenizerFast as T, Gemma2ForCausalLM as M"
    return f"open({str(mark)!r}, 'w').close()\nfrom transformers import {classes}\n"


@pytest.mark.parametrize("asked", ["y", ""])
@pytest.mark.parametrize("part", ["tokenizer", "text_encoder"])
def test_code_in_a_text_encoder_s_folder_does_not_run_whatever_stands_on_stdin(
    tmp_path: Path, part: str, asked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: asked)
    world, mark = add_text_encoder(save_mini_world(tmp_path / "world")), tmp_path / "RAN"
    (world / part / "code.py").write_text(code_that_leaves(mark))
    if part == "tokenizer":
        config = world / part / "tokenizer_config.json"
        edit(config, tokenizer_class="T", auto_map={"AutoTokenizer": ["code.T", "code.T"]})
    else:
        edit(world / part / "config.json", auto_map={"AutoModel": "code.M"})
    family = resolve_world(str(world), with_text=True).family
    recipe = Recipe(world="sha256:" + "0" * 64, height=32, width=32, rollout_steps=1, prompt="ball")
    with pytest.raises(WorldModelError, match=r"auto_map|the tokenizer 'T'"):
        embed_prompts(world, recipe, family.text)
    assert not mark.exists()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("file", "settings", "reason"),
    [
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "code.M"}}, "auto_map"),
        ("config.json", {"text_config": {"deep": [{"auto_map": {"AutoModel": "code.M"}}]}}, "auto_map"),
        ("config.json", {"attn_implementation": "stranger/kernel"}, "downloaded"),
        ("config.json", {"_attn_implementation": "stranger/kernel:fn"}, "downloaded"),
        ("config.json", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ("generation_config.json", {"custom_generate": "stranger/generate"}, "custom_generate"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["code.T", None]}}, "auto_map"),
        ("tokenizer_config.json", {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer"}, "Wav2Vec2Phoneme"),
        ("config.json", {"num_hidden_layers": 200_000}, "num_hidden_layers = 200000"),
        ("config.json", {"vocab_size": 10**12}, "vocab_size"),
        ("config.json", {"vocab_size": 10**8}, "its config describes 3,200,"),
        ("config.json", {"intermediate_size": 10**7}, "its config describes"),
        ("config.json", {"layer_types": ["full_attention"] * 5000}, "a list of 5,000"),
        ("config.json", {"hidden_size": "x"}, "hidden_size"),
        ("config.json", {"architectures": ["Gemma2ForCausalLM"], "head_dim": -1}, "cannot be loaded"),
    ],
)
def test_a_config_that_names_code_or_sizes_the_weights_do_not_have_is_refused(
    tmp_path: Path, file: str, settings: dict[str, Any], reason: str
) -> None:
    folder = save_mini_lm(tmp_path / "lm")
    mark = tmp_path / "RAN"
    (folder / "code.py").write_text(code_that_leaves(mark))
    edit(folder / file, **settings)
    with pytest.raises(ConfigError, match=reason):
        load(folder)
    assert not mark.exists()


TITLE = "\x1b]0;OWNED\x07"


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": f"gemma2{TITLE}"},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": TITLE}},
    ],
)
def test_warnings_of_the_libraries_show_what_a_config_says_as_text(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "level", logging.WARNING)  # whatever other tests have set
    logger.manager._clear_cache()  # type: ignore[attr-defined]
    logging.Logger.warning_once.cache_clear()  # each text is said once a process
    handlers = logger.handlers
    own = next(handler for handler in handlers if type(handler) is logging.StreamHandler)
    monkeypatch.setattr(own, "stream", stderr := io.StringIO())
    folder = save_mini_lm(tmp_path / "lm")
    edit(folder / "config.json", **settings)
    with suppress(ConfigError):
        load(folder)
    told = stderr.getvalue()
    assert "OWNED" in told
    assert "\x1b" not in told


REPLACE = {"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 30}


def around(pieces: int, ids: int) -> dict[str, Any]:
    """A step that puts pieces of so many tokens before each text."""
    piece = {"SpecialToken": {"id": "x", "type_id": 0}}
    tokens = {"x": {"id": "x", "ids": [0] * ids, "tokens": ["x"] * ids}}
    return {"type": "TemplateProcessing", "single": [piece] * pieces, "pair": [], "special_tokens": tokens}


TABLE = base64.b64encode(b"\0\0\0\0" + b"x" * 1000 + b"\0").decode()


def test_a_tokenizer_file_is_looked_through_once_and_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text('{"normalizer": {"type": "Lowercase"}}')
    read: list[Path] = []

    def read_json(path: Path, limit: int) -> Any:
        read.append(path)
        return plain.read_json(path, limit)

    monkeypatch.setattr(tokenizer_json, "read_json", read_json)
    for _ in range(3):
        check_tokenizer_json(file)
    assert len(read) == 1
    growing = {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 5000}
    file.write_text(json.dumps({"normalizer": growing}))
    for _ in range(2):
        with pytest.raises(ValueError, match="may make a text 5,001 times as long"):
            check_tokenizer_json(file)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 6}}, "961 times as long"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 40}}, "512 times as long"),
        ({"decoder": {"type": "Sequence", "decoders": [REPLACE] * 6}}, "961 times as long"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": TABLE}}, "1,000 times as long"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "precompiled_charsmap is damaged"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "//8AAP////8="}}, "precompiled_charsmap"),
        ({"post_processor": {"type": "Sequence", "processors": [around(100, 100)]}}, "adds 10,000 tokens to each text"),
        ({"added_tokens": [{"id": 0, "content": "x" * 70_000}]}, "a token of 70,000 letters"),
        ({"model": {"type": "Unigram", "vocab": [["x" * 70_000, 0.0]]}}, "a token of 70,000 letters"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<nothing>"}}, "cannot read a text"),
        ({"model": {"type": "WordLevel", "vocab": {"ball": 4 * 10**9, "<unk>": 3}, "unk_token": "<unk>"}}, "another"),
    ],
)
def test_a_tokenizer_that_lengthens_texts_fails_on_them_or_has_foreign_tokens_is_an_error_in_words(
    tmp_path: Path, part: dict[str, Any], reason: str
) -> None:
    folder = save_mini_lm(tmp_path / "lm")
    edit(folder / "tokenizer.json", **part)
    with pytest.raises(ConfigError, match=reason):
        load(folder).prompt_ids("where is the ball?")


@pytest.mark.parametrize(
    ("file", "settings", "reason"),
    [
        ("transformer/config.json", {"rope_max_seq_len": 10**8}, "tables of 2,400,000,000 numbers"),
        ("vae/config.json", {"dim_mult": [1] * 900, "num_res_blocks": 900}, "more than 16,384 layers"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**10}, "num_train_timesteps = 10000000000"),
        ("image_processor/preprocessor_config.json", {"size": {"shortest_edge": 10**6}}, "shortest_edge = 1000000"),
    ],
)
def test_what_a_world_model_computes_by_itself_is_compared_before_it_is_allocated(
    tmp_path: Path, file: str, settings: dict[str, Any], reason: str
) -> None:
    world = save_mini_wan(tmp_path / "world")
    edit(world / file, **settings)
    with pytest.raises(WorldModelError, match=reason):
        Wan21World.load(world)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["[" * 200_000, "[]", "\0", '"text"', '{"tokenizer_class": 1, "model_type": 1}'])
def test_a_file_that_is_no_config_is_an_error_in_words(tmp_path: Path, name: str, content: str) -> None:
    folder = save_mini_lm(tmp_path / "lm")
    (folder / name).write_text(content)
    with pytest.raises(ConfigError, match=r"cannot|names no|names no class|names the tokenizer"):
        load(folder)


def test_only_the_files_of_the_list_are_read_and_only_from_the_folder(tmp_path: Path) -> None:
    folder = save_mini_lm(tmp_path / "lm")
    expected = load(folder).prompt_ids("where is the ball")

    runs_a_command = f"cos\nsystem\n(S'touch {tmp_path / 'RAN'}'\ntR.".encode()  # a pickle
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "stranger/x"}')
    for name in ("adapter_model.bin", "pytorch_model.bin", "training_args.bin"):
        (folder / name).write_bytes(runs_a_command)
    other = tmp_path / "tokenizer.json"
    other.write_text("{}")
    edit(folder / "tokenizer_config.json", tokenizer_file=str(other), vocab_file="/etc/passwd", name_or_path="a/b")
    assert load(folder).prompt_ids("where is the ball") == expected
    assert not (tmp_path / "RAN").exists()


def test_weights_named_outside_of_the_folder_are_not_read(tmp_path: Path) -> None:
    folder = save_mini_lm(tmp_path / "lm")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": {"model.embed_tokens.weight": "../../etc/passwd"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"\.\./\.\./etc/passwd.*no file of this folder"):
        load(folder)


def test_weights_that_are_not_whole_are_refused_and_not_filled_with_random_numbers(tmp_path: Path) -> None:
    folder = save_mini_lm(tmp_path / "lm")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors["model.layers.1.mlp.other.weight"] = tensors.pop(name)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lack model\.layers\.1\.mlp\.up_proj"):
        load(folder)


def test_a_pipe_a_device_or_a_link_out_of_the_folder_is_refused_at_once(tmp_path: Path) -> None:
    for number, place in enumerate(("config.json", "model.safetensors", "tokenizer.json")):
        folder = save_mini_lm(tmp_path / f"pipe{number}")
        (folder / place).unlink()
        os.mkfifo(folder / place)
        with pytest.raises(ConfigError, match=r"not a regular file|no config\.json"):
            load(folder)
        folder = save_mini_lm(tmp_path / f"link{number}")
        (folder / place).replace(tmp_path / f"{number}-{place}")
        (folder / place).symlink_to(tmp_path / f"{number}-{place}")
        with pytest.raises(ConfigError, match="link out of its folder"):
            load(folder)
    world = save_mini_world(tmp_path / "world")
    (world / "vae" / "config.json").unlink()
    (world / "vae" / "config.json").symlink_to("/dev/zero")
    with pytest.raises(WorldModelError):
        resolve_world(str(world))
    with pytest.raises(WorldModelError):
        load_autoencoder(world, device="cpu")


def test_a_snapshot_of_the_hub_s_cache_whose_files_are_links_to_its_blobs_is_read(tmp_path: Path) -> None:
    original = save_mini_lm(tmp_path / "lm")
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / ("0" * 40), tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(original.iterdir()):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    lm = load(snapshot)
    assert lm.model.name_or_path == str(snapshot), "not the name of a temporary folder"
    assert load_tokenizer_only(find_weights(str(snapshot))).prompt_ids("ball") == lm.prompt_ids("ball")


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"\x40" + b"\0" * 7 + b"{"])
def test_a_header_that_is_none_is_an_error_and_allocates_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        tensor_shapes(require_plain(tmp_path, tmp_path / "x.safetensors", 2**20))


LOADERS = {"from_pretrained", "from_config", "from_single_file"}
CODE = {"import_module", "__import__", "exec", "eval", "run_path", "run_module"}
FIXED_NAMES = {"pipeline/theworld/__init__.py", "train/training/trackers.py"}
"""Files that import modules by names of our own, never by one from a file."""


def test_every_loader_is_called_in_one_place_and_nothing_loads_code_by_name() -> None:
    seen: set[str] = set()
    for room in ("pipeline", "precompute", "train"):
        for file in sorted((SOURCE / room).rglob("*.py")):
            where = str(file.relative_to(SOURCE))
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                    assert not {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"} & set(names), where
                if not isinstance(node, ast.Call):
                    continue
                name = ast.unparse(node.func)
                last = name.rpartition(".")[2]
                place = f"{where}:{node.lineno} {name}"
                if last in LOADERS:
                    seen.add(where)
                if last in CODE and not name.endswith(".eval"):
                    assert where in FIXED_NAMES, place
                if name in ("torch.load", "np.load", "numpy.load"):
                    arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                    assert arguments.get("allow_pickle") == "False", place
                for keyword in node.keywords:
                    assert (keyword.arg, ast.unparse(keyword.value)) != ("trust_remote_code", "True"), place
    # these samplers make a fresh scheduler from the config of one that was loaded
    engines = ("wan/engine", "cosmos/predict25", "cosmos/cosmos3", "anyflow/engine")
    samplers = {f"precompute/worlds/{name}.py" for name in engines}
    assert seen == {"pipeline/files/hub/pretrained.py", *samplers}


def test_a_header_cannot_state_more_numbers_than_its_file_has_room_for(tmp_path: Path) -> None:
    world = save_mini_wan(tmp_path / "world")
    edit(world / "transformer" / "config.json", rope_max_seq_len=10**8)
    header = json.dumps({"x": {"dtype": "F32", "shape": [10**4000], "data_offsets": [0, 4]}}).encode()
    lie = world / "transformer" / "diffusion_pytorch_model.safetensors"
    lie.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(WorldModelError, match=r"its config describes .* and its weights hold [0-9,]{3,7}$"):
        Wan21World.load(world)
