"""Why reads are slow, in words."""

from __future__ import annotations

from refgenfs.core.verdict import Away, Finding, Pressure, Waiting, findings


def texts(pressure: Pressure) -> list[str]:
    return [one.text for one in findings(pressure)]


def test_where_nothing_is_the_matter_that_is_said() -> None:
    assert [one.level for one in findings(Pressure())] == ["good"]


def test_a_source_that_is_away_comes_first_and_says_what_still_works() -> None:
    waiting = [Waiting("origin", "lab", 12.0)]
    first, second = findings(Pressure(waiting=waiting, away=[Away("lab", 100.0, "HTTP 503")]))
    assert (first.level, first.text, first.since) == ("bad", "Source lab does not answer: HTTP 503", 100.0)
    assert "resident" in first.hint
    assert second.text == "1 request waits for bytes from lab, 12.0 s so far"
    assert second.hint == "That source does not answer at present."


def test_waits_are_told_by_cause_and_source_the_longest_of_each() -> None:
    waiting = [Waiting("origin", "lab", 0.3), Waiting("origin", "lab", 2.0), Waiting("disk", "lab", 0.4)]
    waiting += [Waiting("name", "", 0.5), Waiting("made", "lab", 0.5), Waiting("origin", "", 0.5)]
    found = {one.text: one for one in findings(Pressure(waiting=waiting))}
    assert found["2 requests wait for bytes from lab, 2.0 s so far"].level == "warn"
    assert found["1 request waits for the cache's disk, 0.4 s so far"].level == "note"
    assert "1 request waits for a name, a size or a listing, 0.5 s so far" in found
    assert "1 request waits for what is made of other files, 0.5 s so far" in found
    assert "1 request waits for bytes from an origin, 0.5 s so far" in found


def test_what_is_said_again_of_the_same_thing_is_known_by_what_it_is_about() -> None:
    before = findings(Pressure(waiting=[Waiting("origin", "lab", 0.3)]))
    after = findings(Pressure(waiting=[Waiting("origin", "lab", 3.0)] * 2, connections_waiting=1))
    assert before[0].about == after[0].about
    assert (before[0].level, after[0].level) == ("note", "warn")
    assert len({one.about for one in after}) == 2
    assert all(one.hint for one in (*before, *after))


def test_queues_name_the_setting() -> None:
    found = findings(Pressure(connections_waiting=3, connections=8, memory_waiting=1, memory=64_000_000))
    assert [one.text for one in found] == [
        "3 fetches queue for a connection to an origin",
        "1 fetch queues for memory",
    ]
    assert "limits.connections is 8" in found[0].hint
    assert "limits.memory is 64.0 MB" in found[1].hint
    waits = findings(Pressure(waiting=[Waiting("memory", "lab", 3)], memory_waiting=1, memory=64_000_000))
    assert [one.text for one in waits] == ["1 request waits for memory, 3.0 s so far"]


def test_the_cache_s_own_trouble() -> None:
    refused = findings(Pressure(bypassed=True, disk_error="No space left on device"))
    assert refused[0] == Finding(
        "bad",
        "disk",
        "The cache's disk refuses: No space left on device",
        "Reads go on without the cache. Look at the disk.",
    )
    assert texts(Pressure(opening=True)) == ["The cache is still being looked through"]
    assert texts(Pressure(pinned=95, quota=100)) == ["95 B of the cache's 100 B are pinned"]
    assert texts(Pressure(pinned=85, quota=100)) == ["Nothing waits. All sources answer."]
