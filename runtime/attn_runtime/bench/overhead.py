# SPDX-License-Identifier: Apache-2.0
"""`bench overhead`: how long the host is busy with a call that it has made before.

One sequence of one token, so that the device is never the bottleneck, in bursts that fit into the
launch queue. Everything is given: nothing is allocated.
"""

from __future__ import annotations

import importlib.util
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from attn_codegen.config import Arch, AttentionConfig, Cache, Dtype, Mask
from attn_codegen.presets import with_reductions
from attn_codegen.renderer import kernel_entry, render
from attn_runtime import driver
from attn_runtime.attention import Attention
from attn_runtime.bench import machine, overhead_report, report
from attn_runtime.bench.device import Bench
from attn_runtime.bench.errors import Unavailable
from attn_runtime.bench.overhead_report import OverheadResults
from attn_runtime.bench.peers import torch_ints, torch_normal
from attn_runtime.bench.timing import Call
from attn_runtime.compiler import flags, own_target, unit_of
from attn_runtime.errors import ToolchainError
from attn_runtime.files import write_tree
from attn_runtime.kernel import on_device
from attn_runtime.toolchain import find_nvcc

_TITLE: Final = "host microseconds of a repeated call, one sequence of one token"
HEADS: Final = 16
HEAD_DIM: Final = 128
_CALLS: Final = 200
_BURSTS: Final = 25
_WARM_S: Final = 0.5
"""Seconds of bursts that are not counted: a core that has rested is slow at first."""

_FOLDER: Final = Path(__file__).parent
_PROGRAMS: Final = {Arch.SM80: "overhead_sm80.cu", Arch.SM90: "overhead_sm90.cu"}


def run(dtype: Dtype, arch: Arch | None, echo: Callable[[str], None]) -> OverheadResults:
    """Measure on the current device; `echo` gets each line of the report as it becomes known.
    Raises DriverError without a GPU."""
    context = driver.context_of_device(driver.current_device())
    missing: dict[str, str] = {}
    with context:
        bench = Bench(context)
        facts = machine.facts_of(context.device)
        for line in (*report.header(_TITLE, facts), ""):
            echo(line)
        calls = {
            "Attention, PyCUDA arrays": _pycuda_call(bench, dtype, arch),
            "one small kernel, PyCUDA arrays": _bare_call(bench),
        }
        if importlib.util.find_spec("torch") is None:
            missing["torch"] = "not installed"
        else:
            calls |= {name: make(dtype, arch) for name, make in _torch_calls().items()}
        known = host_microseconds(calls, bench)
        for line in overhead_report.figures(known):
            echo(line)
        config = AttentionConfig.of(
            dtype=Dtype.BF16, arch=arch or Arch.SM80, cache=Cache.LINEAR, mask=Mask.CAUSAL
        )
        chosen = config if arch else on_device(config, context.device)
        try:
            of_cpp = cpp_microseconds(chosen, context.device.target)
        except Unavailable as error:
            of_cpp, missing["invokeAttention, C++"] = {}, str(error)
        for line in (*overhead_report.figures(of_cpp), *overhead_report.reasons(missing)):
            echo(line)
    return OverheadResults(_TITLE, facts, known | of_cpp, missing)


def host_microseconds(calls: Mapping[str, Call], bench: Bench) -> dict[str, float]:
    """Of one of each call: the median over bursts that begin with an idle device, in shuffled
    rounds, once the host is warm."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    rng, names = random.Random(0), list(calls)
    end_of_warmth = time.perf_counter() + _WARM_S
    while len(samples[names[0]]) < _BURSTS:
        is_warm = time.perf_counter() > end_of_warmth
        for name in rng.sample(names, len(names)):
            took = _burst(calls[name], bench)
            if is_warm:
                samples[name].append(took)
    return {name: median(times) for name, times in samples.items()}


def _burst(call: Call, bench: Bench) -> float:
    bench.synchronize()
    begin = time.perf_counter()
    for _ in range(_CALLS):
        call()
    took = time.perf_counter() - begin
    bench.synchronize()
    return took / _CALLS * 1e6


def _attention(dtype: Dtype, arch: Arch | None) -> Attention:
    return Attention(num_heads=HEADS, head_dim=HEAD_DIM, dtype=dtype, cache=Cache.LINEAR, arch=arch)


def _pycuda_call(bench: Bench, dtype: Dtype, arch: Arch | None) -> Call:
    attention = _attention(dtype, arch)
    rows = [bench.normal((1, HEADS, HEAD_DIM), dtype) for _ in range(4)]
    one = bench.to_device(np.array([0, 1], np.int32))
    return _one_token(attention, rows, one)


def _torch_call(dtype: Dtype, arch: Arch | None) -> Call:
    rows = [torch_normal(dtype, 1, HEADS, HEAD_DIM) for _ in range(4)]
    return _one_token(_attention(dtype, arch), rows, torch_ints([0, 1]))


def _one_token(attention: Attention, rows: Sequence[Any], one: Any) -> Call:
    q, k, v, out = rows
    return lambda: attention(q, k, v, cu_q_len=one, cu_k_len=one, max_q_len=1, max_k_len=1, out=out)


def _sdpa_call(dtype: Dtype, arch: Arch | None) -> Call:
    import torch

    q, k, v = (torch_normal(dtype, 1, HEADS, 1, HEAD_DIM) for _ in range(3))
    return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)


def _torch_calls() -> dict[str, Callable[[Dtype, Arch | None], Call]]:
    return {"Attention, torch tensors": _torch_call, "torch SDPA": _sdpa_call}


def _bare_call(bench: Bench) -> Call:
    """The floor of any launch from Python here: one write of 16 bytes."""
    array = bench.empty((8,), "uint16")
    return lambda: bench.write(array)


def cpp_microseconds(config: AttentionConfig, target: str) -> dict[str, float]:
    """What a C++ program needs for the same call, and for launching an empty kernel with the same
    parameters. Raises Unavailable where it cannot be built or run."""
    with tempfile.TemporaryDirectory(prefix="attn-codegen-overhead-") as name:
        folder = Path(name)
        try:
            program = _build_program(folder, config, target)
            done = subprocess.run(
                [program], capture_output=True, text=True, timeout=60, check=False
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(str(error)) from error
        if done.returncode != 0:
            raise Unavailable(f"the program failed: {done.stderr.strip()}")
        call, launch = map(float, done.stdout.split())
    return {"invokeAttention, C++": call, "an empty kernel, C++": launch}


def _build_program(folder: Path, config: AttentionConfig, target: str) -> Path:
    try:
        nvcc = find_nvcc().nvcc
    except ToolchainError as error:
        raise Unavailable(str(error)) from error
    chosen = with_reductions([config])
    write_tree(folder, render(chosen))
    for source in ("overhead.cuh", _PROGRAMS[config.arch]):
        shutil.copy(_FOLDER / source, folder)
    unit = unit_of(config)
    architecture = flags(unit, own_target(unit) or target)[-1]
    units = [kernel_entry(one).file for one in chosen]
    program = folder / "overhead"
    command = [str(nvcc), "-std=c++17", "-O2", architecture, "-I", ".", "-o", str(program)]
    done = subprocess.run(
        [*command, _PROGRAMS[config.arch], *units],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise Unavailable(f"nvcc cannot build it: {(done.stderr or done.stdout).strip()[-300:]}")
    return program
