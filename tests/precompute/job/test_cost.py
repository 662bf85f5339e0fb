"""The arithmetic of a plan against figures that were checked otherwise, and the time against what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.miniatures.world_model import TEXT_WIDTH, mini_transformer, mini_vae, save_mini_world
from tests.patience import ends_within
from theworld.pipeline.latents.recipe import Recipe
from theworld.precompute.job.cost import duration, encode_flops, estimate, flops_per_input, forward_flops
from theworld.precompute.job.throughput import ThroughputLog
from theworld.precompute.worlds.cosmos_forward import LeanTransformer
from theworld.precompute.worlds.source import resolve_world

COSMOS_2B = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 16,
    "attention_head_dim": 128,
    "num_layers": 28,
    "adaln_lora_dim": 256,
    "text_embed_dim": 1024,
    "mlp_ratio": 4.0,
    "in_channels": 17,
    "out_channels": 16,
    "concat_padding_mask": True,
}
WAN_VAE = {
    "base_dim": 96,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "z_dim": 16,
    "temperal_downsample": [False, True, True],
}


@pytest.mark.parametrize(
    ("height", "width", "frames", "text", "tflop"),
    [
        (224, 224, 5, 0, 2.98),
        (224, 224, 9, 0, 5.69),
        (224, 224, 9, 512, 6.85),
        (432, 768, 9, 0, 64.1),
        (704, 1280, 24, 0, 1875),
    ],
)
def test_a_lean_forward_of_cosmos_2b_costs_what_torch_counted(
    height: int, width: int, frames: int, text: int, tflop: float
) -> None:
    # torch's FlopCounter on the meta device: 5.704 TFLOP at 224x224, T = 9, without text; the whole forward 7.143
    assert forward_flops(COSMOS_2B, frames, height // 8, width // 8, text) / 1e12 == pytest.approx(tflop, rel=0.005)


def test_the_14b_costs_seven_times_as_much() -> None:
    large = COSMOS_2B | {"num_attention_heads": 40, "num_layers": 36}
    for frames in (5, 9):
        small_flops, large_flops = (forward_flops(config, frames, 28, 28, 0) for config in (COSMOS_2B, large))
        assert large_flops / small_flops == pytest.approx(7.5, rel=0.03)


def test_an_encoding_with_the_real_vae_costs_what_was_counted() -> None:
    assert encode_flops(WAN_VAE, 224, 224, 1) / 1e12 == pytest.approx(0.335, rel=0.01)
    assert encode_flops(WAN_VAE, 224, 224, 17) / 1e12 == pytest.approx(4.36, rel=0.01)


@pytest.mark.parametrize(("frames", "text_tokens"), [(1, 7), (9, 7), (9, 0)])
def test_the_formulas_agree_with_torch_on_the_real_classes(frames: int, text_tokens: int) -> None:
    vae, transformer = mini_vae(), mini_transformer()
    with torch.inference_mode(), FlopCounterMode(display=False) as counted:
        vae.encode(torch.zeros(1, 3, frames, 48, 32))
    assert encode_flops(dict(vae.config), 48, 32, frames) == pytest.approx(counted.get_total_flops(), rel=0.02)
    # on the meta device, where attention is counted too; in float32 few rows are repeated
    half = torch.bfloat16
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counted:
        LeanTransformer(transformer.to("meta", half))(
            torch.zeros(1, 16, frames, 8, 12, dtype=half),
            torch.zeros(1, 1, frames, 1, 1, dtype=half),
            torch.zeros(1, text_tokens, TEXT_WIDTH, dtype=half) if text_tokens else None,
            mask=torch.zeros(1, 1, frames, 8, 12, dtype=half),
        )
    formula = forward_flops(dict(transformer.config), frames, 8, 12, text_tokens)
    assert formula == pytest.approx(counted.get_total_flops(), rel=0.02)


def test_time_comes_from_arithmetic_first_and_from_the_machine_once_it_has_run(tmp_path: Path) -> None:
    world, throughput = resolve_world(None), ThroughputLog(tmp_path / "machines.json")
    recipe = Recipe(world=world.identity, height=64, width=64)
    known = {"throughput": throughput, "device": "AMD, 2 threads", "workers": 2}
    before = estimate(world, recipe, (16, 9, 8, 8), 1000, **known)  # type: ignore[arg-type]
    assert before.tokens == 576
    assert before.to_json()["tokens"] == {"spatial": 576, "patch": 144}
    assert before.to_json()["estimate_from"] == "arithmetic"
    assert before.seconds is not None
    assert "more than" in before.lines("image")[1]
    throughput.note_rate(recipe, "AMD, 2 threads", 100, worker_s=50.0)
    after = estimate(world, recipe, (16, 9, 8, 8), 1000, **known)  # type: ignore[arg-type]
    assert (after.rate, after.seconds) == (4.0, 250.0)
    assert "about 4 min: 4 images/s measured on AMD, 2 threads, 2 workers" in after.lines("image")[1]
    elsewhere = estimate(world, recipe, (16, 9, 8, 8), 1000, throughput=throughput, device="NVIDIA X1", workers=1)
    assert elsewhere.seconds is None


def test_durations_are_said_as_people_say_them() -> None:
    said = [duration(seconds) for seconds in (0.2, 40, 119, 600, 9000, 200000)]
    assert said == ["1 s", "40 s", "119 s", "10 min", "2.5 h", "2.3 days"]


@pytest.mark.parametrize(
    "change", [{"dim_mult": "abcd"}, {"num_res_blocks": 10**9}, {"base_dim": None}, {"temperal_downsample": []}]
)
def test_a_config_that_describes_no_autoencoder_has_no_estimate(tmp_path: Path, change: dict[str, object]) -> None:
    source = resolve_world(str(save_mini_world(tmp_path / "world")))
    config = tmp_path / "world" / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    recipe = Recipe(world=source.identity, height=32, width=32, rollout_steps=2)
    with ends_within(10):
        assert flops_per_input(source, recipe, (16, 3, 4, 4)) is None
