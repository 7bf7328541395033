# SPDX-License-Identifier: Apache-2.0
"""The look of the sources: a licence line, 100 columns, clang-format."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from attn_codegen import presets, renderer, writer
from attn_codegen.config import AttentionConfig

ROOT = Path(__file__).parents[2]
CLANG_FORMAT_MAJOR = 23
CPP_SUFFIXES = (".h", ".cuh", ".cu", ".cpp")
CUDA = sorted(
    path
    for folder in ("templates", "examples", "runtime")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in CPP_SUFFIXES
)
SOURCES = sorted(
    path
    for folder in ("codegen", "runtime", "templates", "tests", "examples", ".ci")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".h", ".cuh", ".c", ".cpp", ".cu", ".j2", ".cmake", ".sh")
    or path.name in ("run", "CMakeLists.txt")
    if path.is_file() and "golden" not in path.parts
)
SETTINGS = [
    ROOT / name
    for name in (
        "Makefile", "pyproject.toml", ".gitignore", ".clang-format", ".pre-commit-config.yaml",
        "README.md", "CHANGELOG.md", "CONTRIBUTING.md",
    )
]  # fmt: skip

# The shortest, the longest and the usual names: clang-format breaks lines by their length.
SAMPLE = (
    "prefill_sm80_f16_d16_block_full",
    "prefill_sm80_bf16_d192_v128_linear_causal",
    "prefill_sm80_bf16_d112_v208_linear_causal",
    "prefill_sm80_bf16_d80_paged_causal",
    "reduce_sm80_f16_d16",
    "reduce_sm80_bf16_d208",
)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [*SOURCES, *SETTINGS], ids=relative)
def test_every_source_names_its_licence(path: Path) -> None:
    head = path.read_text().splitlines()[:3]
    assert any("SPDX-License-Identifier: Apache-2.0" in line for line in head)


@pytest.mark.parametrize("path", CUDA, ids=relative)
def test_no_line_is_longer_than_100_columns(path: Path) -> None:
    lines = enumerate(path.read_text().splitlines(), 1)
    assert [number for number, line in lines if len(line) > 100] == []


def test_no_emitted_line_is_longer_than_100_columns() -> None:
    for path, text in renderer.render(presets.preset("all")).items():
        if not path.endswith(".json"):
            assert not [line for line in text.splitlines() if len(line) > 100], path


@functools.cache
def clang_format() -> str:
    """The program of the test environment, or a skip that says what is missing."""
    beside = Path(sys.executable).with_name("clang-format")
    program = str(beside) if beside.is_file() else shutil.which("clang-format")
    if program is None:
        pytest.skip("needs clang-format: not installed (pip install '.[test]')")
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"version (\d+)", said)
    if match is None or int(match[1]) != CLANG_FORMAT_MAJOR:
        pytest.skip(f"needs clang-format {CLANG_FORMAT_MAJOR}: {program} is {said.strip()}")
    return program


def unformatted(paths: list[Path]) -> str:
    """What clang-format would change."""
    style = f"--style=file:{ROOT / '.clang-format'}"
    command = [clang_format(), "--dry-run", "--Werror", style, *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def test_the_headers_are_as_clang_format_writes_them() -> None:
    assert unformatted(CUDA) == ""


def test_everything_emitted_is_as_clang_format_writes_it(tmp_path: Path) -> None:
    configs = [*presets.preset("default"), *map(AttentionConfig.parse, SAMPLE)]
    writer.write(renderer.render(configs), tmp_path / "generated")
    emitted = [p for p in (tmp_path / "generated").rglob("*") if p.suffix in CPP_SUFFIXES]
    assert len(emitted) > len(configs)
    assert unformatted(emitted) == ""
