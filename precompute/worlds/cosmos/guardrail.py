"""Check prompts by a guardrail, before a job begins. Loads no torch.

NVIDIA's licence ends where a guardrail is bypassed without a similar one in its place. So a recipe with a prompt must
name its guardrail: `cosmos` runs NVIDIA's own text filter once; `external` states that you have run a filter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from ....pipeline.errors import ConfigError
from ....pipeline.messages import install_extra

if TYPE_CHECKING:
    from ..family import TextForm

Guardrail = Literal["cosmos", "external"]


def check_prompts(prompts: list[str], guardrail: Guardrail | None, form: TextForm | None) -> None:
    """Refuse prompts nobody has checked, where the world model's licence asks for that.

    Args:
        form: the family's.
    Raises:
        ConfigError: no guardrail was named, NVIDIA's is not installed, or it finds a prompt unsafe.
    """
    if unsafe := unsafe_prompts(prompts, guardrail, form):
        raise ConfigError(f"NVIDIA's guardrail finds this prompt unsafe: {unsafe[0]!r}")


def unsafe_prompts(prompts: Sequence[str], guardrail: Guardrail | None, form: TextForm | None) -> list[str]:
    """The prompts that NVIDIA's filter finds unsafe; none where another guardrail is named.

    Raises:
        ConfigError: no guardrail was named where the licence asks for one, or NVIDIA's is not installed.
    """
    if not prompts or form is None or (guardrail is None and not form.guardrail):
        return []
    if guardrail is None:
        raise ConfigError(
            "a prompt needs a guardrail: the NVIDIA Open Model License ends where one is bypassed without a similar "
            f"one in its place. Pass --guardrail cosmos ({install_extra('guardrail')}) to run NVIDIA's text "
            "filter once, or --guardrail external to state that your own filter has passed it"
        )
    if guardrail == "external":
        return []
    try:
        from cosmos_guardrail import CosmosSafetyChecker  # pyright: ignore[reportMissingImports] - an extra
    except ImportError as error:
        raise ConfigError(f"--guardrail cosmos needs NVIDIA's filter: {install_extra('guardrail')}") from error
    checker = CosmosSafetyChecker()
    return [prompt for prompt in prompts if not checker.check_text_safety(prompt)]
