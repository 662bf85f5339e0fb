"""What is installed is what is in the repository, under names that nothing else in site-packages has."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("pipeline", "precompute", "train")


@pytest.mark.slow
def test_the_wheel_holds_the_three_rooms_their_weights_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"  # building in place would leave build/ behind
    source.mkdir()
    listing = ["git", "ls-files", "-co", "--exclude-standard"]
    for name in subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, "."], cwd=source, check=True, capture_output=True, timeout=300)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(tmp_path / "site")
    expected = {
        f"theworld/{path.relative_to(source).as_posix()}"
        for room in ROOMS
        for path in (source / room).rglob("*")
        if path.suffix in {".py", ".json", ".safetensors", ".md"}
    }
    assert names == expected
    # a user's own train.py does not shadow ours, nor ours theirs
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "train.py").write_text("raise SystemExit('shadowed')")
    code = "import theworld.train.tokens, theworld.precompute.world as w; print(w.resolve_world(None).name)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {code}"],
        cwd=tmp_path / "work",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "worldlet"
