"""Settings that are written as text: a rate, a price, a part of a job, a device to plan for.

Each is checked as it is read. A ValueError says what is wrong; pydantic adds the name of the setting.
"""

from __future__ import annotations

import re
from typing import get_args

from ...pipeline.accelerators import find_accelerator
from ...pipeline.errors import ConfigError
from ...pipeline.machine import DeviceName
from .price import parse_price


def number_text(value: object) -> object:
    """A number as its text; anything else as it is."""
    return f"{value}" if isinstance(value, float | int) and not isinstance(value, bool) else value


def rate_text(value: object) -> object:
    """A rate of frames as its text: `card`, `stored`, or frames a second.

    Raises:
        ValueError: it is none of them.
    """
    text = f"{value:g}" if isinstance(value, float | int) and not isinstance(value, bool) else value
    if isinstance(text, str) and text not in ("card", "stored"):
        try:
            readable = 0 < float(text) <= 1000
        except ValueError:
            readable = False
        if not readable:
            raise ValueError(f"clip_fps must be card, stored or frames a second up to 1000, got {text!r}")
    return text


def price_text(value: object) -> object:
    """The price of an hour as its text.

    Raises:
        ValueError: it is no price.
    """
    text = number_text(value)
    if isinstance(text, str) and parse_price(text) is None:
        raise ValueError(f"gpu_hour_price must be a number, with or without a currency: 2.50, $2.50; got {text!r}")
    return text


def read_part(text: str) -> tuple[int, int]:
    """(i, n) of `i/n`: the i-th of n parts, from 1.

    Raises:
        ValueError: the text is no such part.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    part = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part[0] <= part[1]:
        raise ValueError(f"part must be i/n with i from 1 to n, such as 3/8, got {text!r}")
    return part


def check_device(device: str, *, is_plan: bool) -> None:
    """Refuse a device that is not known. Only a plan may be for one that is not in this machine.

    Raises:
        ValueError: names the devices that can be chosen.
    """
    if device in get_args(DeviceName):
        return
    if not is_plan:
        raise ValueError(
            f"device must be auto, cpu or cuda, got {device[:80]!r}. With dry_run it may also be a device to "
            'plan for, such as "H100 80GB"'
        )
    try:
        find_accelerator(device)
    except ConfigError as error:
        raise ValueError(f"device must be auto, cpu, cuda or the name of one; {error}") from error
