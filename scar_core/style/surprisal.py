"""SurprisalScorer: how surprising a response is to a language model, given its instruction and not.

For a response of tokens w_1 … w_n and an instruction Q, with the natural logarithm:

    loss given  = -1/n · Σ log P(w_i | prompt(Q), w_1 … w_(i-1))
    loss alone  = -1/n · Σ log P(w_i | start, w_1 … w_(i-1))
    perplexity  = exp(loss given)
    IFD         = loss given / loss alone

IFD, the instruction-following difficulty, is that of Li et al. 2024, "From Quantity to Quality",
arXiv 2308.12032: below 1 the instruction helps to foresee the response, the less the higher. Their
follow-up (Superfiltering, arXiv 2402.00530) divides perplexities instead. Where a tokenizer has no
start token, w_1 counts in neither loss.

Shape suffixes: B pairs, N texts, T tokens end to end.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import torch

from scar_core.errors import InputError, RunError
from scar_core.ranker.encoding import TokenRows
from scar_core.style.causal import (
    MeanLosses,
    fault_of,
    losses_packed,
    losses_padded,
    use_packed_causal_attention,
)
from scar_core.style.lm_tokens import LanguageModel, PairTokenizer, load_language_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

log = logging.getLogger(__name__)

Measure = Literal["perplexity", "ifd"]
Batching = Literal["packed", "padded"]

_LOSSES: dict[Batching, MeanLosses] = {"packed": losses_packed, "padded": losses_padded}
_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
_BUDGET_TOKENS = {"cpu": 1024, "cuda": 32_768}
"""As the ranker's; logits of large vocabularies bound it further."""
_LOGIT_BYTES = {"cpu": 2**30, "cuda": 2**33}
"""Most that the logits of a batch may take in fp32."""


@dataclass(frozen=True, kw_only=True)
class SurprisalConfig:
    """How surprisal is measured; the figures depend on the rest only within rounding."""

    measure: Measure = "ifd"
    """What a score is: perplexity of the response given the instruction, or IFD, which takes a
    second look at each response."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32 is the reference; bf16 computes all of the model in bfloat16."""
    batching: Literal["auto", "padded"] = "auto"
    """auto packs texts without padding where a check at load proves it equal; padded never does."""
    token_budget: int | None = None
    """Most tokens computed at once, at least 1; by default 1,024 on a CPU, 32,768 on a GPU, fewer
    for large vocabularies."""
    max_tokens: int = 1024
    """Tokens of a prompt, and of a response, that are read, at least 8; fewer if both together are
    more than the model's positions reach."""
    work_rows: int = 1024
    """Pairs that are sorted by length together, at least 1."""
    template: Literal["auto", "never"] = "auto"
    """auto puts the instruction into the tokenizer's chat template if it has one."""

    def __post_init__(self) -> None:
        """Refuse sizes that nothing fits in."""
        if self.token_budget is not None and self.token_budget < 1:
            raise ValueError(f"token_budget must be at least 1, got {self.token_budget}")
        if self.max_tokens < 8:  # noqa: PLR2004  - room for a template and a word
            raise ValueError(f"max_tokens must be at least 8, got {self.max_tokens}")
        if self.work_rows < 1:
            raise ValueError(f"work_rows must be at least 1, got {self.work_rows}")


@dataclass(kw_only=True)
class SurprisalStats:
    """What a SurprisalScorer has done so far."""

    batching: Batching
    """How texts are batched, after the check at load."""
    rows: int = 0
    real_tokens: int = 0
    """Tokens computed: a prompt with its response, and for IFD the response once more."""
    computed_tokens: int = 0
    """Those and padding."""
    batches: int = 0
    halvings: int = 0
    """How often the token budget was halved for want of memory."""


class Losses(NamedTuple):
    """Mean losses of B responses in nats; NaN where no token of a response counts."""

    given_B: NDArray[np.float64]
    alone_B: NDArray[np.float64]
    """NaN, too, where it was not asked for."""

    @property
    def perplexity_B(self) -> NDArray[np.float64]:
        """Perplexity given the instruction."""
        return np.exp(self.given_B)

    @property
    def ifd_B(self) -> NDArray[np.float64]:
        """Loss given over loss alone; NaN where the latter is 0."""
        return self.given_B / np.where(self.alone_B > 0, self.alone_B, np.nan)


class SurprisalScorer:
    """A language model, ready to score pairs on one device; not for several threads at once."""

    def __init__(
        self,
        loaded: LanguageModel,
        *,
        config: SurprisalConfig | None = None,
        device: str = "auto",
    ) -> None:
        self.config = config or SurprisalConfig()
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        positions = getattr(loaded.model.config, "max_position_embeddings", None)
        longest = self.config.max_tokens if positions is None else positions // 2
        self._limit_tokens = min(self.config.max_tokens, longest)
        self.tokenizer = PairTokenizer(
            loaded.tokenizer, max_tokens=self._limit_tokens, template=self.config.template
        )
        vocabulary = loaded.model.get_input_embeddings().num_embeddings
        self._budget_tokens = self.config.token_budget or min(
            _BUDGET_TOKENS[self.device.type],
            max(1, _LOGIT_BYTES[self.device.type] // (4 * vocabulary)),
        )
        self._model, self.stats = self._prepared(loaded.model.to(self.device))

    @classmethod
    def load(
        cls, path: str, *, config: SurprisalConfig | None = None, device: str = "auto"
    ) -> Self:
        """Load a causal language model: a folder, a `.gguf` file or a hub name.

        Raises:
            InputError: there is none, or its chat template cannot be used.
        """
        precision = (config or SurprisalConfig()).precision
        loaded = load_language_model(path, precision=precision)
        return cls(loaded, config=config, device=device)

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Give the measure of (instruction, response) pairs, in input order."""
        scores: list[float] = self.score_tokens(*self.tokenizer.pairs(pairs)).tolist()
        return scores

    def score_tokens(self, prompts: TokenRows, responses: TokenRows) -> NDArray[np.float32]:
        """Give the measure of pairs that `tokenizer` tokenized, float32, in input order.

        NaN where no token of a response counts. Raises as `losses` does.
        """
        losses = self.losses(prompts, responses, alone=self.config.measure == "ifd")
        measured_B = losses.ifd_B if self.config.measure == "ifd" else losses.perplexity_B
        return measured_B.astype(np.float32)

    def table(self, pairs: Sequence[tuple[str, str]]) -> pa.Table:
        """Everything that is known of pairs, in input order; null where undefined."""
        prompts, responses = self.tokenizer.pairs(pairs)
        losses = self.losses(prompts, responses)
        columns = {
            "loss_given": losses.given_B,
            "loss_alone": losses.alone_B,
            "perplexity": losses.perplexity_B,
            "ifd": losses.ifd_B,
        }
        return pa.table(
            {name: pa.array(values_B, from_pandas=True) for name, values_B in columns.items()}
            | {
                "response_tokens": responses.lengths_N,
                "cut_tokens": prompts.cut_N + responses.cut_N,
            }
        )

    def losses(self, prompts: TokenRows, responses: TokenRows, *, alone: bool = True) -> Losses:
        """Mean losses of tokenized pairs, in input order, given the prompt and alone.

        Raises:
            InputError: A text is longer than this scorer reads.
            RunError: Not even one text fits into the device's memory.
        """
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts, {len(responses)} responses")
        self._check_lengths(prompts, responses)
        given_B = np.full(len(responses), np.nan)
        alone_B = given_B.copy()
        for first in range(0, len(responses), self.config.work_rows):
            rows = np.arange(first, min(first + self.config.work_rows, len(responses)))
            texts = responses.take(rows)
            given_B[rows] = self._mean_losses(prompts.take(rows), texts)
            if alone:
                alone_B[rows] = self._mean_losses(self._starts(len(rows)), texts)
        self.stats.rows += len(responses)
        return Losses(given_B, alone_B)

    def _starts(self, rows: int) -> TokenRows:
        """Give the start token as the prompt of so many rows, or nothing where there is none."""
        start = self.tokenizer.start_id
        width = 0 if start is None else 1
        ids = np.full(rows * width, start or 0, np.int32)
        return TokenRows(ids, np.arange(rows + 1) * width, np.zeros(rows, np.int32))

    def _mean_losses(self, heads: TokenRows, texts: TokenRows) -> NDArray[np.float64]:
        """Mean loss of each text after its head."""
        counted_B = texts.lengths_N - (self.tokenizer.start_id is None)
        loss_B = np.full(len(texts), np.nan)
        whole = np.flatnonzero((counted_B > 0) & (heads.lengths_N + texts.lengths_N > counted_B))
        lengths_B = heads.lengths_N + texts.lengths_N
        order = whole[np.argsort(-lengths_B[whole], kind="stable")]
        joined = _join(heads.take(order), texts.take(order))
        loss_B[order] = self._sorted_losses(joined, counted_B[order])
        return loss_B

    @torch.inference_mode()
    def _sorted_losses(self, rows: TokenRows, counted_N: NDArray[np.int64]) -> NDArray[np.float64]:
        """Mean losses of texts sorted longest first, batch by batch."""
        loss_N = np.empty(len(rows))
        losses = _LOSSES[self.stats.batching]
        lengths_N, offsets_N1 = rows.lengths_N, rows.offsets_N1
        first = 0
        while first < len(rows):
            end = min(len(rows), self._batch_end(offsets_N1, first))
            ids_T = rows.ids_T[offsets_N1[first] : offsets_N1[end]]
            batch = slice(first, end)
            try:
                loss_N[batch] = losses(
                    self._model, ids_T=ids_T, lengths_N=lengths_N[batch], counted_N=counted_N[batch]
                )
            except torch.OutOfMemoryError as error:
                self._halve_budget(len(ids_T), end - first, error)
                continue
            self._count(lengths_N[batch])
            first = end
        return loss_N

    def _batch_end(self, offsets_N1: NDArray[np.int64], first: int) -> int:
        """Give the text after the last one that still fits into the budget; at least one does."""
        if self.stats.batching == "packed":
            limit = offsets_N1[first] + self._budget_tokens
            end = int(np.searchsorted(offsets_N1, limit, side="right")) - 1
        else:
            end = first + self._budget_tokens // int(offsets_N1[first + 1] - offsets_N1[first])
        return max(first + 1, end)

    def _halve_budget(self, tokens: int, texts: int, error: torch.OutOfMemoryError) -> None:
        if texts == 1:
            raise RunError(
                f"{self.device}: a text of {tokens} tokens does not fit into memory. "
                f"Use a smaller model, a larger device or fewer max_tokens."
            ) from error
        self._budget_tokens = max(1, min(self._budget_tokens, tokens) // 2)
        self.stats.halvings += 1
        log.warning("out of memory on %s: token budget now %d", self.device, self._budget_tokens)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _count(self, lengths_N: NDArray[np.int64]) -> None:
        self.stats.batches += 1
        self.stats.real_tokens += int(lengths_N.sum())
        packed = self.stats.batching == "packed"
        padded_tokens = int(lengths_N.max()) * len(lengths_N)
        self.stats.computed_tokens += int(lengths_N.sum()) if packed else padded_tokens

    def _check_lengths(self, *both: TokenRows) -> None:
        longest = max(int(rows.lengths_N.max(initial=0)) for rows in both)
        if longest > self._limit_tokens:
            raise InputError(
                f"a text of {longest} tokens, this scorer reads {self._limit_tokens}. "
                "Tokenize with SurprisalScorer.tokenizer, which cuts texts to fit."
            )

    def _prepared(self, stock: torch.nn.Module) -> tuple[torch.nn.Module, SurprisalStats]:
        """Give the model as it will be run: without padding if a probe finds that right."""
        if self.config.batching == "padded":
            return stock, SurprisalStats(batching="padded")
        # Over the same weights, so that the original stays stock.
        tensors = {id(x): x for x in (*stock.parameters(), *stock.buffers())}
        packed = copy.deepcopy(stock, tensors)
        try:
            use_packed_causal_attention(packed)
        except ValueError as error:  # a model without that interface
            fault: str | None = f"{type(error).__name__}: {error}"
        else:
            with torch.inference_mode():
                fault = fault_of(
                    packed,
                    stock,
                    losses_packed,
                    longest=2 * self._limit_tokens,
                    tolerance=_TOLERANCE[self.config.precision],
                )
        if fault is None:
            return packed, SurprisalStats(batching="packed")
        log.warning("%s: texts are padded, because %s", type(stock).__name__, fault)
        return stock, SurprisalStats(batching="padded")


def _join(heads: TokenRows, texts: TokenRows) -> TokenRows:
    """Give rows that begin with a head and end with its text."""
    rows = len(texts)
    both = TokenRows(
        np.concatenate((heads.ids_T, texts.ids_T)),
        np.concatenate((heads.offsets_N1, texts.offsets_N1[1:] + heads.offsets_N1[-1])),
        np.concatenate((heads.cut_N, texts.cut_N)),
    )
    mixed = both.take(np.arange(2 * rows).reshape(2, rows).T)
    return TokenRows(mixed.ids_T, mixed.offsets_N1[::2], heads.cut_N + texts.cut_N)
