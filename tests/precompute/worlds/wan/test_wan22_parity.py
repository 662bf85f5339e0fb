"""Both engines of Wan 2.2 against the installed `WanImageToVideoPipeline`: the same draws, the same latents."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanTransformer3DModel
from PIL import Image

from tests.miniatures.wan22 import mini_wan22_transformer, mini_wan22_vae
from tests.miniatures.world_model import TEXT_WIDTH, mini_vae, mini_wan_scheduler
from theworld.precompute.media.images import to_tensor
from theworld.precompute.worlds.wan.engine import WanWorld
from theworld.precompute.worlds.wan.wan22 import WanTI2VWorld, WanTwoStageWorld

from .test_parity import pictures

BOUNDARY = 0.7
TEXT, NEGATIVE = torch.randn(2, 1, 512, TEXT_WIDTH, generator=torch.Generator().manual_seed(7))


def in_dtype(network: WanTransformer3DModel, dtype: torch.dtype) -> WanTransformer3DModel:
    """As it is loaded: some of its modules stay in float32."""
    with TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        return WanTransformer3DModel.from_pretrained(folder, torch_dtype=dtype).eval()


def parts_of(model: str, dtype: torch.dtype) -> tuple[AutoencoderKLWan, dict[str, Any]]:
    if model == "ti2v":
        vae, networks = mini_wan22_vae(), {"transformer": mini_wan22_transformer(per_token=True)}
    else:
        names = enumerate(["transformer", "transformer_2"])
        vae, networks = mini_vae(), {name: mini_wan22_transformer(seed) for seed, name in names}
    if dtype != torch.float32:
        networks = {name: in_dtype(network, dtype) for name, network in networks.items()}
    return vae, networks


def engine(model: str, *, euler: bool, dtype: torch.dtype = torch.float32) -> WanWorld:
    vae, networks = parts_of(model, dtype)
    scheduler = mini_wan_scheduler(euler)
    if model == "ti2v":
        return WanTI2VWorld(vae, **networks, scheduler=scheduler)
    return WanTwoStageWorld(vae, **networks, scheduler=scheduler, boundary_ratio=BOUNDARY)


def stock_latents(
    model: str, images: list[Image.Image], *, euler: bool, dtype: torch.dtype = torch.float32, **settings: Any
) -> torch.Tensor:
    vae, networks = parts_of(model, dtype)
    of_model = {"expand_timesteps": True} if model == "ti2v" else {"boundary_ratio": BOUNDARY}
    pipeline = WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=vae, scheduler=mini_wan_scheduler(euler), **networks, **of_model
    )
    pipeline.set_progress_bar_config(disable=True)
    width, height = images[0].size
    one_by_one = [  # the pipeline takes one image a call
        pipeline(
            image=image,
            height=height,
            width=width,
            generator=[torch.Generator().manual_seed(seed)],
            prompt_embeds=TEXT,
            negative_prompt_embeds=NEGATIVE,
            output_type="latent",
            **settings,
        ).frames
        for seed, image in enumerate(images)
    ]
    return torch.cat(one_by_one)


CASES = [
    # height, width, steps, denoise, guidance, batch, euler
    (32, 32, 1, 5, 1.0, 1, False),
    (64, 32, 2, 3, 1.0, 2, False),
    (32, 64, 4, 6, 3.0, 3, False),
    (64, 32, 1, 20, 5.0, 2, False),
    (64, 64, 8, 10, 1.0, 1, False),
    (32, 64, 3, 6, 4.0, 2, True),
]


def difference(model: str, case: tuple[Any, ...], dtype: torch.dtype = torch.float32) -> float:
    height, width, steps, denoise, guidance, batch, euler = case
    images = pictures(batch, height, width)
    stock = stock_latents(
        model,
        images,
        euler=euler,
        dtype=dtype,
        num_frames=1 + 4 * steps,
        num_inference_steps=denoise,
        guidance_scale=guidance,
    )
    world = engine(model, euler=euler, dtype=dtype)
    ours = world.stock_rollout(
        torch.stack([to_tensor(image) for image in images]),
        [torch.Generator().manual_seed(seed) for seed in range(batch)],
        rollout_steps=steps,
        denoise_steps=denoise,
        guidance=guidance,
        text=TEXT,
        negative_text=NEGATIVE,
    )
    stride = world.spec.spatial_stride
    assert ours.shape == stock.shape == (batch, world.spec.channels, 1 + steps, height // stride, width // stride)
    return (ours - stock).abs().max().item()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("model", ["ti2v", "two-stage"])
def test_stock_mode_equals_the_installed_pipeline(model: str, case: tuple[Any, ...]) -> None:
    assert difference(model, case) <= 1e-5


@pytest.mark.parametrize("model", ["ti2v", "two-stage"])
def test_in_bfloat16_one_image_equals_the_pipeline_as_well(model: str) -> None:
    """A batch rounds its products otherwise than single images do: see the docs for how far."""
    assert difference(model, (32, 64, 2, 4, 3.0, 1, False), torch.bfloat16) <= 1e-5


def test_the_boundary_is_crossed_within_the_cases_and_both_stages_have_the_one_guidance() -> None:
    world = engine("two-stage", euler=False)
    assert isinstance(world, WanTwoStageWorld)
    times = [t * 100 for t in range(10, 0, -1)]
    networks = [world.network_at(torch.tensor(t)) for t in times]
    assert networks == 4 * [world.transformer] + 6 * [world.transformer_2]
    image = pictures(1, 32, 32)
    settings = {"num_frames": 5, "num_inference_steps": 4, "guidance_scale": 3.0}
    one = stock_latents("two-stage", image, euler=False, **settings)
    assert torch.equal(one, stock_latents("two-stage", image, euler=False, guidance_scale_2=3.0, **settings))
    assert not torch.equal(one, stock_latents("two-stage", image, euler=False, guidance_scale_2=1.0, **settings))
