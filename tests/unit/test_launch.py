# SPDX-License-Identifier: Apache-2.0
"""What a launch packs, and in which order kernels are launched."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest

from attn_codegen import struct_layout
from attn_codegen.config import AttentionConfig, Cache, reduction_of
from attn_codegen.tiling import tiling
from attn_runtime.arguments import CACHE_TYPE
from attn_runtime.errors import ArgumentError
from attn_runtime.kernel import Kernel
from attn_runtime.kv_cache import Values
from attn_runtime.launch import ARRAYS, Launch, PlannedCall, packed_values
from attn_runtime.plan import DeviceLimits, KernelLimits, Plan, Problem, SplitPolicy, plan

SIZE = struct_layout.size_of("Arguments")
CONFIG = AttentionConfig()
ADDRESSES = [0x1000 * (at + 1) for at in range(len(ARRAYS))]


@dataclass
class Recorder:
    """Stands for a loaded function: keeps what it was launched with, as the driver copies it."""

    name: str
    log: list[tuple[str, int, int, Any, bytes]] = field(default_factory=list)
    argument_offset: int = 0
    size: int = SIZE
    context: Any = None
    ptx_version: int = 80
    begins_early: bool = False
    cluster: int = 1

    def launcher(
        self,
        grid: int,
        threads: int,
        shared: int,
        parameters: int,
        *,
        may_begin_early: bool = False,
        cluster: int = 1,
        is_balanced: bool = False,
    ) -> Callable[[int], None]:
        self.begins_early, self.cluster = may_begin_early, cluster

        def start(stream: int) -> None:
            address = ctypes.c_void_p.from_address(parameters).value
            assert address is not None
            self.log.append(
                (self.name, grid, threads, stream, ctypes.string_at(address, self.size))
            )

        return start

    def launch_on_own(self, grid: int, threads: int, shared: int, stream: Any, buffer: Any) -> None:
        space = bytes(buffer)
        assert len(space) == self.argument_offset + SIZE
        self.log.append((self.name, grid, threads, stream, space[self.argument_offset :]))


def planned(splits: int) -> Plan:
    problem = Problem(100, 3, 100, 4096, 8, 2, 128)
    tile = tiling(CONFIG)
    limits = KernelLimits(tile.cta_q, tile.cta_s, 2, tile.threads, tile.shared_bytes)
    return plan(problem, DeviceLimits(132), limits, SplitPolicy.fixed(splits))


VALUES: Values = {"token_num": 100, "stride": 1024, "inv_sqrt_dh": 0.125, "causal": True}


def make_launch(
    cache: Cache = Cache.BLOCK, splits: int = 1, offsets: tuple[int, int] = (0, 0)
) -> tuple[Launch, list[tuple[str, int, int, Any, bytes]]]:
    log: list[tuple[str, int, int, Any, bytes]] = []
    kernels = []
    pairs = ((CONFIG, "attention"), (reduction_of(CONFIG), "reduction"))
    for (config, name), offset in zip(pairs, offsets, strict=True):
        tile = tiling(config)
        limits = KernelLimits(tile.cta_q, tile.cta_s, 2, tile.threads, tile.shared_bytes)
        function = cast(Any, Recorder(name, log, offset))
        kernels.append(Kernel(config, tile, limits, function, cast(Any, None)))
    values = VALUES | {"cache": CACHE_TYPE[cache]}
    return Launch(PlannedCall(kernels[0], kernels[1], planned(splits), cache, values)), log


def unpacked(content: bytes) -> Any:
    return np.frombuffer(content, struct_layout.numpy_dtype("Arguments"))[0]


def address(name: str) -> int:
    return ADDRESSES[ARRAYS.index(name)]


@pytest.mark.parametrize(
    ("cache", "owner", "names"),
    [
        (Cache.LINEAR, "linear_iter_params", ("k", "v")),
        (Cache.PAGED, "paged_iter_params", ("k", "v", "block_table")),
        (Cache.BLOCK, "block_iter_params", ("block_ptrs", "cu_block_nums")),
    ],
)
def test_every_address_lands_in_its_field(cache: Cache, owner: str, names: tuple[str, ...]) -> None:
    launch, log = make_launch(cache)
    launch.run(ADDRESSES, 7)
    found = unpacked(log[0][-1])["params"]
    for name in ("q", "cu_q_len", "cu_k_len", "finished", "out", "lse"):
        assert found[name] == address(name)
    for name in names:
        assert found[owner][name] == address(name)
    others = {"linear_iter_params", "paged_iter_params", "block_iter_params"} - {owner}
    assert all(found[other].tobytes().strip(b"\0") == b"" for other in others)


def test_numbers_and_plan_stay_what_they_were_packed_as() -> None:
    launch, log = make_launch(splits=3)
    for step in range(2):
        launch.run([value + 0x100 * step for value in ADDRESSES], 7)
    for *_, content in log:
        found, expected = unpacked(content), planned(3)
        assert found["params"]["token_num"] == 100
        assert found["params"]["stride"] == 1024
        assert found["params"]["inv_sqrt_dh"] == np.float32(0.125)
        assert found["params"]["causal"]
        assert found["params"]["max_split_k"] == 3
        for name in set(struct_layout.field_names("TilePlan")) - {"merge"}:
            assert found["plan"][name] == getattr(expected, name)
        assert found["plan"]["merge"] == 0, "splits, into the output"


def test_a_repeated_run_brings_its_own_addresses() -> None:
    launch, log = make_launch()
    launch.run(ADDRESSES, 7)
    launch.run([0] * len(ARRAYS), 7)
    assert unpacked(log[0][-1])["params"]["q"] == address("q")
    assert unpacked(log[1][-1])["params"]["q"] == 0


def test_the_reduction_follows_only_a_split_call_on_the_same_stream() -> None:
    launch, log = make_launch(splits=1)
    launch.run(ADDRESSES, 7)
    assert [entry[0] for entry in log] == ["attention"]
    launch, log = make_launch(splits=3)
    launch.run(ADDRESSES, 7)
    assert [(name, stream) for name, _, _, stream, _ in log] == [("attention", 7), ("reduction", 7)]
    made = planned(3)
    assert [grid for _, grid, *_ in log] == [made.grid_x, made.reduce_grid_x]


def test_the_workspace_holds_partial_o_and_then_partial_ml() -> None:
    launch, log = make_launch(splits=3)
    launch.run(ADDRESSES, 7)
    found = unpacked(log[1][-1])["params"]
    assert found["partial_O"] == address("workspace")
    assert found["partial_ML"] == address("workspace") + planned(3).partial_ML_offset


@pytest.mark.parametrize("offsets", [(0, 0), (112, 0), (0, 112)])
def test_pycuda_gets_the_parameter_space_with_each_kernel_s_own_offset(
    offsets: tuple[int, int],
) -> None:
    own, own_log = make_launch(splits=3, offsets=offsets)
    foreign, foreign_log = make_launch(splits=3, offsets=offsets)
    own.run_on_own(ADDRESSES, None)
    foreign.run(ADDRESSES, 0)
    assert [entry[-1] for entry in own_log] == [entry[-1] for entry in foreign_log]


def test_every_packed_name_is_a_field() -> None:
    """A misspelt name would be packed as nothing."""
    names = set(struct_layout.field_names("Arguments"))
    assert set(packed_values(planned(3), VALUES)) <= names


@pytest.mark.parametrize(
    ("name", "address_of_it"),
    [
        ("q", 0x1008),
        ("k", 0x1002),
        ("v", 0x1008),
        ("out", 0x100C),
        ("cu_q_len", 0x1002),
        ("cu_k_len", 0x1001),
        ("block_table", 0x1002),
        ("cu_block_nums", 0x1002),
        ("block_ptrs", 0x1004),
        ("lse", 0x1002),
        ("workspace", 0x1080),
    ],
)
def test_a_misaligned_address_is_refused_by_its_name(name: str, address_of_it: int) -> None:
    launch, log = make_launch()
    launch.run(ADDRESSES, 7)
    addresses = list(ADDRESSES)
    addresses[ARRAYS.index(name)] = address_of_it
    for _ in range(2):
        with pytest.raises(ArgumentError, match=f"{name} is at address 0x10.*multiple of") as error:
            launch.run(addresses, 7)
        assert error.value.argument == name
    launch.run(ADDRESSES, 7)
    assert len(log) == 2 and log[0] == log[1]


def test_finished_may_stand_at_any_byte() -> None:
    addresses = list(ADDRESSES)
    addresses[ARRAYS.index("finished")] = 0x1001
    launch, log = make_launch()
    launch.run(addresses, 7)
    assert unpacked(log[0][-1])["params"]["finished"] == 0x1001
