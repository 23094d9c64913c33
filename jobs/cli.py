"""The command line of every job: flags from config dataclasses, logging, Ray, exit codes."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import contextmanager
from dataclasses import asdict, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

import yaml
from jsonargparse import ActionYesNo, ArgumentParser, set_parsing_settings
from jsonargparse.typing import register_type

from scar_core import stores
from scar_core.errors import InputError, ScarError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

logger = logging.getLogger("scar_curate")

Config = TypeVar("Config")

JOBS = {
    "synthesize": "jobs.synthesize",
    "judge": "jobs.judge",
    "train": "jobs.train",
    "leave-one-out": "jobs.leave_one_out",
    "ablate": "jobs.ablate",
    "plan": "jobs.plan",
    "score": "jobs.score",
    "select": "jobs.select_rows",
    "curate": "jobs.curate",
    "doctor": "jobs.doctor",
    "verify": "jobs.verify",
    "explain": "jobs.explain",
    "diff": "jobs.diff",
}

HELP_FIRST = ("help", "config", "print_config")

# Enough for the blocks in flight (a few units of token ids); Ray's default is 30 % of the memory.
LOCAL_OBJECT_STORE_BYTES = 512 * 2**20


class JobParser(ArgumentParser):
    """Flags as people type them: --like-this, and several values after one list flag."""

    positional: tuple[str, ...] = ()
    """Fields that are given by their place, without a flag."""

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - argparse's own types
        """Register one flag; called by jsonargparse for every field of a config."""
        names = [name.replace("_", "-") if name.startswith("--") else name for name in args]
        typehint = getattr(kwargs.get("action"), "_typehint", None)
        if get_origin(typehint) is list:
            names = names[:1]
            kwargs.pop("action")
            kwargs.update(nargs="+", type=get_args(typehint)[0])
        if kwargs.get("type") is bool or typehint is bool:
            kwargs = {
                name: value for name, value in kwargs.items() if name not in ("type", "action")
            }
            kwargs |= {"action": ActionYesNo(no_prefix="no-")}
        if names[0].removeprefix("--").replace("-", "_") in self.positional:
            names = [names[0].removeprefix("--").replace("-", "_")]
            kwargs.pop("required", None)
        return super().add_argument(*names, **kwargs)


def parser_of(
    config_class: type[Config], *, prog: str, description: str, positional: Sequence[str] = ()
) -> JobParser:
    """The parser whose flags are the fields of a frozen config dataclass.

    Each field's docstring is its help. `--config run.yaml` gives the same fields from a file,
    flags override it, and `--print-config` prints the result.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = JobParser(
        prog=prog, description=description, print_config="--print-config", exit_on_error=True
    )
    parser.positional = tuple(positional)
    parser.add_argument(
        "--config", action="config", help="YAML file with the same fields; flags override it."
    )
    parser.add_argument(
        "--storage-options",
        type=StorageOptions,
        metavar="OPTIONS",
        help="Options for fsspec as a YAML or JSON mapping, or a file that holds one: of every "
        "store, or by scheme: {s3: {endpoint_url: ...}, gs: {...}}. Never stored or logged; "
        "by default the AWS_* variables and fsspec's own defaults lead to a store.",
    )
    parser.add_class_arguments(config_class, as_group=False)
    # What must be given comes first in --help; argparse itself has no word for it.
    for listed in (parser._actions, *(group._group_actions for group in parser._action_groups)):  # noqa: SLF001
        listed.sort(key=lambda action: not (action.required or action.dest in HELP_FIRST))
    return parser


class StorageOptions:
    """What --storage-options gives; it shows itself to nobody."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def __repr__(self) -> str:
        """Not what is in it."""
        return "StorageOptions(hidden)"


def _read_options(given: object) -> StorageOptions:
    """The options of a mapping, of one as text, or of a file; ValueError where there is none."""
    if isinstance(given, StorageOptions):
        return given
    if isinstance(given, str) and not given.lstrip().startswith("{") and Path(given).is_file():
        given = Path(given).read_text("utf-8")
    try:
        values = yaml.safe_load(given) if isinstance(given, str) else given
    except yaml.YAMLError as error:
        # Without the text and what it was raised from: both may hold a secret.
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise ValueError(f"storage options are no YAML{where}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError("storage options are a mapping, or a file that holds one; this is neither")
    return StorageOptions(values)


register_type(
    StorageOptions,
    serializer=lambda _: "(hidden)",
    deserializer=_read_options,
    type_check=lambda value, _: isinstance(value, StorageOptions),
)


def parse(
    config_class: type[Config],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    positional: Sequence[str] = (),
) -> Config:
    """The config that the arguments give; exits with code 2 and a sentence where they are wrong."""
    parser = parser_of(config_class, prog=prog, description=description, positional=positional)
    values = parser.parse_args(list(argv))
    values.pop("config", None)
    options = values.pop("storage_options", None)
    stores.set_options(options.values if options is not None else None)
    try:
        return config_class(**values.as_dict())
    except ValueError as error:
        raise InputError(f"{prog}: {error}") from error


def resolved(config: Any) -> dict[str, Any]:  # noqa: ANN401 - any config dataclass
    """A config as stored in a manifest."""
    return asdict(config)


def part_of(config: Any, part: type[Config]) -> Config:  # noqa: ANN401 - as above
    """One of the configs that a job's config is made of."""
    names = [field.name for field in fields(part)]  # type: ignore[arg-type]
    return part(**{name: getattr(config, name) for name in names})


def run_job(job: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a job; its exit code: 0 done, 1 broke, 2 the input needs fixing, 3 another run is on it.

    A ScarError is one line for the operator; anything else is a bug and keeps its traceback.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    # Hugging Face libraries log their HTTP requests at INFO, AWS's where they find credentials.
    for noisy in ("httpx", "httpcore", "urllib3", "botocore", "aiobotocore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        job(sys.argv[1:] if argv is None else argv)
    except ScarError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the command line's own voice
        return error.exit_code
    return 0


@contextmanager
def connected(
    *, local_cpus: int | None = None, worker_logs: bool = True, quiet: bool = False
) -> Iterator[None]:
    """A Ray cluster for the length of a block.

    Under `ray job submit`, or with RAY_ADDRESS set, it is that cluster; one that this process is
    connected to already is used as it is; else a local one is started, and stopped at the end.
    Without `worker_logs` what a local one's workers write stays in Ray's files; `quiet`: any one's.
    """
    import ray  # noqa: PLC0415 - `--help` and bad flags must not wait for Ray
    from ray.data import DataContext  # noqa: PLC0415

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": not quiet, "logging_level": logging.WARNING}
    if "RAY_ADDRESS" not in os.environ:
        # One CPU slot more than cores: readers and writers run beside actors that fill the cores.
        options |= {
            "address": "local",
            "log_to_driver": worker_logs and not quiet,
            "num_cpus": local_cpus or (os.cpu_count() or 1) + 1,
            "include_dashboard": False,
            "object_store_memory": LOCAL_OBJECT_STORE_BYTES,
        }
    ray.init(**options)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    # A domain error raised on a worker arrives as itself.
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def console() -> int:
    """The `scar-curate` command: the first word picks the job, the rest are its flags."""
    argv = sys.argv[1:]
    if not argv or argv[0] not in JOBS:
        wanted = "|".join(JOBS)
        print(f"usage: scar-curate {wanted} [flags]; --help after a job lists them.")  # noqa: T201
        return 0 if argv in (["-h"], ["--help"]) else 2
    return run_job(import_module(JOBS[argv[0]]).job, argv[1:])
