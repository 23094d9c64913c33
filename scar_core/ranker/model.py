"""The style ranker: an encoder, an MLP for surprisal, an MLP for the score.

Equations of arXiv 2406.10882, section 4; parameter names of scar-tool's checkpoints.

Shape suffixes: B rows, L tokens, D encoder width, C concatenated features (2D).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """What a ranker is made of; stored as its `config.json`."""

    encoder_name: str
    """Hub name or folder name the encoder's weights came from; never read to load a ranker."""
    hidden_dim: int
    """Width D of the encoder's hidden states, at least 1."""
    linear_dim: int = 512
    """Width of the hidden layer of both MLPs, at least 1."""
    encoder_config: dict[str, Any] = field(default_factory=dict)
    """The encoder's own transformers configuration, so that no other download is needed."""

    def __post_init__(self) -> None:
        """Refuse widths that no layer can have."""
        if self.hidden_dim < 1 or self.linear_dim < 1:
            raise ValueError(
                f"hidden_dim and linear_dim must be at least 1, "
                f"got {self.hidden_dim} and {self.linear_dim}"
            )


class TextFeatures(NamedTuple):
    """What the heads need of a text."""

    pooled_BD: Tensor
    """The encoder's pooler output if it has one, else the first token's hidden state."""
    form_BD: Tensor
    """Linguistic form: the maximum over the text's real tokens."""


class RankerOutput(NamedTuple):
    """One judgement per row."""

    score_B: Tensor
    """A logit, unbounded; higher = closer to the direct style and quality."""
    form_BD: Tensor
    """The response's linguistic form, v_p in the paper."""
    surprisal_BD: Tensor
    """Instructional surprisal, v_c: the response as seen from its instruction."""


class Ranker(nn.Module):
    """An encoder and two heads; `encoder` is any transformers encoder."""

    def __init__(self, config: RankerConfig, encoder: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        D, hidden = config.hidden_dim, config.linear_dim
        self.relation_network = nn.Sequential(
            nn.Linear(2 * D, hidden), nn.ReLU(), nn.Linear(hidden, D)
        )
        self.output_layer = nn.Sequential(nn.Linear(2 * D, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def encode(self, ids_BL: Tensor, mask_BL: Tensor) -> TextFeatures:
        """Features of padded texts; the mask is 1 on real tokens, 0 on padding."""
        output = self.encoder(input_ids=ids_BL, attention_mask=mask_BL)
        hidden_BLD = output.last_hidden_state
        pooled_BD = getattr(output, "pooler_output", None)
        if pooled_BD is None:
            pooled_BD = hidden_BLD[:, 0]
        form_BD = hidden_BLD.masked_fill(mask_BL.unsqueeze(-1) == 0, -torch.inf).amax(dim=1)
        return TextFeatures(pooled_BD, form_BD)

    def judge(self, instruction_pooled_BD: Tensor, response: TextFeatures) -> RankerOutput:
        """Score responses whose texts are already encoded, row by row."""
        relation_BC = torch.cat((instruction_pooled_BD, response.pooled_BD), dim=1)
        surprisal_BD = self.relation_network(relation_BC)
        features_BC = torch.cat((surprisal_BD, response.form_BD), dim=1)
        score_B = self.output_layer(features_BC).squeeze(-1)
        return RankerOutput(score_B, response.form_BD, surprisal_BD)

    def forward(
        self,
        instruction_ids_BL: Tensor,
        instruction_mask_BL: Tensor,
        response_ids_BL: Tensor,
        response_mask_BL: Tensor,
    ) -> RankerOutput:
        """Encode and judge padded pairs; instructions and responses may differ in length L."""
        instruction = self.encode(instruction_ids_BL, instruction_mask_BL)
        response = self.encode(response_ids_BL, response_mask_BL)
        return self.judge(instruction.pooled_BD, response)
