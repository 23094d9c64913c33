"""Scorer: pairs to scores, in input order, each text encoded once and without padding.

What is computed together depends on the given rows alone, so the same rows give the same scores
on the same kind of processor, whatever the number of workers.

Shape suffixes: N texts, B pairs, T tokens end to end, D encoder width.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import numpy as np
import torch

from scar_core.errors import InputError
from scar_core.ranker.attention import use_packed_attention
from scar_core.ranker.budget import BatchStats, TokenBudget
from scar_core.ranker.encoding import TextTokenizer, TokenRows
from scar_core.ranker.linears import Library, bf16_is_native, fastest_library, use_linears
from scar_core.ranker.model import Ranker, TextFeatures
from scar_core.ranker.packing import (
    ENCODE,
    TOLERANCE,
    Batching,
    Precision,
    fault_of,
    longest_text,
    probe_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scar_core.ranker.checkpoint import LoadedRanker

log = logging.getLogger(__name__)

_DTYPE: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
_BUDGET_TOKENS = {"cpu": 1024, "cuda": 65_536}
"""CPU: 512 to 4,096 are equally fast, less stays in cache. GPU: not measured."""


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """How pairs are scored; the scores depend on `precision` and, within rounding, on the rest."""

    precision: Precision = "fp32"
    """fp32 is the reference; bf16 multiplies matrices in bfloat16 and keeps the rest in fp32."""
    batching: Literal["auto", "padded"] = "auto"
    """auto packs texts without padding where a check at load proves it equal; padded never does."""
    linears: Literal["auto", "torch", "onednn"] = "auto"
    """Who multiplies matrices; auto goes by the kind of processor, never by a measurement."""
    token_budget: int | None = None
    """Most tokens computed at once, at least 1; by default 1,024 on a CPU, 65,536 on a GPU."""
    max_tokens: int = 512
    """Tokens of a text that are read, at least 8; fewer if the encoder's positions end before."""
    work_rows: int = 4096
    """Pairs whose texts are pooled and sorted together, at least 1; bounds the memory."""

    def __post_init__(self) -> None:
        """Refuse sizes that nothing fits in."""
        if self.token_budget is not None and self.token_budget < 1:
            raise ValueError(f"token_budget must be at least 1, got {self.token_budget}")
        if self.max_tokens < 8:  # noqa: PLR2004  - room for special tokens and a word
            raise ValueError(f"max_tokens must be at least 8, got {self.max_tokens}")
        if self.work_rows < 1:
            raise ValueError(f"work_rows must be at least 1, got {self.work_rows}")


@dataclass(kw_only=True)
class ScoringStats(BatchStats):
    """What a Scorer has done so far."""

    linears: Library
    """Who multiplies the matrices."""
    precision: Precision
    """What they are multiplied in; fp32 where bf16 did not pass the check."""
    rows: int = 0
    texts: int = 0
    """Texts encoded: equal ones of a work set count once."""
    rescored_rows: int = 0
    """Rows whose bf16 score was not finite and was computed again in fp32."""


class Texts(NamedTuple):
    """The distinct texts of a work set, longest first, and who uses them."""

    rows: TokenRows
    instruction_B: NDArray[np.int64]
    """Which text is the instruction of each pair."""
    response_B: NDArray[np.int64]


class Scorer:
    """A ranker, ready to score pairs on one device; not for several threads at once."""

    def __init__(
        self, loaded: LoadedRanker, *, config: ScoringConfig | None = None, device: str = "auto"
    ) -> None:
        self.config = config or ScoringConfig()
        self.device = torch.device(_available(device))
        if self.config.precision == "bf16" and not bf16_is_native(self.device):
            raise InputError(f"{self.device}: no bfloat16 in hardware here. Use precision fp32.")
        self._loaded = loaded
        self._limit_tokens = min(self.config.max_tokens, longest_text(loaded.ranker.encoder))
        self.tokenizer = TextTokenizer(loaded.tokenizer, max_tokens=self._limit_tokens)
        self._budget = TokenBudget(
            self.config.token_budget or _BUDGET_TOKENS[self.device.type], device=self.device
        )
        self._ranker, self.stats = self._prepared()
        self._exact: Scorer | None = None

    @classmethod
    def load(cls, path: str, *, config: ScoringConfig | None = None, device: str = "auto") -> Self:
        """Load a ranker directory or hub name.

        Raises:
            RankerError: The path holds no ranker that this version can load.
        """
        from scar_core.ranker.checkpoint import load_ranker  # noqa: PLC0415

        return cls(load_ranker(path), config=config, device=device)

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Scores of (instruction, response) pairs, in input order."""
        instructions = self.tokenizer.tokenize([instruction for instruction, _ in pairs])
        responses = self.tokenizer.tokenize([response for _, response in pairs])
        scores: list[float] = self.score_tokens(instructions, responses).tolist()
        return scores

    def score_tokens(self, instructions: TokenRows, responses: TokenRows) -> NDArray[np.float32]:
        """Scores of tokenized pairs, float32, in input order; NaN where a text has no token.

        Raises:
            InputError: A text is longer than the encoder's positions reach.
            RunError: Not even one text fits into the device's memory.
        """
        if len(instructions) != len(responses):
            raise ValueError(f"{len(instructions)} instructions, {len(responses)} responses")
        scores_B = np.full(len(responses), np.nan, dtype=np.float32)
        for start in range(0, len(responses), self.config.work_rows):
            rows = np.arange(start, min(start + self.config.work_rows, len(responses)))
            scores_B[rows] = self._score_set(instructions.take(rows), responses.take(rows))
        self.stats.rows += len(responses)
        return scores_B

    def _score_set(self, instructions: TokenRows, responses: TokenRows) -> NDArray[np.float32]:
        """Scores of one work set; what bf16 makes infinite or NaN, fp32 decides."""
        scores_B = self._score_texts(pool_texts(instructions, responses))
        whole_B = (instructions.lengths_N > 0) & (responses.lengths_N > 0)
        odd = np.flatnonzero(whole_B & ~np.isfinite(scores_B))
        if len(odd) and self.stats.precision != "fp32":
            if self._exact is None:
                config = replace(self.config, precision="fp32")
                self._exact = Scorer(self._loaded, config=config, device=str(self.device))
            scores_B[odd] = self._exact.score_tokens(instructions.take(odd), responses.take(odd))
            self.stats.rescored_rows += len(odd)
        return scores_B

    def _score_texts(self, texts: Texts) -> NDArray[np.float32]:
        self._check_lengths(texts.rows)
        with torch.inference_mode():
            features = self._features(texts.rows)
            instruction_B = torch.from_numpy(texts.instruction_B).to(self.device)
            response_B = torch.from_numpy(texts.response_B).to(self.device)
            response = TextFeatures(features.pooled_BD[response_B], features.form_BD[response_B])
            judged = self._ranker.judge(features.pooled_BD[instruction_B], response)
        score_B: NDArray[np.float32] = judged.score_B.float().cpu().numpy()
        return score_B

    def _features(self, rows: TokenRows) -> TextFeatures:
        """Features of texts sorted longest first; NaN for those without a token."""
        D = self._ranker.config.hidden_dim
        pooled_ND = torch.full((len(rows), D), torch.nan, device=self.device)
        form_ND = torch.full_like(pooled_ND, torch.nan)
        encode, lengths_N = ENCODE[self.stats.batching], rows.lengths_N
        whole = rows.take(np.arange(int((lengths_N > 0).sum())))

        def compute(batch: slice, ids_T: NDArray[np.int32]) -> None:
            features = encode(self._ranker, ids_T=ids_T, lengths_N=lengths_N[batch])
            pooled_ND[batch], form_ND[batch] = features

        self._budget.run(whole, self.stats, compute)
        self.stats.texts += len(whole)
        return TextFeatures(pooled_ND, form_ND)

    def _check_lengths(self, rows: TokenRows) -> None:
        longest = int(rows.lengths_N.max(initial=0))
        if longest > self._limit_tokens:
            raise InputError(
                f"a text of {longest} tokens, this scorer reads {self._limit_tokens}. "
                f"Tokenize with Scorer.tokenizer, which cuts texts to fit."
            )

    def _prepared(self) -> tuple[Ranker, ScoringStats]:
        """Give the ranker as it will be run: the fastest way that a probe finds right."""
        stock = _copy(self._loaded.ranker, self.device)
        wanted, precision = self.config.linears, self.config.precision
        library = fastest_library(self.device) if wanted == "auto" else wanted
        ways: tuple[Batching, ...] = ("packed", "padded")
        with torch.inference_mode():
            probe = probe_of(stock, max_tokens=self._limit_tokens)
            for batching in ways[self.config.batching == "padded" :]:
                ranker = _copy(stock, self.device)
                if batching == "packed":
                    use_packed_attention(ranker.encoder)
                if (library, precision) != ("torch", "fp32"):
                    use_linears(ranker.encoder, library=library, dtype=_DTYPE[precision])
                tolerance = TOLERANCE[precision]
                fault = fault_of(ranker, ENCODE[batching], probe, tolerance=tolerance)
                if fault is None:
                    return ranker, ScoringStats(
                        batching=batching, linears=library, precision=precision
                    )
                name = f"{type(stock.encoder).__name__} {batching}, {library}, {precision}"
                log.warning("%s: not used, because %s", name, fault)
        return stock, ScoringStats(batching="padded", linears="torch", precision="fp32")


def pool_texts(instructions: TokenRows, responses: TokenRows) -> Texts:
    """Distinct texts of both columns, longest first, equal lengths in order of appearance."""
    pooled = TokenRows(
        np.concatenate((instructions.ids_T, responses.ids_T)),
        np.concatenate(
            (instructions.offsets_N1, responses.offsets_N1[1:] + instructions.offsets_N1[-1])
        ),
        np.concatenate((instructions.cut_N, responses.cut_N)),
    )
    seen: dict[bytes, int] = {}
    which_N = np.fromiter(
        (
            seen.setdefault(pooled.ids_T[start:end].tobytes(), len(seen))
            for start, end in pairwise(pooled.offsets_N1.tolist())
        ),
        dtype=np.int64,
        count=len(pooled),
    )
    first_N = np.unique(which_N, return_index=True)[1]
    order_N = np.argsort(-pooled.lengths_N[first_N], kind="stable")
    rank_N = np.empty_like(order_N)
    rank_N[order_N] = np.arange(len(order_N))
    place_N = rank_N[which_N]
    rows = len(instructions)
    return Texts(pooled.take(first_N[order_N]), place_N[:rows], place_N[rows:])


def _available(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _copy(ranker: Ranker, device: torch.device) -> Ranker:
    """Give modules of its own, on a CPU over the same weights, so that the original stays stock."""
    shared = chain(ranker.parameters(), ranker.buffers()) if device.type == "cpu" else ()
    return copy.deepcopy(ranker, {id(tensor): tensor for tensor in shared}).to(device).eval()
