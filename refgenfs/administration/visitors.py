"""Who may ask for what.

Root and who runs the daemon may do everything. Everybody else of the machine may ask: for what there is and how it
is, as far as they may read it, for their own requests, and for what reading would do too (`pull`). What binds others
(pins), takes from them (evictions, a cleared cache) or is about the daemon itself (reload, stop) is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NoReturn

import trio

from refgenfs.administration.explaining import Explaining
from refgenfs.administration.following import Following
from refgenfs.administration.health import Health
from refgenfs.administration.listing import Listing
from refgenfs.administration.parts import Daemon, Sight, parse_key, parse_keys
from refgenfs.control import Caller, Operation, Progress
from refgenfs.core.errands import on_behalf_of
from refgenfs.core.errors import NotAllowed

WHAT = {
    "pin": "pin",
    "unpin": "unpin",
    "pins": "see what is pinned, and for whom",
    "evict": "evict",
    "cache_verify": "check the cache",
    "cache_clear": "empty the cache",
    "reload": "have the configuration read again",
    "stop": "stop the daemon",
}


class Visitor:
    """The operations as they are for one caller, who is neither root nor the daemon's user."""

    def __init__(self, daemon: Daemon, caller: Caller, everything: Mapping[str, Operation]) -> None:
        self._daemon = daemon
        self._caller = caller
        self._everything = everything

    def operations(self) -> dict[str, Operation]:
        """Return every operation by its name; what is not named here is refused."""
        asked: dict[str, Operation] = {name: partial(self._ask, name) for name in _QUESTIONS}
        asked |= {"ticket": self._ticket, "pull": self._pull}
        return {name: asked.get(name) or partial(self._refuse, name) for name in self._everything}

    async def _ask(self, name: str, arguments: dict[str, Any], progress: Progress) -> Any:
        part = _QUESTIONS[name](self._daemon, await self._sight())
        return await part.operations()[name](arguments, progress)

    async def _ticket(self, arguments: dict[str, Any], progress: Progress) -> Any:
        sight = await self._sight()
        # no await from here until the operation has its version
        sight.check(self._daemon.catalog.snapshot.version(parse_key(arguments.get("key"))))
        return await self._everything["ticket"](arguments, progress)

    async def _pull(self, arguments: dict[str, Any], progress: Progress) -> Any:
        if arguments.get("pin"):
            await self._refuse("pin", arguments, progress)
        keys = [str(key) for key in parse_keys(arguments)]  # as many as a visitor's request can hold
        done: list[Any] = []
        for key in keys:
            await trio.lowlevel.checkpoint()  # thousands that are here need not be waited for
            sight = await self._sight()
            # no await from here until the operation has its version
            sight.check(self._daemon.catalog.snapshot.version(parse_key(key)))
            with on_behalf_of(self._caller.uid):
                done += (await self._everything["pull"]({"keys": [key]}, progress))["keys"]
        return {"keys": done}

    async def _refuse(self, name: str, _: dict[str, Any], __: Progress) -> NoReturn:
        await trio.lowlevel.checkpoint()
        raise NotAllowed(f"only root or the daemon's user may {WHAT.get(name, name)}")

    async def _sight(self) -> Sight:
        return await sight_of(self._daemon, self._caller)


async def sight_of(daemon: Daemon, caller: Caller) -> Sight:
    """Return what a caller, who is neither root nor the daemon's user, may see now."""

    async def groups() -> frozenset[int]:
        await trio.lowlevel.checkpoint()
        return caller.groups

    rules = daemon.rules()
    hidden = [name for name, rule in rules.items() if not await rule.allows(caller.uid, caller.gid, groups)]
    return Sight(frozenset(hidden), caller.uid)


_QUESTIONS: Mapping[str, type[Explaining] | type[Following] | type[Health] | type[Listing]] = {
    "explain": Explaining,
    "trace": Following,
    "status": Health,
    "metrics": Health,
    "cache_info": Health,
    "list": Listing,
    "info": Listing,
    "seek": Listing,
    "id": Listing,
}
