"""Download from and upload to the Hugging Face Hub. Only this file imports huggingface_hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...credentials import hide_passwords
from ...errors import ConfigError, TheWorldError

HUB_TIMEOUT_S = 5.0
"""Limit of the one request that resolves a name to a commit. The download has no limit."""

_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository at one commit, downloaded to this disk."""

    repository: str
    commit: str
    folder: Path

    @property
    def name(self) -> str:
        """`ORG/NAME@<40 hex commit>`, which names exactly these files."""
        return f"{self.repository}@{self.commit}"

    @property
    def identity(self) -> str:
        """The form that is stored in recipes and runs."""
        return f"hub:{self.name}"


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form ORG/NAME or ORG/NAME@REVISION."""
    return _HUB_ID.fullmatch(text) is not None


def fetch(hub_id: str, patterns: Sequence[str], *, error: type[TheWorldError], instead: str) -> Snapshot:
    """Download files of a Hub repository, or find them in the local cache, at the commit that its name means now.

    Args:
        hub_id: ORG/NAME or ORG/NAME@REVISION.
        patterns: file name patterns for `snapshot_download`.
        error: the type of error to raise.
        instead: the end of the message: what a user without the Hub can do.
    Raises:
        TheWorldError: of type `error`: no such repository or revision, no access, or no network and no local copy.
    """
    from huggingface_hub import HfApi, snapshot_download  # pyright: ignore[reportUnknownVariableType]
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match = _HUB_ID.fullmatch(hub_id)
    if match is None:
        raise ConfigError(f"{hub_id!r} is not a Hub id: write ORG/NAME or ORG/NAME@REVISION")
    repository, revision, allow_patterns = match["repo"], match["revision"], list(patterns)
    try:
        # One short request first: it fails in seconds, while a download would retry for minutes. Its commit is passed
        # on, so that the files loaded are those that are named.
        commit = HfApi().model_info(repository, revision=revision, timeout=HUB_TIMEOUT_S).sha
        if commit is None:
            raise error(f"the Hub names no commit for {hub_id}")
        return Snapshot(
            repository, commit, Path(snapshot_download(repository, revision=commit, allow_patterns=allow_patterns))
        )
    except GatedRepoError as problem:
        raise error(
            f"{repository} is gated on the Hub. Accept its licence on its page, then log in with `hf auth login` "
            f"(or set HF_TOKEN), or {instead}"
        ) from problem
    except (RepositoryNotFoundError, RevisionNotFoundError) as problem:
        raise error(f"the Hub has no {hub_id} that you may read. Check the name, log in, or {instead}") from problem
    except TheWorldError:
        raise
    except Exception as problem:  # what a network failure raises depends on the Hub client's HTTP library
        cause = hide_passwords(f"{type(problem).__name__}: {problem}".splitlines()[0])
        try:
            folder = Path(
                snapshot_download(repository, revision=revision, allow_patterns=allow_patterns, local_files_only=True)
            )
        except (LocalEntryNotFoundError, OSError, ValueError):
            raise error(
                f"{hub_id} is not in the local cache and the Hub cannot be reached ({cause}). Download it where there "
                f"is a network, set HF_HOME to a cache that holds it, or {instead}"
            ) from problem
        return Snapshot(repository, folder.name, folder)


def dataset_size(repository: str) -> tuple[int, int] | None:
    """Number and bytes of the files of a data set on the Hub, as the Hub states them; None where it cannot be asked."""
    from huggingface_hub import HfApi

    try:
        facts = HfApi().dataset_info(repository, files_metadata=True, timeout=HUB_TIMEOUT_S)
    except Exception:  # what a network failure raises depends on the Hub client's HTTP library
        return None
    files = facts.siblings or []
    return len(files), sum(file.size or 0 for file in files)


def upload(
    folder: Path,
    hub_id: str,
    *,
    private: bool,
    error: type[TheWorldError],
    repo_type: Literal["model", "dataset"] = "model",
    patterns: Sequence[str] | None = None,
    message: str = "A run of theworld",
) -> str:
    """Upload files of a folder to a Hub repository in one commit. Create the repository if it does not exist.

    Large files that an upload which was cut has sent already are not sent again.

    Args:
        private: whether a new repository is private.
        error: the type of error to raise.
        patterns: of the names of the files; None takes all.
        message: of the commit.
    Returns:
        The URL of the commit.
    Raises:
        TheWorldError: of type `error`: no access, or no network.
    """
    from huggingface_hub import HfApi

    if not is_hub_id(hub_id) or "@" in hub_id:
        raise error(f"{hub_id!r} is not the name of a Hub repository: write ORG/NAME")
    try:
        api = HfApi()
        api.create_repo(hub_id, private=private, exist_ok=True, repo_type=repo_type)
        names = None if patterns is None else list(patterns)
        return str(
            api.upload_folder(
                repo_id=hub_id, folder_path=folder, commit_message=message, repo_type=repo_type, allow_patterns=names
            )
        )
    except Exception as problem:  # what a network failure raises depends on the Hub client's HTTP library
        cause = hide_passwords(f"{type(problem).__name__}: {problem}".splitlines()[0])
        raise error(
            f"cannot upload to {hub_id}: {cause}. Log in with `hf auth login` (or set HF_TOKEN) as a user who may "
            "write there, and check the network. Nothing on this disk has changed"
        ) from problem
