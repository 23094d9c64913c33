"""Many small trainings of one experiment, as Ray tasks; a finished one is not run again."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import time
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from jobs import cli
from jobs.pipeline import with_access
from jobs.sweep_cell import Cell, Task, run_cell
from jobs.train_inputs import TrainConfig
from scar_core import storage
from scar_core.errors import InputError, RunError, ScarError
from scar_core.manifest import software, to_json
from scar_core.store_checks import check_readable, check_writable
from scar_core.training.batches import gate_quadruples
from scar_core.training.losses import GateConfig
from scar_core.training.quadruple_files import read_quadruples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scar_core.training.quadruple_files import ReadQuadruples
    from scar_core.training.quadruples import Quadruple

logger = logging.getLogger("scar_curate")

CELLS = "cells"


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What every experiment of many trainings is given."""

    quads: list[str]
    """Quadruples, as `jobs.train` takes them; one or several."""
    encoder: str
    """Encoder to start every training from: folder or hub name of a transformers model."""
    out: str
    """Directory for the table and, in `cells/`, for what each training measured; what is there
    already is not computed again."""
    seeds: int = 3
    """Trainings of each cell of the table, with seeds 0, 1, ...; at least 1."""
    max_steps: int | None = None
    """Stop each training after this many steps, whatever the recipe says; at least 1."""
    measure_quads: int = 200
    """Measure on at most so many quadruples of one source, drawn by a seeded hash; at least 1."""
    cpus_per_run: int = 1
    """CPUs, and threads, of one training, at least 1. As many run at once as there is room for."""
    gpus_per_run: float = 0.0
    """GPUs of one training, at least 0; a share lets several run on one."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if not self.quads:
            raise ValueError("quads must name at least one file or data set")
        for name in ("seeds", "measure_quads", "cpus_per_run", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.gpus_per_run < 0:
            raise ValueError(f"gpus_per_run must be at least 0, got {self.gpus_per_run}")


def recipe(path: str, config: SweepConfig) -> TrainConfig:
    """The training that a recipe file describes, on the experiment's quadruples and encoder.

    Raises:
        InputError: the file cannot be read, or says what `jobs.train` would refuse.
    """
    parser = cli.parser_of(TrainConfig, prog="jobs.train", description="")
    argv = ["--config", path, "--encoder", config.encoder, "--out", config.out]
    values = parser.parse_args([*argv, "--quads", *config.quads])
    values.pop("config", None)
    values.pop("storage_options", None)
    try:
        made: TrainConfig = TrainConfig(**values.as_dict())
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    return made if config.max_steps is None else replace(made, max_steps=config.max_steps)


def read_for(config: SweepConfig, first: TrainConfig) -> ReadQuadruples:
    """The quadruples of the experiment, after the checks that can be made before Ray starts.

    Raises:
        InputError: data, encoder or flags need fixing.
    """
    check_readable([*config.quads, config.encoder])
    check_writable(storage.absolute(config.out))
    read = read_quadruples(config.quads, first)
    if not gate_quadruples(read.checked.quadruples, first).kept_QK.any():
        raise InputError(
            f"{', '.join(config.quads)}: no pair passes the quality gate. Judge the quadruples, or "
            "set keep_unjudged in the recipe."
        )
    return read


def run_cells(
    cells: Sequence[Cell], config: SweepConfig, read: ReadQuadruples
) -> list[dict[str, Any]]:
    """Results of all cells, in their order; those that are there already are only read.

    Raises:
        RunError: a training broke; what the others measured is kept.
    """
    folder = storage.absolute(config.out)
    data = [mark for _, mark in read.inputs]
    tasks = [_task(cell, config, folder, data) for cell in cells]
    missing = [task for task in tasks if not storage.exists(task.path)]
    logger.info("%s trainings, %s of them done already", len(tasks), len(tasks) - len(missing))
    if missing:
        with cli.connected(local_cpus=max(config.cpus_per_run, os.cpu_count() or 1)):
            _run(missing, config, read.checked.quadruples)
    return [json.loads(storage.read_bytes(task.path)) for task in tasks]


def _task(cell: Cell, config: SweepConfig, folder: str, data: list[str]) -> Task:
    """Its result is named for all that decides it, so that no other is taken for it."""
    decides = [repr(replace(cell.config, quads=["-"], out="-")), data, config.measure_quads]
    decides += [cell.column if cell.leave_out else "", cell.own_only, cell.without_referenced]
    decides += [repr(cli.part_of(cell.measured_by, GateConfig))]
    key = sha256(json.dumps(decides).encode()).hexdigest()[:16]
    return Task(
        cell,
        storage.join(folder, CELLS, f"{key}.json"),
        config.measure_quads,
        config.cpus_per_run,
    )


def _run(tasks: list[Task], config: SweepConfig, quadruples: list[Quadruple]) -> None:
    """Run the trainings, as many at once as there is room for, and tell of each."""
    import ray  # noqa: PLC0415 - `--help` and bad flags must not wait for Ray

    remote = ray.remote(with_access(run_cell)).options(
        num_cpus=config.cpus_per_run, num_gpus=config.gpus_per_run, max_retries=2
    )
    shared = ray.put(quadruples)
    waiting = {remote.remote(task, shared): task for task in tasks}
    broken: list[str] = []
    start = time.monotonic()
    while waiting:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        cell = waiting.pop(done).cell
        name = f"{cell.row} {cell.column} seed {cell.config.seed}"
        try:
            ray.get(done)
        except (ray.exceptions.RayError, ScarError) as error:
            logger.exception("%s broke", name)
            broken.append(f"{name} with {str(error).strip().splitlines()[-1]}")
            continue
        done_count = len(tasks) - len(waiting)
        left = (time.monotonic() - start) / done_count * len(waiting)
        logger.info("%s: done; %s left, about %.0f s", name, len(waiting), left)
    if broken:
        raise RunError(
            f"{len(broken)} of {len(tasks)} trainings broke: {'; '.join(broken[:3])}. What the "
            "others measured is kept; start the command again for the rest."
        )


def write_results(
    config: SweepConfig, text: str, rows: list[dict[str, Any]], extra: dict[str, Any]
) -> None:
    """Beside `cells/`: the table as a person reads it, as CSV, and as JSON with what made it.

    They are made from `cells/` anew each time, so that further seeds or recipes may join.
    """
    folder = storage.absolute(config.out)
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    for name, data in (
        ("table.txt", f"{text}\n".encode()),
        ("table.csv", sheet.getvalue().encode()),
        ("table.json", to_json({**extra, "software": software(), "rows": rows})),
    ):
        storage.write_bytes(storage.join(folder, name), data)
