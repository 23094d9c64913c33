"""The policies of a selection as flags ask for them, and which of them go together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from scar_core.errors import InputError
from scar_core.selection.combine import Combined, parse_combine
from scar_core.selection.fronts import Fronts
from scar_core.selection.keep import KeepAbove
from scar_core.selection.luck import Sampled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scar_core.selection.keep import Keep
    from scar_core.selection.order import Worth

PAIR = 2


@dataclass(frozen=True, kw_only=True)
class OrderRule:
    """What rows are ordered by, as asked for."""

    combined: Combined | None = None
    fronts: Fronts | None = None
    temperature: float | None = None
    seed: int = 0
    drawn: Literal["content", "row"] = "row"

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the pool that it reads."""
        base = self.combined or self.fronts
        return base.columns if base else ()

    @property
    def flag(self) -> str:
        """The flag that names columns."""
        return "--combine" if self.combined else "--pareto"

    def worth(self, base: Worth | None) -> Worth | None:
        """What rows are ordered by, on what `--combine` or `--pareto` came to."""
        if self.temperature is None:
            return base
        return Sampled(temperature=self.temperature, seed=self.seed, drawn=self.drawn, base=base)


def order_rule(
    keep: Keep,
    *,
    combine: str | None,
    pareto: Sequence[str],
    temperature: float | None,
    seed: int,
    drawn: Literal["content", "row"],
) -> OrderRule:
    """The rule that `--combine`, `--pareto`, `--sample-temperature` and `--seed` give.

    Raises:
        InputError: they cannot be read, or do not go together.
    """
    if temperature is not None and not (temperature > 0 and math.isfinite(temperature)):
        raise InputError(f"--sample-temperature must be above 0 and finite, got {temperature}.")
    if not 0 <= seed < 2**63:
        raise InputError(f"--seed must be at least 0 and below 2**63, got {seed}.")
    if pareto and (len(pareto) != PAIR or pareto[0] == pareto[1]):
        raise InputError(
            f"--pareto {' '.join(pareto)}: wanted two columns, one of which may be score."
        )
    if pareto and (combine is not None or temperature is not None):
        raise InputError(
            "--pareto gives places in an order and no amounts; it goes with neither --combine nor "
            "--sample-temperature. Leave one out."
        )
    if isinstance(keep, KeepAbove) and (pareto or combine is not None or temperature is not None):
        raise InputError(
            "--keep with a least score keeps the same rows in any order: --combine, --pareto "
            "and --sample-temperature would do nothing. Pass a share, or a number of rows."
        )
    return OrderRule(
        combined=None if combine is None else parse_combine(combine),
        fronts=Fronts(names=(pareto[0], pareto[1])) if pareto else None,
        temperature=temperature,
        seed=seed,
        drawn=drawn,
    )


def describe(worth: Worth | None) -> dict[str, Any]:
    """What rows are ordered by, for a manifest; empty: their scores."""
    if isinstance(worth, Sampled):
        told = {"temperature": worth.temperature, "seed": worth.seed, "drawn": worth.drawn}
        return {"by": "luck", **told, "base": describe(worth.base)}
    if isinstance(worth, Combined):
        return {"by": "sum", "terms": [vars(term) for term in worth.terms]}
    if isinstance(worth, Fronts):
        return {"by": "fronts", "columns": list(worth.names)}
    return {}
