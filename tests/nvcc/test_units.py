# SPDX-License-Identifier: Apache-2.0
"""Units compile without a warning, without spills, and hold what the manifest says of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attn_codegen.config import Arch, AttentionConfig
from attn_codegen.renderer import kernel_entry, unit_sources
from attn_codegen.tiling import tiling
from attn_runtime.compiler import Build, Unit, compile_unit, unit_of
from attn_runtime.errors import CompileError
from attn_runtime.toolchain import Toolchain

pytestmark = pytest.mark.nvcc

Builds = dict[tuple[str, str], Build | CompileError]
"""By name and target."""

REGISTERS_OF_AN_SM = 65_536


def compiled(built: Builds) -> list[Build]:
    """Those that nvcc took."""
    return [build for build in built.values() if isinstance(build, Build)]


def is_hopper(build: Build) -> bool:
    """Of the family that is written in wgmma and TMA."""
    return AttentionConfig.parse(build.name).arch is Arch.SM90


def test_every_unit_compiles_with_warnings_as_errors(built: Builds) -> None:
    failed = [error for error in built.values() if isinstance(error, CompileError)]
    assert not failed, f"{len(failed)} of {len(built)} fail, first:\n{failed[0]}"


def test_no_unit_spills_registers(built: Builds) -> None:
    """Hopper's may spill a word in and out: ptxas finds no room for one of 65,536 registers."""
    spilled = {
        (build.name, build.target): (build.spill_bytes, build.stack_bytes)
        for build in compiled(built)
        if max(build.spill_bytes, build.stack_bytes) > (8 if is_hopper(build) else 0)
    }
    assert not spilled, f"(spill bytes, stack bytes) of a thread: {spilled}"


def test_registers_leave_room_for_the_ctas_that_the_tile_is_made_for(built: Builds) -> None:
    for build in compiled(built):
        tile = tiling(AttentionConfig.parse(build.name))
        taken = build.registers * tile.threads * tile.ctas_per_sm
        assert 0 < taken <= REGISTERS_OF_AN_SM, build


def test_all_shared_memory_is_dynamic_and_so_in_the_manifest(built: Builds) -> None:
    assert [build for build in compiled(built) if build.shared_bytes] == []


def test_a_cubin_has_the_entry_that_the_manifest_names(built: Builds) -> None:
    for build in compiled(built):
        assert build.cubin.startswith(b"\x7fELF"), build
        assert f".text.{build.symbol}\0".encode() in build.cubin, build


def test_a_manifest_with_other_shared_bytes_does_not_compile(toolchain: Toolchain) -> None:
    config = AttentionConfig()
    unit, shared = unit_of(config), tiling(config).shared_bytes
    text = unit.texts[unit.file].replace(
        f"kSharedBytes = {shared}", f"kSharedBytes = {shared + 16}"
    )
    wrong = replace(unit, texts={**unit.texts, unit.file: text})
    with pytest.raises(CompileError, match="the shared memory of the manifest is that of the ker"):
        compile_unit(wrong, "sm_80", toolchain)


def test_params_of_another_size_than_the_runtime_packs_do_not_compile(
    toolchain: Toolchain,
) -> None:
    unit = unit_of(AttentionConfig())
    text = unit.texts["attn/params.h"].replace("  int token_num", "  int added;\n  int token_num")
    text = text.replace("  void* cp_fn_ctx", "  int added_too;\n  int64_t more;\n  void* cp_fn_ctx")
    wrong = replace(unit, texts={**unit.texts, "attn/params.h": text})
    with pytest.raises(CompileError, match="the layout that the runtime packs"):
        compile_unit(wrong, "sm_80", toolchain)


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_one_source_serves_the_family_and_later_devices(toolchain: Toolchain, target: str) -> None:
    build = compile_unit(AttentionConfig.parse("reduce_sm80_f16_d64"), target, toolchain)
    assert build.target == target
    assert f"for '{target}'" in build.log


def test_a_renamed_namespace_compiles(toolchain: Toolchain) -> None:
    config = AttentionConfig()
    entry = kernel_entry(config, namespace="vendor_attn")
    texts = unit_sources(config, namespace="vendor_attn")
    unit = Unit(entry.name, entry.symbol, entry.file, entry.gencode, texts)
    build = compile_unit(unit, "sm_80", toolchain)
    assert build.symbol == f"vendor_attn_{config.name}"
    assert build.registers
