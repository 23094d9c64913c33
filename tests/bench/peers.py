"""The tools compared, each in a process of its own that scores when it is asked to."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from scar_core.ranker.checkpoint import load_ranker
from scar_core.scoring import Scorer, ScoringConfig
from tests.bench.measure import CUTS, padded_tokens, synchronize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection

    from numpy.typing import NDArray

Pairs = list[tuple[str, str]]
BATCH_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Where the models of one shape lie, and where they run."""

    ranker: str
    """A ranker directory, readable by scar-tool too."""
    encoder: str
    """The same encoder alone, for tools that know no ranker."""
    device: str
    token_budget: int | None


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one call cost and gave."""

    scores: list[float]
    cpu_seconds: float
    wall_seconds: float
    peak_mib: float
    """Of the process so far; on a GPU, of the GPU's memory."""
    real_tokens: int
    computed_tokens: int
    rescored_rows: int = 0


class Peer(Protocol):
    """Something that scores pairs, and counts the tokens that it did."""

    def score(self, pairs: Pairs) -> list[float]:
        """Scores in input order."""

    def tokens(self, pairs: Pairs) -> tuple[int, int]:
        """Real tokens, computed tokens, of these pairs."""


class ScarTool:
    """scar-tool's score_pairs, as its documentation calls it: fp32, padded batches of 32."""

    def __init__(self, setup: Setup) -> None:
        from style_ranker.rank import load_ranker as load  # noqa: PLC0415  - not everywhere installed

        self.model, self.tokenizer = load(setup.ranker, device=setup.device)
        self.device = setup.device

    def score(self, pairs: Pairs) -> list[float]:
        from style_ranker.rank import score_pairs  # noqa: PLC0415  - as above

        columns = [list(column) for column in zip(*pairs, strict=True)]
        scores: list[float] = score_pairs(
            self.model, self.tokenizer, *columns, batch_size=BATCH_SIZE, device=self.device
        )
        return scores

    def tokens(self, pairs: Pairs) -> tuple[int, int]:
        columns = [_lengths(self.tokenizer, list(column)) for column in zip(*pairs, strict=True)]
        computed = sum(padded_tokens(lengths, BATCH_SIZE) for lengths in columns)
        return int(sum(lengths.sum() for lengths in columns)), computed


class CrossEncoderPeer:
    """sentence-transformers' CrossEncoder on the same encoder: both texts in one, sorted within a call."""

    def __init__(self, setup: Setup, dtype: torch.dtype = torch.float32) -> None:
        from sentence_transformers import CrossEncoder  # noqa: PLC0415  - not everywhere installed

        self.model = CrossEncoder(
            setup.encoder,
            num_labels=1,
            max_length=512,
            device=setup.device,
            local_files_only=True,
            model_kwargs={"dtype": dtype},
        )

    def score(self, pairs: Pairs) -> list[float]:
        scores = self.model.predict(pairs, batch_size=BATCH_SIZE, show_progress_bar=False)
        return [float(score) for score in scores]

    def tokens(self, pairs: Pairs) -> tuple[int, int]:
        lengths = _lengths(self.model.tokenizer, *map(list, zip(*pairs, strict=True)))
        ordered = np.sort(lengths)[::-1]
        return int(lengths.sum()), padded_tokens(ordered, BATCH_SIZE)


class Pipeline:
    """transformers' text-classification pipeline on the same encoder, batches in input order."""

    def __init__(self, setup: Setup) -> None:
        from transformers import (  # noqa: PLC0415  - loaded by this peer only
            AutoModelForSequenceClassification,
            AutoTokenizer,
            pipeline,
        )

        self.tokenizer = AutoTokenizer.from_pretrained(setup.encoder)
        model = AutoModelForSequenceClassification.from_pretrained(setup.encoder, num_labels=1)
        self.pipe = pipeline(
            "text-classification",
            model=model.eval(),
            tokenizer=self.tokenizer,
            device=setup.device,
            batch_size=BATCH_SIZE,
            function_to_apply="none",
        )

    def score(self, pairs: Pairs) -> list[float]:
        rows = [{"text": instruction, "text_pair": response} for instruction, response in pairs]
        return [out["score"] for out in self.pipe(rows, truncation=True, max_length=512)]

    def tokens(self, pairs: Pairs) -> tuple[int, int]:
        lengths = _lengths(self.tokenizer, *map(list, zip(*pairs, strict=True)))
        return int(lengths.sum()), padded_tokens(lengths, BATCH_SIZE)


class Ours:
    """This project's Scorer."""

    def __init__(self, setup: Setup, **config: Any) -> None:  # noqa: ANN401  - fields of the config
        self.config = ScoringConfig(token_budget=setup.token_budget, **config)
        loaded = load_ranker(setup.ranker)
        self.scorer = Scorer(loaded, config=self.config, device=setup.device)

    def score(self, pairs: Pairs) -> list[float]:
        return self.scorer.score(pairs)

    def tokens(self, pairs: Pairs) -> tuple[int, int]:
        """Equal texts count as often as they occur; their saving is the engine's."""
        columns = [self.scorer.tokenizer.tokenize(column) for column in zip(*pairs, strict=True)]
        stats = self.scorer.stats
        share = stats.computed_tokens / stats.real_tokens if stats.real_tokens else 1.0
        real = sum(len(column.ids_T) for column in columns)
        return real, round(real * share)


class NearTheCut(Ours):
    """bf16 for all rows, then fp32 for those that could cross one of the cuts.

    The band is twice the largest error of a sample, and again as wide whenever a re-scored row
    lies beyond it.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, precision="bf16")
        exact = ScoringConfig(token_budget=setup.token_budget)
        self.exact = Scorer(load_ranker(setup.ranker), config=exact, device=setup.device)
        self.rescored_rows = 0

    def score(self, pairs: Pairs) -> list[float]:
        columns = [self.scorer.tokenizer.tokenize(column) for column in zip(*pairs, strict=True)]
        coarse = self.scorer.score_tokens(*columns)
        final, done = coarse.copy(), np.zeros(len(coarse), dtype=bool)

        def rescore(rows: NDArray[np.bool_]) -> float:
            todo = np.flatnonzero(rows & ~done)
            final[todo] = self.exact.score_tokens(*(column.take(todo) for column in columns))
            done[todo] = True
            return float(np.abs(final - coarse)[done].max())

        band = 2 * rescore(np.arange(len(coarse)) % 20 == 0)
        ordered = np.sort(coarse)[::-1]
        cuts = [ordered[max(1, int(keep * len(coarse))) - 1] for keep in CUTS]
        near = np.min([np.abs(coarse - cut) for cut in cuts], axis=0)
        while rescore(near <= 2 * band) > band:
            band *= 2
        self.rescored_rows = int(done.sum())
        return [float(score) for score in final]


PEERS: dict[str, Callable[[Setup], Peer]] = {
    "scar-tool": ScarTool,
    "pipeline": Pipeline,
    "cross-encoder": CrossEncoderPeer,
    "cross-encoder-bf16": lambda setup: CrossEncoderPeer(setup, torch.bfloat16),
    "fp32": Ours,
    "fp32-padded": lambda setup: Ours(setup, batching="padded"),
    "bf16": lambda setup: Ours(setup, precision="bf16"),
    "bf16+fp32": NearTheCut,
}
"""By name; the last four are ours."""


def serve(pipe: Connection, name: str, setup: Setup) -> None:
    """Answer lists of pairs with turns until None comes; a peer that cannot start says why."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    try:
        peer = PEERS[name](setup)
    except ImportError as error:
        pipe.send(str(error))
        return
    pipe.send(None)
    while (pairs := pipe.recv()) is not None:
        pipe.send(_turn(peer, pairs, setup.device))


def _turn(peer: Peer, pairs: Pairs, device: str) -> Turn:
    synchronize(device)
    cpu, wall = time.process_time(), time.perf_counter()
    scores = peer.score(pairs)
    synchronize(device)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    real, computed = peer.tokens(pairs)
    host_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Turn(
        scores=scores,
        cpu_seconds=cpu,
        wall_seconds=wall,
        peak_mib=torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else host_mib,
        real_tokens=real,
        computed_tokens=computed,
        rescored_rows=getattr(peer, "rescored_rows", 0),
    )


def _lengths(tokenizer: Any, *columns: Sequence[str]) -> NDArray[np.int64]:  # noqa: ANN401  - transformers'
    ids = tokenizer(*columns, truncation=True, max_length=512)["input_ids"]
    return np.array([len(row) for row in ids], dtype=np.int64)
