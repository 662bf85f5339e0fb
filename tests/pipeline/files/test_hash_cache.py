"""The folder of digests beside a cache's stores: what is removed from it."""

import os
from pathlib import Path

from theworld.pipeline.files.atomic import TempFile
from theworld.pipeline.files.file_facts import FileFacts
from theworld.pipeline.files.hash_cache import FOLDER, HashCache


def test_what_a_killed_process_left_is_removed_and_a_user_s_own_files_are_not(tmp_path: Path) -> None:
    """As with `--cache .` in a folder of one's work, which may have an `index` of its own."""
    folder = tmp_path / FOLDER
    (folder / "words").mkdir(parents=True)
    (folder / "index.csv").write_text("of the user's own")
    left = TempFile(folder).path
    for path in (*folder.iterdir(), left):
        os.utime(path, (0, 0))
    being_written = TempFile(folder).path  # by another process, at this moment
    hashes = HashCache.load(tmp_path, tmp_path / "images", "image")
    hashes.put("a.png", FileFacts(device=1, inode=1, size=1, mtime_ns=0, ctime_ns=0), b"d" * 32)
    hashes.save()
    assert not left.exists()
    assert being_written.exists()
    assert (folder / "index.csv").read_text() == "of the user's own"
    assert len(list(folder.glob("*.safetensors"))) == 1
