"""A run folder is a stranger's: it is loaded from its own files alone, or refused."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from theworld.pipeline.errors import ConfigError, RunError
from theworld.train.runs.folder import load_run
from theworld.train.training.train import train

from ...miniatures.training import lay_out, settings


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = lay_out(tmp_path_factory.mktemp("run"), images=6)
    return train(settings(folder, train_steps=1)).run


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy called `runs/1`, as a Hub id might be, in the working folder; no connection can be made."""

    def connect(*address: object) -> None:
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, Path("runs") / "1"))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_what_is_loaded_is_what_was_saved(run: Path) -> None:
    loaded = load_run(run, device="cpu")
    saved = load_file(run / "adapter_model.safetensors")
    adapters = {n: p for n, p in loaded.lm.model.named_parameters() if ".lora_" in n}
    assert len(adapters) == len(saved) > 0
    for name, parameter in adapters.items():
        torch.testing.assert_close(parameter.data, saved[name.replace(".default", "")], rtol=0, atol=0)
    base = [p for name, p in loaded.lm.model.named_parameters() if ".lora_" not in name]
    assert not any(parameter.requires_grad for parameter in base)
    assert not loaded.model.training


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "world_reader.safetensors"])
def test_a_run_that_lacks_a_file_is_refused_and_not_completed_from_the_hub(run: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(RunError, match=rf"runs/1 cannot be loaded.*{name}"):
        load_run(run, device="cpu")


@pytest.mark.parametrize(
    "settings",
    [
        {"megatron_config": {"a": 1}, "megatron_core": "stranger.module"},
        {"megatron_core": "stranger.module"},
        {"layer_replication": [[0, 2], [0, 2]]},
        {"auto_mapping": {"base_model_class": "X", "parent_library": "stranger.module"}},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}},
        {"use_dora": True},
        {"use_rslora": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"target_parameters": ["(a+)+$"]},
        {"layers_pattern": "(a+)+$"},
        {"alpha_pattern": {"(a+)+$": 4}},
        {"peft_type": "PROMPT_TUNING"},
        {"tokenizer_kwargs": {"trust_remote_code": True}},
        {"trainable_token_indices": [1]},
        {"r": 10**8},
        {"r": 3},
        {"r": -1},
        {"r": "2"},
        {"lora_alpha": float("inf")},
        {"lora_dropout": 2},
    ],
)
def test_an_adapter_s_config_can_set_rank_alpha_and_dropout_alone(run: Path, settings: dict[str, Any]) -> None:
    Path("stranger").mkdir()
    Path("stranger/module.py").write_text("open('RAN', 'w').close()\n")
    sys.path.insert(0, str(Path.cwd()))
    try:
        edit(run / "adapter_config.json", **settings)
        with pytest.raises(RunError, match=r"adapter_config\.json"):
            load_run(run, device="cpu")
    finally:
        sys.path.remove(str(Path.cwd()))
    assert not Path("RAN").exists()


def test_target_modules_are_no_pattern_and_change_nothing(run: Path) -> None:
    """Regular expressions of a stranger would be matched against every name."""
    edit(run / "adapter_config.json", target_modules="(a+)+$", base_model_name_or_path="stranger/model", revision="x")
    load_run(run, device="cpu")


@pytest.mark.parametrize("content", ["[]", "", "null", "[" * 200_000, '{"r": {}}'])
@pytest.mark.parametrize("name", ["adapter_config.json", "theworld.json"])
def test_a_text_that_is_none_is_an_error_in_words(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content)
    with pytest.raises(RunError, match=name):
        load_run(run, device="cpu")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "world_reader.safetensors"])
def test_weights_of_other_names_or_sizes_are_refused(run: Path, name: str) -> None:
    tensors = load_file(run / name)
    first = sorted(tensors)[0]
    for wrong in (
        {**tensors, "another": torch.zeros(1)},
        {key: value for key, value in tensors.items() if key != first},
        {**tensors, first: torch.zeros(2, 3, 4)},
    ):
        save_file(wrong, run / name)
        with pytest.raises(RunError, match="cannot be loaded"):
            load_run(run, device="cpu")


@pytest.mark.parametrize(
    "sizes",
    [
        {"max_world_steps": 10**9},
        {"max_world_steps": 60_000},
        {"queries": 10**9},
        {"layout": "resampler", "queries": 2**19},
        {"hidden_size": 2**19},
        {"latent_shape": [16, 10**6, 10**6]},
        {"latent_shape": [16, 0, 4]},
        {"patch": 0},
        {"num_world_steps": 10**9},
        {"frames": [10**9]},
    ],
)
def test_sizes_are_not_believed_before_they_are_compared(run: Path, sizes: dict[str, Any]) -> None:
    meta = json.loads((run / "theworld.json").read_text())
    edit(run / "theworld.json", reader={**meta["reader"], **sizes})
    with pytest.raises((RunError, ConfigError)):
        load_run(run, device="cpu")


@pytest.mark.parametrize("source", ["x" * 100_000, "~nosuchuser/x", "a\0b", "../../../../etc", "/dev/zero", ""])
def test_a_language_model_that_is_nowhere_is_an_error_in_words(run: Path, source: str) -> None:
    meta = json.loads((run / "theworld.json").read_text())
    edit(run / "theworld.json", lm={**meta["lm"], "source": source})
    with pytest.raises(ConfigError, match=r"--lm|language model"):
        load_run(run, device="cpu")


def test_a_dtype_that_is_none_is_an_error_in_words(run: Path) -> None:
    meta = json.loads((run / "theworld.json").read_text())
    edit(run / "theworld.json", config={**meta["config"], "dtype": ["float32"]})
    with pytest.raises(RunError, match="dtype"):
        load_run(run, device="cpu")


@pytest.mark.parametrize("name", ["theworld.json", "adapter_config.json", "adapter_model.safetensors"])
def test_a_pipe_or_a_link_out_of_the_folder_is_refused_at_once(run: Path, name: str) -> None:
    (run / name).rename(Path(name))
    (run / name).symlink_to(Path(name).resolve())
    if name != "theworld.json":  # whose place is read for what it says of itself
        with pytest.raises(RunError, match="link out of its folder"):
            load_run(run, device="cpu")
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(RunError, match="regular file"):
        load_run(run, device="cpu")
