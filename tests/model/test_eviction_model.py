"""The index of segments against a plain list in order of use."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from refgenfs.core.eviction import SegmentIndex

CONTENTS = st.sampled_from("abcd")
INDEXES = st.integers(0, 5)
SIZES = st.integers(1, 9)


class EvictionMachine(RuleBasedStateMachine):
    """`self.order` holds (content, index), the least recently touched first."""

    def __init__(self) -> None:
        super().__init__()
        self.index = SegmentIndex()
        self.order: list[tuple[str, int]] = []
        self.sizes: dict[tuple[str, int], int] = {}
        self.pins: set[str] = set()
        self.marks: list[tuple[int, set[tuple[str, int]]]] = []

    def moved(self, key: tuple[str, int]) -> None:
        if key in self.order:
            self.order.remove(key)
        self.order.append(key)
        for _, older in self.marks:
            older.discard(key)

    def gone(self, key: tuple[str, int]) -> None:
        self.order.remove(key)
        del self.sizes[key]

    @rule(content=CONTENTS, index=INDEXES, nbytes=SIZES)
    def grow(self, content: str, index: int, nbytes: int) -> None:
        self.index.grow(content, index, nbytes)
        key = content, index
        self.sizes[key] = self.sizes.get(key, 0) + nbytes
        self.moved(key)

    @rule(content=CONTENTS, index=INDEXES, share=st.floats(0, 1))
    def shrink(self, content: str, index: int, share: float) -> None:
        key = content, index
        if nbytes := int(self.sizes.get(key, 0) * share):
            self.index.shrink(content, index, nbytes)
            self.sizes[key] -= nbytes
            if not self.sizes[key]:
                self.gone(key)

    @rule(content=CONTENTS, index=INDEXES)
    def touch(self, content: str, index: int) -> None:
        self.index.touch(content, index)
        if (content, index) in self.sizes:
            self.moved((content, index))

    @rule(content=CONTENTS)
    def pin(self, content: str) -> None:
        self.index.pin(content)
        self.pins.add(content)

    @rule(content=CONTENTS)
    def unpin(self, content: str) -> None:
        self.index.unpin(content)
        self.pins.discard(content)

    @rule(content=CONTENTS)
    def remove(self, content: str) -> None:
        keys = [key for key in self.order if key[0] == content]
        assert self.index.remove(content) == sum(self.sizes[key] for key in keys)
        for key in keys:
            self.gone(key)

    @rule()
    def rebuild(self) -> None:
        self.index._rebuild()

    @rule()
    def mark(self) -> None:
        self.marks = [*self.marks[-2:], (self.index.stamp, set(self.order))]

    @rule(nbytes=st.integers(0, 40), restored=st.booleans(), data=st.data())
    def evict(self, nbytes: int, restored: bool, data: st.DataObject) -> None:
        mark, older = data.draw(st.sampled_from([(None, set(self.order)), *self.marks]))
        expected, got = [], 0
        for key in self.order:
            if got < nbytes and key[0] not in self.pins and key in older:
                expected.append(key)
                got += self.sizes[key]
        taken = self.index.evict_for(nbytes, older_than=mark)
        if got < nbytes:
            assert taken == []
            return
        assert [(segment.content, segment.index) for segment in taken] == expected
        assert [segment.nbytes for segment in taken] == [self.sizes[key] for key in expected]
        if restored:
            for segment in taken:
                self.index.restore(segment)
        else:
            for key in expected:
                self.gone(key)

    @invariant()
    def sums_are_right(self) -> None:
        assert self.index.total == sum(self.sizes.values())
        assert self.index.pinned == sum(size for key, size in self.sizes.items() if key[0] in self.pins)
        assert len(self.index) == len(self.sizes)
        for content in "abcd":
            found = self.index.segments(content)
            assert found == {key[1]: size for key, size in self.sizes.items() if key[0] == content}


TestEviction = EvictionMachine.TestCase
TestEviction.settings = settings(max_examples=400, stateful_step_count=40, deadline=None)
