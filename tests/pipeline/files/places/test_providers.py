"""The same store at Google's and Microsoft's: `gs://` against the scripted server, `az://` against Azurite if it is
there (`npm install azurite`), which speaks as Azure Blob Storage does."""

from __future__ import annotations

import base64
import hashlib
import hmac
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest

from theworld.pipeline.cli.doctor.bucket import examine_bucket
from theworld.pipeline.errors import StoreError
from theworld.pipeline.files.places.bucket import Bucket
from theworld.pipeline.store.folder import create_store, open_store
from theworld.pipeline.store.upkeep.transfer import export
from theworld.pipeline.store.upkeep.verify import LEVELS, verify

from ....miniatures.store import SPEC, TINY, expected, fill, key
from ....s3_server import BUCKET, SECRET, Faults, environment, s3_server
from .test_bucket import use_as_a_place

ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's own, which all the world knows."""


@contextmanager
def azurite(folder: Path) -> Iterator[dict[str, str]]:
    """The variables of a client of a server with an empty container; skips the test where there is no server."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("Azurite is not installed: npm install -g azurite")
    words = [program, "--silent", "--disableTelemetry", "--skipApiVersionCheck", "--location", str(folder)]
    with subprocess.Popen(
        [*words, "--blobHost", "127.0.0.1", "--blobPort", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as server:
        try:
            assert server.stdout is not None
            lines = (line.decode() for line in server.stdout)
            address = next(line.split()[-1] for line in lines if "successfully listens on" in line)
            make_container(f"{address}/{ACCOUNT}")
            yield {
                "AZURE_STORAGE_ENDPOINT": f"{address}/{ACCOUNT}",
                "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
                "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY,
            }
        finally:
            server.terminate()


def make_container(endpoint: str) -> None:
    """By a request signed with the account's key: obstore makes none."""
    own = f"x-ms-date:{formatdate(usegmt=True)}\nx-ms-version:2021-08-06"
    signed = ("PUT" + 12 * "\n" + f"{own}\n/{ACCOUNT}/{ACCOUNT}/{BUCKET}\nrestype:container").encode()
    digest = hmac.new(base64.b64decode(ACCOUNT_KEY), signed, hashlib.sha256).digest()
    headers = dict(line.split(":", 1) for line in own.splitlines())
    headers |= {"Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}", "Content-Length": "0"}
    with urlopen(Request(f"{endpoint}/{BUCKET}?restype=container", method="PUT", headers=headers)) as answer:
        assert answer.status == 201


@pytest.fixture(params=["gs", "az"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "of-this-machine"))
    if request.param == "gs":
        with s3_server(page=3) as server, environment(server.gs_variables()):
            yield f"gs://{BUCKET}/some/folder"
        return
    with azurite(tmp_path / "azurite") as variables, environment(variables):
        yield f"az://{BUCKET}/some/folder"


def test_a_bucket_of_another_provider_does_what_a_store_asks_of_a_place(url: str) -> None:
    Bucket(url).self_test()
    use_as_a_place(Bucket(url))
    assert [row.state for row in examine_bucket(url)] == ["ok"] * 7


def test_a_store_is_made_read_verified_and_copied_there(url: str, tmp_path: Path) -> None:
    store = create_store(url, TINY, SPEC, label="tiny", shard_size=4)
    fill(store, 10)
    store.record_sources((f"{number}.jpg", key(number)) for number in range(10))
    again = open_store(url, check_sizes=True)
    np.testing.assert_array_equal(again.read([key(9), key(0)]), expected(store, [9, 0]))
    for level in LEVELS:
        assert verify(again.place, level=level).findings == ()
    back, copied = export(again, tmp_path / "back")
    assert (copied.copied, copied.damaged) == (10, ())
    assert verify(back.path, level="deep").findings == ()


def test_what_a_writer_commits_it_knows_by_the_tag_that_listings_show(url: str) -> None:
    store = create_store(url, TINY, SPEC, label="tiny", shard_size=4)
    fill(store, 4)
    shown = store.place.entry("commits/0.json")
    assert shown is not None
    assert store.place.tags("commits") == {"0.json": shown.tag}


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (401, "AuthenticationRequired", "refuses the credentials.*GOOGLE_APPLICATION_CREDENTIALS"),
        (403, "AccessDenied", "does not allow this.*GOOGLE_APPLICATION_CREDENTIALS"),
        (404, "NoSuchBucket", "there is no bucket latents at http://127.0.0.1"),
    ],
)
def test_a_refusal_names_what_google_takes(status: int, code: str, said: str) -> None:
    with s3_server() as server, environment(server.gs_variables()):
        server.faults.refusal = (status, code)
        with pytest.raises(StoreError, match=said) as refused:
            Bucket(f"gs://{BUCKET}/folder").self_test()
    assert "AWS_" not in str(refused.value)
    assert SECRET not in str(refused.value)


def test_a_server_that_ignores_generations_is_refused() -> None:
    with s3_server() as server, environment(server.gs_variables()):
        server.faults = Faults(ignores_conditions=True)
        with pytest.raises(StoreError, match="replaces objects that it was told to keep"):
            Bucket(f"gs://{BUCKET}/folder").self_test()
        assert server.objects == {}


def test_without_encryption_only_this_machine_is_asked_by_each_provider() -> None:
    for scheme, variable, allow in (
        ("gs", "GOOGLE_BASE_URL", "GOOGLE_ALLOW_HTTP"),
        ("az", "AZURE_STORAGE_ENDPOINT", "AZURE_ALLOW_HTTP"),
    ):
        with environment({variable: "http://192.0.2.1:9000"}), pytest.raises(StoreError, match=f"{allow}=true"):
            Bucket(f"{scheme}://{BUCKET}").read("name", 9)
