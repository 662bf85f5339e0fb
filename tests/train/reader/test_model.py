"""TheWorld is the language model with the world in front: nothing changes without it, any number of steps with it."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from theworld.pipeline.errors import ConfigError, LatentShapeError
from theworld.pipeline.latents.recipe import Recipe
from theworld.pipeline.latents.spec import LatentSpec
from theworld.train.language.lm import LanguageModel, checkpoint_activations, embedding_rms
from theworld.train.language.lora import add_lora
from theworld.train.language.weights import Weights
from theworld.train.reader.model import IGNORED, TheWorld
from theworld.train.reader.sampling import draw_token
from theworld.train.reader.tokens import TokenLayout, WorldReader

from ...miniatures.language_models import tried_lm
from ...miniatures.lm import RECIPE, SPEC, mini_lm, mini_tokenizer

MINI = Weights(Path("mini"), "mini", "sha256:mini")
IDS = torch.tensor([[1, 4, 11, 5, 7, 8, 2], [1, 4, 12, 2, 0, 0, 0]])
MASK = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
LABELS = torch.where((torch.arange(7) >= 2) & (MASK == 1), IDS, IGNORED)


class FakeWorld:
    """Rollouts that depend on image, key and length, as a real world model's do; frame 0 on the image alone."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    @property
    def spec(self) -> LatentSpec:
        return SPEC

    def encode(self, images: Tensor) -> Tensor:
        first = torch.nn.functional.avg_pool2d(images, 8).mean(1, keepdim=True)
        return first.expand(-1, 16, -1, -1)[:, :, None] * torch.linspace(-1, 1, 16)[:, None, None, None]

    def encode_video(self, videos: Tensor) -> Tensor:  # noqa: ARG002
        raise AssertionError("a reader is shown images, not videos")

    def posterior(self, images: Tensor) -> Tensor:  # noqa: ARG002
        raise AssertionError("a reader is shown latents, not what they are drawn from")

    def rollout(self, images: Tensor, keys: Sequence[str], recipe: Recipe) -> Tensor:
        self.asked.append(recipe.rollout_steps)
        first = self.encode(images)
        rows = []
        for row, key in zip(first, keys, strict=True):
            generator = torch.Generator().manual_seed(int(key, 16) % 2**31 + recipe.rollout_steps)
            noise = torch.randn(16, recipe.rollout_steps, *row.shape[2:], generator=generator)
            rows.append(torch.cat([row, noise], dim=1))
        return torch.stack(rows)

    def decode(self, latents: Tensor) -> Tensor:
        raise NotImplementedError


def reader(hidden_size: int = 32, layout: TokenLayout | None = None) -> WorldReader:
    torch.manual_seed(1)
    return WorldReader(latent_shape=(16, 4, 6), hidden_size=hidden_size, embedding_rms=1.0, layout=layout)


def fresh_lora() -> torch.nn.Module:
    lm = LanguageModel(mini_lm(), mini_tokenizer(), MINI)
    torch.manual_seed(2)
    return add_lora(lm, rank=2, alpha=4, dropout=0.0).model


def with_lora() -> TheWorld:
    lora = fresh_lora()
    model = TheWorld(lora, reader(), num_world_steps=3)
    with torch.no_grad():
        for name, parameter in model.trainable_parameters():  # as after some training
            parameter.add_(torch.randn_like(parameter) * 0.1 if "lora_B" in name else 0)
    return model.eval()


def latents(frames: int = 4) -> Tensor:
    return torch.randn(2, 16, 6, 4, 6, generator=torch.Generator().manual_seed(3))[:, :, :frames]


def test_the_seeds_example_ends_with_3927_vectors_of_width_2304() -> None:
    lm = mini_lm(hidden_size=2304, layers=1)
    seeds = WorldReader(
        latent_shape=(16, 28, 28),
        hidden_size=2304,
        embedding_rms=embedding_rms(lm),
        layout=TokenLayout(name="spatial"),
    )
    model = TheWorld(lm, seeds, num_world_steps=4, max_world_steps=16)
    vectors, mask = model.embed(IDS[:1], MASK[:1], torch.randn(1, 16, 5, 28, 28))
    assert (vectors.shape, mask.shape) == ((1, 3927, 2304), (1, 3927))
    size = vectors.detach().square().mean(-1).sqrt()
    assert size[0, 1:3921].mean() == pytest.approx(embedding_rms(lm), rel=0.01)


def test_without_a_world_the_logits_are_the_language_models_bit_by_bit() -> None:
    lm = mini_lm()
    plain = lm(input_ids=IDS, attention_mask=MASK).logits
    assert torch.equal(TheWorld(lm, reader())(IDS, MASK).logits[MASK == 1], plain[MASK == 1])


def test_fresh_lora_changes_nothing_bit_by_bit() -> None:
    plain = mini_lm()(input_ids=IDS, attention_mask=MASK).logits
    assert torch.equal(TheWorld(fresh_lora(), reader())(IDS, MASK).logits[MASK == 1], plain[MASK == 1])


def test_the_world_stands_between_bos_and_the_text() -> None:
    model = with_lora()
    vectors, mask = model.embed(IDS, MASK, latents())
    text, world = model.lm.get_input_embeddings()(IDS), model.reader(latents())
    assert torch.equal(vectors, torch.cat([text[:, :1], world, text[:, 1:]], 1))
    assert mask.sum(1).tolist() == [24 + 7, 24 + 4]


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_fewer_steps_read_the_prefix_of_the_same_rollout(steps: int) -> None:
    model = with_lora()
    overridden = model(IDS, MASK, latents=latents(), num_world_steps=steps).logits
    assert torch.equal(overridden, model(IDS, MASK, latents=latents(1 + steps), num_world_steps=steps).logits)
    assert overridden.shape[1] == 7 + 6 * (1 + steps)


def test_the_number_of_steps_given_at_construction_is_the_default() -> None:
    model = with_lora()
    assert torch.equal(
        model(IDS, MASK, latents=latents(6)).logits, model(IDS, MASK, latents=latents(6), num_world_steps=3).logits
    )


def test_steps_nobody_has_are_refused_with_both_numbers() -> None:
    model = with_lora()
    with pytest.raises(ConfigError, match=r"num_world_steps=17.*max_world_steps=16"):
        model(IDS, MASK, latents=latents(), num_world_steps=17)
    with pytest.raises(ConfigError, match="num_world_steps=-1"):
        model(IDS, MASK, latents=latents(), num_world_steps=-1)
    with pytest.raises(LatentShapeError, match="hold 3 rollout steps, 5 are asked for"):
        model(IDS, MASK, latents=latents(), num_world_steps=5)
    with pytest.raises(ConfigError, match="without latents or images"):
        model(IDS, MASK, num_world_steps=1)
    with pytest.raises(ConfigError, match="got 5 and 4"):
        TheWorld(mini_lm(), reader(), num_world_steps=5, max_world_steps=4)


@pytest.mark.parametrize("world_on", [True, False])
def test_loss_and_gradients_equal_those_of_full_logits(world_on: bool) -> None:
    model = with_lora()
    given = {"latents": latents()} if world_on else {}
    loss = model(IDS, MASK, LABELS, **given).loss
    loss.backward()
    ours = {name: p.grad.clone() for name, p in model.trainable_parameters() if p.grad is not None}
    model.zero_grad()
    before = 24 if world_on else 0
    labels = torch.cat([LABELS[:, :1], torch.full((2, before), IGNORED), LABELS[:, 1:]], 1)
    vectors, mask = model.embed(IDS, MASK, latents() if world_on else None)
    plain = model.lm(inputs_embeds=vectors, attention_mask=mask, labels=labels).loss  # transformers' own loss
    plain.backward()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    assert len(ours) > 10
    for name, parameter in model.trainable_parameters():
        if name in ours:
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_with_labels_the_output_head_runs_on_answers_alone() -> None:
    assert with_lora()(IDS, MASK, LABELS, latents=latents()).logits.shape == (int((LABELS != IGNORED).sum()), 24)


def test_of_a_posterior_one_sample_is_read_in_training_and_the_mean_in_answering() -> None:
    recipe = Recipe(world="sha256:x", height=32, width=48, kind="posterior", rollout_steps=1)
    moments = torch.cat([latents()[:, :, :1], torch.full((2, 16, 1, 4, 6), -2.0)], dim=2)
    model = TheWorld(mini_lm(), reader(), num_world_steps=1, recipe=recipe)
    read: list[Tensor] = []
    model.reader.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    model.train()(IDS, MASK, latents=moments)
    model(IDS, MASK, latents=moments)
    model.eval()(IDS, MASK, latents=moments)
    assert [tuple(one.shape) for one in read] == [(2, 16, 1, 4, 6)] * 3
    assert (read[0] - moments[:, :, :1]).std().item() == pytest.approx(math.exp(-1), rel=0.1)
    assert not torch.equal(read[0], read[1])
    assert torch.equal(read[2], moments[:, :, :1])


def gemma_3() -> Gemma3ForCausalLM:
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=25, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, sliding_window=16, layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return Gemma3ForCausalLM(config).eval()


def test_gemma_3_reads_the_same_way_and_without_a_world_speaks_for_itself() -> None:
    model = TheWorld(gemma_3(), reader(), num_world_steps=3)
    plain = gemma_3()(input_ids=IDS, attention_mask=MASK).logits
    assert torch.equal(model(IDS, MASK).logits[MASK == 1], plain[MASK == 1])
    vectors, mask = model.embed(IDS, MASK, latents())
    labels = torch.cat([LABELS[:, :1], torch.full((2, 24), IGNORED), LABELS[:, 1:]], 1)
    plain = model.lm(inputs_embeds=vectors, attention_mask=mask, labels=labels).loss
    assert model(IDS, MASK, LABELS, latents=latents()).loss.item() == pytest.approx(plain.item(), rel=1e-5)


def test_gemma_4_with_inputs_for_each_layer_reads_a_world_and_without_one_speaks_for_itself() -> None:
    lm = tried_lm("Gemma4ForCausalLM")
    model = TheWorld(lm, reader(), num_world_steps=3).eval()
    plain = tried_lm("Gemma4ForCausalLM")(input_ids=IDS, attention_mask=MASK).logits
    assert torch.equal(model(IDS, MASK).logits[MASK == 1], plain[MASK == 1])
    first, second = latents(), latents() + 1
    assert not torch.allclose(model(IDS, MASK, latents=first).logits, model(IDS, MASK, latents=second).logits)


def test_gemma_4_generates_what_its_forward_finds_likeliest() -> None:
    model = TheWorld(tried_lm("Gemma4ForCausalLM"), reader(), num_world_steps=3).eval()
    ids, mask = IDS[:1], MASK[:1]
    [generated] = model.generate(ids, mask, end_id=99, latents=latents()[:1], max_new_tokens=4).tolist()
    for new in generated:
        logits = model(ids, mask, latents=latents()[:1]).logits
        assert int(logits[0, -1].argmax()) == new
        ids, mask = torch.cat([ids, torch.tensor([[new]])], 1), torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    lm = add_lora(LanguageModel(model.lm, mini_tokenizer(), MINI), rank=2, alpha=4, dropout=0.0)
    model = TheWorld(lm.model, reader(), num_world_steps=3).eval()
    with pytest.raises(ConfigError, match=r"^Gemma4ForCausalLM takes max_new_tokens, .* and seed alone, not num_beams"):
        model.generate(ids, mask, end_id=99, latents=latents()[:1], num_beams=2)


def test_gemma_4_has_the_same_gradients_where_activations_are_computed_again() -> None:
    """Layers share keys and values: computing one again must not take another's."""
    found: list[dict[str, torch.Tensor]] = []
    for again in (False, True):
        lm = add_lora(
            LanguageModel(tried_lm("Gemma4ForCausalLM"), mini_tokenizer(), MINI), rank=2, alpha=4, dropout=0.0
        )
        model = TheWorld(lm.model, reader(), num_world_steps=3).train()
        if again:
            checkpoint_activations(lm.model)
        model(IDS, MASK, LABELS, latents=latents()).loss.backward()
        found.append({name: p.grad.clone() for name, p in model.trainable_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-5)


def test_padding_changes_no_logit_of_the_text() -> None:
    model = with_lora()
    padded = model(IDS, MASK, latents=latents()).logits[1, : 24 + 4]
    alone = model(IDS[1:, :4], MASK[1:, :4], latents=latents()[1:]).logits[0]
    torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-5)


def test_rows_padded_on_the_left_are_refused() -> None:
    with pytest.raises(LatentShapeError, match="pad on the right"):
        with_lora()(IDS, MASK.flip(1), latents=latents())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_live_rollout_and_its_cached_latents_give_the_same_logits(dtype: str) -> None:
    model, world = with_lora(), FakeWorld()
    recipe = RECIPE.model_copy(update={"dtype": dtype})
    live = TheWorld(model.lm, model.reader, num_world_steps=3, world=world, recipe=recipe).eval()
    images, keys = torch.rand(2, 3, 32, 48) * 2 - 1, ["a" * 32, "b" * 32]
    cached = world.rollout(images, keys, recipe).to(getattr(torch, dtype))
    for steps in (0, 1, 3):
        assert torch.equal(
            live(IDS, MASK, images=images, keys=keys, num_world_steps=steps).logits,
            model(IDS, MASK, latents=cached, num_world_steps=steps).logits,
        )


def test_a_live_rollout_is_as_long_as_the_recipe_says_and_longer_only_where_asked() -> None:
    world = FakeWorld()
    live = TheWorld(mini_lm(), reader(), num_world_steps=1, world=world, recipe=RECIPE)
    images, keys = torch.zeros(2, 3, 32, 48), ["a" * 32, "b" * 32]
    for steps in (0, 1, 5):
        live(IDS, MASK, images=images, keys=keys, num_world_steps=steps)
    assert world.asked == [3, 5]  # 0 needs the encoder alone


def test_images_without_what_it_takes_to_roll_them_out_are_refused() -> None:
    images = torch.zeros(2, 3, 32, 48)
    with pytest.raises(ConfigError, match="world model and a recipe"):
        with_lora()(IDS, MASK, images=images)
    live = TheWorld(mini_lm(), reader(), num_world_steps=1, world=FakeWorld(), recipe=RECIPE)
    with pytest.raises(ConfigError, match="keys"):
        live(IDS, MASK, images=images)
    with pytest.raises(ConfigError, match="both latents and images"):
        live(IDS, MASK, images=images, latents=latents())


def test_text_without_bos_is_refused_where_a_world_would_stand_behind_its_first_word() -> None:
    model = with_lora()
    with pytest.raises(ConfigError, match="starts with its id 1"):
        model(IDS[:, 1:], MASK[:, 1:], latents=latents())
    assert model(IDS[:, 1:], MASK[:, 1:]).logits.shape[1] == 6  # without a world it is the language model's own affair


@pytest.mark.parametrize(
    "images",
    [
        torch.full((2, 3, 32, 48), 200, dtype=torch.uint8),
        torch.full((2, 3, 32, 48), 200.0),
        torch.full((2, 3, 32, 48), math.nan),
        torch.full((2, 3, 32, 48), 1),
    ],
    ids=["bytes", "0 to 255", "nan", "whole numbers"],
)
def test_images_that_are_not_in_minus_1_to_1_are_refused(images: Tensor) -> None:
    live = TheWorld(mini_lm(), reader(), num_world_steps=0, world=FakeWorld(), recipe=RECIPE)
    with pytest.raises(ConfigError, match=r"RGB in \[-1, 1\].*/ 127.5 - 1"):
        live(IDS, MASK, images=images)


def test_labels_that_are_all_ignored_are_refused_rather_than_a_loss_of_nan() -> None:
    with pytest.raises(ConfigError, match="all labels are -100"):
        with_lora()(IDS, MASK, torch.full_like(IDS, IGNORED), latents=latents())


def test_only_temporal_embedding_projector_and_lora_are_trainable() -> None:
    names = {name for name, _ in with_lora().trainable_parameters()}
    assert {name for name in names if "lora_" not in name} == {
        "reader.temporal_embedding.weight",
        "reader.projector.into.weight",
        "reader.projector.into.bias",
        "reader.projector.out.weight",
        "reader.projector.out.bias",
        "reader.projector.row_embedding.weight",
        "reader.projector.column_embedding.weight",
        "reader.projector.gain",
    }
    projections = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert len(names) == 8 + 2 * len(projections) * 2  # A and B, in both layers
    assert not any(parameter.requires_grad for parameter in TheWorld(mini_lm(), reader()).lm.parameters())


def test_log_likelihood_is_the_sum_over_each_rows_answer() -> None:
    model = with_lora()
    scores = model.log_likelihood(IDS, MASK, LABELS, latents=latents())
    logits = model(IDS, MASK, latents=latents()).logits.log_softmax(-1)
    for row in range(2):
        places = [place for place in range(7) if LABELS[row, place] != IGNORED]
        expected = sum(logits[row, 24 + place - 1, IDS[row, place]].item() for place in places)
        assert scores[row].item() == pytest.approx(expected, rel=1e-5)


def test_drawn_tokens_follow_seed_temperature_and_nucleus() -> None:
    model = with_lora()
    given = {"latents": latents(), "end_id": 2, "max_new_tokens": 5}
    greedy = model.generate(IDS, MASK, **given)
    first, again, other = (model.generate(IDS, MASK, **given, temperature=2.0, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for cold in ({"temperature": 1e-3}, {"temperature": 5.0, "top_p": 1e-6}):  # only the likeliest is left
        assert torch.equal(model.generate(IDS, MASK, **given, **cold), greedy)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().expand(4000, -1)
    generator = torch.Generator().manual_seed(0)
    drawn = draw_token(logits, temperature=1.0, top_p=1.0, generator=generator).bincount(minlength=4) / 4000
    assert drawn.tolist() == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=0.03)
    nucleus = draw_token(logits, temperature=1.0, top_p=0.7, generator=generator).bincount(minlength=4) / 4000
    assert nucleus.tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.03)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generation_stops_at_any_of_several_ends(temperature: float) -> None:
    model = with_lora()
    given = {"max_new_tokens": 5, "temperature": temperature, "latents": latents()[:1]}
    [whole] = model.generate(IDS[:1], MASK[:1], end_id=99, **given).tolist()
    [stopped] = model.generate(IDS[:1], MASK[:1], end_id=[99, whole[2]], **given).tolist()
    assert stopped == whole[: 1 + whole.index(whole[2])]


@pytest.mark.parametrize("world_on", [True, False])
def test_generation_is_the_likeliest_token_at_each_step_whatever_the_padding(world_on: bool) -> None:
    model = with_lora()
    given = {"latents": latents()} if world_on else {}
    generated = model.generate(IDS, MASK, end_id=2, max_new_tokens=5, **given)
    for row, length in enumerate((7, 4)):
        ids = IDS[row : row + 1, :length]
        for expected in generated[row].tolist():
            alone = {"latents": latents()[row : row + 1]} if world_on else {}
            best = int(model(ids, torch.ones_like(ids), **alone).logits[0, -1].argmax())
            assert best == expected
            if best == 2:
                break
            ids = torch.cat([ids, torch.tensor([[best]])], 1)
