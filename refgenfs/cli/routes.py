"""What `refgenfs doctor` asks of the ways to a source: does each of its proxies answer, and each of its mirrors?"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import (
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    build_opener,
)

from refgenfs.cli.check import Check, State
from refgenfs.config import HttpSource, RefgenieSource, S3Source, Source, WebSource
from refgenfs.core.errors import redact_url
from refgenfs.core.refgenie import v3_url
from refgenfs.sources.http import file_urls

SECONDS = 8.0  # of one question
_OUT_OF_REACH = (502, 503, 504)
_ADVICE = "requests go on by the next one; check that it runs, and that this machine may use it"
_ALONE = "check that it runs, and that this machine may use it"


def check_routes(sources: tuple[Source, ...]) -> list[Check]:
    """Ask every proxy and mirror one short question, all at once and in bounded time."""
    questions = [question for source in sources for question in _questions(source)]
    answers: dict[int, Check] = {}
    threads = [
        threading.Thread(target=lambda n=n, ask=ask: answers.__setitem__(n, ask()), daemon=True)
        for n, (ask, _) in enumerate(questions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    return [answers.get(n, late) for n, (_, late) in enumerate(questions)]


def openers(source: WebSource | S3Source) -> list[OpenerDirector]:
    """Return what asks by each of a source's proxies, in order; the environment's where it has none."""
    return [_opener(source, way) for way in source.proxy or ("",)]


def _questions(source: Source) -> Iterator[tuple[Callable[[], Check], Check]]:
    """Yield what asks a proxy or a mirror, and what is said should it not be heard of in time."""
    if not isinstance(source, WebSource | S3Source):
        return
    proxies = source.proxy or ()
    for way in proxies:
        if way != "direct":
            told = _Told(source.name, "proxy", way, alone=len(proxies) == 1)
            yield (lambda way=way, told=told: _ask_proxy(source, way, told)), told.silent()  # type: ignore[misc]
    for mirror in getattr(source, "mirrors", ()):
        told = _Told(source.name, "mirror", mirror)
        yield (lambda url=mirror, told=told: _ask_mirror(source, url, told)), told.silent()  # type: ignore[misc]


class _Told:
    """What is said of one proxy or mirror."""

    def __init__(self, source: str, what: str, url: str, *, alone: bool = False) -> None:
        self._what = what
        self._where = f"{source}: {redact_url(url)}"
        self._bad: State = "fail" if alone else "warn"
        self._advice = _ALONE if alone else _ADVICE

    def good(self, more: str = "") -> Check:
        return Check(self._what, "ok", f"{self._where} answers{more}")

    def bad(self, why: str) -> Check:
        return Check(self._what, self._bad, f"{self._where} {why}", self._advice)

    def silent(self) -> Check:
        return self.bad(f"doesn't answer: no answer in {SECONDS:g} s")


def _ask_proxy(source: WebSource | S3Source, way: str, told: _Told) -> Check:
    """Ask the source's server by a proxy: whatever that server says, the proxy works."""
    try:
        with _opener(source, way).open(_request(_target(source, None)), timeout=_patience(source)):
            return told.good()
    except HTTPError as exc:
        exc.close()
        if exc.code == 407:
            return told.bad("wants user and password: write them into its URL")
        if exc.code == 403 and exc.headers.get("X-Squid-Error"):
            return told.bad("doesn't let this machine, or this server, through (HTTP 403)")
        if exc.code in _OUT_OF_REACH:
            return told.bad(f"answers, and doesn't reach {redact_url(_target(source, None))} (HTTP {exc.code})")
        return told.good()
    except (OSError, HTTPException, ValueError) as exc:
        return told.bad(f"doesn't answer: {getattr(exc, 'reason', exc)}")


def _ask_mirror(source: WebSource | S3Source, mirror: str, told: _Told) -> Check:
    reason = ""
    for opener in openers(source):
        try:
            with opener.open(_request(_target(source, mirror)), timeout=_patience(source)):
                return told.good()
        except HTTPError as exc:
            exc.close()
            if exc.code < 500:
                missing = exc.code in (404, 410)
                return told.bad(f"answers, and hasn't what url has (HTTP {exc.code})") if missing else told.good()
            reason = f"HTTP {exc.code}"
        except (OSError, HTTPException, ValueError) as exc:
            reason = str(getattr(exc, "reason", exc))
    return told.bad(f"doesn't answer: {reason}")


def _target(source: WebSource | S3Source, mirror: str | None) -> str:
    """Return what to ask for: little, and what is there."""
    if isinstance(source, S3Source):
        return source.place().page_url()
    base = redact_url(mirror or source.url)  # urllib takes a password for a port, and says so
    if isinstance(source, RefgenieSource):
        return v3_url(base, "genomes", "list")
    if isinstance(source, HttpSource) and source.asset and source.asset[0].files:
        return file_urls(source.asset[0].files[0], [f"{base.rstrip('/')}/"])[0]
    return base


def _request(url: str) -> Request:
    return Request(url, headers={"User-Agent": "refgenfs doctor", "Range": "bytes=0-0"})  # noqa: S310


def _patience(source: WebSource | S3Source) -> float:
    return min(source.timeout, SECONDS - 1)


def _opener(source: WebSource | S3Source, way: str) -> OpenerDirector:
    proxies = None if not way else {} if way == "direct" else {"http": way, "https": way}
    context = ssl.create_default_context()
    if (ca_file := getattr(source, "ca_file", None)) is not None:
        context.load_verify_locations(ca_file)
    return build_opener(ProxyHandler(proxies), HTTPRedirectHandler(), HTTPSHandler(context=context))
