"""How stores are reached: their options, the AWS variables, patience; their failures as sentences.

Options and credentials are a setting of the process. Tasks carry the driver's to the workers; no
config, manifest, log or `repr` holds them.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import fsspec

from scar_core.errors import AccessError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# In these URLs the part before an @ is a place (container@account), not a user with a password.
_AT_IS_A_PLACE = frozenset({"abfs", "abfss", "wasb", "wasbs"})
S3 = frozenset({"s3", "s3a"})

# botocore's own retries, of 5xx, throttling, time-outs and resets alike, with random waits of up
# to 1, 2, 4, 8 … seconds; s3fs tries what is throttled or cut five times as often. Of 20 files
# written and read none failed with 30 % of all requests cut, unanswered or throttled.
ATTEMPTS = 7
ATTEMPTS_OF_A_CHECK = 3
CONNECT_SECONDS = 10
READ_SECONDS = 60
CONNECTIONS = 32

_CARRIED = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_MAX_ATTEMPTS",
    "AWS_RETRY_MODE",
)
_SAYS_WHO_ASKS = frozenset({"key", "secret", "token", "username", "anon", "profile", "session"})


@dataclass(frozen=True, kw_only=True)
class Access:
    """What a process needs to reach the stores that another one reaches."""

    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """For fsspec; of every store, or by scheme: `{"s3": {…}, "gs": {…}}`."""
    variables: Mapping[str, str] | None = field(default=None, repr=False)
    """AWS variables; None: those that the process has at the time."""

    def of(self, scheme: str) -> dict[str, Any]:
        """The options of one scheme's stores, as they were given."""
        values = self.options.values()
        by_scheme = bool(self.options) and all(
            isinstance(value, dict) and name in fsspec.available_protocols()
            for name, value in zip(self.options, values, strict=True)
        )
        return dict(self.options.get(scheme, {}) if by_scheme else self.options)

    def aws(self) -> dict[str, str]:
        """The AWS variables that matter, as far as they are set."""
        found = os.environ if self.variables is None else self.variables
        return {name: found[name] for name in _CARRIED if found.get(name)}


_here = Access()


def set_options(options: Mapping[str, Any] | None) -> None:
    """From now on this process reaches stores with these options, and its own AWS variables."""
    carry(Access(options=dict(options or {})))


def carried() -> Access:
    """How this process reaches stores now, for another process to `carry`."""
    return Access(options=_here.options, variables=_here.aws())


def carry(access: Access) -> None:
    """From now on this process reaches stores as the one that this comes from."""
    global _here  # noqa: PLW0603 - one setting of a process, instead of a parameter everywhere
    _here = access


def filesystem(url: str, *, patient: bool = True) -> tuple[Any, str]:
    """The file system of a URL, and the path inside it; listings are never cached.

    One that is not patient gives up on a store that cannot be reached within seconds.
    """
    schemes = {part.partition("://")[0] for part in url.split("::")}
    options = {scheme: _here.of(scheme) for scheme in schemes}
    for scheme in schemes & S3:
        options[scheme] = _s3_options(options[scheme], _here.aws(), patient=patient)
    found: tuple[Any, str] = fsspec.core.url_to_fs(url, **options, use_listings_cache=False)
    return found


def _s3_options(
    given: Mapping[str, Any], variables: Mapping[str, str], *, patient: bool
) -> dict[str, Any]:
    """Options of s3fs: what is given, then the AWS variables, then our patience.

    The variables are made options because s3fs keeps its clients by their options: another
    endpoint or secret must be another client.
    """
    options = dict(given)
    client = dict(options.get("client_kwargs") or {})
    config = dict(options.get("config_kwargs") or {})
    endpoint = variables.get("AWS_ENDPOINT_URL_S3") or variables.get("AWS_ENDPOINT_URL")
    if endpoint and "endpoint_url" not in client:
        options.setdefault("endpoint_url", endpoint)
    region = variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION")
    if region and "region_name" not in config:
        client.setdefault("region_name", region)
    names = {"key": "AWS_ACCESS_KEY_ID", "secret": "AWS_SECRET_ACCESS_KEY"}
    if not _SAYS_WHO_ASKS & options.keys() and set(names.values()) <= variables.keys():
        options |= {name: variables[variable] for name, variable in names.items()}
        options["token"] = variables.get("AWS_SESSION_TOKEN")
    config.setdefault("connect_timeout", CONNECT_SECONDS)
    config.setdefault("read_timeout", READ_SECONDS)
    config.setdefault("max_pool_connections", CONNECTIONS)
    attempts = int(variables.get("AWS_MAX_ATTEMPTS") or ATTEMPTS)
    retries = {
        "mode": variables.get("AWS_RETRY_MODE", "legacy"),
        "total_max_attempts": attempts if patient else min(attempts, ATTEMPTS_OF_A_CHECK),
    }
    config.setdefault("retries", retries)
    return {**options, "client_kwargs": client, "config_kwargs": config}


@contextmanager
def answered(url: str) -> Iterator[None]:
    """What a store's client raises within the block, as an OSError of ours or of Python.

    Raises:
        AccessError: the store refuses, or has no such bucket.
        StoreError: the store did not answer, or not as it should.
    """
    try:
        yield
    except (AccessError, StoreError):
        raise
    except FileNotFoundError as error:
        if error_code(error) != "NoSuchBucket":
            raise
        bucket = without_secret(url).partition("://")[2].partition("/")[0]
        raise AccessError(
            f"{without_secret(url)}: there is no bucket {bucket!r}. Make it, or check the name "
            "and the endpoint (AWS_ENDPOINT_URL)."
        ) from error
    except PermissionError as error:
        raise AccessError(
            f"{without_secret(url)}: the store refuses: {error}. Check the credentials, and what "
            "they may do: the AWS variables or --storage-options."
        ) from error
    except _client_errors() as error:
        raise StoreError(
            f"{without_secret(url)}: {type(error).__name__}: {error}. Check the endpoint, the "
            "credentials and the network; then start again."
        ) from error


class StoredFile:
    """A file in a store that raises only OSErrors."""

    def __init__(self, file: BinaryIO, url: str) -> None:
        self.file, self.url = file, url

    def read(self, size: int = -1) -> bytes:
        """As the file does."""
        with answered(self.url):
            return self.file.read(size)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - anything
        """Whatever else the file has."""
        return getattr(self.file, name)

    def __enter__(self) -> Self:
        """The file itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.file.close()


def _client_errors() -> tuple[type[Exception], ...]:
    """What the clients of stores raise that is no OSError, of those that are loaded."""
    names = (
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("aiohttp", "ClientError"),
        ("gcsfs.retry", "HttpError"),
        ("azure.core.exceptions", "AzureError"),
    )
    return tuple(getattr(sys.modules[room], name) for room, name in names if room in sys.modules)


def error_code(error: BaseException) -> str:
    """The S3 code of an error that s3fs raised; empty where it has none."""
    for source in (error, error.__cause__):
        response = getattr(source, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def without_secret(url: str) -> str:
    """A URL without a password, a token or a signature."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    place, slash, key = rest.partition("/")
    if scheme.rpartition("::")[2] not in _AT_IS_A_PLACE:
        place = place.rpartition("@")[2]
    if scheme in {"http", "https"}:  # most often a signature; elsewhere ? is a letter of the key
        key = key.partition("?")[0]
    return f"{scheme}://{place}{slash}{key}"
