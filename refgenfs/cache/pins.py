"""Pins: keys that people keep, and the contents that each of them holds.

A content is pinned while at least one key holds it, and a key holds what it does while somebody claims it: who gave
no name, or a name, and for good or until a time. The rows `pin/<key>` of the ledger say so; what a content's own row
says of it counts only in a ledger of before keys were noted.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from refgenfs.cache.opened import OpenContents
from refgenfs.cache.pinrows import BY_HAND, KEPT_BY_KEY, KEPT_ROW, MOST_CLAIMS, PREFIX, UNKNOWN, Pin
from refgenfs.cache.room import Room
from refgenfs.cache.shelf import Shelf
from refgenfs.core.content import ContentId
from refgenfs.core.errors import CacheError

PIN_GROWTH = 12 * 1024  # bytes that the ledger may grow by for a pin


class Pins:
    """Which keys are pinned; on the shelf at once, in the ledger with the next flush. Belongs to the trio thread."""

    def __init__(self, shelf: Shelf, contents: OpenContents, room: Room) -> None:
        self._shelf = shelf
        self._contents = contents
        self._room = room
        self._pins: dict[str, Pin] = {}
        self._holders: dict[ContentId, set[str]] = {}
        self._assets: dict[str, set[str]] = {}  # the pinned keys of each asset
        self._opened: list[tuple[str, str, str, ContentId]] | None = []  # before it was known what is pinned

    def read(self, pins: Iterable[Pin]) -> None:
        """Take over what the ledger has, before the shelf knows its contents; what is not written yet goes first."""
        for pin in pins:
            if f"{PREFIX}{pin.key}" not in self._shelf.pin_rows:
                self._forget(pin.key)
                self._pins[pin.key] = pin
                self._assets.setdefault(pin.asset, set()).add(pin.key)
                for cid in pin.files.values():
                    self._holders.setdefault(cid, set()).add(pin.key)
        self._shelf.pinned.clear()
        self._shelf.pinned.update(self._holders)

    def adopt(self) -> None:
        """Keep from eviction what is pinned, once the shelf knows its contents."""
        for cid in self._holders:
            self._shelf.index.pin(cid)
        opened, self._opened = self._opened or [], None
        for one in opened:
            self.follow(*one)

    # What is pinned

    def has(self, cid: ContentId) -> bool:
        """Say whether a content is pinned."""
        return cid in self._holders

    def get(self, key: str) -> Pin | None:
        """Return the pin of a key, or of what people named so."""
        return self._pins.get(key) or next((pin for pin in self._pins.values() if key and pin.shown == key), None)

    def holders(self, cid: ContentId) -> list[str]:
        """Return the keys that hold a content, as people named them; "" for one of before keys were noted."""
        return sorted(self._pins[key].shown or key for key in self._holders.get(cid, ()))

    def of_asset(self, asset: str) -> list[str]:
        """Return the pinned keys of an asset (`<genome digest>/<asset>:<tag>`), as people named them."""
        return sorted(self._pins[key].shown or key for key in self._assets.get(asset, ()))

    @property
    def resident(self) -> int:
        """Resident bytes of what is pinned."""
        return sum(self._shelf.entries.resident(cid) for cid in self._holders)

    def all(self) -> list[Pin]:
        """Return every pin of a key that is known, in the order of what people named."""
        known = (pin for pin in self._pins.values() if pin.key != UNKNOWN)
        return sorted(known, key=lambda pin: pin.shown or pin.key)

    # Changes

    def hold(self, cid: ContentId, pin: Pin, name: str) -> None:
        """Have a key hold a content under a name, which it held nothing else under afterwards.

        `pin` says what is known of the key; its claims join those that there are, and a new pin without any stays
        until it is released. Raises CacheError if the content is not known, or that can't be written down.
        """
        self._know(cid)
        known = self._pins.get(pin.key)
        claims = known.claims if known is not None else {}
        if len(claims.keys() | pin.claims.keys()) > MOST_CLAIMS:
            raise CacheError(f"{pin.shown or pin.key} is pinned for {MOST_CLAIMS:,} names already; unpin it for some")
        if known is None or known.files.get(name) != cid or pin.claims.keys() - claims.keys():
            self._room.admit(PIN_GROWTH)
        if known is None:
            known = self._pins[pin.key] = Pin(pin.key)
            self._assets.setdefault(known.asset, set()).add(pin.key)
        known.shown, known.digest = pin.shown, pin.digest
        known.claims.update(pin.claims if pin.claims or known.claims else {BY_HAND: None})
        before = known.files.get(name)
        known.files[name] = cid
        self._holders.setdefault(cid, set()).add(pin.key)
        self._mark(cid)
        if before is not None and before != cid:
            self._let_go(before, pin.key)
        if pin.key != UNKNOWN:
            self.release_unknown([cid])
        self._note(pin.key)

    def retain(self, key: str, names: Iterable[str]) -> None:
        """Have a key let go of what it holds under other names than these."""
        pin = self._pins.get(key)
        if pin is not None:
            wanted = set(names)
            for name in [name for name in pin.files if name not in wanted]:
                self._let_go(pin.files.pop(name), key)
            self._note(key)

    def follow(self, asset: str, digest: str, name: str, cid: ContentId) -> None:
        """Have the pins of an asset hold what a name of it means by now; to be called when it is opened.

        When the asset was rebuilt (`digest` is another), what they held of the version before is let go.
        """
        if self._opened is not None:
            self._opened.append((asset, digest, name, cid))
            return
        for key in list(self._assets.get(asset, ())):
            pin = self._pins[key]
            if pin.files.get(name) == cid or not pin.covers(name):
                continue
            with suppress(CacheError):  # no room to write it down: it is as it was
                rebuilt = pin.digest != digest
                self.hold(cid, Pin(key, pin.shown, digest), name)
                if rebuilt:
                    self.retain(key, [name])

    def disclaim(self, key: str, name: str) -> list[ContentId]:
        """Have a name claim a key no more; with the last claim the key goes, and what it held is returned."""
        pin = self._pins.get(key)
        if pin is None or name not in pin.claims:
            return []
        del pin.claims[name]
        if not pin.claims:
            return self.release(key)
        self._note(key)
        return []

    def expire(self, now: float) -> None:
        """Let go of the claims whose time (Unix seconds) has come; to be called every little while."""
        for key, pin in list(self._pins.items()):
            for name in [name for name, until in pin.claims.items() if until is not None and until <= now]:
                self.disclaim(key, name)

    def release(self, key: str) -> list[ContentId]:
        """Forget a key, whoever claims it, and return the contents that it held."""
        pin = self._forget(key)
        if pin is None:
            return []
        held = list(dict.fromkeys(pin.files.values()))
        for cid in held:
            self._mark(cid)
        self._note(key)
        return held

    def release_unknown(self, cids: Iterable[ContentId]) -> list[ContentId]:
        """Let go of these contents as far as nobody knows which key they were pinned by; return which those are."""
        unknown = self._pins.get(UNKNOWN)
        found = [cid for cid in cids if unknown is not None and cid in unknown.files]
        for cid in found:
            self._pins[UNKNOWN].files.pop(cid)
            self._let_go(cid, UNKNOWN)
        if found:
            self._note(UNKNOWN)
        return found

    def drop(self, cid: ContentId) -> None:
        """Let no key hold a content any more."""
        for key in list(self._holders.get(cid, ())):
            pin = self._pins[key]
            pin.files = {name: held for name, held in pin.files.items() if held != cid}
            self._let_go(cid, key)
            self._note(key)

    def rewrite_all(self) -> None:
        """Make all pins a change that the ledger does not have."""
        self._shelf.pin_rows[KEPT_BY_KEY] = KEPT_ROW
        for key in list(self._pins):
            self._note(key)

    def _forget(self, key: str) -> Pin | None:
        pin = self._pins.pop(key, None)
        if pin is not None:
            self._assets[pin.asset].discard(key)
            for cid in pin.files.values():
                self._unhold(cid, key)
        return pin

    def _let_go(self, cid: ContentId, key: str) -> None:
        if cid not in self._pins[key].files.values():
            self._unhold(cid, key)
            self._mark(cid)

    def _unhold(self, cid: ContentId, key: str) -> None:
        held = self._holders.get(cid, set())
        held.discard(key)
        if not held:
            self._holders.pop(cid, None)

    def _note(self, key: str) -> None:
        pin = self._pins.get(key)
        if pin is not None and not pin.files:
            self._forget(key)
            pin = None
        self._shelf.pin_rows[f"{PREFIX}{key}"] = pin.to_json() if pin is not None else None

    def _know(self, cid: ContentId) -> None:
        live = self._contents.get(cid)
        entry = self._shelf.entries.get(cid) or (live.entry if live is not None else None)
        if entry is None:
            raise CacheError(f"content {cid} is not in the cache")
        self._shelf.entries[cid] = entry

    def _mark(self, cid: ContentId) -> None:
        """See that the shelf has a content as pinned, or not."""
        shelf, pinned = self._shelf, cid in self._holders
        (shelf.pinned.add if pinned else shelf.pinned.discard)(cid)
        entry = shelf.entries.get(cid)
        (shelf.index.pin if pinned or (entry is not None and entry.kept) else shelf.index.unpin)(cid)
        if entry is None or entry.pinned == pinned:
            return
        entry.pinned = pinned
        shelf.unlisted.add(cid)
        if not pinned and not entry.resident:
            shelf.entries.forget(cid)
            shelf.removed[cid] = entry.size
