"""The README stays true: its tree against the disk, its commands against the parsers."""

from __future__ import annotations

import ast
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from jobs import cli, curate

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
CONFIGS = {
    "jobs.synthesize": "SynthesizeConfig",
    "jobs.judge": "JudgeConfig",
    "jobs.train": "TrainConfig",
    "jobs.leave_one_out": "LeaveOneOutConfig",
    "jobs.ablate": "AblateConfig",
    "jobs.plan": "PlanConfig",
    "jobs.score": "ScoreConfig",
    "jobs.select_rows": "SelectConfig",
    "jobs.curate": "CurateConfig",
    "jobs.doctor": "DoctorConfig",
}


def rooms_of(package: str) -> dict[str, str]:
    """What the README's tree says of each module below a package, in its order: `pool/rows`."""
    block = re.search(rf"^{package}/\n((?:  .*\n)+)", README, re.MULTILINE)
    assert block, f"the README has no tree of {package}/"
    rooms, folder = {}, ""
    for indent, name, kind, told in re.findall(
        r"^( +)(\w+)(\.py|/) +(.*)$", block[1], re.MULTILINE
    ):
        folder = folder if len(indent) > len("  ") else ""
        if kind == "/":
            folder = f"{name}/"
        else:
            rooms[folder + name] = told
    return rooms


def modules_of(package: str) -> dict[str, Path]:
    """By name below the package, as in the tree, the files on disk."""
    top = ROOT / package
    return {
        str(path.relative_to(top).with_suffix("")): path
        for path in top.rglob("*.py")
        # A folder's own docstring is no room; what runs a folder as a program is.
        if path.parent == top or path.name != "__init__.py"
    }


def imports_of(path: Path) -> set[str]:
    """Dotted names of everything a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


@pytest.mark.parametrize("package", ["scar_core", "jobs"])
def test_the_tree_lists_every_module_once(package: str) -> None:
    """No room without a line, no line without a room."""
    assert sorted(rooms_of(package)) == sorted(modules_of(package))


def test_core_modules_import_only_from_lines_above_their_own() -> None:
    """The tree can be read from top to bottom."""
    # `__init__` is read first and names rooms for others to ask for; it imports none by itself.
    _, *rooms = rooms_of("scar_core")
    for index, room in enumerate(rooms):
        below = {f"scar_core.{name.replace('/', '.')}" for name in rooms[index:]}
        assert not imports_of(ROOT / f"scar_core/{room}.py") & below, room


@pytest.mark.parametrize("folder", ["pool", "ranker", "training", "style", "selection"])
def test_a_folder_lists_its_rooms_in_the_readmes_words(folder: str) -> None:
    """One order and one sentence per room, told twice and never differently."""
    own = (ROOT / f"scar_core/{folder}/__init__.py").read_text("utf-8")
    told = re.findall(r"^(\w+) +(\S.*)$", own.partition("\n\n")[2], re.MULTILINE)
    rooms = rooms_of("scar_core").items()
    assert told == [
        (name[len(folder) + 1 :], line) for name, line in rooms if name.startswith(f"{folder}/")
    ]


def test_the_core_knows_no_cluster() -> None:
    """A notebook can use the core without Ray."""
    for name, path in modules_of("scar_core").items():
        tops = {imported.split(".")[0] for imported in imports_of(path)}
        assert not tops & {"ray", "jobs"}, name


def commands() -> list[list[str]]:
    """Every `python -m jobs.…` command of the README, continued lines joined."""
    text = README.replace("\\\n", " ")
    lines = [line for line in text.splitlines() if re.search(r"python -m jobs\.\w+ +--", line)]
    return [shlex.split(line[line.index("python -m") :], comments=True)[2:] for line in lines]


@pytest.mark.parametrize("command", commands(), ids=lambda words: " ".join(words)[:60])
def test_every_command_is_one_that_the_parsers_take(command: list[str]) -> None:
    """A flag that is renamed must be renamed in the README."""
    module, *argv = command
    config_class = getattr(import_module(module), CONFIGS[module])
    assert cli.parse(config_class, argv, prog=module, description="") is not None


def test_every_job_has_a_command_in_the_readme() -> None:
    """Nobody has to guess how a job is started."""
    assert {words[0] for words in commands()} == set(CONFIGS)


def test_every_flag_has_help_that_says_something() -> None:
    """`--help` is where most people learn a job."""
    for module, name in CONFIGS.items():
        config_class = getattr(import_module(module), name)
        parser = cli.parser_of(config_class, prog=module, description="")
        silent = [a.option_strings for a in parser._actions if len(str(a.help or "")) < 20]  # noqa: SLF001 - argparse has no other way
        assert not silent, f"{module}: {silent}"


def test_help_begins_with_what_must_be_given() -> None:
    """The four flags that a person needs are not to be looked for among twenty."""
    parser = cli.parser_of(curate.CurateConfig, prog="jobs.curate", description="")
    head = parser.format_help().partition("[--source-column")[0]
    assert all(f"--{flag}" in head for flag in ("pool", "ranker", "keep", "out"))
