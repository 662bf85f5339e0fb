"""Hidden states of each family: those that a hook sees in the first forward of the stock pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from tests.miniatures.anyflow import mini_anyflow_transformer
from tests.miniatures.cosmos3 import mini_cosmos3, mini_pipeline, mini_unipc
from tests.miniatures.cosmos25 import RAW_WIDTH
from tests.miniatures.vjepa2 import SIDE, mini_vjepa2
from tests.miniatures.world_model import TEXT_WIDTH, mini_vae, mini_vae22
from theworld.pipeline.latents.hidden import patches_of
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.latents.tensors import draw_noise
from theworld.precompute.media.images import to_image
from theworld.precompute.worlds.anyflow.engine import AnyFlowWorld
from theworld.precompute.worlds.cosmos.cosmos3 import Cosmos3World
from theworld.precompute.worlds.cosmos.cosmos3_clip import Clip, fps_of
from theworld.precompute.worlds.cosmos.cosmos3_text import KEYS, VALUES
from theworld.precompute.worlds.text_embeddings import TextEmbeddings
from theworld.precompute.worlds.vjepa2.engine import VJepa2World

from .anyflow import test_parity as anyflow
from .cosmos import test_cosmos3_parity as cosmos3
from .cosmos import test_predict2_parity as cosmos
from .cosmos import test_predict25_parity as cosmos25
from .cosmos.test_predict25_parity import _without_torchvision  # noqa: F401 - used by name
from .wan import test_parity as wan
from .wan import test_wan22_parity as wan22

KEY = "11" * 32
TEXT = torch.randn(1, 512, TEXT_WIDTH, generator=torch.Generator().manual_seed(5))
pytestmark = [
    pytest.mark.usefixtures("_without_torchvision"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]


def recipe(**changes: Any) -> Recipe:
    fields = {"kind": "hidden", "world": "sha256:x", "height": 64, "width": 32, "rollout_steps": 3, "hidden_block": 2}
    return Recipe(**(fields | changes))


def picture(height: int = 64, width: int = 32) -> Tensor:
    """Of 8 bits, to which pipelines round."""
    return torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(7)) / 127.5 - 1


def seen_by_hook(block: nn.Module, run: Callable[[], object]) -> Tensor:
    """What the block gives in its first call."""
    found: list[Any] = []
    handle = block.register_forward_hook(lambda _, __, output: found.append(output))
    run()
    handle.remove()
    parts = found[0] if isinstance(found[0], tuple) else found[:1]
    return next(part for part in reversed(parts) if part is not None)


def noise(frames: int, channels: int = 16, stride: int = 8, key: str = KEY) -> Tensor:
    return draw_noise(recipe(), [key], (channels, frames, 64 // stride, 32 // stride))


SETTINGS: dict[str, Any] = {"height": 64, "width": 32, "num_frames": 13, "num_inference_steps": 4}
SETTINGS |= {"guidance_scale": 1.0, "output_type": "latent"}


def of_cosmos() -> tuple[Any, nn.Module, Callable[[], object]]:
    pipeline = cosmos.Cosmos2VideoToWorldPipeline(
        None, None, cosmos.mini_transformer(), mini_vae(), cosmos.mini_scheduler(), safety_checker=cosmos._NoChecker()
    )
    zeros = torch.zeros(1, 512, TEXT_WIDTH)
    texts = {"prompt_embeds": zeros, "negative_prompt_embeds": zeros, "fps": None}
    return (
        cosmos.CosmosWorld(mini_vae(), cosmos.mini_transformer()),
        pipeline.transformer.transformer_blocks[1],
        lambda: pipeline(image=(picture() + 1) / 2, latents=noise(4), **SETTINGS, **texts),
    )


def of_cosmos25() -> tuple[Any, nn.Module, Callable[[], object]]:
    pipeline = cosmos25.stock()
    zeros = torch.zeros(1, 512, RAW_WIDTH)
    texts = {"prompt_embeds": zeros, "negative_prompt_embeds": zeros, "num_latent_conditional_frames": 1}
    return (
        cosmos25.Cosmos25World(mini_vae(), cosmos25.mini_transformer25(), cosmos25.mini_unipc()),
        pipeline.transformer.transformer_blocks[1],
        lambda: pipeline(image=(picture()[0] + 1) / 2, latents=noise(4), **SETTINGS, **texts),
    )


def of_wan() -> tuple[Any, nn.Module, Callable[[], object]]:
    pipeline = wan.pipeline()
    call = {"image": to_image(picture()[0]), "prompt_embeds": TEXT, "latents": noise(4)}
    engine = wan.engine().with_text(TextEmbeddings.of_rows(TEXT))
    return engine, pipeline.transformer.blocks[1], lambda: pipeline(**call, **SETTINGS)


def of_wan22(model: str) -> tuple[Any, nn.Module, Callable[[], object]]:
    vae, networks = wan22.parts_of(model, torch.float32)
    if model == "ti2v":
        pipeline = wan22.WanImageToVideoPipeline(
            None, None, vae, wan22.mini_wan_scheduler(False), transformer=networks["transformer"], expand_timesteps=True
        )
        latents = noise(4, 48, 16)
    else:
        pipeline = wan22.WanImageToVideoPipeline(
            None, None, vae, wan22.mini_wan_scheduler(False), **networks, boundary_ratio=wan22.BOUNDARY
        )
        latents = noise(4)
    call = {"image": to_image(picture()[0]), "prompt_embeds": TEXT, "latents": latents}
    engine = wan22.engine(model, euler=False).with_text(TextEmbeddings.of_rows(TEXT))
    return engine, pipeline.transformer.blocks[1], lambda: pipeline(**call, **SETTINGS)


def of_cosmos3() -> tuple[Any, nn.Module, Callable[[], object]]:
    transformer = mini_cosmos3()
    asked = recipe(fps=24.0)
    clip = Clip.of(asked, temporal_stride=4)
    keys, values = cosmos3.keys_of(transformer, "a ball falls", clip)
    text = TextEmbeddings(({KEYS: keys[None], VALUES: values[None]},))
    pipeline = mini_pipeline(mini_cosmos3())
    world = Cosmos3World(mini_vae22(), transformer, mini_unipc(), text=text)
    latents = torch.cat([world.encode(picture()), noise(4, 48, 16)[:, :, 1:]], dim=2)  # it takes them as they are
    call = {"image": picture()[0], "latents": latents, "condition_frame_indexes_vision": (0,)}
    return (
        world,
        pipeline.transformer.layers[1],
        lambda: pipeline("a ball falls", None, **call, fps=fps_of(asked), **SETTINGS),
    )


FAMILIES: dict[str, tuple[Callable[[], Any], float | None]] = {
    "cosmos-predict2": (of_cosmos, None),
    "cosmos-predict2.5": (of_cosmos25, None),
    "wan2.1-i2v": (of_wan, None),
    "wan2.2-ti2v": (lambda: of_wan22("ti2v"), None),
    "wan2.2-i2v": (lambda: of_wan22("i2v"), None),
    "cosmos3": (of_cosmos3, 24.0),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_the_first_forward_of_the_stock_pipeline(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the stock pipeline of Cosmos-Predict2 draws the observed frame from the posterior; here as the engine takes it
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, *_, **__: self.mode())
    make, fps = FAMILIES[family]
    world, block, run = make()
    asked = recipe(fps=fps)
    found = world.hidden(picture(), [KEY], asked)
    expected = seen_by_hook(block, run).float()
    expected = expected[None] if expected.ndim == 2 else expected
    rows, columns = found.shape[-2:]
    tokens = layer_norm(expected, expected.shape[2:]).unflatten(1, (4, rows, columns)).permute(0, 4, 1, 2, 3)
    assert found.shape == tokens.shape
    assert (found[:, :, 1:] - tokens[:, :, 1:]).abs().max().item() <= 1e-5
    encoded = world.encode(picture())
    assert torch.equal(found[:, :, :1], patches_of(encoded, encoded.shape[3] // rows, found.shape[1], seed=0))
    assert not block._forward_hooks


def test_hidden_states_of_anyflow_are_those_of_its_first_chunk() -> None:
    pipeline = anyflow.pipeline(transformer=mini_anyflow_transformer())
    world = AnyFlowWorld(mini_vae(), pipeline.transformer, pipeline.scheduler, zero_keys=True)
    found = world.with_text(TextEmbeddings.of_rows(TEXT)).hidden(picture(), [KEY], recipe())
    chunk = noise(3, key=f"{KEY} chunk 1")
    states: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], __: object) -> None:
        states.append(inputs[0])

    pipeline.transformer.norm_out.register_forward_hook(keep)  # what comes to it are the tokens behind the last block
    call = {"latents": torch.cat([chunk[:, :, :1], chunk], dim=2), "prompt_embeds": TEXT, "chunk_partition": [1, 3]}
    # its network is told the length of a step, too: that of the recipe, which for hidden states is always the default
    pipeline(video=(picture()[:, None] + 1) / 2, **call, **SETTINGS | {"num_inference_steps": 10})
    tokens = next(each for each in states if each.shape[1] == 3 * found.shape[3] * found.shape[4])
    expected = layer_norm(tokens.float(), tokens.shape[2:]).unflatten(1, (3, *found.shape[3:])).permute(0, 4, 1, 2, 3)
    assert (found[:, :, 1:] - expected).abs().max().item() <= 1e-5


def test_hidden_states_of_v_jepa_2_are_those_of_its_predictor() -> None:
    world = VJepa2World(mini_vjepa2())
    asked = recipe(height=SIDE, width=SIDE, hidden_block=1)
    image = picture(SIDE, SIDE)
    found = world.hidden(image, [KEY], asked)
    model = mini_vjepa2()
    expected = seen_by_hook(
        model.predictor.layer[0],
        lambda: VJepa2World(model).rollout(image, [KEY], asked.model_copy(update={"kind": "rollout"})),
    )
    tokens = layer_norm(expected, expected.shape[2:]).unflatten(1, (4, 4, 4)).permute(0, 4, 1, 2, 3)
    assert torch.equal(found[:, :, 1:], tokens[:, :, 1:])


def test_a_noise_level_that_is_the_schedule_s_first_changes_nothing() -> None:
    for make, level in ((of_cosmos, 80.0), (of_cosmos25, None), (of_wan, None)):
        world, _, _ = make()
        usual = world.hidden(picture(), [KEY], recipe())
        lower = world.hidden(picture(), [KEY], recipe(hidden_sigma=0.5))
        assert torch.equal(usual[:, :, :1], lower[:, :, :1])
        assert not torch.allclose(usual, lower)
        if level is not None:
            assert torch.equal(usual, world.hidden(picture(), [KEY], recipe(hidden_sigma=level)))


def test_hidden_states_depend_on_recipe_and_key_alone() -> None:
    world, _, _ = of_cosmos()
    keys, images = ["11" * 32, "22" * 32], torch.cat([picture(), -picture()])
    asked = recipe(hidden_width=16, stride=2)
    both = world.hidden(images, keys, asked)
    assert both.shape == (2, 16, 4, 4, 2)
    turned = world.hidden(images.flip(0), keys[::-1], asked).flip(0)
    assert torch.allclose(both, turned, atol=1e-5)
    assert not torch.allclose(both, world.hidden(images, keys, asked.model_copy(update={"draw": 1})))
    every = world.hidden(images, keys, asked.model_copy(update={"stride": 1, "rollout_steps": 6}))
    assert torch.allclose(every[:, :, ::2], both, atol=1e-5)


def test_a_rollout_after_hidden_states_is_the_rollout() -> None:
    world, _, _ = of_cosmos()
    rollout = Recipe(world="sha256:x", height=64, width=32, rollout_steps=2, denoise_steps=3)
    before = world.rollout(picture(), [KEY], rollout)
    world.hidden(picture(), [KEY], recipe())
    assert torch.equal(before, world.rollout(picture(), [KEY], rollout))
