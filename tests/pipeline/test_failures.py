"""The words of a ledger: unique, explained, the same on disk, and no word of another release is lost."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from theworld.pipeline.errors import ImageError
from theworld.pipeline.failures import FailureReason
from theworld.pipeline.files.places.folder import Folder
from theworld.pipeline.store.ledger import Failure, read_failures, write_failure


def test_every_reason_is_its_word_on_disk_and_has_one_sentence() -> None:
    for reason in FailureReason:
        assert reason.name.lower() == reason.value == str(reason) == json.loads(json.dumps(reason))
        assert reason.explanation.endswith(".")
        assert reason.explanation.count(". ") == 0
    assert json.loads(json.dumps({FailureReason.OOM: FailureReason.OOM})) == {"oom": "oom"}


def test_the_words_on_disk_are_these() -> None:
    words = "row missing not_a_file empty too_large tar truncated table format animated short decode crash timeout "
    words += "memory error changed prompt rollout encode latent oom"
    assert list(FailureReason) == words.split()


def test_an_error_keeps_its_reason_across_processes() -> None:
    error = copy.copy(ImageError(FailureReason.SHORT, "3 frames"))  # by __reduce__, as between processes
    assert (error.reason, str(error)) == (FailureReason.SHORT, "3 frames")


def test_a_word_of_another_release_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "failed").mkdir()
    reasons = {FailureReason.DECODE, "cursed"}
    for reason in reasons:
        write_failure(Folder(tmp_path), Failure(source=reason, key=None, reason=reason, message="m", attempts=1))
    assert {failure.reason for failure in read_failures(Folder(tmp_path))} == reasons
