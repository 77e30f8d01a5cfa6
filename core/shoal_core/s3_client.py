"""The client that all who read from S3 use, and the one rule for credentials.

Credentials, region and endpoint are found as boto3 finds them: variables, `~/.aws`, the machine's role;
`AWS_ENDPOINT_URL_S3` comes before `AWS_ENDPOINT_URL`, and `AWS_REGION` counts where `AWS_DEFAULT_REGION` is not set.
Requests without credentials, which public buckets allow, are made only where `AWS_NO_SIGN_REQUEST=1` says so: a node
whose role is missing is then told so, and not that a bucket is private.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

from shoal_core.errors import StoreError

__all__ = ["CREDENTIALS", "connect", "found_now", "unsigned"]

CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this machine a role; all processes that "
    "read from there need them"
)


def unsigned() -> bool:
    """Whether requests are to be made without credentials."""
    return os.environ.get("AWS_NO_SIGN_REQUEST", "").lower() in ("1", "true", "yes")


def found_now() -> object:
    """The credentials that a client which is made now would use, to be held against those of one that was made before:
    files of `~/.aws` and roles change while a process lives. None: there are none."""
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        found = None if unsigned() else boto3.Session().get_credentials()
        return None if found is None else found.get_frozen_credentials()
    except BotoCoreError:
        return None


def connect(
    url: str, connections: int, *, patience: float = 60, endpoint: str | None = None, region: str | None = None
) -> Any:
    """A boto3 S3 client, from the environment. It does not ask again by itself.

    Args:
        url: what it is for, for messages.
        connections: at most so many at once.
        patience: seconds for which a connection may be silent.
        endpoint: the address of the store, if not that of the environment.
        region: the same of the region.

    Raises:
        StoreError: there are no credentials, or settings of AWS that cannot be used; names `url`.
    """
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        signature_version=UNSIGNED if unsigned() else None,
        retries={"total_max_attempts": 1},  # they are counted by who asks, so that they show
        connect_timeout=5,
        read_timeout=patience,
        max_pool_connections=connections,
    )
    try:
        session = boto3.Session(
            region_name=region or os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION")
        )
        if not unsigned() and session.get_credentials() is None:  # each request would look for them anew, in seconds
            raise StoreError(
                f"{url}: no AWS credentials are found", f"{CREDENTIALS}. A public bucket: set AWS_NO_SIGN_REQUEST=1"
            )
        client = session.client("s3", endpoint_url=endpoint, config=config)
        client.meta.events.register("before-call.s3.HeadBucket", _not_asked)
        return client
    except (BotoCoreError, ValueError) as error:
        raise StoreError(f"{url}: {error}", "mend AWS_PROFILE, AWS_ENDPOINT_URL or what else of AWS is set") from error


def _not_asked(**_: Any) -> tuple[Any, dict[str, Any]]:
    """What botocore is told in place of an answer to HeadBucket. It asks that for the region of a bucket whose store
    redirects and does not name it; where that is redirected too, it would ask on until its stack is full."""
    error = {"Code": "301", "Message": "no region is named"}
    return SimpleNamespace(status_code=301), {"Error": error, "ResponseMetadata": {"HTTPHeaders": {}}}
