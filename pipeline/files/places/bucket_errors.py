"""What a bucket's refusals mean, and what to do about each. Nothing of a request is shown but its place."""

from __future__ import annotations

import re
from typing import NamedTuple

from ...credentials import hide_passwords

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,80})</Code>")
_METADATA = (
    "169.254.169.254", "169.254.170.2", "fd00:ec2::254", "metadata.google.internal", "computeMetadata",
    "/latest/api/token", "/latest/meta-data", "/metadata/identity",
)  # fmt: skip
"""Where a machine is asked for its own role."""
_BAD_KEYS = {
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired",
    "AuthenticationFailed", "InvalidAuthenticationInfo",
}  # fmt: skip
_CLOCK = {"RequestTimeTooSkewed", "RequestExpired"}
_REGION = {
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "TemporaryRedirect",
}
_NO_ROOM = {
    "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage", "StorageFull",
}  # fmt: skip
_ARCHIVED = {"InvalidObjectState", "BlobArchived"}
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
_REASONS = {
    "dns error": "its name is not known",
    "Connection refused": "connection refused",
    "TimedOut": "no answer in time",
    "Connection reset": "connection reset",
    "IncompleteMessage": "the answer was cut",
    "certificate": "its certificate is not trusted",
}
_AGAIN = {408, 409, 412, 416, 425, 429}
"""Answers with 4xx that do not refuse for good: what they mean is found by looking."""

KEYS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (with AWS_SESSION_TOKEN, where there is one), or the role of "
    "this machine",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or the service account of this machine",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or the identity of "
    "this machine",
}
"""Where credentials are taken from, by scheme."""
ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
"""By scheme, the variables that name another server than the provider's; the first that is set counts."""
ALLOW_HTTP = {"s3": "AWS_ALLOW_HTTP", "gs": "GOOGLE_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP"}


class Refusal(NamedTuple):
    """An answer that another try does not change."""

    what: str
    advice: str


def status_of(error: Exception) -> int | None:
    """The HTTP status that the error was made from."""
    match = _STATUS.search(str(error))
    return int(match[1]) if match else None


def summary(error: Exception) -> str:
    """The error in one line, without what only the library's authors read."""
    whole = str(error)
    text = re.sub(r": <[?!\w].*|\?\S*", "", whole.partition("\n")[0])  # a query may hold a signature
    text = re.sub(r"Generic \w+ error: | in [\d.]+[mµn]?s\b|, after \d+ retries|, \w+: [\w.]+", "", text)
    code = _CODE.search(whole)
    reasons = [code[1]] if code else [reason for sign, reason in _REASONS.items() if sign in whole]
    return hide_passwords(text.strip(" :"))[:400] + (f": {reasons[0]}" if reasons else "")


def is_unexplained(error: Exception) -> bool:
    """Whether a refusal says nothing but its status: an answer to HEAD has no body."""
    return status_of(error) in (400, 401, 403) and _CODE.search(str(error)) is None


def refusal(
    error: Exception, *, scheme: str, bucket: str, endpoint: str, is_known: bool, to_write: bool = True
) -> Refusal | None:
    """Why the bucket refuses, and for good; None if a look or another try may help.

    Args:
        is_known: it has answered before, so this machine has credentials.
        to_write: whether something was to be written: reading needs fewer rights.
    """
    text, status = str(error), status_of(error)
    match = _CODE.search(text)
    code = match[1] if match else ""
    answer = " ".join(part for part in (str(status or ""), code) if part)
    role = any(address in text for address in _METADATA)
    if not is_known and (role or "Account must be specified" in text):
        return Refusal(
            "there are no credentials in the environment, and this machine has no role of its own",
            f"Set {KEYS[scheme]}; for a public bucket "
            + {"s3": "AWS_SKIP_SIGNATURE=true", "gs": "GOOGLE_SKIP_SIGNATURE=true", "az": "AZURE_SKIP_SIGNATURE=true"}[
                scheme
            ],
        )
    if role:  # it has one, which could not be asked just now
        return None
    if code in _CLOCK:
        return Refusal(f"the clock of this machine is wrong ({answer})", "Set it, by NTP for example")
    if code in _REGION or "Received redirect without LOCATION" in text:
        return Refusal(
            f"the bucket is in another region ({answer or 'redirect'})",
            "Set AWS_REGION to the bucket's own region" if scheme == "s3" else "Check its name and the endpoint",
        )
    if code in _NO_BUCKET:
        return Refusal(
            f"there is no bucket {bucket} at {endpoint}",
            f"Make it, or correct its name, or the endpoint ({ENDPOINTS[scheme][0]})",
        )
    if status == 507 or code in _NO_ROOM:
        return Refusal(
            f"it has no room left, or the quota is used up ({answer})",
            "Make room, or have the quota raised; then run the same command again: whatever was committed so far stays",
        )
    if code in _ARCHIVED:
        return Refusal(
            f"the object is in an archive, which nothing is read from ({answer})",
            "Have the objects restored (S3: restore-object; Azure: set-tier), or copied to a class that is read",
        )
    if status == 401 or code in _BAD_KEYS:
        return Refusal(f"it refuses the credentials ({answer})", f"Check {KEYS[scheme]}")
    if status == 403:
        return Refusal(
            f"it does not allow this ({answer})",
            f"Give these credentials the rights to list{', read, write and delete' if to_write else ' and read'} in "
            f"{bucket}, or use others: {KEYS[scheme]}",
        )
    if "non-partial response" in text:
        return Refusal(
            "it answers a range with the whole object",
            "Use a server that answers ranges, or copy the store to a folder",
        )
    if status is not None and 400 <= status < 500 and status not in _AGAIN and (status != 404 or code not in _MISSING):
        return Refusal(f"it refuses the request ({answer})", "Check the URL, the region and the endpoint")
    if (name := _name_not_taken(text)) is not None:
        return Refusal(
            f"an object there has the name {name!r}, and no name may have an empty part (//), a part `.` or `..`, "
            "or a control character: no listing gets past it",
            "Rename or remove that object, or name a folder or objects beside it",
        )
    if "BadScheme" in text:
        return Refusal(
            f"{endpoint} is not encrypted", f"Use https, or set {ALLOW_HTTP[scheme]}=true if nobody else is on the way"
        )
    return None


_MISSING = {"", "NoSuchKey", "BlobNotFound", "NotFound"}


def _name_not_taken(text: str) -> str | None:
    """The object of a listing whose name obstore does not take, by what it says; it gives up the whole page."""
    name = text.partition("invalid path: ")[2].partition('Path "')[2]
    ends = [at for end in ('" contained', '": Encountered') if (at := name.find(end)) >= 0]
    return name[: min(ends)] if ends else None
