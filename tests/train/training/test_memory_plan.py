"""Shipped settings fit the GPU that their heads name, and a GPU that is too small is told what would fit."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma3Config, Gemma3TextConfig

from theworld.pipeline.config import load_config
from theworld.pipeline.device_memory import GIB, usable, wrong_estimate
from theworld.pipeline.errors import ConfigError
from theworld.train.config import TrainConfig
from theworld.train.data.batches import Example
from theworld.train.reader.memory import Adapters, Rows
from theworld.train.runs.meta import ReaderFacts
from theworld.train.runs.sizes import shape_of
from theworld.train.training.memory_plan import MemoryPlan, large_reader_warning, plan_training

CONFIGS = Path(__file__).parents[3] / "configs"
CPU = torch.device("cpu")
GEMMA2_2B = Gemma2Config().to_dict()  # the defaults of transformers are those of the 2B
GEMMA3_1B = Gemma3TextConfig(
    vocab_size=262_144, hidden_size=1152, intermediate_size=6912, num_attention_heads=4, num_key_value_heads=1,
    sliding_window=512,
).to_dict()  # fmt: skip
GEMMA3_4B = Gemma3Config(
    text_config={
        "vocab_size": 262_208,
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "sliding_window": 1024,
    },
    vision_config={
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
    },
).to_dict()
ROWS = [tuple(Example(str(n), (1,) * 17, (2,) * 4) for _ in range(8)) for n in range(8)]
"""Eight questions of twenty tokens about an image."""


def planned(model: dict[str, Any], *, attention: str = "flex_attention", **settings: Any) -> MemoryPlan:
    config = TrainConfig.model_validate({"store": "s", "questions": "q", "dtype": "bfloat16", **settings})
    facts = ReaderFacts.of_layout(
        config.token_layout(), latent_shape=(16, 28, 28), hidden_size=2304, max_world_steps=16, num_world_steps=8
    )
    adapters = Adapters.on(None, config.lora_rank, dtype_bytes=2)
    shape = shape_of(model, facts, adapters, dtype=torch.bfloat16, attention=attention, shows=True)
    return plan_training(config, shape, ROWS, source="the model", facts=facts, device=CPU)


@pytest.mark.parametrize(
    ("file", "model"),
    [
        ("gemma2_2b.toml", GEMMA2_2B),
        ("gemma2_2b_48gb.toml", GEMMA2_2B),
        ("gemma2_2b_80gb.toml", GEMMA2_2B),
        ("gemma3_1b.toml", GEMMA3_1B),
        ("gemma3_4b.toml", GEMMA3_4B),
    ],
)
def test_a_preset_fits_the_gpu_that_its_head_names(file: str, model: dict[str, Any]) -> None:
    told = re.search(r"GPU of (\d+) GB: about (\d+) GiB", (CONFIGS / file).read_text().replace("\n# ", " "))
    assert told is not None
    card, gib = map(int, told.groups())
    flags = {"store": "s", "questions": "q", "memory": card}
    config = load_config(TrainConfig, "train", CONFIGS / file, flags)
    plan = planned(model, **config.model_dump(exclude_unset=True))
    assert plan.rows == plan.wanted
    assert plan.checkpointed is bool(config.gradient_checkpointing)
    assert plan.estimate.total / GIB == pytest.approx(gib, abs=0.5)
    assert plan.estimate.total <= (20 * GIB if card == 24 else usable(card * GIB))
    without = planned(model, attention="eager", **config.model_dump(exclude_unset=True))  # in smaller passes, perhaps
    assert without.estimate.total <= (20 * GIB if card == 24 else usable(card * GIB))


def test_passes_get_smaller_before_activations_are_computed_twice() -> None:
    settings = {"layout": "patch", "patch": 2, "batch_size": 4}
    cards = {48: (4, False), 24: (2, False), 16: (1, False), 12: (4, True), 8: (1, True)}
    for card, expected in cards.items():
        plan = planned(GEMMA2_2B, memory=card, **settings)
        assert (plan.rows, plan.checkpointed) == expected, card


def test_a_gpu_that_is_too_small_is_told_which_settings_fit() -> None:
    with pytest.raises(ConfigError) as refused:
        planned(GEMMA2_2B, memory=8, layout="spatial", batch_size=4)
    said = str(refused.value)
    assert "a GPU of 8 GiB is too small to train the model: one image of 7,217 tokens needs about" in said
    assert "6.7 GiB of 7.4 GiB can be used" in said
    assert "These would fit:\n  --layout patch --patch 2: 6.0 GiB" in said
    with pytest.raises(ConfigError, match="No layout fits: choose a smaller --lm, or a larger GPU"):
        planned(GEMMA2_2B, memory=5)


def test_a_question_of_a_token_a_cell_is_answered_on_24_gb() -> None:
    facts = {"latent_shape": (16, 28, 28), "hidden_size": 2304, "max_world_steps": 16, "num_world_steps": 8}
    reader = ReaderFacts.model_validate({"layout": "spatial", "patch": 1, **facts})
    shape = shape_of(GEMMA2_2B, reader, Adapters(), dtype=torch.bfloat16, attention="eager", shows=True)
    assert shape.reader is not None
    assert shape.reader.world_tokens == 7056
    assert shape.answering(Rows(count=1, text=100, labels=1)).total < usable(24 * GIB)
    assert shape.answering(Rows(count=64, text=100, labels=64)).total > 200 * GIB  # in rows as many as were usual
    flex = shape_of(GEMMA2_2B, reader, Adapters(), dtype=torch.bfloat16, attention="flex_attention", shows=True)
    assert flex.answering(Rows(count=8, text=100, labels=8)).total < usable(24 * GIB)
    written = {"new_tokens": 16}  # without flex attention
    assert flex.answering(Rows(count=1, text=100, labels=1), **written) == shape.answering(
        Rows(count=1, text=100, labels=1), **written
    )


def test_only_an_estimate_that_was_far_off_is_worth_a_word() -> None:
    assert wrong_estimate(10 * GIB, 11 * GIB) is None
    said = wrong_estimate(10 * GIB, 15 * GIB)
    assert said is not None
    assert "10.0 GiB were expected, 15.0 GiB were taken" in said


def test_a_reader_that_a_layout_makes_huge_is_warned_of_with_layouts_that_do_not() -> None:
    def warning(channels: int, layout: str, patch: int) -> str | None:
        facts = ReaderFacts.model_validate(
            {
                "layout": layout,
                "patch": patch,
                "latent_shape": (channels, 16, 16),
                "hidden_size": 2304,
                "max_world_steps": 8,
                "num_world_steps": 8,
            }
        )
        shape = shape_of(GEMMA2_2B, facts, Adapters(), dtype=torch.bfloat16, attention="eager", shows=True)
        return large_reader_warning(facts, shape)

    said = warning(1024, "patch", 4)  # V-JEPA 2 L
    assert said is not None
    assert "1,2" in said.split("million")[0]
    assert "a token holds 16,384 of the latents" in said
    assert "--layout spatial" in said
    assert warning(1024, "spatial", 1) is None
    assert warning(48, "patch", 4) is None
