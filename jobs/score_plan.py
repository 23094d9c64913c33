"""What there is to score and what is scored already, from footers and a listing of sidecars."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from jobs import cli, pipeline
from jobs.events import tell
from jobs.filtering import MadeFilters, make_filters
from scar_core import storage
from scar_core.errors import SchemaError
from scar_core.pool.files import BadFile, Imports, PoolFile, open_pool, open_sound_files
from scar_core.pool.filters import Filters
from scar_core.pool.imports import make_copy
from scar_core.pool.rows import PairColumns
from scar_core.pool.shapes import FIRST_ROWS, check_shape, in_words, resolved, texts_in
from scar_core.pool.sidecars import ScoringKey, Sidecar, find_finished
from scar_core.pool.units import Unit, plan_units, read_ranges
from scar_core.store_checks import check_readable, check_writable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jobs.score import ScoreConfig, ScoreInput
    from scar_core.pool.imports import Import, Outcome
    from scar_core.ranker.model import RankerConfig

logger = logging.getLogger("scar_curate")

FILES_TOLD = 20


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What there is to score, and what is scored already."""

    files: list[PoolFile]
    bad_files: list[BadFile]
    """Quarantined; no unit is of them."""
    units: list[Unit]
    """In (path, row) order."""
    key: ScoringKey
    finished: dict[str, Sidecar]
    """By unit id."""
    columns: PairColumns = field(default_factory=PairColumns)
    """How rows are read, nothing left to be found out."""
    made: MadeFilters = field(default_factory=lambda: MadeFilters(Filters(), None))
    """Which rows are left out on purpose."""

    @property
    def missing(self) -> list[Unit]:
        """Units without a finished sidecar, in (path, row) order."""
        return [unit for unit in self.units if unit.id not in self.finished]

    @property
    def rows(self) -> int:
        """Rows of the pool."""
        return sum(unit.rows for unit in self.units)

    @property
    def files_in(self) -> int:
        """Files of the pool, sound and quarantined."""
        return len(self.files) + len(self.bad_files)

    def without(self, bad: Mapping[str, BadFile]) -> Plan:
        """The same when these files, by path, are quarantined too."""
        if not bad:
            return self
        return replace(
            self,
            files=[file for file in self.files if file.path not in bad],
            bad_files=sorted([*self.bad_files, *bad.values()], key=lambda file: file.path),
            units=[unit for unit in self.units if unit.path not in bad],
        )


def resolved_precision(config: ScoreInput) -> Literal["fp32", "bf16"]:
    """What `auto` means for these actors; CPUs are taken to be like this machine's."""
    import torch  # noqa: PLC0415

    from scar_core.ranker.linears import bf16_is_native  # noqa: PLC0415 - torch

    if config.precision != "auto":
        return config.precision
    fast = config.gpus_per_actor > 0 or bf16_is_native(torch.device("cpu"))
    return "bf16" if fast else "fp32"


def readable_tokens(asked: int, ranker: RankerConfig, *, where: str) -> int:
    """Tokens of a text that the encoder can read, at most as many as are asked for."""
    import torch  # noqa: PLC0415

    from scar_core.ranker.encoders import empty_encoder, encoder_config  # noqa: PLC0415 - torch
    from scar_core.ranker.packing import longest_text  # noqa: PLC0415 - torch

    with torch.device("meta"):  # the shape of the encoder, without its memory
        encoder = empty_encoder(encoder_config(ranker.encoder_config, where=where))
    reach = longest_text(encoder)
    if asked > reach:
        logger.info("%s: its encoder reads %s tokens, not %s", where, f"{reach:,}", f"{asked:,}")
    return min(asked, reach)


def make_plan(config: ScoreConfig) -> Plan:
    """Read footers and list sidecars, when it is known that new ones can be written.

    Raises:
        InputError: the pool, the ranker or the access to a store needs fixing.
    """
    check_readable([*config.pool, config.ranker, *config.benchmarks])
    check_writable(storage.absolute(config.out))
    importing = Imports(scores=storage.absolute(config.out), config=config, make=import_on_workers)
    plan = look_at(config, scores=config.out, importing=importing)
    plan.made.store()
    return plan


def import_on_workers(tasks: Sequence[Import]) -> Iterator[Outcome]:
    """Make the copies of files that are no Parquet, on any CPU of the cluster."""
    with cli.connected():
        yield from pipeline.run(make_copy, tasks)


def look_at(config: ScoreInput, *, scores: str, importing: Imports) -> Plan:
    """Read footers and list the sidecars in a scores directory; only copies may be written.

    Raises:
        InputError: the pool or the ranker needs fixing.
    """
    from scar_core.ranker.checkpoint import check_ranker, ranker_fingerprint  # noqa: PLC0415 - torch

    ranker = check_ranker(config.ranker)
    files, bad_files = _open_files(config, importing)
    columns = _resolved(files, config)
    files, bad_files = _of_one_shape(files, bad_files, columns, config)
    units = plan_units(files, config)
    made = make_filters(config, scores=storage.absolute(scores))
    key = ScoringKey(
        ranker=ranker_fingerprint(config.ranker),
        **asdict(columns),
        max_tokens=readable_tokens(config.max_tokens, ranker, where=config.ranker),
        precision=resolved_precision(config),
        filters=made.filters.id,
    )
    finished = find_finished(storage.absolute(scores), units, key)
    plan = Plan(
        files=files,
        bad_files=bad_files,
        units=units,
        columns=columns,
        key=key,
        finished=finished,
        made=made,
    )
    logger.info(
        "pool: %s rows in %s files, %s units; %s units are scored already",
        f"{plan.rows:,}",
        f"{len(files):,}",
        f"{len(units):,}",
        f"{len(finished):,}",
    )
    tell(
        "plan_made",
        files=len(files),
        rows=plan.rows,
        units=len(units),
        units_done=len(finished),
    )
    return plan


def _resolved(files: list[PoolFile], config: ScoreInput) -> PairColumns:
    """How the rows of a pool are read, by its first file that has any; said in the log."""
    given = PairColumns(
        **{name: getattr(config, name) for name in PairColumns.__dataclass_fields__}
    )
    first = next((file for file in files if file.rows), files[0])

    def values(name: str) -> list[str | None]:
        rows = min(FIRST_ROWS, first.rows)
        (table,) = read_ranges(first, [(0, rows)], columns=[name])
        return texts_in(table[name])

    columns = resolved(first.schema, given, first_values=values)
    if columns.turns != "first" and columns.format in ("columns", "template"):
        columns = replace(columns, turns="first")  # of one: sidecars are the same
    logger.info("rows read as %s", in_words(columns))
    return columns


def _of_one_shape(
    files: list[PoolFile], bad_files: list[BadFile], columns: PairColumns, config: ScoreInput
) -> tuple[list[PoolFile], list[BadFile]]:
    """The files whose rows can be of the pool's shape, and all others.

    Raises:
        SchemaError: there are others, and --on-bad-file is fail.
    """
    good, bad = [], list(bad_files)
    for file in files:
        try:
            check_shape(file.schema, columns, where=file.shown)
            good.append(file)
        except SchemaError as error:
            if config.on_bad_file == "fail":
                raise
            message = str(error).replace(file.shown, file.path)
            logger.warning("quarantined: %s", message)
            bad.append(
                BadFile(
                    path=file.path, url=file.url, reason="schema", message=message, rows=file.rows
                )
            )
    return good, sorted(bad, key=lambda one: one.path)


def _open_files(config: ScoreInput, importing: Imports) -> tuple[list[PoolFile], list[BadFile]]:
    """The sound and the bad files of the pool."""
    if config.on_bad_file == "fail":
        return open_pool(config.pool, config, importing=importing), []
    files, bad = open_sound_files(config.pool, config, importing=importing)
    for file in bad[:FILES_TOLD]:
        logger.warning("quarantined: %s", file.message)
    if len(bad) > FILES_TOLD:
        logger.warning("quarantined: %s more files", f"{len(bad) - FILES_TOLD:,}")
    return files, bad
