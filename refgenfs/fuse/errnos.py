"""The one place of errnos: every error becomes one here, once, and is counted and told of.

pyfuse3 lets only `FUSEError` leave a handler: any other exception takes the mount down. So every handler is
wrapped, once, by `answered`.
"""

from __future__ import annotations

import errno
import functools
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3

from refgenfs.core import errors
from refgenfs.core.metrics import Durations
from refgenfs.tracing import Event, Tracing

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A", bound="Answers")


class Interrupted(errors.RefgenfsError):
    """The caller is being killed: it needs no answer."""


# The whole of it: an error has the errno of the first class in its ancestry that is named here.
ERRNOS: dict[type[Exception], int] = {
    errors.NotInCatalog: errno.ENOENT,
    errors.NotADirectory: errno.ENOTDIR,
    errors.IsADirectory: errno.EISDIR,
    errors.ReadOnly: errno.EROFS,
    errors.OriginDenied: errno.EACCES,
    errors.NotAllowed: errno.EACCES,
    errors.StaleContent: errno.ESTALE,
    errors.DeadlineExceeded: errno.ETIMEDOUT,
    errors.TooManyOpenFiles: errno.EMFILE,
    errors.NoMoreOpenFiles: errno.ENFILE,
    errors.TooManyRequests: errno.EAGAIN,
    errors.TooManyNames: errno.EAGAIN,
    Interrupted: errno.EINTR,
    errors.RefgenfsError: errno.EIO,  # OriginUnavailable, OriginMissing, IntegrityError and their kin
    MemoryError: errno.ENOMEM,
    Exception: errno.EIO,
}
# What a user meets every day and no administrator needs to know.
_QUIET = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.EINTR})
_SILENT = (errors.NotAllowed, errors.AnotherFile)
# What one user can bring about as often as they like: said once in a while. So a text of these names the user at the
# most, and nothing that is another each time.
_ONCE_IN_A_WHILE = (errors.TooManyOpenFiles, errors.NoMoreOpenFiles, errors.TooManyRequests, errors.TooManyNames)
A_WHILE = 60.0  # seconds
RECENT = 50  # errors that `status` can show


def _one_line(text: str) -> str:
    """Return a text fit for a log: a name out of an archive can hold anything."""
    return "".join(char if char.isprintable() else "?" for char in text)


def errno_of(error: Exception) -> int:
    """Return the errno that an error is answered with."""
    return next(ERRNOS[kind] for kind in type(error).__mro__ if kind in ERRNOS)


@dataclass(slots=True)
class FuseCounts:
    """Requests answered since the start."""

    requests: int = 0
    failures: int = 0
    unexpected: int = 0


def answered(
    handler: Callable[Concatenate[A, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[A, P], Coroutine[Any, Any, R]]:
    """Turn every exception of a handler into an errno, with one log line for what somebody should know."""

    @functools.wraps(handler)
    async def wrapper(self: A, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.counts.requests += 1
        began, error = perf_counter(), ""
        event = self.tracing.begin(name, args) if self.tracing.on else None
        try:
            return await handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except errors.RefgenfsError as exc:
            number = errno_of(exc)
            error = type(exc).__name__
            self.errors[name, error] += 1
            if number not in _QUIET and not isinstance(exc, _SILENT) and self._is_news(exc):
                self.failed(handler.__name__, exc, number, event or self.tracing.begin(name, args))
            raise pyfuse3.FUSEError(number) from exc
        except Exception as exc:
            self.counts.unexpected += 1
            error = "Unexpected"
            self.errors[name, error] += 1
            self.failed(handler.__name__, exc, errno_of(exc), event or self.tracing.begin(name, args))
            raise pyfuse3.FUSEError(errno_of(exc)) from exc
        finally:
            took = perf_counter() - began
            self.timings[name].observe(took)
            if event is not None:
                self.tracing.end(event, took, error)

    name = handler.__name__.removeprefix("_")
    return wrapper


class Answers:
    """What came of the requests: counts, durations and errors by operation, and who follows them."""

    def __init__(self, tracing: Tracing) -> None:
        self.counts = FuseCounts()
        self.timings: defaultdict[str, Durations] = defaultdict(Durations)  # by operation
        self.errors: Counter[tuple[str, str]] = Counter()  # by operation and kind
        self.recent: list[tuple[float, str]] = []  # errors, newest last; times in Unix seconds
        self.tracing = tracing
        self._said: dict[str, float] = {}  # when what is said once in a while was, by its text

    def _is_news(self, error: errors.RefgenfsError) -> bool:
        """Say whether an error is worth a line: what a user runs into again and again is not each time."""
        if not isinstance(error, _ONCE_IN_A_WHILE):
            return True
        what, now = str(error), time.monotonic()
        if now - self._said.get(what, -A_WHILE) < A_WHILE:
            return False
        if len(self._said) >= RECENT:
            self._said.clear()
        self._said[what] = now
        return True

    def failed(self, what: str, error: Exception, number: int, event: Event | None = None) -> None:
        """Count a failure, and say it in one line: what, of which file, why, and for whom."""
        self.counts.failures += 1
        name = errno.errorcode.get(number, str(number))
        where = f" of {event.path}" if event is not None and event.path else ""
        kind = type(error).__name__
        text, why = _one_line(f"{what}{where}"), _one_line(f"{kind}: {error} ({name})")
        by = _one_line(f", for {event.command} ({event.pid})") if event is not None and event.pid else ""
        known = isinstance(error, errors.RefgenfsError)  # anything else is a defect, of which the traceback is wanted
        log.log(
            logging.WARNING if known else logging.ERROR,
            "%s failed: %s%s",
            text,
            why,
            by,
            extra={"kind": kind},
            exc_info=None if known else error,
        )
        self.recent = [*self.recent[1 - RECENT :], (time.time(), f"{text} failed: {why}")]
