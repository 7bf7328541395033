# SPDX-License-Identifier: Apache-2.0
"""The compilers, the units to compile, and a rendered tree."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from attn_codegen import presets, renderer
from attn_codegen.config import Arch, AttentionConfig, KvDtype, Mode
from attn_codegen.tile import Tiling
from attn_codegen.tiling import tiling
from attn_runtime.compiler import Build, compile_unit, own_target, unit_of
from attn_runtime.errors import CompileError
from attn_runtime.toolchain import Toolchain, find_nvcc

TARGETS = ("sm_80", "sm_90")
"""ptxas allocates registers for each device anew, and so may spill on one alone."""
WARNINGS = ("-Werror", "all-warnings")

# Of sm80 one per tile shape, element type, cache, mask and width of V, and a reduction; of sm90 one
# per tile and element type of a quantised cache. The others of sm90, and the tiles that have a
# name, are added by `one_per_tile`.
SAMPLE = (
    "prefill_sm80_bf16_d64_block_causal",
    "prefill_sm80_bf16_d128_paged_causal",
    "prefill_sm80_f16_d128_linear_full",
    "prefill_sm80_bf16_d192_v128_paged_full",
    "prefill_sm80_f16_d192_linear_causal",
    "prefill_sm80_f16_d256_paged_full",
    "decode_sm80_bf16_d128_paged_causal",
    "decode_sm80_bf16_d128_linear_causal_t32x64",
    "decode_sm80_f16_d64_block_causal_t32x64",
    "decode_sm80_f16_d256_paged_causal",
    "prefill_sm80_bf16_int8_d128_paged_causal",
    "prefill_sm90_bf16_int8_d128_paged_causal",
    "prefill_sm90_f16_int4_d64_linear_full",
    "prefill_sm90_bf16_e4m3_d192_block_causal",
    "prefill_sm90_f16_e4m3_d256_paged_full",
    "decode_sm80_bf16_int8_d128_paged_causal",
    "decode_sm80_f16_int4_d64_block_causal",
    "decode_sm80_f16_int4_d64_block_causal_t16x128",
    "decode_sm80_bf16_int4_d128_paged_causal",
    "write_sm80_bf16_int4_d128_paged",
    "reduce_sm80_bf16_d128",
)
# Widths that no preset has: not a multiple of what a row of shared memory holds.
ODD_WIDTHS = ("prefill_sm80_bf16_d16_paged_causal", "prefill_sm80_f16_d80_v240_linear_full")

Run = Callable[..., subprocess.CompletedProcess[str]]


def one_per_tile(arch: Arch) -> Iterator[AttentionConfig]:
    """A kernel for each tile of the preset's widths; element types, caches and masks take turns."""
    turn = 0
    kernels = [
        c
        for c in presets.preset("all")
        if (c.mode, c.arch, c.kv_dtype) == (Mode.PREFILL, arch, KvDtype.SAME)
    ]
    by_tile: dict[tuple[int, int, Tiling], list[AttentionConfig]] = {}
    for config in kernels:
        tile = replace(tiling(config), shared_bytes=0)  # its bytes differ from cache to cache
        by_tile.setdefault((config.head_dim, config.head_dim_v, tile), []).append(config)
    for configs in by_tile.values():
        yield configs[turn % len(configs)]
        turn += 5


@pytest.fixture(scope="session")
def toolchain() -> Toolchain:
    return find_nvcc()


@pytest.fixture(scope="session")
def cuda_include(toolchain: Toolchain) -> Path:
    """The folder of the CUDA headers, as nvcc itself names it."""
    done = subprocess.run(
        [toolchain.nvcc, "--dryrun", "-cubin", "-x", "cu", os.devnull],
        capture_output=True,
        text=True,
        check=True,
    )
    for word in done.stderr.replace('"', " ").split():
        if word.startswith("-I") and Path(word[2:], "cuda_runtime.h").is_file():
            return Path(word[2:]).resolve()
    pytest.skip(f"needs the CUDA headers: {toolchain.nvcc} names no folder with cuda_runtime.h")


@pytest.fixture(scope="session")
def host_compiler() -> str:
    found = shutil.which("g++")
    if found is None:
        pytest.skip("needs g++: not on PATH")
    return found


@pytest.fixture(scope="session")
def chosen(all_units: bool) -> tuple[AttentionConfig, ...]:
    """What the nvcc tests compile: a sample, or the default preset with --all-units."""
    names = (*SAMPLE, *ODD_WIDTHS)
    named = [config for config in one_per_tile(Arch.SM80) if config.tile]
    sample = (*map(AttentionConfig.parse, names), *named, *one_per_tile(Arch.SM90))
    return tuple(dict.fromkeys([*sample, *presets.preset("default")])) if all_units else sample


@pytest.fixture(scope="session")
def built(
    chosen: tuple[AttentionConfig, ...], toolchain: Toolchain
) -> dict[tuple[str, str], Build | CompileError]:
    """Every chosen unit, compiled with warnings as errors, side by side, for each of its devices.
    All tests of a session share the results."""

    def compile_one(job: tuple[AttentionConfig, str]) -> Build | CompileError:
        try:
            return compile_unit(*job, toolchain, extra_flags=WARNINGS)
        except CompileError as error:
            return error

    jobs = [
        (config, target)
        for config in chosen
        for target in dict.fromkeys(own_target(unit_of(config)) or target for target in TARGETS)
    ]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        done = pool.map(compile_one, jobs)
        return {
            (config.name, target): made for (config, target), made in zip(jobs, done, strict=True)
        }


@pytest.fixture(scope="session")
def nvdisasm(toolchain: Toolchain) -> Path:
    """NVIDIA's disassembler: of the toolkit, or of the package in the test extra."""
    found = shutil.which("nvdisasm") or shutil.which("nvdisasm", path=toolchain.nvcc.parent)
    if found is not None:
        return Path(found)
    with suppress(metadata.PackageNotFoundError):
        for file in metadata.files("nvidia-cuda-nvdisasm") or ():
            if file.stem == "nvdisasm":
                return Path(str(file.locate()))
    pytest.skip(
        "needs nvdisasm: not on PATH, not beside nvcc, and nvidia-cuda-nvdisasm is not installed"
    )


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered folder with one attention kernel and its reduction."""
    folder = tmp_path_factory.mktemp("generated")
    configs = presets.with_reductions([AttentionConfig()])
    for path, text in renderer.render(configs).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return folder


@pytest.fixture(scope="session")
def host_program(
    tree: Path,
    host_compiler: str,
    cuda_include: Path,
    run: Run,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """Compiles a host program from sources, with flags, against the rendered tree."""

    def compile_program(*sources_and_flags: object) -> Path:
        program = tmp_path_factory.mktemp("host_program") / "program"
        includes = ("-I", tree, "-isystem", cuda_include)
        run([host_compiler, "-std=c++17", *includes, *sources_and_flags, "-o", program])
        return program

    return compile_program


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs a command; a failure shows its output."""

    def run_command(
        command: Sequence[object], cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in command]
        done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"{' '.join(words)}\n{done.stdout}{done.stderr}", pytrace=False)
        return done

    return run_command
