"""botocore's signatures by a given clock. Imports botocore: to be imported when a request is signed first."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from botocore.auth import SIGV4_TIMESTAMP, S3SigV4Auth
from botocore.awsrequest import AWSRequest


class _At(S3SigV4Auth):
    """As `S3SigV4Auth`, at a given time: an origin's clock counts, and this machine's may be wrong."""

    def __init__(self, keys: Any, region: str, now: float) -> None:
        super().__init__(keys, "s3", region)
        self._now = datetime.fromtimestamp(now, UTC)

    def add_auth(self, request: Any) -> None:
        request.context["timestamp"] = self._now.strftime(SIGV4_TIMESTAMP)
        self._modify_request_before_signing(request)
        text = self.string_to_sign(request, self.canonical_request(request))
        self._inject_signature_to_request(request, self.signature(text, request))


def sign_request(
    method: str, url: str, headers: Mapping[str, str], keys: Any, region: str, now: float
) -> dict[str, str]:
    """Return the headers of a request without a body, signed; `keys` are botocore's ReadOnlyCredentials."""
    request = AWSRequest(method=method, url=url, headers=dict(headers))
    _At(keys, region, now).add_auth(request)
    return {str(name): str(value) for name, value in request.headers.items()}
