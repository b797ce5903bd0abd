"""Sizes and durations: as people write them, exactly as a configuration file holds them, and for reading.

`parse_*` and `format_*` are inverse to each other. `human_*` round, and are for people only. Sizes are
decimal ("200GB") or binary ("200GiB"); a lone "200G", which programs read either way, is refused.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_DECIMAL = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "pb": 10**15}
_BINARY = {"kib": KIB, "mib": MIB, "gib": GIB, "tib": 1 << 40, "pib": 1 << 50}
_SIZE_UNITS = {"": 1, "b": 1, **_DECIMAL, **_BINARY}
_SIZE_NAMES = {"kb": "kB", "mb": "MB", "gb": "GB", "tb": "TB", "pb": "PB"} | {
    "kib": "KiB", "mib": "MiB", "gib": "GiB", "tib": "TiB", "pib": "PiB",
}  # fmt: skip
_DURATION_UNITS = {"ms": Fraction(1, 1000), "": Fraction(1), "s": Fraction(1), "m": Fraction(60)} | {
    "min": Fraction(60), "h": Fraction(3600), "d": Fraction(86400),
}  # fmt: skip
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", re.ASCII)
_SIZE_FORM = 'write a size like "200GB", "512MiB" or a whole number of bytes'
_DURATION_FORM = 'write a duration like "500ms", "30s", "5m", "1h", "2d" or a number of seconds'
_MAX_SIZE = (1 << 63) - 1  # off_t
_MAX_SECONDS = 10**9  # thirty years: more is a mistake, and clocks take it


def parse_size(value: object) -> int:
    """Return the number of bytes that `value` says; raise ValueError with what would be right.

    `value` is a whole number of bytes, or text: a number and B, kB, MB, GB, TB, PB (powers of 1000) or KiB,
    MiB, GiB, TiB, PiB (of 1024), in any case. A fraction of a byte is dropped.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    amount = Fraction(str(value)) if whole else _parse_size_text(value)
    if amount < 0:
        raise ValueError(f"a size can't be negative, as {value!r} is; {_SIZE_FORM}")
    if amount > _MAX_SIZE:
        raise ValueError(f"{value!r} is larger than any file can be; {_SIZE_FORM}")
    return int(amount)


def _parse_size_text(text: object) -> Fraction:
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is no size; {_SIZE_FORM}")
    number, unit = match[1], match[2].lower()
    if unit in ("k", "m", "g", "t", "p"):
        big = unit.upper()
        raise ValueError(
            f"{text!r} can be read two ways; write {number}{_SIZE_NAMES[unit + 'b']} (powers of 1000) "
            f"or {number}{big}iB (powers of 1024)"
        )
    try:
        return Fraction(number) * _SIZE_UNITS[unit]
    except KeyError:
        raise ValueError(f"{match[2]!r} in {text!r} is no unit of size; {_SIZE_FORM}") from None


def format_size(size: int) -> str:
    """Return the text that `parse_size` reads back as exactly `size` bytes: "200GB", "1MiB", "1500B"."""
    best = (size, "B")
    for unit, factor in (*_DECIMAL.items(), *_BINARY.items()):
        count, rest = divmod(size, factor)
        if size and not rest and count < best[0]:
            best = (count, _SIZE_NAMES[unit])
    return f"{best[0]}{best[1]}"


def parse_duration(value: object) -> float:
    """Return the seconds that `value` says; raise ValueError with what would be right.

    `value` is a number of seconds, or text: a number and ms, s, m (or min), h or d.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value <= _MAX_SECONDS:  # false for nan as well
            raise ValueError(f"{value!r} is no duration; {_DURATION_FORM}")
        return float(value)
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is no duration; {_DURATION_FORM}")
    try:
        seconds = Fraction(match[1]) * _DURATION_UNITS[match[2].lower()]
    except KeyError:
        raise ValueError(f"{match[2]!r} in {value!r} is no unit of time; {_DURATION_FORM}") from None
    if seconds > _MAX_SECONDS:
        raise ValueError(f"{value!r} is longer than thirty years; {_DURATION_FORM}")
    return float(seconds)


def format_duration(seconds: float) -> str:
    """Return `seconds` as text that `parse_duration` reads back exactly, "90s" or "1h" or "500ms"."""
    exact = Fraction(str(Decimal(repr(seconds))))
    if exact == 0:
        return "0s"
    for unit in ("d", "h", "m", "s", "ms"):
        count = exact / _DURATION_UNITS[unit]
        if count.denominator == 1:
            return f"{count.numerator}{unit}"
    return f"{Decimal(repr(seconds)):f}s"


def human_bytes(size: float) -> str:
    """Return a size in bytes for people, in powers of 1000 and three digits: "2.94 GB"."""
    if size < 999.5:
        return f"{size:.0f} B"
    amount = float(size)
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        amount /= 1000
        if amount < 999.5 or unit == "PB":
            break
    digits = 2 if amount < 9.995 else 1 if amount < 99.95 else 0
    return f"{amount:.{digits}f} {unit}"


def human_rate(bytes_per_second: float) -> str:
    """Return a rate for people: "118 MB/s"."""
    return f"{human_bytes(bytes_per_second)}/s"


def human_duration(seconds: float) -> str:
    """Return a duration for people, in its two largest units: "2 h 14 min"."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def human_age(seconds: float) -> str:
    """Return how long ago something was, for people: "4 min ago"."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return f"{max(0, round(seconds))} s ago"


def human_percent(part: float, whole: float) -> str:
    """Return a share for people: "17 %"; "100 %" and "0 %" only where it is exactly that."""
    if whole <= 0:
        return "0 %"
    percent = 100 * part / whole
    if 0 < percent < 1:
        return "<1 %"
    if 99 < percent < 100:
        return f"{min(int(percent * 100) / 100, 99.99):g} %"
    return f"{percent:.0f} %"


def counted(number: int, what: str) -> str:
    """Return how many there are of what, in words: "1 file", "2,000 files"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
