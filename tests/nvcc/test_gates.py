# SPDX-License-Identifier: Apache-2.0
"""What units must cost no more than, and what their machine code must hold and must not."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attn_codegen.config import Arch, AttentionConfig, Mode
from attn_runtime.compiler import Build
from attn_runtime.errors import CompileError

pytestmark = pytest.mark.nvcc

Builds = dict[tuple[str, str], Build | CompileError]
"""By name and target."""

LIMITS = {
    "Hopper prefill": (3.0, 0.3e9),
    "decode": (4.0, 0.5e9),
    "other": (5.0, 0.5e9),
}
"""Seconds of one core, bytes of memory."""
BUSY = 2.0
"""A core that shares its caches and its clock with busy neighbours is slower, at most so much."""

SERIALISED = re.compile(r"^.*\bC75\d\d\b.*$", re.MULTILINE)
"""What ptxas says when it cannot keep wgmma instructions in flight."""


ODD_DESCRIPTOR = re.compile(r"^.*\bdesc\[UR\d*[13579]\].*$", re.MULTILINE)
"""A descriptor is an even uniform register and the next one: of an odd register the instruction is
illegal, and ptxas 13.0 makes such for a tile that is not there any more (tiles_decode.py)."""

HOPPER = "sm_90"


def family_of(build: Build) -> str:
    config = AttentionConfig.parse(build.name)
    if config.mode is Mode.DECODE:
        return "decode"
    return "Hopper prefill" if config.arch is Arch.SM90 else "other"


def hopper(built: Builds) -> list[Build]:
    """The units that are written in wgmma and TMA."""
    builds = (build for build in built.values() if isinstance(build, Build))
    found = [build for build in builds if family_of(build) == "Hopper prefill"]
    assert found, "the sample has Hopper units"
    return found


def test_ptxas_keeps_the_products_of_hopper_units_in_flight(built: Builds) -> None:
    told = {build.name: SERIALISED.findall(build.log) for build in hopper(built)}
    assert {name: lines for name, lines in told.items() if lines} == {}
    assert SERIALISED.search("ptxas info : (C7510) Potential Performance Loss: wgmma is serialized")


@pytest.fixture(scope="module")
def machine_code(
    built: Builds, nvdisasm: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Every unit as a Hopper GPU runs it, by name."""
    folder = tmp_path_factory.mktemp("cubins")

    def disassembled(build: Build) -> str:
        cubin = folder / f"{build.name}.cubin"
        cubin.write_bytes(build.cubin)
        command = [nvdisasm, "-c", cubin]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    builds = [
        build
        for (_, target), build in built.items()
        if isinstance(build, Build) and target == HOPPER
    ]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        codes = pool.map(disassembled, builds)
        return {build.name: code for build, code in zip(builds, codes, strict=True)}


def test_hopper_machine_code_multiplies_by_wgmma_and_loads_by_tma(
    built: Builds, machine_code: dict[str, str]
) -> None:
    def lacks(build: Build) -> set[str]:
        words = re.findall(r"\b[A-Z]{5,}\b", machine_code[build.name])
        return {"HGMMA", "UTMALDG"} - set(words)

    missing = {build.name: lacks(build) for build in hopper(built)}
    assert {name: words for name, words in missing.items() if words} == {}


def test_no_instruction_has_its_descriptor_in_an_odd_register(
    machine_code: dict[str, str],
) -> None:
    found = {name: ODD_DESCRIPTOR.findall(code) for name, code in machine_code.items()}
    assert {name: lines[0] for name, lines in found.items() if lines} == {}
    assert ODD_DESCRIPTOR.search("LDGSTS.E.BYPASS.128 [R9], desc[UR1][R4.64] ;")
    assert all("desc[UR" in code for code in machine_code.values()), "nvdisasm writes it otherwise"


@pytest.mark.parametrize("family", LIMITS)
def test_a_unit_compiles_within_the_limits_of_its_family(
    family: str, built: Builds, capsys: pytest.CaptureFixture[str]
) -> None:
    builds = [
        build for build in built.values() if isinstance(build, Build) and family_of(build) == family
    ]
    if not builds:
        pytest.skip(f"needs a {family} unit: none is emitted yet")
    seconds, peak_bytes = LIMITS[family]
    with capsys.disabled():
        print(f"\n{family}: {costs(builds)}; at most {seconds} s, {peak_bytes / 1e6:.0f} MB")
    assert [b.name for b in builds if b.cpu_seconds > BUSY * seconds] == []
    assert [b.name for b in builds if b.peak_bytes > peak_bytes] == []


def costs(builds: Iterable[Build]) -> str:
    """The slowest and the largest compile."""
    slowest = max(builds, key=lambda build: build.cpu_seconds)
    largest = max(builds, key=lambda build: build.peak_bytes)
    return (
        f"{slowest.cpu_seconds:.1f} s ({slowest.name}), "
        f"{largest.peak_bytes / 1e6:.0f} MB ({largest.name})"
    )
