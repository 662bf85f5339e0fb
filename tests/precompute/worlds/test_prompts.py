"""Prompts: embedded as the stock pipeline embeds them, refused where nobody has checked them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Cosmos2VideoToWorldPipeline
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoTokenizer, T5EncoderModel

from tests.miniatures.world_model import add_text_encoder, mini_scheduler, mini_transformer, mini_vae, save_mini_world
from theworld.pipeline.errors import ConfigError, WorldModelError
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.store.folder import open_store
from theworld.precompute.job.config import PrecomputeConfig
from theworld.precompute.job.run import run_precompute
from theworld.precompute.worlds.builtin import BUILT_IN
from theworld.precompute.worlds.cosmos.guardrail import check_prompts
from theworld.precompute.worlds.cosmos.predict2 import CosmosWorld
from theworld.precompute.worlds.prompts import embed_prompts, load_prompt_embeddings, prompt_file
from theworld.precompute.worlds.text_embeddings import Text, TextEmbeddings, text_bytes
from theworld.precompute.worlds.text_rows import stack_prompts

T5 = BUILT_IN["cosmos-predict2"].text
PROMPT, NEGATIVE = "a ball falls to the left", "blur"


class _Approves:
    def to(self, *_: object) -> None: ...
    def check_text_safety(self, _: str) -> bool:
        return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_text_encoder(save_mini_world(tmp_path_factory.mktemp("world") / "mini"))


def recipe(**changes: object) -> Recipe:
    return Recipe(world="sha256:x", height=32, width=32, rollout_steps=2, denoise_steps=5, **changes)


def test_a_prompted_rollout_equals_the_stock_pipeline_s(folder: Path) -> None:
    text = embed_prompts(folder, recipe(prompt=PROMPT, negative_prompt=NEGATIVE, guidance=3.0), T5)
    assert text is not None
    prompt, negative = stack_prompts(text)
    assert prompt is not None
    assert prompt.shape == (1, 512, 24)
    assert not prompt[:, 7:].any()  # six words and the end mark; the rest is zero, not masked
    pipeline = Cosmos2VideoToWorldPipeline(
        text_encoder=T5EncoderModel.from_pretrained(folder / "text_encoder"),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        transformer=mini_transformer(),
        vae=mini_vae(),
        scheduler=mini_scheduler(),
        safety_checker=_Approves(),
    )
    pipeline.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1
    stock = pipeline(
        image=(image + 1) / 2,
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        height=32,
        width=32,
        num_frames=9,
        num_inference_steps=5,
        guidance_scale=3.0,
        fps=None,
        generator=[torch.Generator().manual_seed(2)],
        output_type="latent",
    ).frames
    ours = CosmosWorld(mini_vae(), mini_transformer()).stock_rollout(
        image,
        [torch.Generator().manual_seed(2)],
        rollout_steps=2,
        denoise_steps=5,
        guidance=3.0,
        text=prompt,
        negative_text=negative,
    )
    assert (ours - stock).abs().max().item() <= 1e-5


def test_embeddings_are_the_same_each_time_and_survive_their_file(folder: Path, tmp_path: Path) -> None:
    first, second = (embed_prompts(folder, recipe(prompt=PROMPT), T5) for _ in range(2))
    assert first is not None
    assert second is not None
    (tmp_path / "prompt.safetensors").write_bytes(first.to_bytes())
    kept = TextEmbeddings.load(tmp_path / "prompt.safetensors")
    for other in (second, kept):
        assert torch.equal(stack_prompts(other)[0], stack_prompts(first)[0])
    assert kept.negative is None


def test_embeddings_that_older_stores_keep_padded_are_read_alike(folder: Path, tmp_path: Path) -> None:
    text = embed_prompts(folder, recipe(prompt=PROMPT, negative_prompt=NEGATIVE, guidance=3.0), T5)
    assert text is not None
    padded, negative = stack_prompts(text)
    assert padded is not None
    assert negative is not None
    save_file({"prompt": padded, "negative": negative}, tmp_path / "prompt.safetensors")
    older = stack_prompts(TextEmbeddings.load(tmp_path / "prompt.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(older, (padded, negative), strict=True))


def test_texts_of_several_named_tensors_survive_their_files(tmp_path: Path) -> None:
    def text(tokens: int) -> Text:
        return {"keys 0": torch.randn(1, tokens, 2, 3), "values 0": torch.randn(1, tokens, 2, 3).bfloat16()}

    (tmp_path / "prompt.safetensors").write_bytes(TextEmbeddings((text(4),), text(5)).to_bytes())
    kept = TextEmbeddings.load(tmp_path / "prompt.safetensors")
    assert kept.prompts[0].keys() == {"keys 0", "values 0"}
    assert kept.negative is not None
    assert kept.negative["values 0"].shape == (1, 5, 2, 3)
    own = prompt_file(tmp_path, "a ball")
    own.parent.mkdir()
    written = text(7)
    own.write_bytes(text_bytes(written, "a ball"))
    read = load_prompt_embeddings(tmp_path, ["a ball", "a ball"], kept.negative).padded(1)
    assert len(read.prompts) == 3
    assert all(torch.equal(read.prompts[2][name], tensor) for name, tensor in written.items())
    with pytest.raises(ValueError, match="one prompt, not 3"):
        read.to_bytes()


def test_a_prompt_changes_the_latents_and_the_store(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "x.png")
    settings = {
        "images": tmp_path / "x.png",
        "cache": tmp_path / "cache",
        "world": str(folder),
        "steps": 1,
        "size": "32x32",
        "compute_dtype": "float32",
        "in_process": True,
        "guardrail": "external",
    }
    plain, prompted = (run_precompute(PrecomputeConfig(**settings, **more)) for more in ({}, {"prompt": PROMPT}))
    assert plain.store != prompted.store
    a, b = (open_store(report.store) for report in (plain, prompted))
    assert np.array_equal(a.read(a.keys)[:, :, 0], b.read(b.keys)[:, :, 0])
    assert not np.array_equal(a.read(a.keys)[:, :, 1], b.read(b.keys)[:, :, 1])


def test_no_text_needs_no_text_encoder(folder: Path) -> None:
    assert embed_prompts(folder / "absent", recipe(), T5) is None


def test_a_prompt_that_is_too_long_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="601 tokens"):
        embed_prompts(folder, recipe(prompt="ball " * 600), T5)


def test_without_the_guardrail_package_its_flag_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[guardrail\]' in the folder"):
        check_prompts(["a ball"], "cosmos", T5)


@pytest.mark.parametrize("content", [b"", b"\x10\0\0\0\0\0\0\0{}", b"not safetensors at all"])
def test_a_damaged_embedding_is_named_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    kept = prompt_file(tmp_path, "a ball")
    kept.parent.mkdir()
    kept.write_bytes(content)
    with pytest.raises(WorldModelError, match=r"'a ball', cannot be read.*Remove it"):
        load_prompt_embeddings(tmp_path, ["a ball"], None)
    with pytest.raises(WorldModelError, match=r"recipe's prompt, cannot be read.*Remove it"):
        TextEmbeddings.load(kept)


@pytest.mark.parametrize(
    "wrong",
    [
        *(torch.zeros(shape) for shape in ((), (3,), (2, 3, 24), (1, 0, 24))),
        torch.zeros(1, 3, 24, dtype=torch.int32),
        torch.full((1, 3, 24), torch.nan),
    ],
)
def test_a_tensor_that_is_no_embedding_is_named_with_what_to_do(tmp_path: Path, wrong: torch.Tensor) -> None:
    file, kept = prompt_file(tmp_path, "a ball"), tmp_path / "prompt.safetensors"
    file.parent.mkdir()
    for each in (file, kept):
        save_file({"prompt": wrong}, each)
    with pytest.raises(WorldModelError, match=r"no embeddings.*Remove it and run precompute again"):
        load_prompt_embeddings(tmp_path, ["a ball"], None)
    with pytest.raises(WorldModelError, match=r"no embeddings.*Remove it and run precompute again"):
        TextEmbeddings.load(kept)


def test_embeddings_of_two_sizes_and_of_too_many_tokens_are_refused(tmp_path: Path) -> None:
    shapes = {"a ball": (1, 3, 24), "wide": (1, 3, 25), "long": (1, 513, 24), "two": (2, 3, 24)}
    for prompt, shape in shapes.items():
        file = prompt_file(tmp_path, prompt)
        file.parent.mkdir(exist_ok=True)
        save_file({"prompt": torch.ones(shape)}, file)
    save_file({"prompt": torch.ones(1, 3, 24), "negative": torch.ones(1, 3, 25)}, tmp_path / "kept.safetensors")
    with pytest.raises(WorldModelError, match="Remove it and run precompute again"):
        TextEmbeddings.load(tmp_path / "kept.safetensors")
    for prompt in ("wide", "two"):
        with pytest.raises(WorldModelError, match="Remove it and run precompute again"):
            load_prompt_embeddings(tmp_path, ["a ball", prompt], None)
    with pytest.raises(WorldModelError, match=r"513, 24.*up to 512 rows.*run precompute again"):
        stack_prompts(load_prompt_embeddings(tmp_path, ["a ball", "long"], None))
