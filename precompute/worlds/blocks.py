"""The blocks of a network: how many a family has, and the tokens behind one of them. Loads no heavy library.

Axes:  B sample   N token, all of a clip   D width
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from .family import Configs


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """The blocks that a clip passes through in one forward."""

    count: int
    width: int
    """Numbers of a token."""
    patch: int
    """Latent rows, and columns, that a token covers; it covers one latent frame."""
    most_sigma: float | None
    """The highest noise level, in the family's scale; None: it has no noise."""
    most_steps: int | None = None
    """Latent frames after the first that the first forward of a rollout covers; None is all."""

    @property
    def usual(self) -> int:
        """The block where nothing is said: at two thirds of the depth. There hidden states say most about a future
        (docs/recipes.md)."""
        return max(1, round(self.count * 2 / 3))


@runtime_checkable
class HasBlocks(Protocol):
    """Optional for a family: its engine has `hidden` (`HasHiddenStates`). Without it, kind hidden is refused."""

    def blocks(self, configs: Configs) -> Blocks:
        """Of the model with these configs. May raise what configs of no such class give."""
        ...


def diffusers_blocks(config: Mapping[str, Any], *, most_sigma: float, most_steps: int | None = None) -> Blocks:
    """Of a transformer of diffusers, by the names that Cosmos-Predict and Wan give their sizes."""
    return Blocks(
        count=config["num_layers"],
        width=config["num_attention_heads"] * config["attention_head_dim"],
        patch=config["patch_size"][1],
        most_sigma=most_sigma,
        most_steps=most_steps,
    )


class _Reached(Exception):  # noqa: N818 - it ends a forward, and is no error
    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = tokens


def tokens_behind(blocks: Sequence[nn.Module], run: Callable[[], object]) -> Tensor:
    """The tokens (B, N, D) that the first of these blocks to be called gives; the forward ends there.

    Args:
        blocks: the block, of each network that may be the first to run. run: begins a rollout.
    """

    def leave(block: nn.Module, inputs: object, output: Any) -> NoReturn:
        del block, inputs
        raise _Reached(output[0] if isinstance(output, tuple) else output)

    hooks = [block.register_forward_hook(leave) for block in blocks]
    try:
        run()
    except _Reached as reached:
        return reached.tokens
    finally:
        for hook in hooks:
            hook.remove()
    raise AssertionError("a rollout runs its network")
