"""The files for `accelerate launch` say what accelerate understands, and listen on this machine alone."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from transformers import Gemma2ForCausalLM

FILES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_accelerate_reads_it(file: Path) -> None:
    config = load_config_from_file(str(file))
    assert config.main_process_ip == "127.0.0.1"
    assert config.distributed_type in ("MULTI_GPU", "FSDP")
    assert config.mixed_precision == "no"
    text = file.read_text()
    assert f"--config_file configs/{file.name} -m theworld.pipeline.cli train" in text
    assert "Cost:" in text
    assert "Safety:" in text


def test_fsdp_splits_the_layers_that_there_are() -> None:
    [file] = [file for file in FILES if file.name == "fsdp.yaml"]
    plan = load_config_from_file(str(file)).fsdp_config
    assert plan["fsdp_transformer_layer_cls_to_wrap"] in Gemma2ForCausalLM._no_split_modules
    assert plan["fsdp_version"] == 2
