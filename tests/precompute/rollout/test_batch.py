"""The facts of the machine that a shard records."""

import platform

import pytest

from theworld.precompute.rollout.batch import machine_facts


@pytest.mark.parametrize(("processor", "device"), [("", "cpu"), ("x86_64", "cpu x86_64")])
def test_a_processor_without_a_name_leaves_the_device_alone(
    monkeypatch: pytest.MonkeyPatch, processor: str, device: str
) -> None:
    monkeypatch.setattr(platform, "processor", lambda: processor)
    assert machine_facts("cpu")["device"] == device
