"""Quadruples as token ids, dealt into batches, shares of workers, micro-batches and groups.

Shape suffixes: Q quadruples, B quadruples of a batch, S texts of one (the instruction, then the
responses in the order of ROLES), R its responses, K kinds of pairs, U different texts, N texts
encoded together, T their tokens, C what a loss is a mean over (see `losses`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from scar_core.training.losses import GATES, gate
from scar_core.training.quadruples import PAIR_KINDS, ROLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from scar_core.ranker.encoding import TextTokenizer, TokenRows
    from scar_core.ranker.packing import Batching
    from scar_core.training.losses import Gate, GateConfig
    from scar_core.training.quadruples import Quadruple

_LIST_LINE = re.compile(r"^[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]", re.MULTILINE)

_GROUP_TOKENS = {"cpu": 1024, "cuda": 65_536}
"""Tokens encoded at once, padding included. CPU: more leaves the cache, and padded computes 1.16
tokens per real one with 1,024, 1.57 with 4,096. GPU: not measured."""


@dataclass(frozen=True, kw_only=True)
class GatedQuadruples:
    """Which pairs of Q quadruples the gate keeps, and why not the others."""

    kept_QK: NDArray[np.bool_]
    counts: dict[str, dict[str, int]]
    """By kind of pair: pairs = kept + equal_texts + unjudged + quality."""
    kept_by_gate: dict[Gate, dict[str, int]]
    """Pairs that each gate would keep, by kind, all else as configured."""

    def totals(self) -> dict[str, int]:
        """The counts of all kinds together."""
        names = next(iter(self.counts.values()))
        return {name: sum(counts[name] for counts in self.counts.values()) for name in names}


@dataclass(frozen=True, kw_only=True)
class TokenizedQuadruples:
    """What training needs of Q quadruples; plain arrays, so that processes share one copy."""

    texts: TokenRows
    """U different texts."""
    text_QS: NDArray[np.int64]
    """Positions in `texts`; -1 where a response is missing."""
    kept_QK: NDArray[np.bool_]
    """Pairs to learn from and to measure on."""
    characters_QR: NDArray[np.int64]
    """Lengths of the responses; 0 where missing."""
    list_lines_QR: NDArray[np.int64]
    """Lines of the responses that begin with a bullet or a number; 0 where missing."""
    sources_Q: list[str]

    @property
    def tokens_Q(self) -> NDArray[np.int64]:
        """Tokens of all texts of each quadruple."""
        lengths = np.append(self.texts.lengths_N, 0)  # position -1 is a missing text
        tokens: NDArray[np.int64] = lengths[self.text_QS].sum(axis=1)
        return tokens


class TextGroup(NamedTuple):
    """Texts that are encoded together, end to end, shortest first."""

    ids_T: NDArray[np.int32]
    lengths_N: NDArray[np.int64]


class QuadrupleBatch(NamedTuple):
    """B quadruples ready for the encoder: every different text once, shortest first."""

    groups: list[TextGroup]
    """Arrays, as the encoder takes them to its device itself."""
    text_BS: Tensor
    """Positions in the texts of all `groups` one after the other; -1 where missing."""
    kept_BK: Tensor
    counts_C: Tensor | None
    """Counts of the whole batch of which this is a part; None: this is the whole."""

    def to(self, device: torch.device) -> QuadrupleBatch:
        """Give the same batch on a device."""
        return QuadrupleBatch(
            self.groups,
            self.text_BS.to(device),
            self.kept_BK.to(device),
            None if self.counts_C is None else self.counts_C.to(device),
        )


def gate_quadruples(quadruples: Sequence[Quadruple], config: GateConfig) -> GatedQuadruples:
    """Apply the quality gate to every pair and count what it does, kind by kind."""
    nan = float("nan")
    quality_QR = torch.tensor(
        [
            [nan if r is None or r.quality is None else r.quality for r in item.responses]
            for item in quadruples
        ]
    ).reshape(-1, len(ROLES))
    comparable_QK = _flags([[item.comparable(kind) for kind in PAIR_KINDS] for item in quadruples])
    there_QR = _flags(
        [[response is not None for response in item.responses] for item in quadruples]
    )
    kept_QK = gate(quality_QR, comparable_QK, config)
    # What the gate would keep if only the missing judgements were forgiven.
    forgiving = replace(config, keep_unjudged=True)
    forgiven_QK = gate(quality_QR, comparable_QK, forgiving)
    counts = {}
    for column, kind in enumerate(PAIR_KINDS):
        there_Q = there_QR[:, kind.better] & there_QR[:, kind.worse]
        comparable_Q, forgiven_Q, kept_Q = (
            table[:, column] for table in (comparable_QK, forgiven_QK, kept_QK)
        )
        counts[kind.name] = {
            "pairs": int(there_Q.sum()),
            "kept": int(kept_Q.sum()),
            "equal_texts": int((there_Q & ~comparable_Q).sum()),
            "unjudged": int((forgiven_Q & ~kept_Q).sum()),
            "quality": int((comparable_Q & ~forgiven_Q).sum()),
        }
    return GatedQuadruples(
        kept_QK=kept_QK.numpy(),
        counts=counts,
        kept_by_gate=_kept_by_gate(quality_QR, comparable_QK, config),
    )


def _kept_by_gate(
    quality_QR: Tensor, comparable_QK: Tensor, config: GateConfig
) -> dict[Gate, dict[str, int]]:
    found: dict[Gate, dict[str, int]] = {}
    names = [kind.name for kind in PAIR_KINDS]
    for name in GATES:
        # Not a config of its own: these bounds may be nonsense for a gate that was not asked for.
        kept_QK = gate(quality_QR, comparable_QK, config, by=name)
        found[name] = dict(zip(names, kept_QK.sum(dim=0).tolist(), strict=True))
    return found


def _flags(rows: list[list[bool]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool).reshape(-1, len(ROLES))


def tokenize_quadruples(
    quadruples: Sequence[Quadruple], kept_QK: NDArray[np.bool_], tokenizer: TextTokenizer
) -> TokenizedQuadruples:
    """Tokenize every different text once; quadruples keep their order."""
    position_of: dict[str, int] = {}
    text_QS = np.full((len(quadruples), 1 + len(ROLES)), -1, dtype=np.int64)
    characters_QR = np.zeros((len(quadruples), len(ROLES)), dtype=np.int64)
    list_lines_QR = np.zeros_like(characters_QR)
    for row, item in enumerate(quadruples):
        text_QS[row, 0] = position_of.setdefault(item.instruction, len(position_of))
        for role, response in enumerate(item.responses):
            if response is not None:
                text_QS[row, 1 + role] = position_of.setdefault(response.text, len(position_of))
                characters_QR[row, role] = len(response.text)
                list_lines_QR[row, role] = len(_LIST_LINE.findall(response.text))
    return TokenizedQuadruples(
        texts=tokenizer.tokenize(list(position_of)),
        text_QS=text_QS,
        kept_QK=kept_QK,
        characters_QR=characters_QR,
        list_lines_QR=list_lines_QR,
        sources_Q=[item.source for item in quadruples],
    )


def epoch_batches(
    rows_Q: NDArray[np.int64], *, batch_size: int, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """All rows in batches of at most `batch_size`, in an order that seed and epoch decide.

    Sizes differ by at most one, so the last batch is no runt with a noisy gradient.
    """
    order = np.random.default_rng((seed, epoch)).permutation(rows_Q)
    return np.array_split(order, max(1, -(-len(order) // batch_size)))


def share(
    rows_B: NDArray[np.int64], tokens_Q: NDArray[np.int64], *, rank: int, workers: int
) -> NDArray[np.int64]:
    """One worker's rows of a batch, dealt by length so that all have about the same work.

    Empty when there are more workers than rows.
    """
    by_length_B = rows_B[np.argsort(tokens_Q[rows_B], kind="stable")[::-1]]
    return by_length_B[rank::workers]


def micro_batches(
    rows_B: NDArray[np.int64], tokens_Q: NDArray[np.int64], *, token_budget: int
) -> Iterator[NDArray[np.int64]]:
    """Rows in groups of at most `token_budget` tokens, but at least one row, shortest first."""
    rows_B = rows_B[np.argsort(tokens_Q[rows_B], kind="stable")]
    start, filled = 0, 0
    for end, tokens in enumerate(tokens_Q[rows_B]):
        if end > start and filled + tokens > token_budget:
            yield rows_B[start:end]
            start, filled = end, 0
        filled += tokens
    if start < len(rows_B):
        yield rows_B[start:]


def make_batch(
    data: TokenizedQuadruples,
    rows_B: NDArray[np.int64],
    *,
    counts_C: Tensor | None = None,
    idle: bool = False,
    batching: Batching = "packed",
    device: str = "cpu",
) -> QuadrupleBatch:
    """The texts of these rows, each once, sorted by length and cut into groups.

    `batching` and `device` decide how large a group may be, and nothing else. An idle batch keeps
    no pair: its loss and its gradients are zero.
    """
    text_BS = data.text_QS[rows_B]
    needed_U = np.unique(text_BS[text_BS >= 0])
    needed_U = needed_U[np.argsort(data.texts.lengths_N[needed_U], kind="stable")]
    place_of = np.full(len(data.texts) + 1, -1, dtype=np.int64)  # the last one is that of -1
    place_of[needed_U] = np.arange(len(needed_U))
    kept_BK = torch.from_numpy(data.kept_QK[rows_B])
    return QuadrupleBatch(
        groups=[
            TextGroup(texts.ids_T, texts.lengths_N)
            for texts in map(data.texts.take, _groups(data, needed_U, batching, device))
        ],
        text_BS=torch.from_numpy(place_of[text_BS]),
        kept_BK=torch.zeros_like(kept_BK) if idle else kept_BK,
        counts_C=counts_C,
    )


def _groups(
    data: TokenizedQuadruples, texts_U: NDArray[np.int64], batching: Batching, device: str
) -> Iterator[NDArray[np.int64]]:
    """Texts, shortest first, in groups within the budget of tokens, but at least one text."""
    budget = _GROUP_TOKENS[device]
    lengths_U = data.texts.lengths_N[texts_U]
    start, real = 0, 0
    for end, tokens in enumerate(lengths_U):
        computed = real + tokens if batching == "packed" else (end + 1 - start) * tokens
        if end > start and computed > budget:
            yield texts_U[start:end]
            start, real = end, 0
        real += tokens
    if start < len(texts_U):
        yield texts_U[start:]
