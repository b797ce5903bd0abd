"""What the configuration means to the parts: the same when a daemon starts and when it reloads."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType

from refgenfs.cache.store import CacheLimits
from refgenfs.config import Config
from refgenfs.core.retry import RetryPolicy
from refgenfs.core.units import human_bytes
from refgenfs.fetch.settings import Account, HttpSettings
from refgenfs.made.indexer import IndexSettings
from refgenfs.made.sequences import Searched
from refgenfs.memory import allowed_memory, fitting_budget
from refgenfs.reader.leftovers import kept_memory
from refgenfs.sources.making import account_of

log = logging.getLogger(__name__)

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
    memory = memory_of(config)
    # some of a host's connections are left for listings and sizes
    return memory - kept_memory(memory), max(1, min(STREAMS, config.limits.connections - 2))


def memory_of(config: Config) -> int:
    """Return `limits.memory`, or what of it the cgroup lets us have."""
    return fitting_budget(config.limits.memory, allowed_memory())


def warn_of_memory(config: Config) -> None:
    """Say so where the cgroup doesn't let us have `limits.memory`."""
    wanted, allowed = config.limits.memory, allowed_memory()
    fitting = fitting_budget(wanted, allowed)
    if allowed is not None and fitting < wanted:
        log.warning(
            "limits.memory is %s, not %s: the cgroup has %s for everything (MemoryMax= of a unit, or a limit of the "
            "container)",
            *(human_bytes(size) for size in (fitting, wanted, allowed)),
        )


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
