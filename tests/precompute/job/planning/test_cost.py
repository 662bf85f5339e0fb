"""The arithmetic of a plan against figures that were checked otherwise, and the time against what was measured."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.real_sizes import COSMOS_2B, WAN_VAE
from tests.miniatures.world_model import TEXT_WIDTH, mini_transformer, mini_vae, mini_vae22, save_mini_world
from tests.patience import ends_within
from theworld.pipeline.accelerators import find_accelerator
from theworld.pipeline.latents.recipe import Recipe
from theworld.precompute.job.planning import cost
from theworld.precompute.job.planning.cost import Target, duration, estimate, operations_of
from theworld.precompute.job.planning.throughput import ThroughputLog
from theworld.precompute.job.price import Price, parse_price
from theworld.precompute.worlds.arithmetic import cosmos_forward_flops, wan_encode_flops
from theworld.precompute.worlds.cosmos.forward import LeanTransformer
from theworld.precompute.worlds.source import WorldSource, resolve_world

PAGE = Path(__file__).parents[4] / "docs" / "worlds.md"


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
    counted = cosmos_forward_flops(COSMOS_2B, frames, height // 8, width // 8, text)
    assert counted / 1e12 == pytest.approx(tflop, rel=0.005)


def test_the_14b_costs_seven_times_as_much() -> None:
    large = COSMOS_2B | {"num_attention_heads": 40, "num_layers": 36}
    for frames in (5, 9):
        small_flops, large_flops = (cosmos_forward_flops(config, frames, 28, 28, 0) for config in (COSMOS_2B, large))
        assert large_flops / small_flops == pytest.approx(7.5, rel=0.03)


def test_an_encoding_with_the_real_vae_costs_what_was_counted() -> None:
    assert wan_encode_flops(WAN_VAE, 224, 224, 1) / 1e12 == pytest.approx(0.335, rel=0.01)
    assert wan_encode_flops(WAN_VAE, 224, 224, 17) / 1e12 == pytest.approx(4.36, rel=0.01)


def test_the_table_of_the_page_is_what_a_plan_counts() -> None:
    rows = [row.strip("| ").split(" | ") for row in PAGE.read_text().splitlines() if re.match(r"\| \d+x\d+, \d+ ", row)]
    assert len(rows) == 6
    for size, frames, tokens, forward, encoding, seconds, _ in rows:
        height, width, steps = map(int, re.findall(r"\d+", size))
        cells = height // 8, width // 8
        operations = cosmos_forward_flops(COSMOS_2B, 1 + steps, *cells, 0), wan_encode_flops(WAN_VAE, height, width, 1)
        assert (int(frames), figure(tokens)) == (1 + steps, (1 + steps) * cells[0] * cells[1])
        assert figure(forward) == pytest.approx(operations[0] / 1e12, rel=0.02)
        assert figure(encoding) == pytest.approx(operations[1] / 1e12, abs=0.05)
        bound_s = 9 * operations[0] / 790e12 + operations[1] / 67e12
        assert figure(seconds) == pytest.approx(bound_s, rel=0.15)


def figure(text: str) -> float:
    return float(text.replace(",", ""))


@pytest.mark.parametrize(("frames", "text_tokens"), [(1, 7), (9, 7), (9, 0), (9, 1)])
def test_the_formulas_agree_with_torch_on_the_real_classes(frames: int, text_tokens: int) -> None:
    transformer = mini_transformer()
    for vae in (mini_vae(), mini_vae22()):
        with torch.inference_mode(), FlopCounterMode(display=False) as counted:
            vae.encode(torch.zeros(1, 3, frames, 64, 32))
        assert wan_encode_flops(dict(vae.config), 64, 32, frames) == pytest.approx(counted.get_total_flops(), rel=0.02)
    # on the meta device, where attention is counted too; in float32 few rows are repeated
    half = torch.bfloat16
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counted:
        LeanTransformer(transformer.to("meta", half))(
            torch.zeros(1, 16, frames, 8, 12, dtype=half),
            torch.zeros(1, 1, frames, 1, 1, dtype=half),
            torch.zeros(1, text_tokens, TEXT_WIDTH, dtype=half) if text_tokens else None,
            mask=torch.zeros(1, 1, frames, 8, 12, dtype=half),
        )
    formula = cosmos_forward_flops(dict(transformer.config), frames, 8, 12, text_tokens)
    assert formula == pytest.approx(counted.get_total_flops(), rel=0.02)


RECIPE = Recipe(world="sha256:" + "0" * 64, height=64, width=64)
LAPTOP = Target(2, device="cpu", device_name="AMD, 2 threads", threads=2)
H100S = Target(64, accelerator=find_accelerator("H100 80GB"))


@pytest.fixture
def log(tmp_path: Path) -> ThroughputLog:
    return ThroughputLog(tmp_path / "machines.json")


@pytest.fixture(autouse=True)
def speeds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What this device is said to reach."""
    speeds = {"bfloat16": 200e9, "float32": 100e9}
    monkeypatch.setattr(cost, "matmul_speeds", lambda _: speeds)
    return speeds


def test_time_comes_from_the_speed_of_the_device_and_once_it_has_run_from_that(
    log: ThroughputLog, speeds: dict[str, float]
) -> None:
    world = resolve_world(None)
    recipe = RECIPE.model_copy(update={"world": world.identity})
    before = estimate(world, recipe, (16, 9, 8, 8), 1000, log, LAPTOP)
    assert before.tokens == 576
    assert before.to_json()["tokens"] == {"spatial": 576, "patch": 36}
    assert before.to_json()["estimate_from"] == "arithmetic"
    assert before.operations is not None
    # two workers of two threads each, at half of what one thread reached
    assert before.seconds == pytest.approx(1000 * before.operations.total / (speeds["float32"] * 0.5 * 2 * 2))
    assert "for a worker that reaches 50 % of the 100 GFLOP/s that this device multiplies" in before.lines("image")[1]
    log.note_rate(recipe, "AMD, 2 threads", 100, worker_s=50.0)
    after = estimate(world, recipe, (16, 9, 8, 8), 1000, log, LAPTOP)
    assert (after.rate, after.seconds) == (4.0, 250.0)
    assert after.lines("image")[1].endswith("4.0 images/s measured on AMD, 2 threads, 2 workers")
    assert after.lines("image")[2] == "total   about 4 min on 2 workers, 0.139 worker-hours; loading comes on top"


def test_a_device_that_cannot_be_measured_has_no_time(log: ThroughputLog, speeds: dict[str, float]) -> None:
    speeds.clear()
    world = resolve_world(None)
    unknown = estimate(world, RECIPE, (16, 9, 8, 8), 1000, log, LAPTOP, price=Price(2.5))
    assert unknown.seconds is unknown.worker_hours is None
    assert "the speed of this device could not be measured" in unknown.lines("image")[1]
    assert unknown.lines("image")[2] == "total   no time is known, so no price either"


@pytest.fixture(scope="module")
def cosmos(tmp_path_factory: pytest.TempPathFactory) -> WorldSource:
    """The 2B, without its weights: a plan reads its configs alone."""
    source = resolve_world(str(save_mini_world(tmp_path_factory.mktemp("cosmos") / "world")))
    for part, config in (("transformer", COSMOS_2B), ("vae", WAN_VAE)):
        file = source.folder / part / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return source


def test_a_cluster_is_planned_by_the_name_of_its_device(cosmos: WorldSource, log: ThroughputLog) -> None:
    recipe = Recipe(world="hub:x/y", height=224, width=224, compute_dtype="bfloat16")
    plan = estimate(cosmos, recipe, (16, 9, 28, 28), 5_000_000, log, H100S, price=parse_price("$2.50"))
    assert plan.operations is not None
    assert plan.operations.predict == pytest.approx(9 * 5.704e12, rel=0.01)  # 9 lean forwards
    seconds = plan.operations.predict / (0.4 * 989.4e12) + plan.operations.encode / (0.4 * 67e12)
    assert plan.seconds_of_one == pytest.approx(seconds)
    assert plan.worker_hours == pytest.approx(5_000_000 * seconds / 3600)
    [_, work, total] = plan.lines("image")
    assert "40 % of the 989 TFLOP/s of an H100 80GB (data sheet, dense bfloat16)" in work
    money = str(Price(plan.worker_hours * 2.5, "$"))
    assert total == (
        f"total   about {duration(plan.seconds or 0)} on 64 workers, {plan.worker_hours:.0f} GPU-hours, "
        f"{money} at $2.50 each; loading comes on top"
    )
    assert plan.to_json()["estimated_price"] == money
    assert plan.to_json()["planned_device"] == "H100 80GB"


def test_a_rate_that_was_measured_on_such_a_device_wins(cosmos: WorldSource, log: ThroughputLog) -> None:
    recipe = Recipe(world="hub:x/y", height=224, width=224, compute_dtype="bfloat16")
    log.note_rate(recipe, "NVIDIA H100 80GB HBM3", 100, worker_s=20.0)
    log.note_rate(recipe, "NVIDIA L4", 1000, worker_s=2000.0)
    plan = estimate(cosmos, recipe, (16, 9, 28, 28), 3200, log, H100S)
    assert (plan.rate, plan.rate_of, plan.seconds) == (320.0, "NVIDIA H100 80GB HBM3", 10.0)
    somewhere = estimate(cosmos, recipe, (16, 9, 28, 28), 3200, log, Target(2))  # a cluster: whatever ran the most
    assert (somewhere.rate, somewhere.rate_of) == (1.0, "NVIDIA L4")


def test_a_cluster_of_which_nothing_is_known_says_how_to_plan_it(cosmos: WorldSource, log: ThroughputLog) -> None:
    nothing = estimate(cosmos, RECIPE, (16, 9, 8, 8), 10, log, Target(1))
    assert nothing.seconds is None
    assert '--device "H100 80GB" --workers 64' in nothing.lines("image")[1]
    in_float32 = estimate(cosmos, RECIPE, (16, 9, 8, 8), 10, log, H100S)
    assert in_float32.operations is not None
    assert in_float32.seconds_of_one == pytest.approx(in_float32.operations.total / (0.4 * 67e12))
    assert "40 % of the 67 TFLOP/s of an H100 80GB (data sheet, dense float32)" in in_float32.lines("image")[1]


def test_copies_that_fill_batches_are_counted_where_no_rate_has_them(log: ThroughputLog, cosmos: WorldSource) -> None:
    three = estimate(cosmos, RECIPE, (16, 9, 8, 8), 3, log, LAPTOP)
    filled = replace(three, computed=8)
    assert filled.seconds == pytest.approx(8 / 3 * (three.seconds or 0))
    assert "with 5 copies that fill batches" in filled.lines("image")[2]
    assert replace(filled, rate=4.0, rate_of="x").seconds == 0.75


def test_bfloat16_on_a_cpu_that_emulates_it_is_planned_as_such(
    cosmos: WorldSource, log: ThroughputLog, speeds: dict[str, float]
) -> None:
    speeds["bfloat16"] = 8e9
    recipe = Recipe(world="hub:x/y", height=224, width=224, compute_dtype="bfloat16")
    plan = estimate(cosmos, recipe, (16, 9, 28, 28), 1, log, replace(LAPTOP, workers=1))
    assert plan.operations is not None
    assert plan.seconds == pytest.approx(plan.operations.predict / 8e9 + plan.operations.encode / 100e9)
    assert "in bfloat16, which it emulates; in float32 it has 100 GFLOP/s" in plan.lines("image")[1]


@pytest.mark.parametrize(
    ("given", "said", "thousand"),
    [
        ("2.50", "2.50", "2,500"), ("$2.5", "$2.50", "$2,500"), ("2,50 EUR", "2.50 EUR", "2,500 EUR"),
        ("CHF 3", "CHF 3.00", "CHF 3,000"), ("$0.000001", "less than $0.01", "less than $0.01"), ("0", "0.00", "0.00"),
    ],
)  # fmt: skip
def test_a_price_keeps_its_currency(given: str, said: str, thousand: str) -> None:
    price = parse_price(given)
    assert price is not None
    assert (str(price), str(price.times(1000))) == (said, thousand)


@pytest.mark.parametrize("given", ["", "free", "-1", "$2 EUR", "1e3", "2,500", "nan"])
def test_what_is_no_price_is_none(given: str) -> None:
    assert parse_price(given) is None


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
        assert operations_of(source, recipe) is None
