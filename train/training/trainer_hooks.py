"""Which methods of ours transformers' Trainer must call, and a check that the installed release still does.

Several of them are private, so a release may rename one without notice. Python would not complain: our method would
just never run, and, for instance, updates that are not finite would be applied.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import transformers

from ...pipeline.errors import ConfigError
from ...pipeline.progress import Progress

TESTED = "5.23"
"""The release of transformers that trainings were tested with."""

ATTRIBUTES = ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "loss_is_scaled_for_ga")
"""What our trainer reads or sets of Trainer's own state."""

_MARK = "_is_trainer_hook"

Method = TypeVar("Method", bound=Callable[..., Any])


def trainer_hook(method: Method) -> Method:
    """Mark a method that Trainer's training loop must call."""
    setattr(method, _MARK, True)
    return method


def hooks_of(trainer: type) -> dict[str, Callable[..., Any]]:
    """The marked methods of a trainer class, by name."""
    return {name: method for name, method in vars(trainer).items() if hasattr(method, _MARK)}


def require_hooks(trainer: type, progress: Progress) -> None:
    """Refuse to train where Trainer no longer calls a hook, or no longer has an attribute that we read or set.

    A name counts as used if `Trainer.train` reaches it from method to method. A method of Trainer that ours replaces
    without `super()` never runs, so what stands in it does not count.

    Raises:
        ConfigError: names what is missing, the installed release and the tested one.
    """
    hooks = hooks_of(trainer)
    try:
        names_by_method = _names_by_method(trainer_source())
        replaced = {name for name, method in hooks.items() if "super()" not in inspect.getsource(method)}
    except (OSError, SyntaxError) as error:  # installed without its source
        progress.warn(
            f"warning: transformers' Trainer cannot be checked for the methods that trainings rely on: {error}"
        )
        return
    used_names, waiting = set[str](), ["train"]
    while waiting:
        method = waiting.pop()
        names = set[str]() if method in replaced else names_by_method.get(method, set())
        waiting += names - used_names
        used_names |= names
    missing = [f"{name}()" for name in hooks if name not in used_names]
    missing += [name for name in ATTRIBUTES if name not in used_names]
    if missing:
        raise ConfigError(
            f"transformers {transformers.__version__} cannot train here: its Trainer no longer uses "
            f"{', '.join(missing)}, on which training relies. Install the release that was tested: "
            f"pip install 'transformers=={TESTED}.*'"
        )


@cache
def trainer_source() -> str:
    """The source of the installed Trainer."""
    return textwrap.dedent(inspect.getsource(transformers.Trainer))


@cache
def _names_by_method(source: str) -> dict[str, set[str]]:
    """Method of a class -> the attributes of `self` that stand in it, but for those in its docstrings and comments."""
    [definition] = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    return {
        method.name: {
            node.attr
            for node in ast.walk(method)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
        }
        for method in definition.body
        if isinstance(method, ast.FunctionDef)
    }
