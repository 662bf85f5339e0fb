"""An S3 server of one process on the loopback device, with scripted faults: what a bucket may do on a bad day.

    with s3_server() as server, server.environment():
        server.faults.lost = 0.05
        Bucket(f"s3://{BUCKET}/latents")

One bucket, objects in memory. It answers PUT (If-None-Match, metadata, copies), GET and HEAD (ranges), LIST in pages
and DELETE. Signatures are not checked. It also speaks as Google Cloud Storage does to clients of S3 (`gs_variables`):
the condition of a PUT is on the generation, and headers have other names.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "latents"
KEY_ID, SECRET = "AKIDOFATEST", "a-secret-that-must-never-be-shown"


@dataclass(frozen=True)
class Stored:
    """An object: its bytes, its metadata (names in lower case, without their prefix), its time."""

    content: bytes
    metadata: dict[str, str]
    modified: float

    @cached_property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.content, usedforsecurity=False).hexdigest()}"'


@dataclass
class Faults:
    """What goes wrong. Shares are of 1, drawn for each request."""

    latency_s: float = 0.0
    lost: float = 0.0
    """PUT, COPY and DELETE that are done, but whose connection ends without an answer."""
    unavailable: float = 0.0
    """Requests answered 503; nothing is done."""
    conflicts: float = 0.0
    """Conditional PUTs answered 409; nothing is done."""
    resets: float = 0.0
    """Requests whose connection ends before anything is done."""
    ignores_conditions: bool = False
    drops_metadata: bool = False
    refusal: tuple[int, str] | None = None
    """Status and S3's code of each answer, such as (403, "AccessDenied")."""
    is_read_only: bool = False
    """PUT, COPY and DELETE are answered 403."""
    cut_after: int | None = None
    """Bytes of an object after which the connection ends."""
    ignores_ranges: bool = False
    """GET answers 200 with the whole object."""
    hidden: frozenset[str] = frozenset()
    """Objects that no listing shows."""
    clock_s: float = 0.0
    """Seconds that the server's clock is ahead."""
    dies_at: int | None = None
    """The number of the request, from 1, at which all connections end without an answer, and from which on."""
    does_last: bool = False
    """The request at which it dies is done, and only its answer is lost."""
    alter: Callable[[str, bytes], bytes] = field(default=lambda _name, content: content)
    """What a GET answers instead of an object's bytes."""


class S3Server(ThreadingHTTPServer):
    """`objects[NAME]`; `asked` has "METHOD NAME" for each request, with the range of a GET after a blank."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, *, seed: int = 0, page: int = 1000) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.objects: dict[str, Stored] = {}
        self.faults = Faults()
        self.asked: list[str] = []
        self.page = page
        self.lock = threading.Lock()
        self.draw = random.Random(seed)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def payload_bytes(self) -> int:
        """Bytes of objects in the answers to all GETs in `asked`, as if none was lost or cut."""
        return sum(map(self._answered_bytes, self.asked))

    def _answered_bytes(self, line: str) -> int:
        found = re.fullmatch(r"GET (.*?)(?: bytes=(\d*)-(\d*))?", line)
        stored = None if found is None else self.objects.get(found[1])
        if found is None or stored is None:
            return 0
        start, stop = _span(found[2] or "", found[3] or "", len(stored.content))
        return max(0, stop - start)

    def variables(self) -> dict[str, str]:
        """What the environment of a client holds."""
        return {
            "AWS_ENDPOINT_URL_S3": self.address,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def gs_variables(self) -> dict[str, str]:
        """`variables`, of a client of `gs://`."""
        return {"GOOGLE_BASE_URL": self.address, "GOOGLE_BEARER_TOKEN": SECRET}

    @contextmanager
    def environment(self) -> Iterator[None]:
        """This process's environment, for the block."""
        with environment(self.variables()):
            yield

    def hold(self, folder: Path, prefix: str) -> str:
        """Put the files of a folder below a prefix; the prefix's URL."""
        for file in folder.rglob("*"):
            if file.is_file():
                name = f"{prefix}/{file.relative_to(folder).as_posix()}"
                self.objects[name] = Stored(file.read_bytes(), {}, time.time())
        return f"s3://{BUCKET}/{prefix}"

    def handle_error(self, *_: object) -> None: ...  # a client that was killed


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """This process's environment with these variables and no other of a bucket's, for the block."""
    before = {name: text for name, text in os.environ.items() if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))}
    for name in before:
        del os.environ[name]
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextmanager
def s3_server(*, seed: int = 0, page: int = 1000) -> Iterator[S3Server]:
    """A server for the block; `page` objects a page of a listing."""
    with S3Server(seed=seed, page=page) as server:
        thread = threading.Thread(target=lambda: server.serve_forever(0.05), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def _span(first: str, last: str, size: int) -> tuple[int, int]:
    """What `bytes=FIRST-LAST` means of an object of this size; both empty is all of it."""
    start = int(first) if first else max(size - int(last), 0) if last else 0
    return start, min(int(last) + 1, size) if first and last else size


class _Answer(BaseHTTPRequestHandler):
    server: S3Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *_: object) -> None: ...

    def _say(self, status: int, content: bytes = b"", *, cut: int | None = None, **headers: str) -> None:
        self.send_response_only(status)
        self.send_header("Date", formatdate(time.time() + self.server.faults.clock_s, usegmt=True))
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content if cut is None else content[:cut])
            if cut is not None and cut < len(content):
                self.close_connection = True

    def _refuse(self, status: int, code: str) -> None:
        body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>scripted</Message></Error>'
        self._say(status, body.encode(), Content_Type="application/xml")

    def _handle(self) -> None:
        """One request of any method: the faults first, then what was asked."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server, faults = self.server, self.server.faults
        url = urlsplit(self.path)
        _, bucket, name = (unquote(url.path) + "/").split("/", 2)
        name = name.removesuffix("/")
        query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        method = "COPY" if self._own("copy-source") else self.command
        with server.lock:
            if method == "GET" and "list-type" in query:
                line = f"LIST {query.get('prefix', '')}"
            else:
                line = f"{method} {name} {self.headers.get('Range', '')}".rstrip()
            server.asked.append(line)
            lost, unavailable, conflict, reset = (
                server.draw.random() < share
                for share in (faults.lost, faults.unavailable, faults.conflicts, faults.resets)
            )
            dead = faults.dies_at is not None and len(server.asked) >= faults.dies_at
            if dead and faults.does_last and len(server.asked) == faults.dies_at:
                dead, lost = False, True
        if faults.latency_s:
            time.sleep(faults.latency_s)
        if dead or reset:
            self.close_connection = True
        elif faults.refusal is not None:
            self._refuse(*faults.refusal)
        elif faults.is_read_only and method in ("PUT", "COPY", "DELETE"):
            self._refuse(403, "AccessDenied")
        elif bucket != BUCKET:
            self._refuse(404, "NoSuchBucket")
        elif unavailable:
            self._refuse(503, "SlowDown")
        elif conflict and method == "PUT" and self._is_conditional():
            self._refuse(409, "ConditionalRequestConflict")
        elif method in ("PUT", "COPY", "DELETE"):
            answer = self._change(method, name, body)
            if lost:
                self.close_connection = True
            else:
                answer()
        elif lost and faults.does_last:
            self.close_connection = True
        elif "list-type" in query:
            self._list(query)
        else:
            self._get(name)

    def _own(self, header: str) -> str:
        """A header of the provider's own."""
        return self.headers.get(f"x-amz-{header}") or self.headers.get(f"x-goog-{header}") or ""

    def _is_conditional(self) -> bool:
        return self.headers.get("If-None-Match") == "*" or self.headers.get("x-goog-if-generation-match") == "0"

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = _handle  # noqa: N815

    def _change(self, method: str, name: str, body: bytes) -> Callable[[], None]:
        """Do what is asked; the answer, to be sent or lost."""
        server, faults = self.server, self.server.faults
        modified = time.time() + faults.clock_s
        with server.lock:
            if method == "DELETE":
                server.objects.pop(name, None)
                return lambda: self._say(204)
            if method == "COPY":
                source = server.objects.get(unquote(self._own("copy-source")).lstrip("/").partition("/")[2])
                if source is None:
                    return lambda: self._refuse(404, "NoSuchKey")
                stored = replace(source, modified=modified)
                text = f"<CopyObjectResult><ETag>{escape(stored.etag)}</ETag></CopyObjectResult>"
            else:
                kept = self._is_conditional() and not faults.ignores_conditions
                if kept and name in server.objects:
                    return lambda: self._refuse(412, "PreconditionFailed")
                metadata = {
                    key.lower().partition("-meta-")[2]: value
                    for key, value in self.headers.items()
                    if key.lower().startswith(("x-amz-meta-", "x-goog-meta-")) and not faults.drops_metadata
                }
                stored, text = Stored(body, metadata, modified), ""
            server.objects[name] = stored
        generation = str(int(1e6 * modified))
        return lambda: self._say(200, text.encode(), ETag=stored.etag, x_goog_generation=generation)

    def _get(self, name: str) -> None:
        faults = self.server.faults
        stored = self.server.objects.get(name)
        if stored is None:
            return self._refuse(404, "NoSuchKey")
        content = faults.alter(name, stored.content)
        headers = {
            "ETag": stored.etag,
            "Last-Modified": formatdate(stored.modified, usegmt=True),
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
            **{f"x-{own}-meta-{key}": value for key, value in stored.metadata.items() for own in ("amz", "goog")},
            "x-goog-generation": str(int(1e6 * stored.modified)),
        }
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted is None or faults.ignores_ranges:
            return self._say(200, content, cut=faults.cut_after, **headers)
        start, stop = _span(*wanted.groups(), len(content))
        if start >= stop:
            return self._refuse(416, "InvalidRange")
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return self._say(206, content[start:stop], cut=faults.cut_after, **headers)

    def _list(self, query: dict[str, str]) -> None:
        server = self.server
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        most = min(int(query.get("max-keys", server.page)), server.page)
        with server.lock:
            names = sorted(name for name in server.objects if name.startswith(prefix) and name > after)
            objects = dict(server.objects)
        folders: dict[str, None] = {}
        lines: list[str] = []
        last = ""
        for name in names:
            if name in server.faults.hidden:
                continue
            rest = name[len(prefix) :]
            folder = prefix + rest.partition(delimiter)[0] + delimiter if delimiter and delimiter in rest else ""
            if folder and (folder in folders or after.startswith(folder)):
                last = name
                continue
            if len(lines) + len(folders) >= most:
                token = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{escape(last)}</NextContinuationToken>"
                break
            last = name
            if folder:
                folders[folder] = None
                continue
            stored = objects[name]
            when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(stored.modified))
            lines.append(
                f"<Contents><Key>{escape(name)}</Key><LastModified>{when}</LastModified><ETag>{escape(stored.etag)}"
                f"</ETag><Size>{len(stored.content)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            )
        else:
            token = "<IsTruncated>false</IsTruncated>"
        below = "".join(f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in folders)
        body = (
            f'<?xml version="1.0"?><ListBucketResult><Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix>'
            f"<KeyCount>{len(lines) + len(folders)}</KeyCount><MaxKeys>{most}</MaxKeys>{token}{''.join(lines)}{below}"
            "</ListBucketResult>"
        )
        self._say(200, body.encode(), Content_Type="application/xml")
