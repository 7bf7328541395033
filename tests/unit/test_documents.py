# SPDX-License-Identifier: Apache-2.0
"""What the documents tell a user to type is there: commands, options, imports, files, folders."""

from __future__ import annotations

import ast
import re
import shlex
from contextlib import suppress
from pathlib import Path

import click
import pytest

import attn_runtime
from attn_codegen import presets
from attn_codegen.cli import main
from attn_codegen.params import STRUCTS_BY_NAME

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
INLINE = re.compile(
    r"`(?:attn-codegen )?((?:bench|build|cache|emit|explain|list|show|tune) [^`]+)`"
)
LINK = re.compile(r"\]\(([^)#:]+)\)")
TESTS = re.compile(r"\b(?:tests|examples)/[\w/.]+\.py\b")


def commands() -> list[str]:
    """What follows `attn-codegen` in code blocks and in sentences, which may leave it out."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for _, block in BLOCK.findall(text):
            lines = [line for line in block.splitlines() if line.startswith("attn-codegen ")]
            found += [line.removeprefix("attn-codegen ") for line in lines]
        found += [" ".join(words.split()) for words in INLINE.findall(text)]
    return list(dict.fromkeys(found))


def snippets() -> list[str]:
    """Every block of Python."""
    texts = [document.read_text(encoding="utf-8") for document in DOCUMENTS]
    return [block for text in texts for kind, block in BLOCK.findall(text) if kind == "python"]


def parse(command: click.Command, words: list[str]) -> None:
    """Parse as the command line does, down to the options; runs nothing."""
    if isinstance(command, click.Group) and words:
        own = command.get_command(click.Context(command), words[0])
        assert own is not None, f"there is no command {words[0]}"
        parse(own, words[1:])
    else:
        # A sentence may name a command, or an option, alone.
        with suppress(click.MissingParameter, click.BadOptionUsage):
            command.make_context(command.name, words)


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_documents_is_one(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line, comments=True)
    for end in {"|", "..."} & set(words):  # others like it, or more options, that are not named
        words = words[: words.index(end)]
    parse(main, words)


def test_the_documents_have_commands_and_snippets_at_all() -> None:
    assert len(commands()) > 20
    assert len(snippets()) > 4


def options_of(command: click.Command) -> list[click.Option]:
    """Those of a command and of the commands below it."""
    own = [param for param in command.params if isinstance(param, click.Option)]
    if isinstance(command, click.Group):
        own += [option for below in command.commands.values() for option in options_of(below)]
    return own


def test_every_option_says_what_it_is_for() -> None:
    silent = [
        o.opts[0] for o in options_of(main) if not (o.help or "").split("[default")[0].strip()
    ]
    assert silent == []


def test_the_readme_counts_the_default_preset() -> None:
    count = len(presets.preset("default"))
    assert f"{count} units of the default preset" in (ROOT / "README.md").read_text("utf-8")


def test_every_parameter_of_a_call_has_its_place_in_the_table() -> None:
    text = (ROOT / "docs" / "cpp.md").read_text(encoding="utf-8")
    section = text.split("## AttentionParams")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(
        field.name for field in STRUCTS_BY_NAME["AttentionParams"].fields
    )


@pytest.mark.parametrize("snippet", snippets(), ids=lambda text: text.split("\n")[0])
def test_a_snippet_is_python_and_imports_what_there_is(snippet: str) -> None:
    for node in ast.walk(ast.parse(snippet)):
        if isinstance(node, ast.ImportFrom) and node.module == "attn_runtime":
            assert {alias.name for alias in node.names} <= set(attn_runtime.__all__)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_of_a_document_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in LINK.findall(text):
        assert (document.parent / target).exists(), target
    for path in TESTS.findall(text):
        assert (ROOT / path).exists(), path
