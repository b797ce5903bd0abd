"""What the configuration means to the parts: the same when a daemon starts and when it reloads."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from refgenfs.cache.store import CacheLimits
from refgenfs.config import Config
from refgenfs.core.retry import RetryPolicy
from refgenfs.fetch.settings import Account, HttpSettings
from refgenfs.made.indexer import IndexSettings
from refgenfs.made.sequences import Searched
from refgenfs.reader.leftovers import kept_memory
from refgenfs.sources.making import account_of

# Archives that stream at a time, where there is memory for it.
STREAMS = 4


def http_settings(config: Config, known: Mapping[str, Account] = MappingProxyType({})) -> HttpSettings:
    """Return how requests go; an account that is `known` is the very one: it may have learned something."""
    return HttpSettings(
        connections=config.limits.connections,
        policy=RetryPolicy(retry_for=config.limits.retry_for),
        accounts={source.name: known.get(source.name) or account_of(source) for source in config.source},
    )


def budget_of(config: Config) -> tuple[int, int]:
    """Return the size of the budget of memory, and how many archives may stream at a time."""
    limits = config.limits
    # some of a host's connections are left for listings and sizes
    return limits.memory - kept_memory(limits.memory), max(1, min(STREAMS, limits.connections - 2))


def cache_limits(config: Config) -> CacheLimits:
    """Return the bounds of the cache."""
    return CacheLimits(config.cache.size, config.cache.min_free.bytes_of)


def index_settings(config: Config) -> IndexSettings:
    """Return which indices are made."""
    return IndexSettings(config.indices.largest)


def searched(config: Config) -> Searched:
    """Return where sequences are looked for."""
    wanted = config.refget
    return Searched(wanted.genomes, wanted.servers, wanted.search)
