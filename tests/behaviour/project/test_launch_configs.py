"""The files for `accelerate launch` say what accelerate understands, and listen on this machine alone.

The script for torchrun on SLURM is tried in tests/faults/test_slurm_train.py; here it says what is missing.
"""

import subprocess
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from transformers import Gemma2ForCausalLM

from tests.patience import patience

CONFIGS = Path(__file__).parents[3] / "configs"
FILES = [CONFIGS / name for name in ("ddp.yaml", "fsdp.yaml")]


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


@pytest.mark.parametrize(
    ("words", "job", "answer"),
    [
        ([], "", "run this with sbatch"),
        ([], "1", "name the run's folder first"),
        (["--questions", "q.jsonl"], "1", "name the run's folder first"),
        (["runs/1"], "1", "runs/1 exists: it is complete"),
    ],
)
def test_the_script_for_slurm_refuses_what_cannot_be_trained(
    tmp_path: Path, words: list[str], job: str, answer: str
) -> None:
    (tmp_path / "torchrun").touch(0o755)
    (tmp_path / "runs" / "1").mkdir(parents=True)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", **({"SLURM_JOB_ID": job} if job else {})}
    command = ["bash", CONFIGS / "slurm_train.sh", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=patience(30))
    assert done.returncode != 0
    assert answer in done.stderr
