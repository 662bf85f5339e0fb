"""The page of the architecture names files that exist, and shows every package of the source."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_every_file_and_folder_on_the_page_exists() -> None:
    """A file without a folder, as in "`cost.py`", lies in the folder of the file named before it."""
    missing = []
    folder = Path()
    for name in re.findall(r"`([\w/]+(?:\.py|/|(?<=/)\w+))`", PAGE):
        if "/" in name:
            path = ROOT / name
            folder = path.parent if path.suffix else path
        else:
            path = folder / name
        if not path.exists():
            missing.append(name)
    assert missing == []


def test_every_package_stands_in_the_picture() -> None:
    """A new package has a place in the order of imports, or the picture is wrong."""
    picture = PAGE[PAGE.index("```") : PAGE.index("```", PAGE.index("```") + 3)]
    rooms = ("pipeline", "precompute", "train")
    packages = [path.parent for room in rooms for path in (ROOT / room).glob("*/__init__.py")]
    absent = [path.name for path in packages if not re.search(rf"\b{path.name}\b", picture)]
    assert sorted(absent) == ["pages", "worldlet", "worldlet"]
