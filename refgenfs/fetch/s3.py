"""Access to a bucket: whose requests go signed, where its region is, and what S3's errors mean.

Signatures (AWS Signature Version 4) and the search for credentials (environment, profile, shared files, SSO, the
role of the machine) are botocore's, which is imported when the first request is signed. All else runs on the
asyncio loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from yarl import URL

from refgenfs.core.errors import OriginDenied, OriginMissing, OriginUnavailable, RefgenfsError
from refgenfs.core.httprange import header, parse_http_date
from refgenfs.core.retry import Remedy
from refgenfs.core.s3 import DEFAULT_REGION, Bucket, Fault, is_region, parse_fault
from refgenfs.fetch.answers import AttemptFailed, OriginUnusable, status_failure

KEYS_DEADLINE = 20.0  # seconds; of what is asked for credentials, SSO and the machine's role answer by HTTP
STALE_KEYS = 10.0  # seconds that credentials which were refused are not looked for anew
SKEW = 60.0  # seconds that a clock must be wrong by to be corrected; S3 bears 15 minutes

_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken"})
_ELSEWHERE = frozenset(
    {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "TemporaryRedirect"}
)

log = logging.getLogger(__name__)


class S3Access:
    """How requests for a bucket go. `profile` is a section of AWS's shared files; `wall` gives Unix seconds.

    Without `anonymous` every request is signed, when it goes to the bucket's own endpoint or one of Amazon's for it.
    """

    def __init__(
        self,
        bucket: Bucket,
        *,
        anonymous: bool = False,
        profile: str | None = None,
        request_payer: bool = False,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._bucket = bucket
        self._anonymous = anonymous
        self._payer = {"x-amz-request-payer": "requester"} if request_payer else {}
        self._region = bucket.region or DEFAULT_REGION
        self._wall = wall
        self._skew = 0.0  # what the server's clock is ahead of ours
        self._keys = _Keys(profile)
        self._base = URL(bucket.base(), encoded=True)

    def place(self, target: URL) -> URL:
        """Return where a request goes: Amazon's hosts have the region in their names, which may have been learned."""
        if self._bucket.endpoint or target.origin() != self._base.origin():
            return target
        here = URL(self._bucket.base(self._region), encoded=True)
        return target.with_host(here.host or "") if here.host != target.host else target

    def signs(self, target: URL) -> bool:
        """Say whether requests for `target` are signed."""
        return not self._anonymous and self._is_home(target)

    async def sign(self, method: str, target: URL, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers of a request with all that it needs besides; raise AttemptFailed without credentials."""
        if not self._is_home(target):
            return dict(headers)
        wanted = {**headers, **self._payer}
        if not self.signs(target):
            return wanted
        keys = await self._keys.get()
        from refgenfs.fetch.sigv4 import sign_request

        return sign_request(method, str(target), wanted, keys, self._region, self._wall() + self._skew)

    def judge(self, target: URL, status: int, headers: Mapping[str, str], body: bytes) -> bool:
        """Say whether a failed request is to be made again at once, since what hindered it was learned.

        Raises AttemptFailed where S3 says what is wrong; returns False where the status has to do.
        """
        fault = parse_fault(body)
        if self._learn_region(status, headers, fault):
            return True
        if fault.code == "RequestTimeTooSkewed" and self._learn_time(headers):
            return True
        failure = self._failure(status, headers, fault)
        if failure is not None:
            raise failure
        return False

    def _is_home(self, target: URL) -> bool:
        here = URL(self._bucket.base(self._region), encoded=True)
        if target.origin() in (here.origin(), self._base.origin()):
            return True
        return target.scheme == "https" and self._bucket.is_home(target.host or "")

    def _learn_region(self, status: int, headers: Mapping[str, str], fault: Fault) -> bool:
        if status not in (301, 307, 400, 403):
            return False
        region = header(headers, "x-amz-bucket-region") or (fault.region if fault.code in _ELSEWHERE else "")
        if not is_region(region) or region == self._region:
            return False
        log.debug("bucket %s is in %s, not %s", self._bucket.name, region, self._region)
        self._region = region
        return True

    def _learn_time(self, headers: Mapping[str, str]) -> bool:
        there = parse_http_date(header(headers, "date"))
        if there is None or abs(there - self._wall() - self._skew) < SKEW:
            return False
        self._skew = there - self._wall()
        log.warning("this machine's clock is %+.0f s off S3's; requests are signed by S3's", -self._skew)
        return True

    def _failure(self, status: int, headers: Mapping[str, str], fault: Fault) -> AttemptFailed | None:
        code, name = fault.code, self._bucket.name
        what = f"HTTP {status} ({code})" if code else f"HTTP {status}"

        def failed(kind: type[RefgenfsError], why: str, remedy: Remedy = Remedy.ELSEWHERE) -> AttemptFailed:
            return AttemptFailed(kind, f"{what}: {why}", remedy, status=status)

        if code in _EXPIRED:
            self._keys.distrust()
            return failed(OriginDenied, "the credentials have expired; renew them", Remedy.DOUBTFUL)
        if code == "NoSuchBucket":
            return failed(OriginMissing, f"there is no bucket {name}; check bucket and endpoint")
        if code == "InvalidObjectState":
            return failed(OriginDenied, "the object is in an archive tier; have it restored first")
        if code == "RequestTimeTooSkewed":
            return failed(OriginDenied, "this machine's clock is wrong; set it")
        if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch"):
            self._keys.distrust()
            half = "access key, S3 knows none such" if code == "InvalidAccessKeyId" else "secret key, it doesn't fit"
            return failed(OriginDenied, f"check the {half}")
        if status in (400, 403) and not code:  # a HEAD has no body, so it may be that they have expired
            self._keys.distrust()
        if status in (301, 307) or code in _ELSEWHERE:
            return failed(OriginUnusable, f"bucket {name} is in another region; set region, or endpoint")
        if status in (401, 403):
            return failed(OriginDenied, self._denied())
        if code and (usual := status_failure(status, headers, self._wall())) is not None and status != 404:
            kind = usual.kind
            return AttemptFailed(kind, what, usual.remedy, status=status, retry_after=usual.retry_after)
        return None

    def _denied(self) -> str:
        if self._anonymous:
            return f"access denied; what isn't public in {self._bucket.name} needs credentials, not anonymous = true"
        return f"access denied; these credentials may not read it, or it isn't in {self._bucket.name}"


class _Keys:
    """Credentials as botocore finds them, looked for when first needed, and anew after S3 refused them."""

    def __init__(self, profile: str | None) -> None:
        self._profile = profile
        self._found: Any = None
        self._looked = float("-inf")
        self._refused = False
        self._lock: asyncio.Lock | None = None

    def distrust(self) -> None:
        """Have them looked for anew: files may have others by now."""
        self._refused = True

    async def get(self) -> Any:
        """Return access key, secret key and token (botocore's ReadOnlyCredentials); raise AttemptFailed."""
        found = self._found
        if found is not None and not self._refused and not _needs_refresh(found):
            return found.get_frozen_credentials()
        if self._lock is None:
            self._lock = asyncio.Lock()
        try:
            async with asyncio.timeout(KEYS_DEADLINE), self._lock:
                return await asyncio.to_thread(self._look)
        except TimeoutError as exc:
            what = f"no credentials came within {KEYS_DEADLINE:g} s"
            raise AttemptFailed(OriginUnavailable, what, Remedy.AGAIN) from exc

    def _look(self) -> Any:
        """Find credentials, or refresh those that are known. In a thread: files, commands and servers are asked."""
        from botocore import exceptions

        try:
            again = self._refused and time.monotonic() - self._looked > STALE_KEYS
            if self._found is None or again:
                self._found, self._refused, self._looked = self._search(), False, time.monotonic()
            if self._found is None:
                why = "no credentials (environment, ~/.aws, SSO, role); for a public bucket write anonymous = true"
                raise AttemptFailed(OriginDenied, why, Remedy.ELSEWHERE)
            return self._found.get_frozen_credentials()
        except (exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.MetadataRetrievalError) as exc:
            what = f"credentials could not be had ({type(exc).__name__})"
            raise AttemptFailed(OriginUnavailable, what, Remedy.AGAIN) from exc
        except exceptions.ProfileNotFound as exc:
            raise AttemptFailed(OriginDenied, f"there is no AWS profile {self._profile}", Remedy.ELSEWHERE) from exc
        except (exceptions.BotoCoreError, exceptions.ClientError, OSError, ValueError) as exc:
            # its text may quote a command's output, or a file
            what = f"credentials could not be had ({type(exc).__name__}); `aws sts get-caller-identity` says more"
            raise AttemptFailed(OriginDenied, what, Remedy.ELSEWHERE) from exc

    def _search(self) -> Any:
        import botocore.session

        # at the level of debugging it writes down what it signs, session tokens too
        logging.getLogger("botocore").setLevel(logging.WARNING)
        return botocore.session.Session(profile=self._profile).get_credentials()


def _needs_refresh(found: Any) -> bool:
    """Say whether credentials have an end that is near, so that others must be asked for."""
    check = getattr(found, "refresh_needed", None)
    return bool(check()) if check is not None else False
