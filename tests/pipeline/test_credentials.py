"""Tokens and passwords are known by their names, and URLs are shown without them."""

from __future__ import annotations

from pathlib import Path

import pytest

from theworld.pipeline.credentials import bucket_names, hide_passwords, is_secret, secret_names
from theworld.pipeline.errors import ConfigError, WorldModelError
from theworld.pipeline.files.hub.transfers import fetch
from theworld.pipeline.files.places.local import require_local


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
        *("AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "GITHUB_TOKEN", "OPENAI_API_KEY", "PGPASSWORD_PASSWORD", "x_apikey"),
        "AZURE_STORAGE_ACCOUNT_KEY",
    ],
)
def test_names_of_secrets_are_known(name: str) -> None:
    assert is_secret(name, "x")


def test_what_opens_a_bucket_is_told_from_other_secrets() -> None:
    of_buckets = ["AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3", "AZURE_STORAGE_ACCOUNT_KEY", "GOOGLE_SERVICE_ACCOUNT"]
    names = [*of_buckets, "https_proxy", "HF_TOKEN", "WANDB_API_KEY", "PATH"]
    assert bucket_names(dict.fromkeys(names, "x")) == [*of_buckets, "https_proxy"]


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "HOME", "HF_HOME", "TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"),
        *("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "AWS_SHARED_CREDENTIALS_FILE", "PYTHONPATH", "KEYBOARD"),
    ],
)
def test_what_a_worker_needs_is_none(name: str) -> None:
    assert not is_secret(name, "x")


def test_a_proxy_with_a_password_is_a_secret_and_one_without_is_not() -> None:
    environment = {"HTTPS_PROXY": "http://me:pw@proxy:80", "HTTP_PROXY": "http://proxy:80", "HF_TOKEN": "x"}
    assert secret_names(environment) == ["HTTPS_PROXY", "HF_TOKEN"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see http://me:p@ss@host:80/x@y.", "see http://***@host:80/x@y."),
        ("https://ghp_abc@host", "https://***@host"),
        ("a https://h/x?a=1&token=abc&b=2", "a https://h/x?a=1&token=***&b=2"),
        ("s3://b/k?X-Amz-Signature=abc 'x'", "s3://b/k?X-Amz-Signature=*** 'x'"),
        ("https://host/a, me@mail.org", "https://host/a, me@mail.org"),
    ],
)
def test_a_url_is_shown_without_who_and_how(text: str, shown: str) -> None:
    assert hide_passwords(text) == shown


def test_long_texts_take_no_time() -> None:
    for piece in ("://", "://a", "?token=", "@", "://a:b@"):
        hide_passwords(piece * 200_000)


def test_a_refused_url_is_named_without_its_password() -> None:
    for place in ("s3://me:PLANTED@bucket/x", Path("s3://me:PLANTED@bucket/x")):
        with pytest.raises(ConfigError, match=r"s3://\*\*\*@bucket/x is a URL") as caught:
            require_local(place)
        assert "PLANTED" not in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_named_without_the_proxys_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://me:PLANTED@127.0.0.1:9")
    with pytest.raises(WorldModelError) as caught:
        fetch("nobody/nothing-of-the-kind", ["*.json"], error=WorldModelError, instead="name a folder")
    assert "PLANTED" not in str(caught.value)
