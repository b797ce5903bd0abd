"""The values of settings: their types, how people write them, and what is wrong with what is none.

In Python values are bytes, seconds and paths; `model_dump(mode="json")` gives the text that people write,
with no secret in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from refgenfs.core.errors import redact_url
from refgenfs.core.keys import is_name
from refgenfs.core.units import format_duration, format_size, parse_duration, parse_size

PUBLIC_SERVER = "http://refgenomes.databio.org"


@dataclass(frozen=True, slots=True)
class MinFree:
    """Space that stays free on the cache's file system: a number of bytes, or a share of it in percent."""

    size: int | None = None
    percent: float | None = None

    @classmethod
    def parse(cls, value: object) -> MinFree:
        """Parse "5%" or a size; raise ValueError with what would be right."""
        if isinstance(value, MinFree):
            return value
        if not isinstance(value, str) or not value.strip().endswith("%"):
            return cls(size=parse_size(value))
        number = value.strip()[:-1].strip()
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", number, re.ASCII) is None or float(number) >= 100:
            raise ValueError(f'{value!r} is no share; write "5%", from 0% to below 100%, or a size like "10GB"')
        return cls(percent=float(number))

    def bytes_of(self, total: int) -> int:
        """Return how many bytes stay free on a file system of `total` bytes."""
        return self.size if self.size is not None else -int(-total * (self.percent or 0.0) // 100)

    def __str__(self) -> str:
        return format_size(self.size) if self.size is not None else f"{self.percent:g}%"


def at_least(low: float, shown: str) -> AfterValidator:
    """Return what refuses values below `low`, which people write as `shown`."""

    def check(value: Any) -> Any:
        if value < low:
            raise ValueError(f"must be at least {shown}")
        return value

    return AfterValidator(check)


def at_most(high: float, shown: str) -> AfterValidator:
    """Return what refuses values above `high`, which people write as `shown`."""

    def check(value: Any) -> Any:
        if value > high:
            raise ValueError(f"must be at most {shown}")
        return value

    return AfterValidator(check)


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is no URL; write one like 'https://www.example.org'") from None
    if parts.scheme not in ("http", "https") or not host or re.search(r"[\s\x00-\x1f]", url):
        shown = redact_url(url) if parts.scheme and host else url.rpartition("@")[2].partition("?")[0]
        raise ValueError(f"{shown!r} is no http:// or https:// URL; write one like 'https://www.example.org'")
    if parts.query or parts.fragment:
        raise ValueError(f"{redact_url(url)!r} must have nothing after its path: leave out '?' and '#'")
    return url


def _parse_proxies(value: object) -> tuple[str, ...]:
    """Return proxies in order; one alone may be written without a list, and "none" is an older word for "direct"."""
    found = (value,) if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not found or not all(isinstance(one, str) for one in found):
        raise ValueError('must be a URL in quotes, or a list such as ["http://proxy.example.org:3128", "direct"]')
    return tuple(dict.fromkeys("direct" if one in ("direct", "none") else _check_url(one) for one in found))


def _show_proxies(proxies: tuple[str, ...]) -> str | list[str]:
    shown = [one if one == "direct" else redact_url(one) for one in proxies]
    return shown[0] if len(shown) == 1 else shown


def check_name(name: str) -> str:
    """Return a name of a source or a rule; raise ValueError for what is none."""
    if not is_name(name):
        raise ValueError(f"{name!r} is no name: letters, digits, '_', '-', '+' and '.' only")
    return name


def lower(value: object) -> object:
    """Return a text in lower case, and anything else as it is."""
    return value.lower() if isinstance(value, str) else value


ByteCount = Annotated[int, BeforeValidator(parse_size), PlainSerializer(format_size, when_used="json")]
Duration = Annotated[float, BeforeValidator(parse_duration), PlainSerializer(format_duration, when_used="json")]
Url = Annotated[str, AfterValidator(_check_url), PlainSerializer(redact_url, when_used="json")]
FreeSpace = Annotated[MinFree, BeforeValidator(MinFree.parse), PlainSerializer(str, when_used="json")]
Proxies = Annotated[
    tuple[str, ...], BeforeValidator(_parse_proxies), PlainSerializer(_show_proxies, when_used="json")
]
Wait = Annotated[Duration, at_least(0.1, "100ms")]


def _check_path(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("must be a path; no path has a NUL character in it")
    return path


PlainPath = Annotated[Path, AfterValidator(_check_path)]


def parse_listen(text: str) -> tuple[str, int] | Path | None:
    """Return where to listen: an IP address and a port, a unix socket's path, or nowhere; raise ValueError."""
    if not text:
        return None
    if text.startswith("/"):
        return _check_path(Path(text))
    host, _, port = text.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
    wrong = (
        f'{text!r} is no place to listen; write an IP address and a port, as "127.0.0.1:9417", or a socket\'s path'
    )
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ValueError(wrong)
    try:
        return str(ip_address(host)), int(port)
    except ValueError:
        raise ValueError(wrong) from None


def check_listen(text: str) -> str:
    """Return what `parse_listen` understands; raise ValueError for anything else."""
    parse_listen(text)
    return text


def is_loopback(address: str) -> bool:
    """Say whether only this machine can reach an IP address."""
    return ip_address(address).is_loopback


class Table(BaseModel):
    """A table of settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


Name = Annotated[str, AfterValidator(check_name)]
