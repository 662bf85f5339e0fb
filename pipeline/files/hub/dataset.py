"""The files of a data set on the Hugging Face Hub at one commit: listed by pages, read through the Hub's own cache."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ...credentials import hide_passwords
from ...errors import ConfigError, StoreError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

_T = TypeVar("_T")

_URL = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/(.*))?", re.DOTALL)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubDataset:
    """A data set at one commit. Thread-safe; copies of its files are in the Hub's cache (HF_HOME)."""

    def __init__(self, repository: str, revision: str | None, commit: str) -> None:
        """
        Args:
            revision: as the user named it; None for the newest.
        """
        self._repository, self._commit = repository, commit
        self.name = f"hf://datasets/{repository}" + (f"@{revision}" if revision else "")
        """What its files are called by."""
        self.at = f"hf://datasets/{repository}@{commit}"
        """What names exactly these files."""

    @staticmethod
    def parse(url: str) -> tuple[str, str | None, str]:
        """ORG/NAME, the revision if one is named, and the path of a URL.

        Raises:
            ConfigError: it is no URL of a data set.
        """
        match = _URL.fullmatch(url)
        if match is None:
            raise ConfigError(
                f"{hide_passwords(url)} is no data set of the Hugging Face Hub: write hf://datasets/ORG/NAME, with "
                "/FOLDER or /FILE behind it for a part of it"
            )
        return match[1], match[2], match[3] or ""

    @classmethod
    def find(cls, url: str) -> HubDataset:
        """The data set that a URL is in, at the commit that its revision means when this process first asks.

        Raises:
            ConfigError: it is no URL of a data set.
            StoreError: the Hub knows none of this name that the user may read, or cannot be reached.
        """
        repository, revision, _ = cls.parse(url)
        if revision is not None and _COMMIT.fullmatch(revision):
            return _at_commit(repository, revision)
        return _find(repository, revision)

    @classmethod
    def of(cls, at: str) -> HubDataset:
        """The data set with this `at`; nothing is asked for."""
        repository, commit, _ = cls.parse(at)
        assert commit is not None
        return _at_commit(repository, commit)

    def path_in(self, url: str) -> str:
        """The path of a URL in the data set."""
        return self.parse(url)[2]

    def files(self, folder: str) -> Iterator[tuple[str, int, str]]:
        """Name, bytes and version of all files below a folder; nothing where there is no such folder.

        Raises:
            StoreError: they cannot be listed.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import EntryNotFoundError
        from huggingface_hub.hf_api import RepoFile

        def listed() -> list[tuple[str, int, str]]:
            try:
                entries = HfApi().list_repo_tree(
                    self._repository,
                    folder.rstrip("/") or None,
                    recursive=True,
                    revision=self._commit,
                    repo_type="dataset",
                )
                return [(entry.path, entry.size, _version(entry)) for entry in entries if isinstance(entry, RepoFile)]
            except EntryNotFoundError:
                return []

        yield from self._ask("list", folder, listed)

    def look_at(self, path: str) -> tuple[int, str] | None:
        """Bytes and version of a file; None where there is none."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        answer = self._ask(
            "look at",
            path,
            lambda: HfApi().get_paths_info(self._repository, [path], revision=self._commit, repo_type="dataset"),
        )
        files = [entry for entry in answer if isinstance(entry, RepoFile) and entry.path == path]
        return (files[0].size, _version(files[0])) if files else None

    def copy(self, path: str) -> Path:
        """A whole copy of a file in the Hub's cache.

        Raises:
            FileNotFoundError: there is none.
            StoreError: it cannot be fetched.
        """
        from huggingface_hub import hf_hub_download  # pyright: ignore[reportUnknownVariableType]

        return self._ask(
            "read",
            path,
            lambda: Path(hf_hub_download(self._repository, path, repo_type="dataset", revision=self._commit)),
        )

    def read(self, path: str, max_bytes: int) -> bytes:
        """The bytes of a file.

        Raises:
            ValueError: it is larger.
        """
        with self.copy(path).open("rb") as file:
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise ValueError(f"{self.name}/{path} holds more than {max_bytes:,} bytes, which is the limit")
        return content

    def download(self, folder: Path, patterns: Sequence[str]) -> None:
        """Copy the files whose names are like a pattern into a folder; those that are there already stay.

        Raises:
            StoreError: they cannot be fetched.
        """
        from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

        self._ask(
            "download",
            "",
            lambda: snapshot_download(
                self._repository,
                repo_type="dataset",
                revision=self._commit,
                local_dir=folder,
                allow_patterns=list(patterns),
            ),
        )

    def _ask(self, verb: str, path: str, action: Callable[[], _T]) -> _T:
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        url = f"{self.name}/{path}".rstrip("/")
        try:
            return action()
        except LocalEntryNotFoundError as error:
            raise _no_answer(verb, url, error) from None
        except EntryNotFoundError:
            raise FileNotFoundError(f"there is no {url}") from None
        except Exception as error:  # what a network failure raises depends on the Hub client's HTTP library
            raise _no_answer(verb, url, error) from None


def _version(file: RepoFile) -> str:
    return file.lfs.sha256 if file.lfs else file.blob_id


@lru_cache(maxsize=64)
def _find(repository: str, revision: str | None) -> HubDataset:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    url = f"hf://datasets/{repository}" + (f"@{revision}" if revision else "")
    try:
        commit = HfApi().dataset_info(repository, revision=revision).sha
    except GatedRepoError as error:
        raise StoreError(
            f"{url} is gated on the Hub. Accept its terms on its page, then log in with `hf auth login` (or set "
            "HF_TOKEN)"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise StoreError(
            f"the Hub has no data set {url} that you may read. Check the name, or log in with `hf auth login` (or "
            "set HF_TOKEN)"
        ) from error
    except Exception as error:  # what a network failure raises depends on the Hub client's HTTP library
        raise _no_answer("find", url, error) from None
    if commit is None:
        raise StoreError(f"the Hub names no commit for {url}")
    return HubDataset(repository, revision, commit)


@lru_cache(maxsize=64)
def _at_commit(repository: str, commit: str) -> HubDataset:
    return HubDataset(repository, commit, commit)


def _no_answer(verb: str, url: str, error: Exception) -> StoreError:
    cause = hide_passwords(f"{type(error).__name__}: {error}".splitlines()[0]).partition("?")[0][:300]
    return StoreError(f"cannot {verb} {url}: {cause}. Check the network and HF_ENDPOINT, then run the command again")
