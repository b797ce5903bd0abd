"""What is sent to prove who asks: tokens, passwords and netrc entries, each to its own origin only.

Everything runs on the asyncio loop. Errors name the file and never what is in it.
"""

from __future__ import annotations

import base64
import netrc
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from yarl import URL

from refgenfs.core.errors import OriginDenied
from refgenfs.core.retry import Remedy
from refgenfs.fetch.answers import AttemptFailed, OriginUnusable
from refgenfs.fetch.settings import Account
from refgenfs.fetch.urls import host_of, parse_url

T = TypeVar("T")


class Credentials:
    """Finds the `Authorization` for a request, and the certificates that its host is checked by."""

    def __init__(self) -> None:
        self._tokens: dict[Path, _Watched[str]] = {}
        self._passwords: dict[Path, _Watched[str]] = {}
        self._netrcs: dict[Path, _Watched[netrc.netrc]] = {}
        self._contexts: dict[Path, ssl.SSLContext] = {}

    def headers(self, target: URL, account: Account) -> dict[str, str]:
        """Return the Authorization for one hop, an empty dict for none; raise AttemptFailed.

        What the account has goes to its own origins only; else it is what the URL itself has, or the URL of that
        origin in the configuration.
        """
        text = self._own(target, account)
        if not text and (target.user or target.password):
            text = _basic(target.user or "", target.password or "")
        return {"Authorization": text} if text else {}

    def _own(self, target: URL, account: Account) -> str:
        own = next((url for url in _own_urls(account) if host_of(url) == host_of(target)), None)
        if own is None:
            return ""
        if host_of(own) != host_of(parse_url(account.origin)) and (own.user or own.password):
            return _basic(own.user or "", own.password or "")  # a mirror that has its own
        if account.token_file is not None:
            return f"Bearer {self._read('token file', self._tokens, account.token_file, _parse_token)}"
        if account.user and account.password_file is not None:
            return _basic(
                account.user, self._read("password file", self._passwords, account.password_file, _parse_password)
            )
        if own.user or own.password:
            return _basic(own.user or "", own.password or "")
        if account.netrc_file is not None and not (target.user or target.password):
            found = self._read("netrc file", self._netrcs, account.netrc_file, _parse_netrc).authenticators(
                target.host or ""
            )
            return _basic(found[0], found[2] or "") if found is not None else ""
        return ""

    def _read(self, what: str, known: dict[Path, _Watched[T]], path: Path, parse: Callable[[Path], T]) -> T:
        return known.setdefault(path, _Watched(what, path, parse)).read()

    def context(self, account: Account) -> ssl.SSLContext | bool:
        """Return what the certificates of hosts are checked by: the system's, and those of `ca_file`."""
        path = account.ca_file
        if path is None:
            return True
        context = self._contexts.get(path)
        if context is None:
            context = ssl.create_default_context()
            try:
                context.load_verify_locations(path)
            except (OSError, ssl.SSLError) as exc:
                what = f"the certificates in {path} can't be read: {_reason(exc)}"
                raise AttemptFailed(OriginUnusable, what, Remedy.ELSEWHERE) from exc
            self._contexts[path] = context
        return context


def url_credentials(target: URL) -> dict[str, str]:
    """Return the Authorization that a URL itself has, an empty dict for none."""
    return (
        {"Authorization": _basic(target.user or "", target.password or "")} if target.user or target.password else {}
    )


def takes_secret(account: Account, target: URL) -> bool:
    """Say whether something that the account keeps to itself is sent with a request to `target`."""
    own = next((url for url in _own_urls(account) if host_of(url) == host_of(target)), None)
    kept = account.token_file or account.password_file or account.netrc_file
    return own is not None and bool(kept or own.user or own.password)


def _own_urls(account: Account) -> list[URL]:
    """Return the URLs that an account's secrets may go to; where its origin has TLS, only such mirrors."""
    if not account.origin:
        return []
    first, *mirrors = (parse_url(url) for url in (account.origin, *account.mirrors))
    return [first, *(url for url in mirrors if url.scheme == "https" or first.scheme != "https")]


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


class _Watched(Generic[T]):
    """What is in a file, read again when the file changes."""

    def __init__(self, what: str, path: Path, parse: Callable[[Path], T]) -> None:
        self._what = what
        self._path = path
        self._parse = parse
        self._seen: tuple[int, int, int] | None = None
        self._value: T | None = None

    def read(self) -> T:
        """Return it; raise AttemptFailed (OriginDenied)."""
        try:
            stat = self._path.stat()
            seen = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if seen != self._seen or self._value is None:
                self._value = self._parse(self._path)
                self._seen = seen
        except (OSError, UnicodeDecodeError) as exc:
            raise _denied(f"the {self._what} {self._path} can't be read: {_reason(exc)}") from exc
        return self._value


def _parse_token(path: Path) -> str:
    text = path.read_text("ascii").strip()
    if not text or not text.isprintable() or " " in text:
        raise _denied(f"the token file {path} holds no single token")
    return text


def _parse_password(path: Path) -> str:
    text = path.read_text("utf-8").rstrip("\r\n")
    if not text or not text.isprintable():
        raise _denied(f"the password file {path} holds no single line")
    return text


def _parse_netrc(path: Path) -> netrc.netrc:
    try:
        return netrc.netrc(path)
    except netrc.NetrcParseError as exc:  # its text may have a password in it
        raise _denied(f"the netrc file {path} can't be read: line {exc.lineno} is no netrc") from None


def _denied(what: str) -> AttemptFailed:
    return AttemptFailed(OriginDenied, what, Remedy.ELSEWHERE)


def _reason(exc: Exception) -> str:
    return getattr(exc, "strerror", None) or getattr(exc, "reason", None) or "it is not plain text"
