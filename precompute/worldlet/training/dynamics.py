"""The worldlet's dynamics: a small `CosmosTransformer3DModel`, trained to denoise the future of frame 0.

The training forward is leaner than the stock one, and equal to it.

The network sees what `Cosmos2VideoToWorldPipeline` feeds it: sixteen channels of (1 - t) x + t noise with
t = sigma / (sigma + 1), frame 0 clean at its own t, and a seventeenth channel that marks frame 0. It
returns F with x0 = input - t F, that is F = noise - x. Text is the null text: zero embeddings.

Axes:  B clip   C channel   T latent frame   H, W row, column   S patch of one frame   D model width
"""

# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportOptionalMemberAccess=false
# This file reaches into diffusers' layers, and torch types every part of a module as Tensor | Module.

import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from diffusers import CosmosTransformer3DModel
from diffusers.models.embeddings import apply_rotary_emb
from safetensors.torch import load_file
from torch import Tensor, nn

from ....pipeline.errors import WorldModelError
from ....pipeline.files.hub.pretrained import load_pretrained
from ....pipeline.progress import Progress
from ...worlds.cosmos.predict2 import SIGMA_CONDITIONING
from ...worlds.cosmos.solvers import RHO, SIGMA_MAX, SIGMA_MIN
from .optim import Average, CpuBudget, MuonAdamW, save_training
from .vae import Z_DIM

CONDITION_T = SIGMA_CONDITIONING / (1 + SIGMA_CONDITIONING)
"""The time of the clean frame."""


def new_transformer(*, layers: int = 4, heads: int = 4, head_dim: int = 32) -> CosmosTransformer3DModel:
    """A fresh network that starts as F = 0; its cross-attention is silent, so no prompt can disturb it."""
    model = CosmosTransformer3DModel(
        in_channels=Z_DIM + 1,
        out_channels=Z_DIM,
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        num_layers=layers,
        mlp_ratio=4.0,
        text_embed_dim=32,
        adaln_lora_dim=32,
        patch_size=(1, 2, 2),
        rope_scale=(1.0, 1.0, 1.0),
        concat_padding_mask=False,  # True needs torchvision
        extra_pos_embed_type=None,  # learnable positions start at zero and are then normalised: NaN
    )
    with torch.no_grad():
        model.proj_out.weight.zero_()
        model.norm_out.linear_2.weight.zero_()
        for block in model.transformer_blocks:
            for norm in (block.norm1, block.norm2, block.norm3):
                norm.linear_2.weight.zero_()
            # Zero embeddings leave it untrained; its output without biases is zero for them anyway.
            block.attn2.to_out[0].weight.zero_()
    for block in model.transformer_blocks:
        for part in (block.attn2, block.norm2):
            part.requires_grad_(False)
    return model


def lean_forward(model: CosmosTransformer3DModel, x: Tensor, t: Tensor) -> Tensor:
    """The network's output for input (B, 17, T, H, W) and times (B, T); equal to the stock forward.

    Two thirds of its cost: modulation is computed once per frame instead of once per patch, and the
    silent cross-attention is left out.
    """
    batch, _, frames, height, width = x.shape
    cos_sin = model.rope(x, fps=None)
    hidden_BTSD = model.patch_embed(x).flatten(2, 3)
    temb, embedded = model.time_embed(hidden_BTSD, t.flatten())
    temb, embedded = (v.view(batch, frames, 1, -1) for v in (temb, embedded))
    for block in model.transformer_blocks:
        h, gate = _modulate(block.norm1, hidden_BTSD, embedded, temb)
        hidden_BTSD = hidden_BTSD + gate * _attention(block.attn1, h.flatten(1, 2), cos_sin).view_as(h)
        h, gate = _modulate(block.norm3, hidden_BTSD, embedded, temb)
        hidden_BTSD = hidden_BTSD + gate * block.ff(h)
    norm = model.norm_out
    shift_scale = norm.linear_2(norm.linear_1(F.silu(embedded))) + temb[..., : 2 * norm.embedding_dim]
    shift, scale = shift_scale.chunk(2, dim=-1)
    out = model.proj_out(norm.norm(hidden_BTSD) * (1 + scale) + shift)
    out = out.view(batch, frames, height // 2, width // 2, 2, 2, 1, Z_DIM)  # the stock order of a patch
    return out.permute(0, 7, 1, 6, 2, 4, 3, 5).reshape(batch, Z_DIM, frames, height, width)


def _modulate(norm: nn.Module, x: Tensor, embedded: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:
    shift, scale, gate = (norm.linear_2(norm.linear_1(F.silu(embedded))) + temb).chunk(3, dim=-1)
    return norm.norm(x) * (1 + scale) + shift, gate


def _attention(attention: nn.Module, x_BND: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    query, key, value = (
        project(x_BND).unflatten(2, (attention.heads, -1)).transpose(1, 2)
        for project in (attention.to_q, attention.to_k, attention.to_v)
    )
    query, key = (
        apply_rotary_emb(norm(part), cos_sin, use_real=True, use_real_unbind_dim=-2)
        for norm, part in ((attention.norm_q, query), (attention.norm_k, key))
    )
    mixed = F.scaled_dot_product_attention(query, key, value)
    return attention.to_out[0](mixed.transpose(1, 2).flatten(2))


def network_input(noised: Tensor, clean: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Frame 0 of `clean` in front of the noised future, with its marking channel; and times per frame.

    Args:
        noised, clean: (B, 16, T, H, W) standardised latents; t: (B,) times of the future.
    """
    x = torch.cat([clean[:, :, :1], noised[:, :, 1:]], dim=2)
    mark = torch.zeros_like(x[:, :1])
    mark[:, :, 0] = 1.0
    times = t[:, None].repeat(1, x.shape[2])
    times[:, 0] = CONDITION_T
    return torch.cat([x, mark], dim=1), times


def sample_times(count: int) -> Tensor:
    """Training times: half along the sampler's own schedule without its clean end, half logit-normal(1, 1)."""
    share = 0.8 * torch.rand(count)
    low, high = SIGMA_MIN ** (1 / RHO), SIGMA_MAX ** (1 / RHO)
    sigma = (high + share * (low - high)) ** RHO
    return torch.where(torch.rand(count) < 0.5, sigma / (sigma + 1), torch.sigmoid(1 + torch.randn(count)))


def denoising_loss(model: CosmosTransformer3DModel, clean: Tensor) -> Tensor:
    """Mean squared error of F = noise - x on the future frames; cells that differ from frame 0 count five times."""
    t, noise = sample_times(len(clean)), torch.randn_like(clean)
    mix = t[:, None, None, None, None]
    return _future_error(model, (1 - mix) * clean + mix * noise, clean, t, noise - clean)


def regression_loss(model: CosmosTransformer3DModel, clean: Tensor) -> Tensor:
    """The same at the first noise level alone, where the input is all but noise: the future's mean given frame 0.

    One evaluation of the engine (two denoise steps) then predicts by regression.
    """
    t, noise = torch.full((len(clean),), SIGMA_MAX / (1 + SIGMA_MAX)), torch.randn_like(clean)
    mix = t[:, None, None, None, None]
    return _future_error(model, (1 - mix) * clean + mix * noise, clean, t, noise - clean)


def _future_error(model: CosmosTransformer3DModel, noised: Tensor, clean: Tensor, t: Tensor, wanted: Tensor) -> Tensor:
    x, times = network_input(noised, clean, t)
    error = (lean_forward(model, x, times) - wanted)[:, :, 1:]
    changed = (clean[:, :, 1:] - clean[:, :, :1]).square().mean(dim=1, keepdim=True) > 0.1
    weight = 1 + 4 * changed.float()
    return (weight * error.square()).sum() / (weight.sum() * Z_DIM)


def train_dynamics(
    out: Path,
    latents: Callable[[], Tensor],
    *,
    seconds: float,
    seed: int = 0,
    layers: int = 4,
    heads: int = 4,
    batch: int = 16,
    lr: float = 4e-3,
    start: Path | None = None,
    loss_of: Callable[[CosmosTransformer3DModel, Tensor], Tensor] = denoising_loss,
    save_every_s: float = 120.0,
    progress: Progress | None = None,
) -> CosmosTransformer3DModel:
    """Train for `seconds` of CPU time; saves to `out` as it goes, and goes on from there.

    Args:
        start: the `transformer/` folder of a trained world to begin with, instead of from nothing.
        latents: gives the standardised training latents (N, 16, T, H, W) of the moment; asked again at
            every save, so that encoding may still be under way.
    """
    progress = progress or Progress.to_logger()
    torch.manual_seed(seed)
    model = new_transformer(layers=layers, heads=heads)
    if start is not None:
        first = load_pretrained(
            CosmosTransformer3DModel, start, error=WorldModelError, what="transformer to start from"
        )
        model.load_state_dict(first.float().state_dict())
    model.train()
    optimiser, average, budget = MuonAdamW(model, lr=lr, vector_lr=lr / 4), Average(model, 0.998), CpuBudget(seconds)
    step, saved_s = 0, 0.0
    out.mkdir(parents=True, exist_ok=True)
    if (out / "progress.json").exists():
        state = json.loads((out / "progress.json").read_text())
        model.load_state_dict(load_file(out / "last.safetensors"))
        kept = load_file(out / "average.safetensors")
        average.values = [kept[name] for name in sorted(kept)]
        average.updates = step = int(state["step"])
        budget, saved_s = CpuBudget(seconds, already_s=state["elapsed_s"]), state["elapsed_s"]
        torch.manual_seed(seed + 1000 * step)
    data, recent = latents(), 0.0
    while budget.done < 1:
        picked = data[torch.randint(len(data), (batch,))].float()
        loss = loss_of(model, picked)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step(budget.scale(floor=0.01))
        average.update(model.parameters())
        step += 1
        recent += (loss.item() - recent) / min(step, 200)
        if step % 200 == 0:
            progress.say(f"dynamics {budget.elapsed_s:.0f} s step {step} clips {len(data)} loss {recent:.4f}")
        if budget.elapsed_s - saved_s > save_every_s or budget.done >= 1:
            saved_s, data = budget.elapsed_s, latents()
            save_training(out, model, average, step=step, elapsed_s=saved_s)
    average.copy_to(model)
    return model.eval()
