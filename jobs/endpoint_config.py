"""Which LLM is asked, how fast and how patiently; its key, which shows itself to nobody."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from scar_core.errors import InputError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class EndpointError(InputError):
    """An endpoint refuses every request: the key, the model or the address needs fixing."""


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """Which LLM is asked, how fast, and how patiently."""

    model: str
    """Name of the model, as the endpoint knows it."""
    base_url: str
    """The endpoint, to where /chat/completions is added: https://api.openai.com/v1,
    http://127.0.0.1:8000/v1."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; `none` for an endpoint that wants none. On
    loopback the variable may be unset."""
    temperature: float | None = 0.0
    """Sampling temperature, 0 or more; null leaves it to the endpoint."""
    answer_tokens: int = 1024
    """Tokens that an answer may take, at least 1; a longer one is `cut`, and not used."""
    answer_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """How the endpoint calls that limit."""
    seed: int | None = None
    """Seed of the sampling, for endpoints that take one."""
    extra: dict[str, Any] | None = None
    """More fields of a request, a mapping: {"top_p": 0.9}. Stored in the manifest: no secrets."""
    concurrency: int = 16
    """Requests under way at a time, of all actors together, at least 1."""
    requests_per_minute: float | None = None
    """Most requests sent in a minute, retries included; above 0. No limit by default."""
    tokens_per_minute: float | None = None
    """Most tokens in a minute, above 0: a request counts a quarter of its characters and
    --answer-tokens. No limit by default."""
    request_seconds: float = 120.0
    """Time limit of one try of a request, above 0."""
    attempts: int = 6
    """Tries of a request, at least 1, where it is throttled, fails, or is not answered in time."""
    retry_seconds: float = 1.0
    """Longest wait before the second try, above 0; it doubles with each try, up to a minute, and
    is drawn by chance. Where the endpoint sends Retry-After, that holds instead."""
    give_up_after: int = 20
    """So many requests that fail one after the other, with no answer between them, end the run; at
    least 1."""
    price_in: float = 0.0
    """Price of a million tokens sent, 0 or more; for the cost in manifest and log."""
    price_out: float = 0.0
    """Price of a million tokens received, 0 or more."""

    def __post_init__(self) -> None:
        """Refuse what cannot be asked."""
        for name in ("answer_tokens", "concurrency", "attempts", "give_up_after"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "requests_per_minute",
            "tokens_per_minute",
            "request_seconds",
            "retry_seconds",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        for name in ("temperature", "price_in", "price_out"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        parts = urlsplit(self.base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"base_url must be http://… or https://…, got {self.base_url!r}")
        if parts.username or parts.password or parts.query:
            raise ValueError("base_url must hold no user, password or query: it is stored")

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        """What so many tokens cost."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

    def sampling(self) -> dict[str, Any]:
        """What of a request settles its answer, beside model and messages."""
        given: dict[str, Any] = {self.answer_tokens_field: self.answer_tokens}
        if self.temperature is not None:
            given["temperature"] = self.temperature
        if self.seed is not None:
            given["seed"] = self.seed
        return given | (self.extra or {})


class ApiKey:
    """A key that shows itself to nobody."""

    def __init__(self, value: str) -> None:
        self.value = value

    def __repr__(self) -> str:
        """Not what is in it."""
        return "ApiKey(hidden)"

    def hidden_in(self, text: str) -> str:
        """A text without the key: some endpoints repeat what they refuse."""
        return text.replace(self.value, "(key)") if self.value else text


def find_key(config: EndpointConfig) -> ApiKey:
    """The key of the environment; empty where none is wanted.

    Raises:
        InputError: the variable is not set, and the endpoint is not on loopback.
    """
    if config.api_key_env == "none":
        return ApiKey("")
    value = os.environ.get(config.api_key_env, "").strip()
    if not value and urlsplit(config.base_url).hostname not in LOOPBACK:
        raise InputError(
            f"{config.base_url}: the environment variable {config.api_key_env} holds no key. Set "
            "it, name another one with --api-key-env, or pass --api-key-env none."
        )
    return ApiKey(value)
