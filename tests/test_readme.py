"""The README stays true: its tree against the disk, its commands against the parsers."""

from __future__ import annotations

import ast
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from jobs import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
CONFIGS = {
    "jobs.train": "TrainConfig",
    "jobs.score": "ScoreConfig",
    "jobs.select_rows": "SelectConfig",
    "jobs.curate": "CurateConfig",
}


def rooms_of(package: str) -> list[str]:
    """The modules that the README's tree lists below a package, in its order."""
    block = re.search(rf"^{package}/\n((?:  .*\n)+)", README, re.MULTILINE)
    assert block, f"the README has no tree of {package}/"
    return re.findall(r"^  (\w+)\.py", block[1], re.MULTILINE)


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
    on_disk = sorted(path.stem for path in (ROOT / package).glob("*.py"))
    assert sorted(rooms_of(package)) == on_disk


def test_core_modules_import_only_from_lines_above_their_own() -> None:
    """The tree can be read from top to bottom."""
    rooms = rooms_of("scar_core")
    for index, room in enumerate(rooms):
        below = {f"scar_core.{name}" for name in rooms[index:]}
        assert not imports_of(ROOT / f"scar_core/{room}.py") & below, room


def test_the_core_knows_no_cluster() -> None:
    """A notebook can use the core without Ray."""
    for path in (ROOT / "scar_core").glob("*.py"):
        tops = {name.split(".")[0] for name in imports_of(path)}
        assert not tops & {"ray", "jobs"}, path.name


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
