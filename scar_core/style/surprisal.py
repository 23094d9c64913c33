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

Shape suffix: B pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import torch

from scar_core.errors import InputError
from scar_core.ranker.encoding import TokenRows
from scar_core.style.lm_losses import LossRunner
from scar_core.style.lm_tokens import LanguageModel, PairTokenizer, load_language_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scar_core.ranker.packing import Precision

Measure = Literal["perplexity", "ifd"]


@dataclass(frozen=True, kw_only=True)
class SurprisalConfig:
    """How surprisal is measured; the figures depend on the rest only within rounding."""

    measure: Measure = "ifd"
    """What a score is: perplexity of the response given the instruction, or IFD, which takes a
    second look at each response."""
    precision: Precision = "fp32"
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
        self._runner = LossRunner(
            loaded.model,
            device=self.device,
            batching=self.config.batching,
            precision=self.config.precision,
            token_budget=self.config.token_budget,
            longest=2 * self._limit_tokens,
        )
        self.stats = self._runner.stats

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
            # Without a start token nothing foresees the first one: it counts in neither loss.
            counted_B = texts.lengths_N - (self.tokenizer.start_id is None)
            measure = self._runner.mean_losses
            given_B[rows] = measure(prompts.take(rows), texts, counted_B=counted_B)
            if alone:
                alone_B[rows] = measure(self._starts(len(rows)), texts, counted_B=counted_B)
        self.stats.rows += len(responses)
        return Losses(given_B, alone_B)

    def _starts(self, rows: int) -> TokenRows:
        """Give the start token as the prompt of so many rows, or nothing where there is none."""
        start = self.tokenizer.start_id
        width = 0 if start is None else 1
        ids = np.full(rows * width, start or 0, np.int32)
        return TokenRows(ids, np.arange(rows + 1) * width, np.zeros(rows, np.int32))

    def _check_lengths(self, *both: TokenRows) -> None:
        longest = max(int(rows.lengths_N.max(initial=0)) for rows in both)
        if longest > self._limit_tokens:
            raise InputError(
                f"a text of {longest} tokens, this scorer reads {self._limit_tokens}. "
                "Tokenize with SurprisalScorer.tokenizer, which cuts texts to fit."
            )
