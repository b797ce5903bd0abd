"""Pins as the ledger has them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from refgenfs.cache.ledger import JSONValue, Ledger
from refgenfs.core.content import ContentId
from refgenfs.core.errors import KeyFormatError
from refgenfs.core.keys import AssetKey

UNKNOWN = ""  # the key of what was pinned before keys were noted
KEPT_BY_KEY = "store/pins"  # the row that says that the rows `pin/` are all there is
KEPT_ROW: JSONValue = {"layout": 1}
PREFIX = "pin/"
BY_HAND = ""  # the claim of who gave no name
MOST_CLAIMS = 1000  # of a key: its row is written whole whenever one of them changes


@dataclass(slots=True)
class Pin:
    """One key that is kept: `genome digest/asset[.seek_key]:tag`.

    `shown` is the key as people named it; `digest` the asset's, of the version that is held; `files` the contents, by
    the origin's names; `claims` who wants it kept, by name, and until when in Unix seconds (None: until told).
    """

    key: str
    shown: str = ""
    digest: str = ""
    files: dict[str, ContentId] = field(default_factory=dict)
    claims: dict[str, float | None] = field(default_factory=dict)

    @property
    def asset(self) -> str:
        """The key of the whole asset."""
        return _asset_of(self.key)

    def covers(self, name: str) -> bool:
        """Say whether it keeps a file of its asset."""
        return self.key == self.asset or name in self.files

    def to_json(self) -> JSONValue:
        """Return it as JSON values."""
        claims: dict[str, JSONValue] = {**self.claims}
        return {"shown": self.shown, "digest": self.digest, "files": dict(self.files), "claims": claims}


def read_pins(ledger: Ledger, flagged: Iterable[ContentId]) -> list[Pin]:
    """Read all pins; blocking. Raises CacheError.

    `flagged` are the contents whose own rows say that they are pinned: believed of a time before keys were noted.
    """
    pins = []
    for row, value in ledger.items(PREFIX):
        pin = _parse(row.removeprefix(PREFIX), value)
        if pin is not None:
            pins.append(pin)
    if ledger.get(KEPT_BY_KEY) is None:
        known = {cid for pin in pins for cid in pin.files.values()}
        files = {cid: cid for cid in flagged if cid not in known}
        rows: dict[str, JSONValue] = {}
        if files:
            pins = [*(pin for pin in pins if pin.key != UNKNOWN), Pin(UNKNOWN, files=files)]
            rows[f"{PREFIX}{UNKNOWN}"] = pins[-1].to_json()
        ledger.apply({**rows, KEPT_BY_KEY: KEPT_ROW}, iter(()))
    return pins


def _parse(key: str, value: JSONValue) -> Pin | None:
    files = value.get("files") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(files, dict):
        return None
    held = {name: cid for name, cid in files.items() if isinstance(cid, str)}
    return Pin(key, str(value.get("shown") or ""), str(value.get("digest") or ""), held, _claims(value.get("claims")))


def _claims(value: JSONValue) -> dict[str, float | None]:
    """Return the claims of a row; one of before claims were noted, or that can't be read, has one that stays."""
    if not isinstance(value, dict) or not value:
        return {BY_HAND: None}
    known = {name: until for name, until in value.items() if isinstance(until, int | float)}
    return {name: float(known[name]) if name in known else None for name in value}


def _asset_of(key: str) -> str:
    try:
        parsed = AssetKey.parse(key)
    except KeyFormatError:
        return key
    return str(AssetKey(parsed.genome, parsed.asset, None, parsed.tag))
