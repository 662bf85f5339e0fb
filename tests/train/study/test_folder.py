"""The folder of a study: what is removed from it."""

from pathlib import Path

from theworld.train.study.folder import locked


def test_trainings_that_are_not_the_study_s_stay(tmp_path: Path) -> None:
    """As with `--out .` in a folder of one's work: its runs are trainings of one's own, and some may be resumed."""
    own, killed = tmp_path / "runs" / "7.partial", tmp_path / "runs" / "labels100-seed0-0123456789abcdef.partial"
    for folder in (own, killed):
        folder.mkdir(parents=True)
        (folder / "checkpoint.safetensors").touch()
    with locked(tmp_path):
        assert (own / "checkpoint.safetensors").exists()
        assert not killed.exists()
