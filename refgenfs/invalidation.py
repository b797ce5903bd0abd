"""What has to be forgotten when something turns out to be another than was said: by the kernel, and by the parts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from functools import partial

import trio

from refgenfs.background import survive
from refgenfs.cache.store import Store
from refgenfs.catalog import Catalog
from refgenfs.core.catalog import CatalogSnapshot
from refgenfs.core.content import ContentId, FileFacts
from refgenfs.core.errors import NotInCatalog
from refgenfs.fuse import Mount
from refgenfs.made.indices import Indices
from refgenfs.made.sequences import Sequences
from refgenfs.regions.deriver import Regions
from refgenfs.tree import Tree


class Invalidation:
    """Hears what changed, from parts below the tree. `nursery` owns what has to wait for the kernel, or the disk.

    Nothing may be told before `attach`.
    """

    _store: Store
    _catalog: Catalog
    _tree: Tree
    _mount: Mount
    _indices: Indices
    _regions: Regions
    _sequences: Sequences

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def attach(
        self,
        store: Store,
        catalog: Catalog,
        tree: Tree,
        mount: Mount,
        indices: Indices,
        regions: Regions,
        sequences: Sequences,
    ) -> None:
        """Have these parts forget: they are made after those that tell."""
        self._store = store
        self._catalog = catalog
        self._tree = tree
        self._mount = mount
        self._indices = indices
        self._regions = regions
        self._sequences = sequences

    def on_change(self, old: CatalogSnapshot, new: CatalogSnapshot) -> None:
        """Names mean something else by a new catalog: the next lookup must find it."""
        for parent, name in self._tree.outdated(new):
            self._mount.forget_name(parent, name)

    def on_stale(self, facts: FileFacts) -> None:
        """Another version is at the origin: the next lookup must find it."""
        with contextlib.suppress(NotInCatalog):  # a sequence's from a refget server
            self._catalog.note_stale(facts)
        for content in (facts.content, *self._indices.of(facts.content), *self._regions.forget(facts)):
            for parent, name in self._tree.names_of(content):
                self._mount.forget_name(parent, name)

    def on_damage(self, wrong: Iterable[ContentId]) -> None:
        """Bytes that were served turned out wrong: the kernel must not keep them, nor mix them with others."""
        contents = tuple(wrong)
        made = []
        for content in contents:
            made += self._indices.of(content)
            self._indices.drop(content)
            self._sequences.forget(content)
            self._nursery.start_soon(survive, partial(self._indices.forget, content))
        for content in made:
            self._store.evict(content)
        for content in (*contents, *made):
            names = self._tree.names_of(content)
            number = self._tree.retire(content)
            if number is not None:
                for parent, name in names:
                    self._mount.forget_name(parent, name)
                self._nursery.start_soon(survive, partial(self._mount.forget_pages, number))

    async def forget_pages(self, content: ContentId) -> None:
        """Have the kernel drop the pages of a content, if it knows it; waits for reads that are under way."""
        number = self._tree.number_of(content)
        if number is not None:
            await self._mount.forget_pages(number)
