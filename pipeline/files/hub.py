"""Where weights come from and which they are: a folder or a Hub id, to local files and an identity that lasts.

Lives here: resolving a Hub id to a commit before anything is loaded, and hashing a folder's files. The one door to
huggingface_hub. Elsewhere: what the files are (precompute/worlds/source.py, train/language/weights.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, TheWorldError

HUB_TIMEOUT_S = 5.0
"""For the one question that resolves a name to a commit; the download itself may take as long as it needs."""

_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository at one commit, on this disk."""

    repository: str
    commit: str
    folder: Path

    @property
    def name(self) -> str:
        """`ORG/NAME@<40 hex commit>`: finds exactly these files again."""
        return f"{self.repository}@{self.commit}"

    @property
    def identity(self) -> str:
        """What enters recipes and runs."""
        return f"hub:{self.name}"


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form ORG/NAME or ORG/NAME@REVISION."""
    return _HUB_ID.fullmatch(text) is not None


def fetch(hub_id: str, patterns: Sequence[str], *, error: type[TheWorldError], instead: str) -> Snapshot:
    """The files of a Hub repository at the commit its name stands for now, downloaded or found in the local cache.

    Args:
        hub_id: ORG/NAME or ORG/NAME@REVISION.
        patterns: which files, as `snapshot_download` takes them.
        error: what to raise. instead: what a user without the Hub can do, said at the end of the message.
    Raises:
        TheWorldError: of the type asked for: no such repository or revision, no access, or no network and no copy.
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
        raise ConfigError(f"{hub_id!r} is not a Hub id, ORG/NAME or ORG/NAME@REVISION")
    repository, revision, wanted = match["repo"], match["revision"], list(patterns)
    try:
        # One short question first: it fails in seconds where a download would retry for minutes, and the commit it
        # names is passed on, so that what is hashed is what is loaded.
        commit = HfApi().model_info(repository, revision=revision, timeout=HUB_TIMEOUT_S).sha
        if commit is None:
            raise error(f"the Hub names no commit for {hub_id}")
        return Snapshot(
            repository, commit, Path(snapshot_download(repository, revision=commit, allow_patterns=wanted))
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
        why = f"{type(problem).__name__}: {problem}".splitlines()[0]
        try:
            folder = Path(
                snapshot_download(repository, revision=revision, allow_patterns=wanted, local_files_only=True)
            )
        except (LocalEntryNotFoundError, OSError, ValueError):
            raise error(
                f"{hub_id} is not in the local cache and the Hub cannot be reached ({why}). Download it where there "
                f"is a network, set HF_HOME to a cache that holds it, or {instead}"
            ) from problem
        return Snapshot(repository, folder.name, folder)


def upload(folder: Path, hub_id: str, *, private: bool, error: type[TheWorldError]) -> str:
    """Put all files of a folder into a Hub repository, in one commit; make it where it is not there.

    Args:
        private: of a new repository.
        error: what to raise.
    Returns:
        The commit's address.
    Raises:
        TheWorldError: of the type asked for: no access, or no network.
    """
    from huggingface_hub import HfApi

    if not is_hub_id(hub_id) or "@" in hub_id:
        raise error(f"{hub_id!r} is not a name on the Hub: ORG/NAME")
    try:
        api = HfApi()
        api.create_repo(hub_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=hub_id, folder_path=folder, commit_message="A run of theworld"))
    except Exception as problem:  # what a network failure raises depends on the Hub client's HTTP library
        why = f"{type(problem).__name__}: {problem}".splitlines()[0]
        raise error(
            f"cannot upload to {hub_id}: {why}. Log in with `hf auth login` (or set HF_TOKEN) as somebody who may "
            "write there, and check the network; nothing here has changed"
        ) from problem


