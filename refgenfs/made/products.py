"""What workers made: into the cache, and in memory for a while where that has no room."""

from __future__ import annotations

from collections import OrderedDict

import trio

from refgenfs.cache.content import Content, checksum
from refgenfs.core.content import BLOCK, ContentId, Run, block_count
from refgenfs.made.process import Product

KEPT_PRODUCTS = 4  # that readers may want more of than the cache had room for
KEPT_FOR = 30.0  # seconds


class KeptProducts:
    """The products that the cache had no room for, each for a while. `nursery` owns their time."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._products: OrderedDict[ContentId, Product] = OrderedDict()

    def __contains__(self, product: Product) -> bool:
        return product in self._products.values()

    def get(self, content: ContentId) -> Product | None:
        """Return a content's product if it is kept. It may be closed while anything is awaited."""
        return self._products.get(content)

    def put(self, content: ContentId, product: Product) -> None:
        """Keep a product, and close it when its time is over, or when there are too many."""
        self._nursery.start_soon(self._keep, content, product)
        self._products[content] = product

    async def _keep(self, content: ContentId, product: Product) -> None:
        while len(self._products) > KEPT_PRODUCTS:
            self._products.popitem(last=False)[1].close()
        try:
            await trio.sleep(KEPT_FOR)
        finally:
            if self._products.get(content) is product:
                del self._products[content]
            product.close()

    def close(self) -> None:
        """Close all."""
        while self._products:
            self._products.popitem()[1].close()


async def store_product(content: Content, product: Product) -> bool:
    """Make a content resident; False where the cache has no room. Raises CacheError."""
    run = Run(0, block_count(content.size))
    if content.missing(run) < 0:
        return True
    reservation = content.reserve(run)
    if reservation is None:
        return False
    with reservation:
        crcs = await trio.to_thread.run_sync(_copy, product, content)
        for index, crc in enumerate(crcs):
            content.commit(index, crc, reservation)
    return content.missing(run) < 0


def _copy(product: Product, content: Content) -> list[int]:
    crcs: list[int] = []
    while data := product.read(len(crcs) * BLOCK, (len(crcs) + 1) * BLOCK):
        content.write(len(crcs), memoryview(data))
        crcs.append(checksum(data))
    return crcs
