"""What can go wrong, said without an errno.

`transient` tells the retry policy whether asking again can help. Messages are written for the person who
reads them: what failed, where, and what to do. They never carry a token, a header or the query of a URL
(see `redact_url`).
"""

from __future__ import annotations

from typing import ClassVar, TypeVar
from urllib.parse import urlsplit, urlunsplit


class RefgenfsError(Exception):
    """Base of every error that refgenfs raises on purpose."""

    transient: ClassVar[bool] = False


class KeyFormatError(RefgenfsError):
    """Text that should be a key (`genome/asset[.seek_key][:tag]`) is none."""


class ConfigError(RefgenfsError):
    """The configuration can't be used; the message names the key and the file."""


class NotInCatalog(RefgenfsError):
    """No source has this genome, asset, tag or file."""


class CannotBeMade(NotInCatalog):
    """A file that would be made of another can't be made of that one: so there is none."""


class NotADirectory(RefgenfsError):
    """A directory was asked for, and the name is a file's."""


class IsADirectory(RefgenfsError):
    """A file was asked for, and the name is a directory's."""


class NotAllowed(RefgenfsError):
    """The configuration lets this user not read it."""


class TooManyOpenFiles(RefgenfsError):
    """A user has as many files open as one user may."""


class NoMoreOpenFiles(RefgenfsError):
    """All users together have as many files open as there may be."""


class TooManyRequests(RefgenfsError):
    """So many requests of a user wait already that one more would keep others from being answered."""


class TooManyNames(RefgenfsError):
    """So many names that no listing has are in use that one more is not resolved."""


class ReadOnly(RefgenfsError):
    """The tree can't be written to."""


class OriginDenied(RefgenfsError):
    """The origin answered 401 or 403."""


class OriginMissing(RefgenfsError):
    """The origin answered 404 for something that its catalog names."""


class OriginNotFound(OriginMissing):
    """The origin says that it has no such thing, or nothing of the part that was asked for."""


class SizeUnknown(RefgenfsError):
    """The origin has an object and does not tell its size; all of it has to come to settle that.

    `validator` and `mtime` are what it tells (see `content.ByteRange` and `content.FileFacts`).
    """

    def __init__(self, message: str, validator: str = "", mtime: float = 0.0) -> None:
        super().__init__(message)
        self.validator = validator
        self.mtime = mtime


class OriginUnavailable(RefgenfsError):
    """The origin did not answer, or answered with a server error."""

    transient = True


class StaleContent(RefgenfsError):
    """The origin now has another version of the content that is being read."""


class AnotherFile(StaleContent):
    """A name whose file was not known yet turned out to be another file's; it is looked up anew."""


class IntegrityError(RefgenfsError):
    """Bytes are not what their checksum, length or format says."""


class ArchiveError(IntegrityError):
    """An archive is damaged, or holds what a reference archive must not hold."""


class GenerateFailed(RefgenfsError):
    """What makes a file of another one failed, or was ended; it says nothing about the data."""


class HtsgetError(RefgenfsError):
    """A query that can't be answered, as the htsget protocol tells it: its name there, and the HTTP status."""

    error: ClassVar[str] = "InternalError"
    status: ClassVar[int] = 500


class InvalidInput(HtsgetError):
    """The query is not one: parameters that are wrong, or that don't go together."""

    error = "InvalidInput"
    status = 400


class InvalidRange(HtsgetError):
    """The query's positions can't be: an end before its start, say."""

    error = "InvalidRange"
    status = 400


class UnsupportedFormat(HtsgetError):
    """The file is not of the format that was asked for, or of none that is known."""

    error = "UnsupportedFormat"
    status = 400


class PayloadTooLarge(HtsgetError):
    """The query is longer than is read."""

    error = "PayloadTooLarge"
    status = 413


class ReferenceNotFound(HtsgetError):
    """The file has no such reference (the protocol's NotFound)."""

    error = "NotFound"
    status = 404


class NoPublicUrl(RefgenfsError):
    """A file has no URL that can be told to others."""


class DeadlineExceeded(RefgenfsError):
    """A wait took longer than its deadline."""

    transient = True


class CacheError(RefgenfsError):
    """The cache directory can't be used; the message says why and what to do."""


class CacheBusy(CacheError):
    """Another daemon holds the cache directory."""


class ControlError(RefgenfsError):
    """The control socket can't be used, or the daemon refused a request."""


def redact_url(url: str) -> str:
    """Return `url` fit for a log: no user, password, query or fragment; "a malformed URL" for what is none."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "a malformed URL"
    if ":" in host:
        host = f"[{host}]"
    netloc = f"{host}:{port}" if port else host
    return urlunsplit((parts.scheme, netloc, parts.path, "", ""))


E = TypeVar("E", bound=BaseException)


def without_frames(error: E) -> E:
    """Return the error with no traceback in it or its causes: one that is kept must not keep what they held.

    The frames of a failed transfer hold its buffers, and they hold the error: a cycle of megabytes, which only the
    garbage collector would end.
    """
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            pending += [one.__cause__, one.__context__]
    return error
