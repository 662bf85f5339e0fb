"""A device is found by what its driver calls it and by what people do; one that nobody knows is one clear error."""

from __future__ import annotations

import pytest

from theworld.pipeline.accelerators import ACCELERATORS, find_accelerator, known_accelerator
from theworld.pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 80GB"), ("h100", "H100 80GB"), ("H100-80G", "H100 80GB"),
        ("NVIDIA H100 PCIe", "H100 PCIe 80GB"), ("NVIDIA H100 NVL", "H100 NVL 94GB"), ("NVIDIA H200", "H200 141GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"), ("NVIDIA A100-PCIE-40GB", "A100 40GB"), ("NVIDIA L4", "L4 24GB"),
        ("NVIDIA L40", "L40 48GB"), ("NVIDIA L40S", "L40S 48GB"), ("NVIDIA RTX A6000", "RTX A6000 48GB"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada 48GB"), ("NVIDIA GeForce RTX 4090", "RTX 4090 24GB"),
        ("4090", "RTX 4090 24GB"), ("NVIDIA B200", "B200 180GB"), ("AMD Instinct MI300X OAM", "MI300X 192GB"),
    ],
)  # fmt: skip
def test_a_name_of_a_driver_or_of_people_finds_its_device(name: str, found: str) -> None:
    assert find_accelerator(name).name == found


@pytest.mark.parametrize("name", ["", "80GB", "rtx", "gpu", "H1000", "H100 40GB", "L400", "Tesla V100-SXM2-16GB"])
def test_other_names_find_none(name: str) -> None:
    assert known_accelerator(name) is None
    with pytest.raises(ConfigError, match=r"no device is known by the name .*H100 80GB, .*RTX 4090 24GB"):
        find_accelerator(name)


def test_each_device_is_found_by_its_own_name_and_says_where_its_figures_are_from() -> None:
    for accelerator in ACCELERATORS:
        assert find_accelerator(accelerator.name) is accelerator
        assert accelerator.source.startswith("https://")
        assert f" {accelerator.memory_gb:g}GB" in accelerator.name
