# SPDX-License-Identifier: Apache-2.0
"""What users read, word for word; --update-golden writes it anew, for a review of the change."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from attn_codegen import __version__, presets, renderer
from attn_codegen.config import AttentionConfig
from attn_codegen.manifest import FILE_NAME
from commands import run

HERE = Path(__file__).parent
PAGED = "prefill_sm80_bf16_d128_paged_causal"

# Only texts of this project: those that Click writes differ between its versions.
OUTPUTS = {
    "list": ["list"],
    "list-turbomind-f16": ["list", "--preset", "turbomind", "--dtype", "f16"],
    "show-prefill": ["show", PAGED],
    "show-reduce": ["show", "reduce_sm80_bf16_d128"],
    "show-write": ["show", "write_sm80_bf16_int8_d128_paged"],
    "explain-valid": ["explain"],
    "explain-head-dim-100": ["explain", "--dtype", "bf16", "--head-dim", "100"],
    "explain-reduce-int8": ["explain", "reduce_sm80_bf16_int8_d128"],
    "explain-block-two-widths": ["explain", "--head-dim", "192", "--head-dim-v", "128", "--json"],
    "emit-one": ["emit", "--config", PAGED],
}

USAGE_ERRORS = {
    "axis-value": ["emit", "--dtype", "fp16"],
    "head-dim-word": ["emit", "--head-dim", "wide"],
    "filter-refused": ["emit", "--head-dim", "100"],
    "filter-outside-preset": ["emit", "--head-dim", "80", "--dtype", "bf16"],
    "name": ["emit", "--config", "prefill_sm80_fp16_d128_paged_causal"],
    "name-order": ["show", "prefill_sm80_f16_d128_causal_paged"],
    "name-not-canonical": ["show", "prefill_sm80_f16_same_d128_paged_causal"],
    "name-refused": ["show", "decode_sm90_bf16_d100_paged_causal"],
    "namespace": ["emit", "--namespace", "my-attn"],
    "preset": ["list", "--preset", "everything"],
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and a terminal of a known width."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> object:
    """Compares a text with a file of this folder, or writes the file."""

    def compare(name: str, text: str) -> None:
        path = HERE / name
        if request.config.getoption("--update-golden"):
            path.write_text(text)
        assert text == path.read_text(), f"{path.name} differs: --update-golden writes it anew"

    return compare


def test_there_is_no_golden_file_without_a_test() -> None:
    known = {f"{name}.txt" for name in OUTPUTS} | {"usage-errors.txt", "output-errors.txt"}
    known |= {"prefill.cu", "reduce.cu", "test_golden.py"}
    assert {path.name for path in HERE.iterdir() if path.is_file()} == known


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_command_prints_what_it_always_did(name: str, golden) -> None:  # type: ignore[no-untyped-def]
    done = run(*OUTPUTS[name])
    assert done.err == ""
    golden(f"{name}.txt", done.out)


def test_every_usage_error_reads_as_it_always_did(golden) -> None:  # type: ignore[no-untyped-def]
    said = []
    for args in USAGE_ERRORS.values():
        done = run(*args)
        assert (done.code, done.out) == (2, "")
        said.append(f"$ attn-codegen {' '.join(args)}\n{done.err}")
    golden("usage-errors.txt", "\n".join(said))


def edited(out: Path) -> None:
    run("emit")
    (out / f"kernels/{PAGED}.cu").write_text("// mine\n")


def edited_twice(out: Path) -> None:
    edited(out)
    (out / "attn/attention.h").write_text("// mine\n")


def foreign(out: Path) -> None:
    out.mkdir()
    (out / "main.c").touch()


def a_file(out: Path) -> None:
    out.write_text("")


def linked_kernels(out: Path) -> None:
    out.mkdir()
    (out / "kernels").symlink_to("/")


def corrupt(out: Path) -> None:
    run("emit")
    (out / FILE_NAME).write_text("{\n")


def edited_manifest(out: Path) -> None:
    run("emit")
    text = (out / FILE_NAME).read_text()
    (out / FILE_NAME).write_text(text.replace('"threads": 128', '"threads": 64'))


def other_manifest(out: Path) -> None:
    out.mkdir()
    (out / FILE_NAME).write_text('{"name": "a web app"}\n')


def newer_manifest(out: Path) -> None:
    run("emit")
    text = (out / FILE_NAME).read_text()
    (out / FILE_NAME).write_text(text.replace('"schema": 1', '"schema": 2'))


def escaping_manifest(out: Path) -> None:
    run("emit")
    text = (out / FILE_NAME).read_text()
    (out / FILE_NAME).write_text(text.replace('"attn/params.h"', '"../params.h"'))


OUTPUT_ERRORS = (
    edited, edited_twice, foreign, a_file, linked_kernels, corrupt, edited_manifest, other_manifest,
    newer_manifest, escaping_manifest,
)  # fmt: skip


def test_every_output_error_reads_as_it_always_did(  # type: ignore[no-untyped-def]
    golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    for spoil in OUTPUT_ERRORS:
        folder = tmp_path / spoil.__name__
        folder.mkdir()
        monkeypatch.chdir(folder)
        spoil(folder / "generated")
        done = run("emit")
        assert (done.code, done.out) == (1, "")
        name = spoil.__name__.replace("_", " ")
        said.append(f"# {name}\n$ attn-codegen emit\n{done.err}")
    assert os.getcwd() == str(folder)
    version = f"written by attn-codegen {__version__}"
    golden("output-errors.txt", "\n".join(said).replace(version, "written by attn-codegen VERSION"))


@pytest.mark.parametrize("name", ["prefill", "reduce"])
def test_a_unit_looks_as_it_always_did(name: str, golden) -> None:  # type: ignore[no-untyped-def]
    """The digest is left out: it changes with every header."""
    config = AttentionConfig.of(
        mode=name, dtype="bf16", cache=None if name == "reduce" else "paged"
    )
    assert config in presets.preset("default")
    text = renderer.render([config])[f"kernels/{config.name}.cu"]
    text = re.sub(r"(?m)^(// digest +)[0-9a-f]{64}$", r"\1DIGEST", text)
    golden(f"{name}.cu", text.replace(f"attn-codegen {__version__}", "attn-codegen VERSION"))
