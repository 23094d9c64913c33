"""Train a ranker on tokenized quadruples, step by step; score the rows kept back. No files.

The same code runs alone and on many workers. Each takes its share of every batch, and the means
of the loss are taken over the whole batch's pairs, so one worker and several follow the same loss
curve.

Shape suffixes: Q quadruples, B quadruples of a batch, R responses of one (order of ROLES), K kinds
of pairs, D encoder width, N responses that are there, U different texts, C see `losses`.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from scar_core.errors import InputError, NonFiniteError
from scar_core.ranker.model import TextFeatures
from scar_core.ranker.packing import ENCODE, encode_padded
from scar_core.training.batches import make_batch, micro_batches, share
from scar_core.training.batching import encode_groups, use_batching
from scar_core.training.losses import (
    JudgedQuadruples,
    LossConfig,
    LossParts,
    loss_counts,
    quadruple_loss,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from scar_core.ranker.model import Ranker
    from scar_core.ranker.packing import Encode
    from scar_core.training.batches import QuadrupleBatch, TokenizedQuadruples


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, how fast and in which portions to train."""

    epochs: int = 10
    """Times that every quadruple is seen, at least 1."""
    max_steps: int | None = None
    """Stop after this many steps, in the middle of an epoch too; at least 1."""
    patience: int | None = None
    """Stop after this many epochs in a row without a better validation accuracy, at least 1; by
    default all epochs are run. The learning rate falls as if they were."""
    batch_size: int = 16
    """Quadruples of one step, on all workers together, at least 1."""
    learning_rate: float = 2e-5
    """Highest learning rate of AdamW, above 0."""
    warmup_share: float = 0.1
    """Share of the steps in which the learning rate rises from 0 before it falls to 0, [0, 1)."""
    clip_norm: float = 1.0
    """Longest gradient, L2 over all parameters, above 0."""
    dropout: bool = False
    """Train with the encoder's own dropout; without, any number of workers gives the same curve."""
    freeze_encoder: bool = False
    """Train the heads only."""
    freeze_layers: int = 0
    """Leave the embeddings and so many of the encoder's layers, from the bottom, as they are; at
    least 0, 0 trains all. Faster, and the encoder forgets less of other domains."""
    head_learning_rate: float | None = None
    """Highest learning rate of the heads, which start from nothing, above 0; by default that of the
    encoder."""
    micro_batch_tokens: int = 8192
    """Tokens whose activations are in memory at once, per worker, at least 1; no result depends
    on it."""
    batching: Literal["auto", "padded"] = "auto"
    """auto encodes texts end to end without padding, and padded where a probe finds that wrong for
    the encoder; no result depends on it, beyond rounding."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 multiplies matrices of the forward and backward pass in bfloat16; weights, optimizer and
    the scores of held-out rows stay in fp32."""
    gradient_checkpointing: bool = False
    """Compute activations again for the backward pass: less memory, a third more work, the same
    result."""

    def __post_init__(self) -> None:
        """Refuse what no training can follow."""
        for name in ("epochs", "batch_size", "micro_batch_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_steps", "patience"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm", "head_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0, got {value}")
        if self.freeze_layers < 0:
            raise ValueError(f"freeze_layers must be at least 0, got {self.freeze_layers}")
        if not 0 <= self.warmup_share < 1:
            raise ValueError(f"warmup_share must be in [0, 1), got {self.warmup_share}")


class QuadrupleLoss(nn.Module):
    """The loss of a batch as a module, since what DDP wraps synchronises by its forward."""

    def __init__(
        self,
        ranker: Ranker,
        config: LossConfig,
        *,
        encode: Encode = encode_padded,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.ranker = ranker
        self.config = config
        self.encode = encode
        self.recompute = recompute

    def forward(self, batch: QuadrupleBatch) -> LossParts:
        """Encode each text once, judge each response from its instruction, compare."""
        judged = judge_quadruples(self.ranker, batch, encode=self.encode, recompute=self.recompute)
        # Under autocast the heads answer in bf16, whose steps at 1 are as large as 0.008.
        judged = JudgedQuadruples(*(values.float() for values in judged))
        return quadruple_loss(judged, batch.kept_BK, self.config, counts_C=batch.counts_C)


def judge_quadruples(
    ranker: Ranker,
    batch: QuadrupleBatch,
    *,
    encode: Encode = encode_padded,
    recompute: bool = False,
) -> JudgedQuadruples:
    """Scores and features of all responses of a batch; zeros where one is missing."""
    pooled_UD, form_UD = encode_groups(ranker, batch.groups, encode, recompute=recompute)
    response_BR = batch.text_BS[:, 1:]
    row_N, role_N = (response_BR >= 0).nonzero(as_tuple=True)
    text_N = response_BR[row_N, role_N]
    judged = ranker.judge(
        pooled_UD[batch.text_BS[row_N, 0]], TextFeatures(pooled_UD[text_N], form_UD[text_N])
    )

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(*response_BR.shape, *values.shape[1:]).index_put(
            (row_N, role_N), values
        )

    return JudgedQuadruples(*(spread(values) for values in judged))


def freeze(ranker: Ranker, config: TrainingConfig) -> None:
    """Switch off the gradients of what is not to learn, and on those of all else.

    Raises:
        InputError: the encoder has fewer layers than are to be frozen, or none that can be told.
    """
    ranker.encoder.requires_grad_(not config.freeze_encoder)
    if config.freeze_layers == 0:
        return
    layers = encoder_layers(ranker.encoder)
    if len(layers) < config.freeze_layers:
        found = f"{len(layers)} layers" if layers else "no layers that can be told apart"
        raise InputError(
            f"--freeze-layers {config.freeze_layers}: the encoder has {found}. Lower it, or pass "
            "--freeze-encoder."
        )
    ranker.encoder.get_submodule("embeddings").requires_grad_(False)
    for layer in layers[: config.freeze_layers]:
        layer.requires_grad_(False)


def encoder_layers(encoder: nn.Module) -> list[nn.Module]:
    """The encoder's layers from the bottom: its first list of modules; none if it has none."""
    lists = (module for module in encoder.modules() if isinstance(module, nn.ModuleList))
    return list(next(lists, []))


def _groups(ranker: Ranker, config: TrainingConfig) -> list[dict[str, Any]]:
    """What learns, encoder and heads apart, each with its learning rate."""
    learning = [(name, value) for name, value in ranker.named_parameters() if value.requires_grad]
    encoder = [value for name, value in learning if name.startswith("encoder.")]
    heads = [value for name, value in learning if not name.startswith("encoder.")]
    groups: list[dict[str, Any]] = [
        {"params": heads, "lr": config.head_learning_rate or config.learning_rate}
    ]
    return [*groups, {"params": encoder}] if encoder else groups


def linear_schedule(
    optimizer: torch.optim.Optimizer, *, steps: int, warmup_share: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """From 0 up to the learning rate over the first share of the steps, then down to 0."""
    warmup = warmup_share * steps

    def factor(step: int) -> float:
        rising = step < warmup
        return step / warmup if rising else (steps - step) / max(1.0, steps - warmup)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class Trainer:
    """A ranker in training, on one of the workers that `accelerator` knows of.

    `accelerator` is accelerate's: device, number of workers, precision and gradient exchange.
    """

    def __init__(
        self,
        ranker: Ranker,
        data: TokenizedQuadruples,
        *,
        steps: int,
        config: TrainingConfig,
        loss: LossConfig,
        accelerator: Any,  # noqa: ANN401 - the core does not depend on accelerate
    ) -> None:
        freeze(ranker, config)
        self.ranker = ranker
        self.data = data
        self.config = config
        self.accelerator = accelerator
        self.parameters = [value for value in ranker.parameters() if value.requires_grad]
        # Fused: one pass over the weights instead of ten, an eighth of the time on a CPU.
        optimizer = torch.optim.AdamW(_groups(ranker, config), lr=config.learning_rate, fused=True)
        self.schedule = linear_schedule(optimizer, steps=steps, warmup_share=config.warmup_share)
        encoder: Any = ranker.encoder
        self._stock_attention = encoder.config._attn_implementation  # noqa: SLF001 - no public name
        self.batching = use_batching(
            ranker, config.batching, precision=config.precision, autocast=accelerator.autocast()
        )
        self.encode = ENCODE[self.batching]
        module = QuadrupleLoss(
            ranker, loss, encode=self.encode, recompute=config.gradient_checkpointing
        )
        self.model, self.optimizer = accelerator.prepare(module, optimizer)
        self.losses: list[float] = []
        self.gradient_norms: list[float] = []
        self._tokens_Q = data.tokens_Q

    def step(self, rows_B: NDArray[np.int64]) -> float:
        """Learn from one batch, the same on all workers; its loss.

        Raises:
            NonFiniteError: the loss or the gradient is not a number; no weight was changed.
        """
        # Heads have no dropout, so eval mode is the encoder without it.
        self.model.train(mode=self.config.dropout)
        loss = self._accumulate(rows_B)
        norm = float(self.accelerator.clip_grad_norm_(self.parameters, self.config.clip_norm))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteError(
                f"step {len(self.losses) + 1}: the loss is {loss}, the gradient's length {norm}; "
                "wanted numbers. Nothing was saved. Lower --learning-rate, or look for odd rows "
                f"among quadruples {', '.join(map(str, rows_B[:8]))}."
            )
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.losses.append(loss)
        self.gradient_norms.append(norm)
        return loss

    def close(self) -> None:
        """Give the encoder its own attention back, with which it can be called by anybody."""
        if self.batching == "packed":
            encoder: Any = self.ranker.encoder
            encoder.set_attn_implementation(self._stock_attention)

    def _accumulate(self, rows_B: NDArray[np.int64]) -> float:
        """Add up the gradients of this worker's share; the loss of the whole batch."""
        workers = self.accelerator.num_processes
        counts_C = loss_counts(torch.from_numpy(self.data.kept_QK[rows_B]))
        mine = share(rows_B, self._tokens_Q, rank=self.accelerator.process_index, workers=workers)
        # DDP waits for every worker, so one without a row of its own computes with another's.
        idle = len(mine) == 0
        parts = list(
            micro_batches(
                rows_B[:1] if idle else mine,
                self._tokens_Q,
                token_budget=self.config.micro_batch_tokens,
            )
        )
        total = torch.zeros((), device=self.accelerator.device)
        for number, rows in enumerate(parts, start=1):
            batch = self._batch(rows, counts_C=counts_C, idle=idle)
            last = number == len(parts)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self.model(batch).total
                # DDP averages gradients over workers, but the shares' losses are to be added.
                self.accelerator.backward(loss * workers)
            total += loss.detach()
        return float(self.accelerator.reduce(total, reduction="sum"))

    def _batch(
        self, rows: NDArray[np.int64], *, counts_C: Tensor | None = None, idle: bool = False
    ) -> QuadrupleBatch:
        device = self.accelerator.device
        batch = make_batch(
            self.data,
            rows,
            counts_C=counts_C,
            idle=idle,
            batching=self.batching,
            device=device.type,
        )
        return batch.to(device)

    @torch.no_grad()
    def score(self, rows_Q: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores [Q, R] of all quadruples: numbers on these rows' responses, NaN elsewhere."""
        self.ranker.eval()
        response_QR = self.data.text_QS[:, 1:]
        score_QR = torch.zeros(response_QR.shape, device=self.accelerator.device)
        rank, workers = self.accelerator.process_index, self.accelerator.num_processes
        mine = share(rows_Q, self._tokens_Q, rank=rank, workers=workers)
        budget = self.config.micro_batch_tokens
        for rows in micro_batches(mine, self._tokens_Q, token_budget=budget):
            judged = judge_quadruples(self.ranker, self._batch(rows), encode=self.encode)
            score_QR[torch.from_numpy(rows)] = judged.score_BR.float()
        summed: NDArray[np.float32] = (
            self.accelerator.reduce(score_QR, reduction="sum").cpu().numpy()
        )
        scored_Q = np.isin(np.arange(len(summed)), rows_Q)
        summed[~(scored_Q[:, None] & (response_QR >= 0))] = np.nan
        return summed
