"""What the Cosmos 3 engine promises beyond parity with the stock pipeline."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from diffusers import Cosmos3OmniTransformer

from tests.miniatures.cosmos3 import EDGE, mini_cosmos3, mini_unipc, save_mini_cosmos3
from tests.miniatures.world_model import mini_vae22
from theworld.pipeline.errors import ConfigError, WorldModelError
from theworld.pipeline.latents.keys import key_of_bytes
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.latents.world_model import WorldModel
from theworld.precompute.worlds.cosmos.cosmos3 import Cosmos3World
from theworld.precompute.worlds.cosmos.cosmos3_family import KeysAndValues
from theworld.precompute.worlds.cosmos.cosmos3_forward import GenerationTower
from theworld.precompute.worlds.cosmos.cosmos3_text import KEYS, VALUES, UnderstandingTower, load_towers
from theworld.precompute.worlds.prompts import embed_prompts
from theworld.precompute.worlds.text_embeddings import TextEmbeddings

KEYS_OF = [key_of_bytes(bytes([i])) for i in range(4)]


def recipe(**changes: object) -> Recipe:
    fields = {"world": "sha256:x", "height": 32, "width": 48, "rollout_steps": 2, "denoise_steps": 4, "fps": 24.0}
    return Recipe(**(fields | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mini_cosmos3(tmp_path_factory.mktemp("world") / "edge", **EDGE)


@pytest.fixture(scope="module")
def text(folder: Path) -> TextEmbeddings:
    found = embed_prompts(folder, recipe(), KeysAndValues())
    assert found is not None
    return found


@pytest.fixture(scope="module")
def world(folder: Path, text: TextEmbeddings) -> Cosmos3World:
    return Cosmos3World.load(folder, text=text)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, 32, 48), generator=torch.Generator().manual_seed(1)) / 127.5 - 1


def test_a_rollout_begins_with_the_encoding_of_its_image_bit_by_bit(world: Cosmos3World, images: torch.Tensor) -> None:
    assert isinstance(world, WorldModel)
    encoded = world.encode(images)
    assert encoded.shape == (4, 48, 1, 2, 3)
    assert torch.equal(world.rollout(images, KEYS_OF, recipe(rollout_steps=0)), encoded)
    rolled = world.rollout(images, KEYS_OF, recipe())
    assert rolled.shape == (4, 48, 3, 2, 3)
    assert torch.equal(rolled[:, :, :1], encoded)
    videos = images.unsqueeze(2).repeat(1, 1, 5, 1, 1)
    assert torch.equal(world.rollout(videos, KEYS_OF, recipe())[:, :, :2], world.encode_video(videos))


def test_a_latent_depends_on_its_key_and_the_recipe_and_not_on_its_batch(
    world: Cosmos3World, images: torch.Tensor
) -> None:
    order = [3, 0, 1, 2]
    straight = world.rollout(images, KEYS_OF, recipe())
    permuted = world.rollout(images[order], [KEYS_OF[i] for i in order], recipe())
    assert torch.equal(permuted, straight[order])
    alone = world.rollout(images[2:3], KEYS_OF[2:3], recipe())
    assert (straight[2:3] - alone).abs().max().item() <= 1e-5
    for changes in ({"seed": 1}, {"draw": 1}, {"fps": 12.0}):
        other = world.rollout(images[:1], KEYS_OF[:1], recipe(**changes))
        assert not torch.equal(other[:, :, 1:], straight[:1, :, 1:])
    long = world.rollout(images[:1], KEYS_OF[:1], recipe(rollout_steps=4))
    assert torch.equal(world.rollout(images[:1], KEYS_OF[:1], recipe(stride=2)), long[:, :, ::2])


def test_a_prompt_of_its_own_for_each_sample_is_as_good_as_one_for_all(
    folder: Path, world: Cosmos3World, images: torch.Tensor
) -> None:
    prompts = ["a ball falls", "The ball falls to the left", "a ball falls", ""]
    read = KeysAndValues().load(folder, recipe(), device="cpu")
    texts = {prompt: read(prompt) for prompt in dict.fromkeys(prompts)}
    against = read("blur", negative=True)
    guided = recipe(guidance=3.0, prompts="sample")
    mixed = TextEmbeddings(tuple(texts[prompt] for prompt in prompts), against)
    together = world.with_text(mixed).rollout(images, KEYS_OF, guided)
    for number, prompt in enumerate(prompts):
        one = world.with_text(TextEmbeddings((texts[prompt],), against))
        alone = one.rollout(images[number : number + 1], KEYS_OF[number : number + 1], guided)
        assert (together[number] - alone[0]).abs().max().item() <= 1e-5
    order = [2, 1, 3, 0]
    shuffled = world.with_text(TextEmbeddings(tuple(texts[prompts[i]] for i in order), against))
    again = shuffled.rollout(images[order], [KEYS_OF[i] for i in order], guided)
    assert (again - together[order]).abs().max().item() <= 1e-5


def test_the_empty_prompt_is_told_size_length_and_rate_and_what_is_missing_is_said(
    folder: Path, world: Cosmos3World, images: torch.Tensor, text: TextEmbeddings
) -> None:
    form = KeysAndValues()
    tokens = text.prompts[0][KEYS].shape[2]
    assert text.prompts[0][KEYS].shape == text.prompts[0][VALUES].shape == (1, 3, tokens, 2, 16)
    assert 40 < tokens < 100
    for changes in ({"height": 64}, {"rollout_steps": 3}, {"fps": 12.0}):
        other = embed_prompts(folder, recipe(**changes), form)
        assert other is not None
        assert not torch.equal(other.prompts[0][KEYS], text.prompts[0][KEYS])
    chunked = recipe(rollout_steps=7, chunk_frames=3, chunk_context=5)
    of_chunk = embed_prompts(folder, chunked, form)
    assert of_chunk is not None
    assert torch.equal(of_chunk.prompts[0][KEYS], text.prompts[0][KEYS])
    with pytest.raises(ConfigError, match="even if empty"):
        Cosmos3World.load(folder).rollout(images[:1], KEYS_OF[:1], recipe())
    with pytest.raises(ConfigError, match="steers away"):
        world.rollout(images[:1], KEYS_OF[:1], recipe(prompt="a ball", guidance=3.0))
    with pytest.raises(ConfigError, match="frames per second"):
        world.rollout(images[:1], KEYS_OF[:1], recipe(fps=None))
    of_another = world.with_text(TextEmbeddings.of_rows(torch.zeros(1, 4, 8)))
    with pytest.raises(WorldModelError, match="keys and values of each layer"):
        of_another.rollout(images[:1], KEYS_OF[:1], recipe())
    with pytest.raises(ConfigError, match="tokens, with what Cosmos 3 is told"):
        form.load(folder, recipe(), device="cpu")("ball " * 512)


def test_a_worker_holds_one_tower_and_the_other_is_let_go(folder: Path) -> None:
    towers = load_towers(folder, "float32")
    gone = [weakref.ref(part) for part in (towers.embed_tokens, towers.lm_head, towers.layers[0].mlp)]
    whole = sum(parameter.numel() for parameter in towers.parameters())
    read = sum(parameter.numel() for parameter in UnderstandingTower(towers).parameters())
    head = towers.lm_head.weight.numel() + towers.norm.weight.numel()
    last = towers.layers[-1]
    world = Cosmos3World(mini_vae22(), towers, mini_unipc())
    held = sum(parameter.numel() for parameter in world.tower.parameters())
    assert held + read + head == whole, "a weight is of neither tower, or of both"
    assert last is not None
    del towers, last
    gc.collect()
    assert [part() for part in gone] == [None] * 3


def test_of_edge_at_its_real_size_less_than_half_the_weights_stay() -> None:
    sizes = {"hidden_size": 2048, "intermediate_size": 9216, "num_attention_heads": 16, "num_hidden_layers": 28}
    with torch.device("meta"):
        edge = Cosmos3OmniTransformer(**EDGE, **sizes, vocab_size=131072, action_gen=True, action_dim=64)
    whole = sum(parameter.numel() for parameter in edge.parameters())
    kept = sum(parameter.numel() for parameter in GenerationTower(edge, temporal_stride=4).parameters())
    assert (whole, kept) == (3_369_657_024, 1_414_921_408)
    assert kept / whole <= 0.45


def test_a_folder_loads_to_the_same_engine_and_bfloat16_touches_the_transformer_alone(
    folder: Path, world: Cosmos3World, images: torch.Tensor, text: TextEmbeddings
) -> None:
    exact = world.rollout(images, KEYS_OF, recipe())
    made = Cosmos3World(mini_vae22(), mini_cosmos3(**EDGE), mini_unipc(), text=text)
    # not to the bit: a product may round otherwise where its weights are mapped from a file
    assert (made.rollout(images, KEYS_OF, recipe()) - exact).abs().max().item() <= 1e-5
    half_text = embed_prompts(folder, recipe(compute_dtype="bfloat16"), KeysAndValues())
    assert half_text is not None
    assert half_text.prompts[0][KEYS].dtype == torch.bfloat16
    half = Cosmos3World.load(folder, compute_dtype="bfloat16", text=half_text)
    assert (half.dtype, half.vae.dtype) == (torch.bfloat16, torch.float32)
    assert half.tower.time_embedder.linear_1.weight.dtype == torch.float32  # as the stock class keeps it
    rounded = half.rollout(images, KEYS_OF, recipe(compute_dtype="bfloat16"))
    assert torch.equal(rounded[:, :, 0], exact[:, :, 0])
    assert 0 < (rounded - exact).abs().max() < 0.5


def test_decoding_gives_four_frames_for_each_latent_after_the_first(world: Cosmos3World, images: torch.Tensor) -> None:
    video = world.decode(world.rollout(images[:2], KEYS_OF[:2], recipe()))
    assert video.shape == (2, 3, 9, 32, 48)
    assert video.abs().max() <= 1


def test_a_rollout_leaves_the_scheduler_as_it_was(world: Cosmos3World, images: torch.Tensor) -> None:
    before = {name: repr(value) for name, value in vars(world.scheduler).items()}
    world.rollout(images[:1], KEYS_OF[:1], recipe())
    assert {name: repr(value) for name, value in vars(world.scheduler).items()} == before


@pytest.mark.parametrize(
    ("template", "words"),
    [(None, "no chat template"), ("{% for i in range(9999999) %}{{ 'a' * 999 }}{% endfor %}", "chat template")],
)
def test_a_stranger_s_chat_template_is_read_within_bounds(tmp_path: Path, template: str | None, words: str) -> None:
    folder = save_mini_cosmos3(tmp_path / "edge", **EDGE)
    place = folder / "text_tokenizer" / "chat_template.jinja"
    place.unlink() if template is None else place.write_text(template)
    with pytest.raises(WorldModelError, match=words):
        embed_prompts(folder, recipe(), KeysAndValues())
