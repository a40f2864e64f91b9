"""The command line: how a program ends, and its help. (What searches is in commands/test_launch.py.)"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer.rich_utils
from studies import Ran, run_cli

from cst_search import __version__
from cst_search.cli import app

COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_a_program_ends_at_once_and_yet_in_order() -> None:
    """Threads that are waited for, what was registered for the end, and what was printed."""
    code = """
import atexit, sys, threading, time
from cst_search import cli
def main():
    threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
    atexit.register(print, "the end")
    sys.exit({code})
cli.main = main
cli.run()
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    for given, expected, said in (("0", 0, ""), ("2", 2, ""), ("None", 0, ""), ("'why'", 1, "why\n")):
        command = [sys.executable, "-c", code.replace("{code}", given)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        assert (done.returncode, done.stdout, done.stderr) == (expected, "thread\nthe end\n", said)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ran = run_cli(command, "--help")
    assert ran.code == 0
    assert f"cst-search {command}" in ran.out
    short = run_cli(command, "-h")
    assert short.out == ran.out


def test_what_is_written_has_one_option_in_every_command() -> None:
    """A person who has typed ``train ... --out`` types ``pack ... --out``."""
    found = {
        name: set(parameter.opts)
        for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
        for parameter in command.params
        if {"--out", "--output"} & set(parameter.opts)
    }
    assert set(found) == {"allocate", "export", "front", "pack", "predict", "train"}
    assert all(flags == {"--out", "--output", "-o"} for flags in found.values())


def test_every_command_is_in_a_group() -> None:
    """The help of 21 commands in a row is read by nobody."""
    groups = [one.rich_help_panel for one in (*app.registered_commands, *app.registered_groups)]
    assert set(groups) == {"Search", "Use what was found", "Before a search", "Records and clusters"}


def test_help_names_every_command_and_needs_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['cst-search', '--help']\n"
        "from cst_search import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'optuna', 'mlflow', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert all(f" {command} " in ended.stdout for command in COMMANDS)


def test_without_a_command_there_is_help() -> None:
    ran = run_cli()
    assert "launch" in ran.out + ran.err


def test_version() -> None:
    assert run_cli("--version") == Ran(0, f"cst-search {__version__}\n", "")


def _with_subcommands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _with_subcommands(inner, (*words, name))


def test_help_has_every_text_whole_and_no_python_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich drops "[default: ...]" and "cst-search[onnx]" as markup; recent typer shows `<list[str]>` for a value."""
    monkeypatch.setattr(typer.rich_utils, "MAX_WIDTH", 400)
    for words, command in _with_subcommands(typer.main.get_command(app)):
        shown = run_cli(*words, "--help").out.replace("\u2502", " ")
        flat = " ".join(shown.split())
        texts = [text for p in command.params if (text := getattr(p, "help", None))]
        assert [text for text in texts if " ".join(text.split()) not in flat] == [], words
        assert re.findall(r"<\w+.*?>|\w+\[\w+\]|[{}]", shown) == [], words
        assert not re.search(r"^ +(--json|--help +-h) +[A-Z]{2,}", shown, re.M), words  # a flag takes no value
