"""The ledger on a real database."""

from __future__ import annotations

import logging
import os
import pickle
import sqlite3
from pathlib import Path

import pytest

from refgenfs.cache.ledger import JSONValue, Ledger
from refgenfs.cache.startup import open_ledger
from refgenfs.cache.textdisk import RefusedValue
from refgenfs.core.errors import CacheError

PROOF: list[str] = []


def prove(text: str) -> None:
    PROOF.append(text)


class Trap:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return prove, ("unpickled",)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


def test_values_come_back_after_a_restart(tmp_path: Path) -> None:
    value: JSONValue = {"a": [1, 2.5, None, "é"], "b": {"c": True}}
    first = Ledger(tmp_path / "ledger")
    first.set("x/1", value)
    first.set_many({f"y/{number:03}": number for number in range(100)})
    first.close()
    again = Ledger(tmp_path / "ledger")
    assert again.get("x/1") == value
    assert list(again.keys("x/")) == ["x/1"]
    assert [number for _, number in again.items("y/")] == list(range(100))
    again.delete("x/1")
    assert again.get("x/1") is None
    again.close()


def test_only_the_owner_may_enter_the_directory(ledger: Ledger, tmp_path: Path) -> None:
    assert (tmp_path / "ledger").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("raw_key", [True, False])
def test_a_planted_pickle_is_never_unpickled(tmp_path: Path, raw_key: bool, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.set("content/a", 1)
    ledger.close()
    PROOF.clear()
    trap = pickle.dumps(Trap())
    with sqlite3.connect(tmp_path / "ledger" / "cache.db") as connection:
        key = "content/b" if raw_key else sqlite3.Binary(trap)
        connection.execute(
            "INSERT INTO Cache (key, raw, mode, value) VALUES (?, ?, 4, ?)", (key, raw_key, sqlite3.Binary(trap))
        )
    connection.close()
    again = open_ledger(tmp_path / "ledger", check=True)
    assert again.get("content/b") is None
    assert list(again.items("")) == [("content/a", 1)]
    assert "content/b" not in list(again.keys("content/"))
    with pytest.raises(RefusedValue):
        again._cache.set("content/c", Trap())
    with pytest.raises(RefusedValue):
        again._cache.get(Trap())
    again.close()
    assert PROOF == []
    assert ("not JSON text" in caplog.text) == raw_key


def test_a_row_that_names_a_file_touches_no_file(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("3")
    ledger = Ledger(tmp_path / "ledger")
    with sqlite3.connect(tmp_path / "ledger" / "cache.db") as connection:
        connection.execute("INSERT INTO Cache (key, raw, mode, filename) VALUES ('a', 1, 3, '../victim')")
    connection.close()
    assert ledger.get("a") is None
    assert list(ledger.keys("")) == []
    assert victim.read_text() == "3"
    ledger.close()


def test_the_write_ahead_log_stays_short(ledger: Ledger) -> None:
    longest = 0
    for turn in range(30):
        ledger.apply({f"blocks/{turn}/{page}": "x" * 5_700 for page in range(20)}, iter(()))
        longest = max(longest, ledger.wal_bytes())
    ledger.set("large", "y" * 3_000_000)
    assert ledger.wal_bytes() <= 512 * 1024
    assert longest <= 512 * 1024
    before = ledger.size_bytes()
    ledger.apply({}, iter(list(ledger.keys())))
    ledger.checkpoint()
    assert ledger.size_bytes() < before / 10
    ledger.close()


@pytest.mark.parametrize("damage", ["noise", "short", "middle"])
def test_a_damaged_database_is_set_aside(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ledger" / "cache.db"
    ledger = Ledger(tmp_path / "ledger")
    ledger.set_many({f"k/{number}": "v" * 500 for number in range(200)})
    ledger.close()
    if damage == "noise":
        path.write_bytes(os.urandom(20_000))
    elif damage == "short":
        os.truncate(path, 10_000)
    else:
        with path.open("r+b") as file:
            for page in range(10, 30):
                file.seek(page * 4096)
                file.write(os.urandom(4096))
    with caplog.at_level(logging.WARNING):
        again = open_ledger(tmp_path / "ledger", check=True)
    assert list(again.keys()) == []
    again.set("a", 1)
    assert again.get("a") == 1
    again.close()
    assert (tmp_path / "ledger.damaged" / "cache.db").exists()
    assert len([record for record in caplog.records if "set aside" in record.message]) == 1


def test_a_value_that_the_quota_has_no_room_for_is_refused(tmp_path: Path) -> None:
    def refuse(nbytes: int) -> None:
        if nbytes > 100_000:
            raise CacheError("no room")

    ledger = Ledger(tmp_path / "ledger", admit=refuse)
    ledger.set("small", "x" * 1000)
    with pytest.raises(CacheError, match="no room"):
        ledger.set("large", "x" * 100_000)
    assert list(ledger.keys()) == ["small"]
    ledger.close()
