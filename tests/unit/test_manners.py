"""What is known of hosts: which give parts of their objects."""

from __future__ import annotations

from refgenfs.core.manners import HOSTS, Manners, host_of

A, B = "http://a.example.org/x", "http://b.example.org/x"


def test_nothing_seen_is_what_the_host_said() -> None:
    manners = Manners()
    assert manners.whole("lab", [A], 0.0, said=True)
    assert not manners.whole("lab", [A], 0.0, said=False)


def test_what_was_seen_wins_for_a_while() -> None:
    manners = Manners(memory=60.0)
    manners.note("lab", A, 0.0, ranges=False)
    assert manners.whole("lab", ["http://eve:hunter2@A.example.org/other"], 60.0, said=False)
    assert not manners.whole("lab", [A], 61.0, said=False)
    assert not manners.whole("other", [A], 1.0, said=False)
    manners.note("lab", A, 2.0, ranges=True)
    assert not manners.whole("lab", [A], 3.0, said=True)


def test_a_mirror_that_gives_parts_is_asked_first() -> None:
    manners = Manners()
    manners.note("lab", A, 0.0, ranges=False)
    assert manners.order("lab", [A, B], 1.0) == [B, A]
    assert manners.whole("lab", [A, B], 1.0, said=False)
    manners.note("lab", B, 0.0, ranges=True)
    assert not manners.whole("lab", [A, B], 1.0, said=True)


def test_it_is_bounded() -> None:
    manners = Manners()
    for number in range(3 * HOSTS):
        manners.note("lab", f"http://{number}.example.org/", 0.0, ranges=True)
        assert len(manners._seen) <= HOSTS


def test_hosts_of_urls() -> None:
    assert host_of("http://eve:pw@Host:81/x?y") == "http://host:81"
    assert host_of("http://[") == "http://["
