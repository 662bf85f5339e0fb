"""What `theworld doctor` says of a device's memory is what the commands plan with."""

import json

import pytest
from typer.testing import CliRunner

from theworld.pipeline.accelerators import find_accelerator
from theworld.pipeline.cli.doctor.memory import what_fits
from theworld.pipeline.cli.main import app
from theworld.pipeline.device_memory import memory_of_size
from theworld.pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("RTX 4090", ["the 2B at 480p fits with batches of 2", "28.4 GiB, with --offload 3", "Gemma-2-2b trains with"]),
        ("A40 48GB", ["the 14B at 480p fits with batches of 2", "Gemma-2-2b trains"]),
        ("H100 80GB", ["the 2B at 224x224 fits with batches of 16", "Wan 2.1 at 480p fits with batches of 2"]),
    ],
)
def test_what_fits_is_said_by_the_estimates_of_the_commands(device: str, words: list[str]) -> None:
    line = what_fits(memory_of_size(find_accelerator(device).memory_gb * 1e9))
    for part in words:
        assert part in line


def test_the_doctor_says_it_of_a_device_that_is_only_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = CliRunner().invoke(app, ["doctor", "--device", "l40s", "--json"])
    [row] = [row for row in json.loads(done.stdout) if row["what"] == "fits L40S 48GB"]
    assert "the 2B at 480p fits with batches of 2" in row["found"]


def test_a_device_that_nobody_knows_is_an_error_that_names_those_that_are_known() -> None:
    done = CliRunner().invoke(app, ["doctor", "--device", "H101"])
    assert isinstance(done.exception, ConfigError)
    assert "Known, for a plan, are: H100 80GB" in str(done.exception)
