"""What an answer, or the lack of one, means: the error to raise and what can help.

| what happened | error | asked again |
|---|---|---|
| refused, reset, DNS, no connection, silence, broken off | OriginUnavailable | yes |
| 502, 503, 504, 429, 408, 425 | OriginFailing | yes |
| 500 and other 5xx, an answer that is not HTTP | OriginFailing, OriginUnavailable | a few times |
| body too long, wrong or coded, wrong Content-Range | IntegrityError | a few times |
| a page of HTML for what is none, while others are left to be asked | IntegrityError | a few times |
| 401, 403, 407, an unreadable token file | OriginDenied | no |
| 404, 410 | OriginMissing | no |
| 412, another validator or size | StaleContent | no |
| the whole object for a part of it | RangesIgnored | no |
| other 4xx, redirects without end, TLS that fails | OriginUnusable | no |

"No" means not at the same URL by the same way: mirrors and other proxies are asked all the same.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import aiohttp

from refgenfs.core.errors import (
    IntegrityError,
    OriginDenied,
    OriginMissing,
    OriginUnavailable,
    RefgenfsError,
    StaleContent,
    redact_url,
)
from refgenfs.core.httprange import RangeRequest, Verdict, header, judge
from refgenfs.core.retry import Remedy, parse_retry_after


class OriginFailing(OriginUnavailable):
    """The origin answered with a status that says it is in trouble (5xx, 408, 425, 429)."""

    status = 0


class OriginUnusable(OriginUnavailable):
    """The origin answers in a way that asking again won't change: another 4xx, bad TLS, endless redirects."""

    transient = False
    status = 0


class RangesIgnored(OriginUnusable):
    """The origin sends the whole object whatever is asked for; it was not taken. No failure: there is another way."""


class AttemptFailed(Exception):
    """One request failed. Inside `fetch` only: `Http` turns it into `kind` with the URL and the attempt."""

    def __init__(
        self,
        kind: type[RefgenfsError],
        what: str,
        remedy: Remedy,
        *,
        status: int = 0,
        retry_after: float | None = None,
        of_proxy: bool = False,
    ) -> None:
        super().__init__(what)
        self.kind = kind
        self.what = what
        self.remedy = remedy
        self.status = status
        self.retry_after = retry_after
        self.of_proxy = of_proxy  # the proxy failed, and nothing is said of the origin

    def as_error(self, url: str, attempt: int) -> RefgenfsError:
        """Return the error to raise, with its cause; one line, no secrets."""
        error = self.kind(f"{redact_url(url)}: {self.what} (attempt {attempt})")
        if isinstance(error, OriginFailing | OriginUnusable):
            error.status = self.status
        error.__cause__ = self.__cause__
        return error


# What says that nobody listened: a proxy, where one was to be gone by.
_NO_CONNECTION = (
    aiohttp.ClientProxyConnectionError, aiohttp.ClientConnectorDNSError, aiohttp.ConnectionTimeoutError
)  # fmt: skip
BUSY = frozenset({408, 425, 429})  # 4xx that say nothing of what was asked for
_AGAIN = BUSY | {502, 503, 504}


def status_failure(status: int, headers: Mapping[str, str], wall: float) -> AttemptFailed | None:
    """Return what is wrong with a status, None when the answer is to be looked at (2xx, 412, 416).

    `wall` is the present time in Unix seconds, for a `Retry-After` that holds a date.
    """
    what = f"HTTP {status}"
    if 200 <= status < 300 or status in (412, 416):
        return None
    if status == 407:
        return AttemptFailed(OriginDenied, "the proxy denied access (HTTP 407)", Remedy.ELSEWHERE, of_proxy=True)
    if status in (401, 403):
        return AttemptFailed(OriginDenied, f"{what}, access denied", Remedy.ELSEWHERE, status=status)
    if status in (404, 410):
        return AttemptFailed(OriginMissing, f"{what}, not there", Remedy.ELSEWHERE, status=status)
    if status in _AGAIN:
        wait = parse_retry_after(header(headers, "retry-after") or None, wall)
        return AttemptFailed(OriginFailing, what, Remedy.AGAIN, status=status, retry_after=wait)
    if status >= 500:
        return AttemptFailed(OriginFailing, what, Remedy.DOUBTFUL, status=status)
    return AttemptFailed(OriginUnusable, what, Remedy.ELSEWHERE, status=status)


def check_kind(path: str, status: int, headers: Mapping[str, str]) -> None:
    """Raise AttemptFailed for a page of HTML where none was asked for: caches, portals and walls send such pages.

    `path` is that of the URL. Some servers call all that they have HTML: who has nobody else to ask has to take it.
    """
    kind = header(headers, "content-type").partition(";")[0].strip().lower()
    if status == 200 and kind == "text/html" and not path.lower().endswith(("/", ".html", ".htm", ".xhtml")):
        raise AttemptFailed(IntegrityError, "a page of HTML came in the place of the file", Remedy.DOUBTFUL)


def check_range(request: RangeRequest, status: int, headers: Mapping[str, str], wall: float) -> Verdict:
    """Return ACCEPT or IGNORE_RANGE for an answer that can be used; raise AttemptFailed."""
    failure = status_failure(status, headers, wall)
    if failure is not None:
        raise failure
    judgement = judge(request, status, headers)
    if judgement.verdict is Verdict.STALE:
        raise AttemptFailed(StaleContent, judgement.why, Remedy.ELSEWHERE)
    if judgement.verdict is Verdict.ERROR:
        raise AttemptFailed(IntegrityError, judgement.why, Remedy.DOUBTFUL)
    return judgement.verdict


def connection_failure(exc: Exception, *, by_proxy: bool = False) -> AttemptFailed:
    """Return what an exception out of aiohttp means, keeping it as the cause.

    Its own text is not used where it may hold a URL with a secret in it. `by_proxy`: it was to go by one.
    """
    failure = _connection_failure(exc)
    failure.__cause__ = exc
    failure.of_proxy = failure.of_proxy or (by_proxy and isinstance(exc, _NO_CONNECTION))
    return failure


def _connection_failure(exc: Exception) -> AttemptFailed:
    match exc:
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError() | ssl.SSLError():
            return AttemptFailed(OriginUnusable, f"TLS failed: {_tls_reason(exc)}", Remedy.ELSEWHERE)
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError():
            return AttemptFailed(OriginUnusable, "this is no URL of a web server", Remedy.ELSEWHERE)
        case aiohttp.ClientHttpProxyError(status=407):
            return AttemptFailed(OriginDenied, "the proxy denied access (HTTP 407)", Remedy.ELSEWHERE, of_proxy=True)
        case aiohttp.ClientHttpProxyError(status=status):
            return AttemptFailed(OriginUnavailable, f"the proxy answered HTTP {status}", Remedy.AGAIN)
        case aiohttp.ClientResponseError():
            return AttemptFailed(OriginUnavailable, "the answer is not HTTP", Remedy.DOUBTFUL)
    return AttemptFailed(OriginUnavailable, _connection_trouble(exc), Remedy.AGAIN)


def _connection_trouble(exc: Exception) -> str:
    match exc:
        case aiohttp.ClientConnectorDNSError():
            return "the host name could not be resolved"
        case aiohttp.ClientProxyConnectionError():
            return f"no connection to the proxy: {_os_reason(exc)}"
        case aiohttp.ConnectionTimeoutError():
            return "no connection came about in time"
        case aiohttp.ClientConnectorError():
            return f"no connection: {_os_reason(exc)}"
        case TimeoutError():
            return "nothing came for too long"
        case aiohttp.ClientPayloadError():
            return "the answer broke off"
        case aiohttp.ServerDisconnectedError():
            return "the connection was closed before an answer came"
        case OSError():
            return f"the connection broke: {_os_reason(exc)}"
    return f"the request failed ({type(exc).__name__})"


def _os_reason(exc: Exception) -> str:
    strerror = getattr(exc, "strerror", None)
    return str(strerror) if strerror else type(exc).__name__


def _tls_reason(exc: Exception) -> str:
    inner = getattr(exc, "certificate_error", exc)
    return str(getattr(inner, "verify_message", "") or getattr(inner, "reason", "") or type(exc).__name__)
