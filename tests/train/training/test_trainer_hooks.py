"""A release of transformers whose Trainer would pass our methods over is refused before anything is trained."""

from pathlib import Path

import pytest
import transformers

from theworld.pipeline.errors import ConfigError
from theworld.pipeline.progress import Progress
from theworld.train.training import trainer_hooks
from theworld.train.training.train import train
from theworld.train.training.trainer import UpdateTrainer
from theworld.train.training.trainer_hooks import ATTRIBUTES, TESTED, hooks_of, require_hooks, trainer_source

from ...miniatures.training import lay_out, settings

SOURCE = trainer_source()


def upstream(monkeypatch: pytest.MonkeyPatch, *renamed: tuple[str, str]) -> None:
    """Trainer as a later release might have it."""
    source = SOURCE
    for before, after in renamed:
        assert before in source
        source = source.replace(before, after)
    monkeypatch.setattr(trainer_hooks, "trainer_source", lambda: source)


def test_the_installed_trainer_calls_all_that_we_override() -> None:
    require_hooks(UpdateTrainer, Progress.silent())
    both = {name for name in vars(UpdateTrainer) if name in vars(transformers.Trainer) and not name.startswith("__")}
    assert hooks_of(UpdateTrainer).keys() == both, "mark what overrides a method of Trainer"
    assert "_clip_grad_norm" in both
    assert transformers.__version__.startswith(f"{TESTED}.")


@pytest.mark.parametrize("name", hooks_of(UpdateTrainer))
def test_a_method_that_was_renamed_upstream_refuses_the_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream(monkeypatch, (f"def {name}(", "def renamed("), (f"self.{name}(", "self.renamed("))
    with pytest.raises(ConfigError, match=rf"no longer uses {name}\(\), on which") as refusal:
        require_hooks(UpdateTrainer, Progress.silent())
    assert transformers.__version__ in str(refusal.value)
    assert f"'transformers=={TESTED}.*'" in str(refusal.value)


@pytest.mark.parametrize("name", hooks_of(UpdateTrainer))
def test_a_method_that_is_there_but_no_longer_called_refuses_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream(monkeypatch, (f"self.{name}(", "self.renamed("))
    with pytest.raises(ConfigError, match=rf"{name}\(\)"):
        require_hooks(UpdateTrainer, Progress.silent())


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_state_that_was_renamed_upstream_refuses_the_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream(monkeypatch, (f"self.{name}", "self.renamed"))
    with pytest.raises(ConfigError, match=f"no longer uses {name}, on which"):
        require_hooks(UpdateTrainer, Progress.silent())


def test_a_call_from_a_method_that_never_runs_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """`log` is also called by Trainer's `evaluate`, which ours replaces."""
    upstream(monkeypatch, ("self.log(logs, start_time)", "self.renamed(logs, start_time)"), ("self.log(metrics)", "0"))
    with pytest.raises(ConfigError, match=r"no longer uses log\(\), on which"):
        require_hooks(UpdateTrainer, Progress.silent())


def test_nothing_is_written_by_a_training_that_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = lay_out(tmp_path)
    before = set(house.rglob("*"))
    upstream(monkeypatch, ("_clip_grad_norm", "_clip_gradients"))
    with pytest.raises(ConfigError, match="_clip_grad_norm"):
        train(settings(house))
    assert set(house.rglob("*")) == before


def test_a_trainer_without_source_is_trained_with_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> str:
        raise OSError("could not get source code")

    monkeypatch.setattr(trainer_hooks, "trainer_source", gone)
    warnings: list[str] = []
    require_hooks(UpdateTrainer, Progress.keeping(warnings))
    [warning] = warnings
    assert "cannot be checked" in warning
