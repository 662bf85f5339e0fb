"""The Cosmos 3 engine against the installed `Cosmos3OmniPipeline`: the same draws, the same latents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import Cosmos3OmniTransformer, UniPCMultistepScheduler
from torch import Tensor

from tests.miniatures.cosmos3 import (
    CHANNELS,
    EDGE,
    chat_tokenizer,
    mini_cosmos3,
    mini_pipeline,
    mini_unipc,
)
from tests.miniatures.world_model import mini_vae22
from theworld.precompute.worlds.cosmos.cosmos3 import Cosmos3World, set_levels
from theworld.precompute.worlds.cosmos.cosmos3_clip import Clip
from theworld.precompute.worlds.cosmos.cosmos3_forward import PromptKeys
from theworld.precompute.worlds.cosmos.cosmos3_text import SYSTEM, UnderstandingTower, clip_text, token_ids


def pictures(batch: int, height: int, width: int, frames: int | None = None) -> Tensor:
    """Of 8 bits, to which the pipeline rounds."""
    shape = (batch, 3, height, width) if frames is None else (batch, 3, frames, height, width)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(7)) / 127.5 - 1


def stock_latents(
    transformer: Cosmos3OmniTransformer,
    seen: Tensor,
    seeds: list[int],
    prompts: list[str],
    clip: Clip,
    *,
    denoise: int,
    guidance: float,
    negative: str | None = None,
    scheduler: UniPCMultistepScheduler | None = None,
    native: bool = False,
) -> Tensor:
    """One call for each sample: the pipeline takes no more."""
    pipeline = mini_pipeline(transformer, scheduler, use_native_flow_schedule=native)
    found = [
        pipeline(
            prompt,
            negative,
            **({"video": (one.transpose(0, 1) + 1) / 2} if one.ndim == 4 else {"image": one}),
            height=clip.height,
            width=clip.width,
            num_frames=clip.frames,
            fps=clip.fps,
            num_inference_steps=denoise,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(seed),
            condition_frame_indexes_vision=range((one.shape[1] - 1) // 4 + 1) if one.ndim == 4 else (0,),
            output_type="latent",
        ).video
        for one, seed, prompt in zip(seen, seeds, prompts, strict=True)
    ]
    return torch.cat(found)


def keys_of(transformer: Cosmos3OmniTransformer, prompt: str, clip: Clip, *, negative: bool = False) -> PromptKeys:
    """Of the tokens that `token_ids` gives, as a test below shows; here without another process."""
    tokenizer = chat_tokenizer()
    text = clip_text(prompt, clip, negative=negative)
    chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True).input_ids
    end = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|vision_start|>"])
    return UnderstandingTower(transformer)(torch.tensor(ids + end))


def our_latents(
    transformer: Cosmos3OmniTransformer,
    seen: Tensor,
    seeds: list[int],
    prompts: list[str],
    clip: Clip,
    *,
    denoise: int,
    guidance: float,
    negative: str | None = None,
    scheduler: UniPCMultistepScheduler | None = None,
    native: bool = False,
) -> Tensor:
    texts = {prompt: keys_of(transformer, prompt, clip) for prompt in dict.fromkeys(prompts)}
    against = keys_of(transformer, negative or "", clip, negative=True) if guidance > 1 else None
    world = Cosmos3World(mini_vae22(), transformer, scheduler or mini_unipc(), use_native_flow_schedule=native)
    observed = world.encode_video(seen) if seen.ndim == 5 else world.encode(seen)
    shape = (1, CHANNELS, 1 + (clip.frames - 1) // 4, clip.height // 16, clip.width // 16)
    noise = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    return world.denoise(
        observed,
        noise,
        denoise_steps=denoise,
        prompts=list(texts.values()) if len(texts) == 1 else [texts[prompt] for prompt in prompts],
        negative=against,
        guidance=guidance,
        fps=clip.fps,
    )


BALL, LONG = "a ball falls", "The ball rolls to the left and falls. This is not long"
CASES = {
    # height, width, steps, denoise, guidance, fps, seen frames, prompts of the batch, negative, edge
    "one image": (32, 32, 1, 5, 1.0, 24.0, 0, [""], None, False),
    "a wide one": (32, 96, 3, 4, 1.0, 24.0, 0, [BALL], None, False),
    "a tall one with guidance": (96, 64, 2, 4, 4.0, 24.0, 0, [BALL], "blur", False),
    "at half the rate": (64, 64, 4, 4, 1.0, 12.0, 0, [BALL], None, False),
    "as Edge": (64, 64, 2, 5, 1.0, 24.0, 0, [BALL], None, True),
    "as Edge with guidance at half the rate": (32, 64, 3, 4, 3.0, 12.0, 0, [BALL], None, True),
    "a batch of three": (64, 32, 2, 6, 1.0, 24.0, 0, [""] * 3, None, False),
    "a batch of three with guidance, as Edge": (32, 32, 2, 6, 4.0, 10.0, 0, [BALL] * 3, "", True),
    "a prompt for each of three": (32, 64, 2, 4, 1.0, 24.0, 0, [BALL, LONG, ""], None, False),
    "a prompt for each of three with guidance": (32, 64, 2, 4, 5.0, 24.0, 0, [LONG, BALL, LONG], "blur", True),
    "a video of one frame": (32, 32, 2, 4, 1.0, 24.0, 1, [BALL], None, False),
    "two latent frames are seen": (64, 32, 4, 4, 1.0, 24.0, 5, [BALL, BALL], None, False),
    "two are seen, with guidance, as Edge": (32, 32, 3, 5, 4.0, 12.0, 5, [LONG, BALL], None, True),
    "an odd number of rows and columns": (48, 80, 2, 4, 1.0, 24.0, 0, [BALL], None, False),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_engine_equals_the_installed_pipeline(case: tuple) -> None:
    height, width, steps, denoise, guidance, fps, frames, prompts, negative, is_edge = case
    transformer = mini_cosmos3(**(EDGE if is_edge else {}))
    seen, seeds = pictures(len(prompts), height, width, frames or None), list(range(len(prompts)))
    clip = Clip(height, width, 1 + 4 * steps, fps)
    settings = {"denoise": denoise, "guidance": guidance, "negative": negative}
    stock = stock_latents(transformer, seen, seeds, prompts, clip, **settings)
    ours = our_latents(transformer, seen, seeds, prompts, clip, **settings)
    assert ours.shape == stock.shape == (len(prompts), CHANNELS, 1 + steps, height // 16, width // 16)
    assert (ours - stock).abs().max().item() <= 1e-5
    unlike = our_latents(transformer, seen, seeds, [f"{prompt} left" for prompt in prompts], clip, **settings)
    assert (unlike - stock).abs().max().item() > 1e-3, "the text decides nothing, so this proves little"


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("levels", [{}, {"use_karras_sigmas": False, "flow_shift": 3.0}], ids=["karras", "shifted"])
def test_the_noise_levels_of_a_folder_are_the_pipeline_s(levels: dict[str, object], native: bool) -> None:
    transformer, scheduler = mini_cosmos3(), mini_unipc(**levels)
    clip, seen = Clip(32, 32, 9, 24.0), pictures(1, 32, 32)
    settings = {"denoise": 7, "guidance": 1.0, "scheduler": scheduler, "native": native}
    stock = stock_latents(transformer, seen, [0], [BALL], clip, **settings)
    ours = our_latents(transformer, seen, [0], [BALL], clip, **settings)
    assert (ours - stock).abs().max().item() <= 1e-5


KARRAS = [0.995025, 0.990277, 0.979701, 0.954373, 0.890007, 0.729418, 0.422434, 0.12816, 0.0]
FROZEN = {
    # Karras: Edge and Nano as published. Shifted: as their cards change the scheduler for other sizes.
    (True, 1.0, False): KARRAS,
    (True, 1.0, True): KARRAS,
    (False, 3.0, False): [0.999999, 0.954595, 0.90012, 0.833555, 0.750375, 0.643469, 0.500999, 0.301678, 0.0],
    (False, 3.0, True): [0.999666, 0.954198, 0.89964, 0.832963, 0.749625, 0.64249, 0.499667, 0.29976, 0.0],
}


@pytest.mark.parametrize(("karras", "shift", "native"), FROZEN.keys())
def test_the_noise_levels_are_frozen(karras: bool, shift: float, native: bool) -> None:
    scheduler = mini_unipc(use_karras_sigmas=karras, flow_shift=shift)
    levels = set_levels(scheduler, 8, use_native_flow_schedule=native).sigmas
    torch.testing.assert_close(levels, torch.tensor(FROZEN[karras, shift, native]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("edge", [False, True])
def test_the_tokens_of_a_prompt_are_the_pipeline_s(edge: bool) -> None:
    pipeline = mini_pipeline(mini_cosmos3(), default_use_system_prompt=not edge)
    clip = Clip(480, 832, 53, 12.5)
    for prompt, negative in (("", None), ("a ball falls.", "blur")):
        stock = pipeline.tokenize_prompt(
            prompt, negative, num_frames=clip.frames, height=clip.height, width=clip.width, fps=clip.fps
        )
        texts = (clip_text(prompt, clip, negative=False), clip_text(negative or "", clip, negative=True))
        ours = [token_ids(pipeline.text_tokenizer, text, use_system_prompt=not edge) for text in texts]
        assert ours == list(stock)


@pytest.mark.parametrize("changes", [{}, EDGE], ids=["Nano", "Edge"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_in_bfloat16_little_but_bits_differ(tmp_path: Path, guidance: float, changes: dict[str, object]) -> None:
    mini_cosmos3(**changes).save_pretrained(tmp_path)
    # as folders are loaded: positions and the time's embedding stay in float32
    transformer = Cosmos3OmniTransformer.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    clip, seen, prompts = Clip(64, 32, 13, 24.0), pictures(3, 64, 32), [BALL] * 3
    settings = {"denoise": 6, "guidance": guidance}
    stock = stock_latents(transformer, seen, [0, 1, 2], prompts, clip, **settings)
    alone = our_latents(transformer, seen[:1], [0], prompts[:1], clip, **settings)
    batch = our_latents(transformer, seen, [0, 1, 2], prompts, clip, **settings)
    assert (alone - stock[:1]).abs().max().item() <= 1e-2
    assert (batch - stock).abs().max().item() <= 0.2  # its products round otherwise than those of one image


def test_the_understanding_tower_run_once_is_the_one_of_every_step_and_is_then_not_needed() -> None:
    transformer, clip, seen = mini_cosmos3(**EDGE), Clip(32, 64, 9, 24.0), pictures(2, 32, 64)
    stock = stock_latents(transformer, seen, [0, 1], [BALL, BALL], clip, denoise=5, guidance=3.0)
    texts = [keys_of(transformer, BALL, clip)], keys_of(transformer, "", clip, negative=True)
    world = Cosmos3World(mini_vae22(), transformer, mini_unipc())
    for tensor in (*UnderstandingTower(transformer).parameters(), *transformer.lm_head.parameters()):
        tensor.data.fill_(torch.nan)
    noise = torch.cat([torch.randn(1, CHANNELS, 3, 2, 4, generator=torch.Generator().manual_seed(s)) for s in (0, 1)])
    ours = world.denoise(world.encode(seen), noise, denoise_steps=5, prompts=texts[0], negative=texts[1], guidance=3.0)
    assert (ours - stock).abs().max().item() <= 1e-5
