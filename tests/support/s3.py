"""A real S3 API (moto's server, in a process of its own), and a gate before it that checks what AWS would check.

The gate recomputes every signature with botocore, answers for regions and credentials as AWS does, counts, and can be
away. Bytes and listings are moto's.
"""

from __future__ import annotations

import datetime
import http.client
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote

import boto3
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from tests.support.children import end

ACCESS, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
TIME = "%Y%m%dT%H%M%SZ"
_CREDENTIAL = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/s3/aws4_request, ?SignedHeaders=([^,]+), ?Signature=(\w+)"
)


@dataclass
class Rules:
    """What the gate insists on; a test changes them while it runs."""

    region: str = "us-east-1"
    signed: bool = False  # every request must be
    keys: dict[str, tuple[str, str]] = field(default_factory=lambda: {ACCESS: (SECRET, "")})  # secret, token
    expired: set[str] = field(default_factory=set)  # access keys
    clock: float = 0.0  # seconds that it is ahead
    payer: bool = False  # requests must offer to pay
    slow: int = 0  # requests yet to be told to slow down
    away: bool = False  # connections are closed unanswered
    moved: str = ""  # where requests for objects are sent on to, by a 307


@dataclass(frozen=True)
class Asked:
    """One request that came, and the answer's status and bytes of body."""

    method: str
    path: str
    headers: dict[str, str]
    status: int
    sent: int
    why: str


class Gate:
    """Listens at `url`, and passes on to an S3 server what it finds right."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.rules = Rules()
        self.asked: list[Asked] = []
        self._upstream = upstream
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                gate._answer(self)

            do_HEAD = do_GET  # noqa: N815  # the name that http.server has for it

            def log_message(self, form: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def count(self, method: str = "", containing: str = "") -> int:
        """Return how many requests of a method came for paths that contain a text."""
        return sum(method in one.method and containing in one.path for one in self.asked)

    def sent(self, containing: str = "") -> int:
        """Return the bytes of bodies that were sent for objects."""
        return sum(one.sent for one in self.asked if containing in one.path and one.status in (200, 206))

    # -- one request

    def _answer(self, request: Any) -> None:
        if self.rules.away:
            request.connection.shutdown(socket.SHUT_RDWR)
            request.close_connection = True
            return
        if self.rules.moved and "?" not in request.path:
            self._note(request, 307, 0, "")
            request.send_response(307)
            request.send_header("Location", f"{self.rules.moved}{request.path}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        refusal = self._refusal(request)
        if refusal is not None:
            self._refuse(request, *refusal)
            return
        connection = http.client.HTTPConnection(*self._upstream, timeout=30)
        try:
            dropped = ("host", "authorization", "connection", "x-amz-security-token")
            headers = {name: value for name, value in request.headers.items() if name.lower() not in dropped}
            anonymous = "authorization" not in request.headers
            if not anonymous:
                headers["Authorization"] = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"
            connection.request(request.command, request.path, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            request.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                    request.send_header(name, value)
            length = answer.getheader("content-length") if request.command == "HEAD" else str(len(body))
            request.send_header("Content-Length", length or "0")
            self._note(request, answer.status, len(body), "")  # first: who has the answer may look
            request.end_headers()  # for a HEAD, that is all of it
            request.wfile.write(body)
        except (ConnectionError, BrokenPipeError):
            request.close_connection = True
        finally:
            connection.close()

    def _refusal(self, request: Any) -> tuple[int, str, str] | None:
        """Return the status, S3's code and the rest of the error's XML; None for what is right."""
        rules, header = self.rules, request.headers.get("authorization", "")
        if rules.slow > 0:
            rules.slow -= 1
            return 503, "SlowDown", ""
        if not header:
            if request.headers.get("x-amz-date") or request.headers.get("x-amz-security-token"):
                return 400, "InvalidRequest", ""
            return (403, "AccessDenied", "") if rules.signed else None
        found = _CREDENTIAL.fullmatch(header)
        if found is None:
            return 400, "AuthorizationHeaderMalformed", ""
        access, day, region, names, signature = found.groups()
        if access in rules.expired:
            return 400, "ExpiredToken", ""
        if access not in rules.keys:
            return 403, "InvalidAccessKeyId", f"<AWSAccessKeyId>{access}</AWSAccessKeyId>"
        if region != rules.region:
            return 400, "AuthorizationHeaderMalformed", f"<Region>{rules.region}</Region>"
        return self._wrong_signature(request, access, day, region, names, signature)

    def _wrong_signature(
        self, request: Any, access: str, day: str, region: str, names: str, signature: str
    ) -> tuple[int, str, str] | None:
        rules = self.rules
        stamp = request.headers.get("x-amz-date", "")
        when = datetime.datetime.strptime(stamp, TIME).replace(tzinfo=datetime.UTC).timestamp()
        if abs(time.time() + rules.clock - when) > 900:
            return 403, "RequestTimeTooSkewed", ""
        secret, token = rules.keys[access]
        if request.headers.get("x-amz-security-token", "") != token:
            return 403, "InvalidToken", ""
        signed = names.split(";")
        must = {"host", *(name.lower() for name in request.headers if name.lower().startswith("x-amz-"))}
        if not must <= set(signed) or not stamp.startswith(day):
            return 403, "AccessDenied", "<Message>There were headers present which were not signed</Message>"
        if rules.payer and request.headers.get("x-amz-request-payer") != "requester":
            return 403, "AccessDenied", ""
        if _signature(request, signed, Credentials(access, secret, token or None), region, stamp) != signature:
            return 403, "SignatureDoesNotMatch", f"<StringToSign>{stamp} {secret}</StringToSign>"
        return None

    def _refuse(self, request: Any, status: int, code: str, rest: str) -> None:
        body = f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>m</Message>{rest}</Error>'.encode()
        request.send_response_only(status)
        moment = datetime.datetime.fromtimestamp(time.time() + self.rules.clock, datetime.UTC)
        request.send_header("Date", moment.strftime("%a, %d %b %Y %H:%M:%S GMT"))
        if code == "AuthorizationHeaderMalformed":
            request.send_header("x-amz-bucket-region", self.rules.region)
        request.send_header("Content-Type", "application/xml")
        request.send_header("Content-Length", str(len(body)))
        self._note(request, status, 0, code)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    def _note(self, request: Any, status: int, sent: int, why: str) -> None:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.asked.append(Asked(request.command, request.path, headers, status, sent, why))


def _signature(request: Any, signed: list[str], keys: Credentials, region: str, stamp: str) -> str:
    """Recompute a signature from what arrived, with botocore: of the path decoded, and encoded as AWS has it."""
    path, mark, query = request.path.partition("?")
    url = f"http://{request.headers['host']}{quote(unquote(path), safe='/~')}{mark}{query}"
    headers = {name: request.headers[name] for name in signed if name != "host" and name in request.headers}
    wanted = AWSRequest(method=request.command, url=url, headers=headers)
    wanted.context["timestamp"] = stamp
    auth = S3SigV4Auth(keys, "s3", region)
    canonical = auth.canonical_request(wanted)
    return str(auth.signature(auth.string_to_sign(wanted, canonical), wanted))


class Moto:
    """moto's server with buckets in it."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = ("127.0.0.1", port)
        self.url = f"http://127.0.0.1:{port}"
        program = "import sys; from moto.server import main; main(sys.argv[1:])"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, "-H", "127.0.0.1", "-p", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise RuntimeError("moto's server does not answer")
            time.sleep(0.1)
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )

    def _answers(self) -> bool:
        try:
            with socket.create_connection(self.address, timeout=1):
                return True
        except OSError:
            return False

    def bucket(self, name: str, *, public: bool = True) -> Callable[[str, bytes], None]:
        """Make a bucket; return what puts objects into it."""
        self.client.create_bucket(Bucket=name)

        def put(key: str, body: bytes) -> None:
            acl = {"ACL": "public-read"} if public else {}
            self.client.put_object(Bucket=name, Key=key, Body=body, **acl)

        if public:
            self.client.put_bucket_acl(Bucket=name, ACL="public-read")
        return put

    def close(self) -> None:
        end(self._process)
        if hasattr(self, "client"):
            self.client.close()


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    """A server for the tests of a module; each makes its own buckets."""
    server = Moto()
    try:
        yield server
    finally:
        server.close()


@contextmanager
def open_gate(moto: Moto) -> Iterator[Gate]:
    """A gate before a server."""
    gate = Gate(moto.address)
    try:
        yield gate
    finally:
        gate.close()


@pytest.fixture
def gate(moto: Moto) -> Iterator[Gate]:
    """A gate of the test's own."""
    with open_gate(moto) as made:
        yield made
