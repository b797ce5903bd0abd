"""Which object the bytes of a content come from, where its origin has several."""

from __future__ import annotations

from refgenfs.core.content import ContentId, FileFacts, Ranged

KEPT = 20_000  # contents; about 100 bytes each, beside facts that are in memory anyway


class Originals:
    """The object that each content comes from.

    Two tags of one digest have the same bytes, which a host of unpacked copies has twice: two objects, each with a
    validator of its own. They are one content, so all of it is to come from one of them: that was asked for first.
    """

    def __init__(self) -> None:
        self._chosen: dict[ContentId, FileFacts] = {}

    def choose(self, facts: FileFacts) -> FileFacts:
        """Return the facts by which this content is read: these, or those of the object that it comes from."""
        if not isinstance(facts.extent, Ranged):
            return facts
        chosen = self._chosen.get(facts.content)
        if chosen is not None and _is_another(chosen, facts):
            return chosen
        if len(self._chosen) >= KEPT:
            self._chosen.clear()
        self._chosen[facts.content] = facts
        return facts

    def forget(self, content: ContentId) -> None:
        """Choose anew: the object that was chosen has been replaced."""
        self._chosen.pop(content, None)

    def clear(self) -> None:
        """Choose anew for all: an object's version may be gone from the catalog."""
        self._chosen.clear()


def _is_another(chosen: FileFacts, facts: FileFacts) -> bool:
    """Say whether two answers are about two objects, and not about two versions of one."""
    one, other = chosen.extent, facts.extent
    urls = getattr(one, "urls", ()), getattr(other, "urls", ())
    return (
        urls[0] != urls[1]
        and isinstance(one, Ranged)
        and isinstance(other, Ranged)
        and (one.validator != other.validator)
    )
