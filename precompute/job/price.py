"""A price as a user gives it, such as 2.50, $2.50 or "2,50 EUR": its currency is said again, and never converted."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PRICE = re.compile(
    r"(?P<before>[^\W\d_]{1,3}|[$€£¥₹])?\s*(?P<number>\d+(?:\.\d+|,\d{1,2})?)\s*(?P<after>[^\W\d_]{1,3}|[$€£¥₹])?"
)


@dataclass(frozen=True, slots=True)
class Price:
    """An amount of money."""

    amount: float
    before: str = ""
    """What stands before the number, such as $."""
    after: str = ""

    def times(self, count: float) -> Price:
        """So many of it."""
        return Price(self.amount * count, self.before, self.after)

    def __str__(self) -> str:
        is_tiny = 0 < self.amount < 0.01
        number = f"{0.01 if is_tiny else self.amount:,.{2 if self.amount < 1000 else 0}f}"
        money = f"{self.before}{' ' * self.before.isalpha()}{number}{' ' * bool(self.after)}{self.after}"
        return f"less than {money}" if is_tiny else money


def parse_price(text: str) -> Price | None:
    """Parse a price; None if the text is no price."""
    match = _PRICE.fullmatch(text.strip())
    if match is None or (match["before"] and match["after"]):
        return None
    return Price(float(match["number"].replace(",", ".")), match["before"] or "", match["after"] or "")
