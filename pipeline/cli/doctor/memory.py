"""Which public models fit into an accelerator's memory, by the estimates that the commands plan with.

No weights and no network are needed. The settings are those of the presets in `configs/`.
"""

from __future__ import annotations

from ....precompute.rollout.batch_size import default_batch
from ....precompute.worlds.builtin import BUILT_IN
from ....precompute.worlds.memory import memory_of_batch
from ....precompute.worlds.public_sizes import PUBLIC_CONFIGS
from ....train.reader.layouts import TokenLayout
from ....train.reader.memory import Adapters, LMShape, MemoryShape, ReaderShape, Rows
from ....train.reader.public_sizes import GEMMA_2_2B
from ...device_memory import usable
from ...latents.recipe import Recipe
from ...messages import format_bytes

_STEPS = 8
_WORLDS = {
    "the 2B at 224x224": ("cosmos-predict2-2b", (224, 224)),
    "the 2B at 480p": ("cosmos-predict2-2b", (432, 768)),
    "the 14B at 480p": ("cosmos-predict2-14b", (432, 768)),
    "Cosmos 3 Edge at 480p": ("cosmos3-edge", (480, 832)),
    "Wan 2.1 at 480p": ("wan2.1-i2v-480p", (480, 832)),
    "Wan 2.2 5B at 704p": ("wan2.2-ti2v-5b", (704, 1280)),
}
_QUESTION = Rows(count=1, text=100, labels=3)


def what_fits(limit: float) -> str:
    """What a GPU with so many bytes for a job can do, in one line: rollouts of 8 steps, and training a reader."""
    worlds = [f"{title} {_batches(name, size, limit)}" for title, (name, size) in _WORLDS.items()]
    return "; ".join([*worlds, f"Gemma-2-2b {_training(limit)}"])


def _batches(name: str, size: tuple[int, int], limit: float) -> str:
    family = next(family for family in BUILT_IN.values() if name in family.names)
    configs = PUBLIC_CONFIGS[name]
    recipe = Recipe(world=name, height=size[0], width=size[1], rollout_steps=_STEPS, compute_dtype="bfloat16")
    batch = default_batch(recipe, family.latent_spec(configs), on_gpu=True)
    while True:
        need = memory_of_batch(family, configs, recipe, batch, limit=limit)
        assert need is not None, "its configs are complete"
        if need.total <= usable(limit):
            return f"fits with batches of {batch}"
        if batch == 1:
            return f"needs {format_bytes(need.total)}, with --offload {format_bytes(need.offloaded().total)}"
        batch //= 2


def _training(limit: float) -> str:
    """As configs/gemma2_2b.toml has it: 2x2 patches of nine latent frames of 224x224, LoRA of rank 16, in bfloat16."""
    lm = LMShape.of(GEMMA_2_2B)
    reader = ReaderShape.of(
        TokenLayout(name="patch", patch=2),
        latent_shape=(16, 28, 28),
        frames=1 + _STEPS,
        max_world_steps=16,
        width=lm.width,
    )
    shape = MemoryShape(lm=lm, reader=reader, adapters=Adapters(), dtype_bytes=2)
    kept, recomputed = (shape.training(_QUESTION, checkpointing=recomputes, passes=4) for recomputes in (False, True))
    if kept.total <= usable(limit):
        return "trains"
    if recomputed.total <= usable(limit):
        return "trains with checkpointing"
    return f"needs {format_bytes(recomputed.total)} to train"
