"""An OpenAI-compatible endpoint: asked within limits, patiently, and never made up for.

The `openai` client rather than `ray.data.llm`'s HTTP processor, which ends the whole job at an
answer that is not JSON and knows no error of a single row. Of the client only the raw answer is
used: what an answer holds is read here, strictly.

An outcome is an answer of the endpoint (`answered`, `cut`, `refused_by_filter`, `no_answer`), which
is kept, or a failure (`rate_limited`, `server_error`, `timed_out`, `unreachable`, `bad_response`,
`bad_request`), which a later run tries again. What no later request could mend (a key that is
refused, a model that is not there) raises EndpointError.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs.endpoint_config import EndpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tenacity import RetryCallState

    from jobs.endpoint_config import ApiKey, EndpointConfig

logger = logging.getLogger("scar_curate")

KEPT = frozenset({"answered", "cut", "refused_by_filter", "no_answer"})
"""Outcomes that the endpoint gave; the others are failures."""
CHARACTERS_PER_TOKEN = 4
LONGEST_WAIT_SECONDS = 60.0
LONGEST_RETRY_AFTER_SECONDS = 600.0
MESSAGE_CHARACTERS = 300
_REFUSED = {
    401: "the key is refused",
    403: "access is denied",
    404: "there is no such model or path",
}
_CLIENT_ERROR = 400
_UNPROCESSABLE = 422
_TRANSIENT = {408: "timed_out", 409: "server_error", 425: "server_error", 429: "rate_limited"}


class Outcome(NamedTuple):
    """What became of a request."""

    reason: str
    """`answered`, or why there is no answer to use."""
    text: str = ""
    """The answer, else what the endpoint said."""
    tokens_in: int | None = None
    tokens_out: int | None = None
    """As the endpoint counted them; None where it did not."""
    model: str = ""
    """As the endpoint calls what answered."""


@dataclass(kw_only=True)
class Traffic:
    """What was sent and came back, as often as it was tried."""

    tries: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    """Tries that were followed by another one, by reason."""


class _TryAgainError(Exception):
    """A try that another one may mend."""

    def __init__(self, outcome: Outcome, *, after_seconds: float | None = None) -> None:
        super().__init__(outcome.reason)
        self.outcome, self.after_seconds = outcome, after_seconds


class Endpoint:
    """A client of one endpoint for one event loop, with this actor's share of the limits.

    `before_each` is called before every try; what it raises ends the request.
    """

    def __init__(
        self,
        config: EndpointConfig,
        key: ApiKey,
        *,
        actors: int = 1,
        before_each: Callable[[], None] | None = None,
    ) -> None:
        from aiolimiter import AsyncLimiter  # noqa: PLC0415 - only who asks an LLM needs these
        from openai import AsyncOpenAI  # noqa: PLC0415

        self.config, self.key = config, key
        self._before_each = before_each
        # Retries are ours: each must pass the limits, be counted, and honour Retry-After.
        self.client = AsyncOpenAI(
            base_url=config.base_url,
            api_key=key.value or "none",
            timeout=config.request_seconds,
            max_retries=0,
        )
        # Loaded now: it takes a second, which no request's time limit should pay for.
        self._create = self.client.chat.completions.with_raw_response.create
        self.traffic = Traffic()
        self.failed_in_a_row = 0
        self._places = asyncio.Semaphore(max(1, config.concurrency // actors))
        requests, tokens = config.requests_per_minute, config.tokens_per_minute
        # One at a time, evenly: a bucket of a whole minute would let them all go at once.
        self._requests = None if requests is None else AsyncLimiter(1, 60 * actors / requests)
        self._tokens = None if tokens is None else AsyncLimiter(tokens / actors, 60)
        self._quiet_until = 0.0
        self._formats: dict[str, int] = {}

    async def ask(
        self,
        messages: list[dict[str, str]],
        formats: tuple[Mapping[str, Any] | None, ...] = (None,),
    ) -> Outcome:
        """The outcome of one request.

        `formats` are values of response_format, the most wanted first: where the endpoint answers
        400 the next one is tried, and what it took is remembered.

        Raises:
            EndpointError: no request can be answered.
        """
        kind = json.dumps(formats)
        async with self._places:
            first = self._formats.get(kind, 0)
            for number in range(first, len(formats)):
                outcome = await self._patiently(messages, formats[number])
                if outcome.reason != "bad_request":
                    self._formats[kind] = max(number, self._formats.get(kind, 0))
                    break
        self.failed_in_a_row = 0 if outcome.reason in KEPT else self.failed_in_a_row + 1
        return outcome

    async def _patiently(
        self, messages: list[dict[str, str]], response_format: Mapping[str, Any] | None
    ) -> Outcome:
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt  # noqa: PLC0415

        tries = AsyncRetrying(
            stop=stop_after_attempt(self.config.attempts),
            wait=self._wait,
            retry=retry_if_exception_type(_TryAgainError),
            before_sleep=self._count,
            reraise=True,
        )
        try:
            return await tries(self._once, messages, response_format)
        except _TryAgainError as error:
            return error.outcome

    def _wait(self, state: RetryCallState) -> float:
        """Seconds until the next try."""
        from tenacity import wait_random_exponential  # noqa: PLC0415 - as above

        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _TryAgainError) and error.after_seconds is not None:
            return min(error.after_seconds, LONGEST_RETRY_AFTER_SECONDS)
        longest = max(LONGEST_WAIT_SECONDS, self.config.retry_seconds)
        return wait_random_exponential(multiplier=self.config.retry_seconds, max=longest)(state)

    def _count(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _TryAgainError):
            self.traffic.retries[error.outcome.reason] += 1

    async def _once(
        self, messages: list[dict[str, str]], response_format: Mapping[str, Any] | None
    ) -> Outcome:
        """One try, within the limits."""
        if self._tokens is not None:
            tokens = estimated_tokens(messages) + self.config.answer_tokens
            await self._tokens.acquire(min(tokens, self._tokens.max_rate))
        if self._requests is not None:
            await self._requests.acquire()
        # A Retry-After is meant for all of this client's requests.
        while (left := self._quiet_until - time.monotonic()) > 0:  # noqa: ASYNC110 - it may move on
            await asyncio.sleep(left)
        if self._before_each is not None:
            self._before_each()
        self.traffic.tries += 1
        found = await self._send(messages, response_format)
        return found if isinstance(found, Outcome) else self._read(found)

    async def _send(
        self, messages: list[dict[str, str]], response_format: Mapping[str, Any] | None
    ) -> str | Outcome:
        """The body of an answer with status 200, or what another status comes to."""
        import openai  # noqa: PLC0415 - as above

        more = {} if response_format is None else {"response_format": response_format}
        body = self.config.sampling() | more
        try:
            # openai's own limit is between two bytes; an endpoint that drips would never meet it.
            async with asyncio.timeout(self.config.request_seconds):
                answer = await self._create(
                    model=self.config.model,
                    messages=messages,  # type: ignore[arg-type]  # plain dicts of that shape
                    extra_body=body,
                )
                return str(answer.http_response.text)
        except (TimeoutError, openai.APITimeoutError) as error:
            told = f"no whole answer within {self.config.request_seconds:g} seconds"
            raise _TryAgainError(Outcome("timed_out", told)) from error
        except openai.APIConnectionError as error:
            raise _TryAgainError(
                Outcome("unreachable", self._told(error.__cause__ or error))
            ) from error
        except openai.APIStatusError as error:
            return self._refused(error)

    def _refused(self, error: Any) -> Outcome:  # noqa: ANN401 - openai's, which is loaded late
        """What another status than 200 comes to."""
        status, told = int(error.status_code), self._told(error)
        code = str(getattr(error, "code", "") or "")
        if status in _REFUSED or code == "insufficient_quota":
            why = _REFUSED.get(status, "the account has no quota left")
            raise EndpointError(
                f"{self.config.base_url}: {why} for model {self.config.model!r} (status {status}: "
                f"{told}). Check the variable {self.config.api_key_env}, --model and --base-url. "
                "Answers that came before are kept."
            ) from None
        if status in _TRANSIENT or status >= 500:  # noqa: PLR2004 - HTTP
            after = _retry_after(error.response.headers.get("retry-after"))
            if after is not None:
                until = time.monotonic() + min(after, LONGEST_RETRY_AFTER_SECONDS)
                self._quiet_until = max(self._quiet_until, until)
            reason = _TRANSIENT.get(status, "server_error")
            outcome = Outcome(reason, f"status {status}: {told}")
            raise _TryAgainError(outcome, after_seconds=after) from error
        reason = "refused_by_filter" if "content_filter" in code else "bad_request"
        return Outcome(reason, f"status {status}: {told}")

    def _read(self, body: str) -> Outcome:
        """What the body of an answer holds."""
        try:
            answer = json.loads(body)
            choice = answer["choices"][0]
            text, finish = choice["message"].get("content"), choice.get("finish_reason")
            refusal = choice["message"].get("refusal")
            usage = answer.get("usage") or {}
            tokens = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
            if not isinstance(text, str | None):
                raise TypeError(f"content is a {type(text).__name__}")  # noqa: TRY301 - one answer to all
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            told = f"no chat completion ({type(error).__name__}): {self._short(body)}"
            raise _TryAgainError(Outcome("bad_response", told)) from error
        reason = "answered"
        if finish == "length":
            reason = "cut"
        elif finish == "content_filter" or refusal:
            reason = "refused_by_filter"
        elif not (text or "").strip():
            reason = "no_answer"
        counted = [n if isinstance(n, int) and not isinstance(n, bool) else None for n in tokens]
        kept = (
            (text or "").strip()
            if reason in {"answered", "cut"}
            else self._short(str(refusal or ""))
        )
        return Outcome(reason, kept, counted[0], counted[1], str(answer.get("model") or ""))

    def _told(self, error: BaseException) -> str:
        return self._short(str(error) or type(error).__name__)

    def _short(self, text: str) -> str:
        line = " ".join(self.key.hidden_in(text).split())
        return line if len(line) <= MESSAGE_CHARACTERS else f"{line[:MESSAGE_CHARACTERS]}…"


def estimated_tokens(messages: list[dict[str, str]]) -> int:
    """Roughly: a quarter of the characters."""
    return 1 + sum(len(message["content"]) for message in messages) // CHARACTERS_PER_TOKEN


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, given as such or as a date; None where it says nothing."""
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 - rare

    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
