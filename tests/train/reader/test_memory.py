"""The estimate of memory is what the real modules allocate, at the size of real models, of which no weight exists."""

from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma4TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

from theworld.pipeline.device_memory import GIB
from theworld.train.language.adapter_dtype import compute_in_model_dtype
from theworld.train.language.lm import checkpoint_activations
from theworld.train.reader import attention as attention_module
from theworld.train.reader.attention import use_flex
from theworld.train.reader.layouts import TokenLayout
from theworld.train.reader.memory import Adapters, LMShape, MemoryShape, ReaderShape, Rows
from theworld.train.reader.model import IGNORED, TheWorld
from theworld.train.reader.public_sizes import GEMMA_2_2B
from theworld.train.reader.tokens import WorldReader

from ...allocations import Allocations, fused_attention

# peft 0.21 on transformers 5.23
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GEMMA2_2B = Gemma2Config(**GEMMA_2_2B, query_pre_attn_scalar=256, **ids)
GEMMA3_1B = Gemma3TextConfig(
    vocab_size=262_144, hidden_size=1152, intermediate_size=6912, num_hidden_layers=26, num_attention_heads=4,
    num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256, sliding_window=512, **ids,
)  # fmt: skip
MINIATURE = Gemma2Config(
    vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=2,
    num_key_value_heads=1, head_dim=32, query_pre_attn_scalar=32, sliding_window=4096, **ids,
)  # fmt: skip
SOME_LAYERS = 3
"""Of a model whose other layers are the same: shapes are slow to follow, too."""
FRAMES, CELLS, STEPS, RANK = 9, (16, 28, 28), 16, 16


def shallow(config: Any) -> Any:
    """Real widths, a few layers."""
    return type(config)(**{**config.to_dict(), "num_hidden_layers": SOME_LAYERS, "layer_types": None})


def built(config: Any, layout: TokenLayout, dtype: torch.dtype, attention: str, *, checkpointing: bool) -> TheWorld:
    """The model as a training makes it, without numbers."""
    kind = Gemma2ForCausalLM if config.model_type == "gemma2" else Gemma3ForCausalLM
    config._attn_implementation = "eager" if attention == "flex_attention" else attention
    with torch.device("meta"):
        lm = get_peft_model(
            kind(config).to(dtype), LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        )  # type: ignore[arg-type]
        reader = WorldReader(
            latent_shape=CELLS, hidden_size=config.hidden_size, embedding_rms=1.0, layout=layout, max_world_steps=STEPS
        )
    if attention == "flex_attention":  # and then LoRA in the model's dtype, as on a GPU
        use_flex(lm)
        compute_in_model_dtype(lm)
    if checkpointing:
        checkpoint_activations(lm)
    return TheWorld(lm, reader, num_world_steps=FRAMES - 1)


def batch(rows: int, questions: int, words: int) -> dict[str, torch.Tensor]:
    """Rows of so many questions of so many tokens, of which the last three are the answer."""
    length = 1 + questions * words
    place = (torch.arange(length) - 1) % words
    labels = torch.where(place >= words - 3, 7, IGNORED)
    labels[0] = IGNORED
    segments = 1 + (torch.arange(length) - 1) // words
    segments[0] = 0
    input_ids = torch.full((rows, length), 5)
    input_ids[:, 0] = 1
    packed = {"segments": segments.expand(rows, -1)} if questions > 1 else {}
    latents = torch.empty(rows, 16, FRAMES, 28, 28, dtype=torch.float16, device="meta")
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "labels": labels.repeat(rows, 1),
        "latents": latents,
        **packed,
    }


def sizes(config: Any, layout: TokenLayout, dtype: torch.dtype, attention: str) -> MemoryShape:
    lm = LMShape.of(config.to_dict())
    reader = ReaderShape.of(layout, latent_shape=CELLS, frames=FRAMES, max_world_steps=STEPS, width=lm.width)
    is_flex = attention == "flex_attention"
    return MemoryShape(
        lm=lm,
        reader=reader,
        adapters=Adapters.on(None, RANK, dtype_bytes=dtype.itemsize if is_flex else 4),
        dtype_bytes=dtype.itemsize,
        is_eager=attention == "eager",
        masks_whole=not is_flex,
        is_flex=is_flex,
    )


@pytest.fixture(autouse=True)
def _fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "flex_kernel", fused_attention)


PATCHES = TokenLayout(name="patch", patch=2)
LARGE_PATCHES = TokenLayout(name="patch", patch=4)
BF16, F32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("config", "layout", "dtype", "attention", "shape", "checkpointing"),
    [
        (GEMMA2_2B, PATCHES, BF16, "flex_attention", (4, 8, 20), True),  # configs/gemma2_2b.toml, on a GPU
        (shallow(GEMMA2_2B), PATCHES, BF16, "eager", (4, 8, 20), True),  # where flex attention cannot be used
        (shallow(GEMMA2_2B), PATCHES, BF16, "flex_attention", (4, 8, 20), False),
        (shallow(GEMMA2_2B), TokenLayout(name="spatial"), BF16, "flex_attention", (1, 1, 100), False),
        (shallow(GEMMA3_1B), LARGE_PATCHES, BF16, "flex_attention", (16, 8, 20), False),
        (shallow(GEMMA2_2B), PATCHES, BF16, "eager", (1, 1, 100), False),
        (shallow(GEMMA2_2B), TokenLayout(name="spatial"), BF16, "eager", (1, 8, 20), True),
        (shallow(GEMMA2_2B), LARGE_PATCHES, F32, "eager", (2, 8, 20), False),
        (shallow(GEMMA2_2B), TokenLayout(name="resampler", patch=2, queries=64), BF16, "eager", (8, 8, 20), True),
        (shallow(GEMMA3_1B), LARGE_PATCHES, BF16, "sdpa", (4, 8, 20), False),
        (GEMMA3_1B, LARGE_PATCHES, BF16, "sdpa", (16, 8, 20), True),
        (shallow(GEMMA3_1B), LARGE_PATCHES, F32, "eager", (2, 1, 100), False),
        (MINIATURE, LARGE_PATCHES, F32, "eager", (8, 5, 12), False),
        (MINIATURE, PATCHES, F32, "eager", (2, 5, 12), True),
    ],
)
def test_training_takes_what_was_estimated(
    config: Any,
    layout: TokenLayout,
    dtype: torch.dtype,
    attention: str,
    shape: tuple[int, int, int],
    checkpointing: bool,
) -> None:
    model = built(config, layout, dtype, attention, checkpointing=checkpointing)
    memory = Allocations()
    with memory:
        memory.hold(model.parameters())
        moments = [torch.zeros_like(p) for _, p in model.trainable_parameters() for _ in range(2)]
        inputs = batch(*shape)
        model(**inputs).loss.backward()
    rows, questions, words = shape
    row = Rows(count=rows, text=1 + questions * words, labels=rows * questions * 3, is_packed=questions > 1)
    estimate = sizes(config, layout, dtype, attention).training(row, checkpointing=checkpointing)
    assert len(moments) > 0
    assert memory.peak < 20 * GIB  # as a card of 24 GB has room for
    assert estimate.total < 20 * GIB
    assert estimate.total == pytest.approx(memory.peak, rel=0.15)
    assert estimate.computed == pytest.approx(memory.peak - estimate.weights - estimate.trained, rel=0.25)


@pytest.mark.parametrize(
    ("config", "layout", "dtype", "attention", "shape"),
    [
        (shallow(GEMMA2_2B), PATCHES, BF16, "eager", (16, 8, 20)),
        (shallow(GEMMA2_2B), TokenLayout(name="spatial"), BF16, "eager", (1, 1, 100)),
        (shallow(GEMMA2_2B), PATCHES, BF16, "flex_attention", (16, 8, 20)),
        (shallow(GEMMA2_2B), TokenLayout(name="spatial"), BF16, "flex_attention", (1, 1, 100)),
        (shallow(GEMMA3_1B), LARGE_PATCHES, BF16, "sdpa", (64, 8, 20)),
        (shallow(GEMMA3_1B), LARGE_PATCHES, BF16, "flex_attention", (64, 8, 20)),
        (shallow(GEMMA3_1B), PATCHES, F32, "sdpa", (2, 1, 100)),
        (MINIATURE, LARGE_PATCHES, F32, "eager", (16, 8, 12)),
    ],
)
def test_an_answer_takes_what_was_estimated(
    config: Any, layout: TokenLayout, dtype: torch.dtype, attention: str, shape: tuple[int, int, int]
) -> None:
    model = built(config, layout, dtype, attention, checkpointing=False).eval()
    memory = Allocations()
    with memory:
        memory.hold(model.parameters())
        model.log_likelihood(**batch(*shape))
    rows, questions, words = shape
    row = Rows(count=rows, text=1 + questions * words, labels=rows * questions * 3, is_packed=questions > 1)
    estimate = sizes(config, layout, dtype, attention).answering(row)
    assert estimate.total == pytest.approx(memory.peak, rel=0.15)
    assert estimate.computed == pytest.approx(memory.peak - estimate.weights - estimate.trained, rel=0.25)


def gemma_4(**settings: Any) -> Gemma4TextConfig:
    kinds = (["sliding_attention"] * 4 + ["full_attention"]) * 7
    return Gemma4TextConfig(num_hidden_layers=35, num_attention_heads=8, layer_types=kinds, **settings)


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("Gemma2ForCausalLM", GEMMA2_2B),
        ("Gemma3ForCausalLM", GEMMA3_1B),
        (
            "Gemma4ForCausalLM",
            gemma_4(
                hidden_size=1536,
                intermediate_size=6144,
                num_key_value_heads=1,
                num_kv_shared_layers=20,
                use_double_wide_mlp=True,
            ),
        ),
        (
            "Gemma4ForCausalLM",
            gemma_4(
                hidden_size=2560,
                num_key_value_heads=2,
                attention_k_eq_v=True,
                num_global_key_value_heads=1,
                hidden_size_per_layer_input=0,
            ),
        ),
        (
            "LlamaForCausalLM",
            LlamaConfig(
                vocab_size=128_256,
                hidden_size=2048,
                intermediate_size=8192,
                num_hidden_layers=16,
                num_attention_heads=32,
                num_key_value_heads=8,
                tie_word_embeddings=True,
            ),
        ),
        (
            "Qwen3ForCausalLM",
            Qwen3Config(
                hidden_size=1024,
                intermediate_size=3072,
                num_hidden_layers=28,
                num_attention_heads=16,
                num_key_value_heads=8,
                tie_word_embeddings=True,
            ),
        ),
        ("MistralForCausalLM", MistralConfig(num_hidden_layers=2)),
    ],
)
def test_the_weights_of_a_language_model_are_counted_from_its_config(architecture: str, config: Any) -> None:
    with torch.device("meta"):
        model = getattr(transformers, architecture)(config)
    assert LMShape.of(config.to_dict()).parameters == pytest.approx(model.num_parameters(), rel=0.005)


def test_adapters_on_layers_that_phi_3_fuses_are_counted() -> None:
    assert Adapters.on(["qkv_proj", "mlp.gate_up_proj"], 2).targets == {
        "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj",
    }  # fmt: skip
