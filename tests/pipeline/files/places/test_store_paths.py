"""Settings that name a store: by a path of this machine, or by the URL of a bucket."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from theworld.pipeline.files.places.store_paths import StorePath, is_bucket


class Settings(BaseModel):
    cache: StorePath


@pytest.mark.parametrize(
    ("given", "held"),
    [
        ("latents", Path("latents")),
        (Path("/a/latents"), Path("/a/latents")),
        ("s3://bucket/folder/", "s3://bucket/folder"),
        (Path("s3://bucket/folder"), "s3://bucket/folder"),
        ("gs://bucket", "gs://bucket"),
    ],
)
def test_a_path_stays_a_path_and_a_bucket_is_its_url(given: Path | str, held: Path | str) -> None:
    assert Settings.model_validate({"cache": given}).cache == held
    assert is_bucket(given) == isinstance(held, str)
    assert Settings.model_validate_json(Settings.model_validate({"cache": given}).model_dump_json()).cache == held


@pytest.mark.parametrize(
    "given", ["http://bucket/folder", "s3://user:password@bucket", "s3://bucket/x?signature=1", "s3:/"]
)
def test_other_urls_and_secrets_are_refused(given: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate({"cache": given})
    assert "cache" in str(refused.value)
