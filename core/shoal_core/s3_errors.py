"""What S3's answers and botocore's errors mean, and what the user can do about them."""

from __future__ import annotations

from typing import Any

from shoal_core.errors import StoreError
from shoal_core.s3_client import CREDENTIALS, unsigned

__all__ = ["final_error", "is_answer", "refuses_caller", "told"]

_RIGHTS = {
    "reading": "s3:GetObject and s3:ListBucket",
    "writing": "s3:PutObject and s3:AbortMultipartUpload",
    "deleting": "s3:DeleteObject",
}
#: codes that say who asks is not known, by any status
_UNKNOWN_CALLER = (
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidSecurity",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
)
_OTHER_REGION = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301")
#: codes of passing trouble that come with a status of the caller's own mistakes
_BUSY = ("RequestTimeout", "SlowDown", "TooManyRequests", "Throttling", "ThrottlingException", "RequestLimitExceeded")


def final_error(error: Exception, where: str, *, again: bool, doing: str = "reading") -> Exception | None:
    """What to raise for an error of botocore's when `where` was asked for; None if the next answer may be another one.

    Args:
        doing: what was asked for: `reading`, `writing` or `deleting`.
        again: whether the store has answered before, so that what was found then (credentials) can be found again.
    """
    from botocore import exceptions as found

    if isinstance(error, found.ClientError):
        return _refusal(error, where, doing)
    if isinstance(error, found.SSLError):
        return StoreError(f"{where}: {error}", "check the endpoint's certificate, AWS_CA_BUNDLE and AWS_ENDPOINT_URL")
    if isinstance(error, found.CredentialRetrievalError | found.MetadataRetrievalError) and again:
        return None  # a role's credentials are asked for anew from time to time, by another service
    if not isinstance(error, found.BotoCoreError) or isinstance(error, _passing()):
        return None
    if isinstance(error, found.ParamValidationError | found.InvalidRegionError | found.EndpointProviderError):
        return StoreError(f"{where}: {error}", "check the address s3://bucket/prefix, and AWS_DEFAULT_REGION")
    return StoreError(f"{where}: {error}", CREDENTIALS)


def _refusal(error: Any, where: str, doing: str) -> Exception | None:
    """What an answer with an error code means."""
    said, why = error.response.get("Error", {}), told(error)
    code = str(said.get("Code"))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    if code in ("NoSuchKey", "404", "NotFound"):
        return FileNotFoundError(where)
    if code in ("InvalidRange", "416"):
        return EOFError(where)
    if code == "NoSuchBucket":
        return StoreError(f"{where}: there is no such bucket", "check the address s3://bucket/prefix, and the endpoint")
    if code in _OTHER_REGION:
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        if not (region := headers.get("x-amz-bucket-region") or said.get("Region")):
            remedy = (
                "set AWS_DEFAULT_REGION to the bucket's region, and check the endpoint (http where it wants https?)"
            )
            return StoreError(f"{where}: it lies in another region, or at another endpoint ({why})", remedy)
        remedy = f"set AWS_DEFAULT_REGION (or `region` in the address, if it is given there) to {region}"
        return StoreError(f"{where}: the bucket lies in another region ({why})", remedy)
    if unsigned() and status in (401, 403):
        remedy = f"unset AWS_NO_SIGN_REQUEST, and {CREDENTIALS}"
        return StoreError(f"{where}: {doing} is not allowed without credentials ({why})", remedy)
    if code == "RequestTimeTooSkewed":
        return StoreError(f"{where}: {why}", "set this machine's clock")
    if code in _UNKNOWN_CALLER or status == 401:
        return StoreError(f"{where}: these AWS credentials are not accepted ({why})", CREDENTIALS)
    if status == 403 or code in ("AccessDenied", "AllAccessDisabled"):
        return StoreError(
            f"{where}: {doing} is not allowed ({why})",
            f"allow these credentials {_RIGHTS[doing]} in the bucket's policy, or use others (AWS_PROFILE, "
            "AWS_ACCESS_KEY_ID)",
        )
    if code in _BUSY or not 400 <= status < 500 or status in (408, 429):
        return None
    return StoreError(f"{where}: {why}", "check the address s3://bucket/prefix, and that the endpoint is an S3 store")


def refuses_caller(error: Exception) -> bool:
    """Whether somebody else, or the same with other credentials, may be given another answer."""
    from botocore.exceptions import ClientError

    if not isinstance(error, ClientError):
        return False
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return error.response.get("Error", {}).get("Code") in _UNKNOWN_CALLER or status in (401, 403)


def told(error: Any) -> str:
    """An error in the store's own words, where it has any."""
    said = (getattr(error, "response", None) or {}).get("Error", {})  # of a broken connection it is None
    return f"{said.get('Code')}: {said.get('Message', 'no more is said')}" if said else str(error)


def _passing() -> tuple[type[Exception], ...]:
    """botocore's errors of connections and of cut or spoilt answers."""
    from botocore import exceptions as found

    return (
        found.ConnectionError,
        found.HTTPClientError,
        found.ChecksumError,
        found.FlexibleChecksumError,
        found.IncompleteReadError,
        found.PaginationError,
    )


def is_answer(error: Exception) -> bool:
    """Whether somebody answered, if only with an error or half."""
    from botocore import exceptions as found

    nobody = found.EndpointConnectionError, found.ConnectTimeoutError, found.ProxyConnectionError
    return not isinstance(error, nobody) and isinstance(error, (found.ClientError, OSError, *_passing()))
