"""Arguments of transformers' `generate`, as the reader's own takes them."""

from __future__ import annotations

import logging
from typing import Any

from theworld.pipeline.errors import ConfigError

_log = logging.getLogger(__name__)

_MAX_NEW_TOKENS = 16
_NO_EFFECT: dict[str, Any] = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True}
"""Arguments that ask for nothing with these values."""


def generation_options(named: dict[str, Any], generation_config: Any, others: dict[str, Any]) -> dict[str, Any]:
    """What the reader's `generate` takes of all that was asked for.

    Args:
        named: max_new_tokens, do_sample, temperature and top_p; None is not asked for.
        generation_config: of transformers; its values where they are not named.
        others: more arguments of transformers' `generate`.
    Raises:
        ConfigError: what cannot be done.
    """
    if "max_length" in others:
        raise ConfigError("max_length would count the world tokens, too: pass max_new_tokens")
    options = {name: value for name, value in others.items() if value is not None and _NO_EFFECT.get(name) != value}
    if generation_config is not None:
        named = {name: getattr(generation_config, name) if value is None else value for name, value in named.items()}
        options["generation_config"] = generation_config
    drawn = bool(named["do_sample"])
    if drawn and named["temperature"] == 0:
        raise ConfigError("temperature=0 with do_sample=True: leave out do_sample to take the likeliest token")
    if not drawn and any(named[name] not in (None, 0, 1) for name in ("temperature", "top_p")):
        _log.warning("temperature and top_p have no effect without do_sample=True")
    return {
        **options,
        "max_new_tokens": named["max_new_tokens"] or _MAX_NEW_TOKENS,
        "temperature": (named["temperature"] or 1.0) if drawn else 0.0,
        "top_p": 1.0 if named["top_p"] is None else named["top_p"],
    }
