# SPDX-License-Identifier: Apache-2.0
"""A launch by TMA: which tensor maps a call encodes, and what a refused one leaves behind."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from test_launch import Recorder

from attn_codegen import struct_layout
from attn_codegen.config import AttentionConfig, Cache, Dtype, reduction_of
from attn_codegen.tiling import tiling
from attn_runtime import map_encoder, tma_launch
from attn_runtime.errors import ArgumentError, DriverError
from attn_runtime.kernel import Kernel
from attn_runtime.kv_cache import Values
from attn_runtime.launch import ARRAYS, PlannedCall
from attn_runtime.map_encoder import TENSOR_MAP_BYTES, RowsLayout
from attn_runtime.plan import DeviceLimits, KernelLimits, Problem, SplitPolicy, plan
from attn_runtime.tma_launch import TmaLaunch

CONFIG = AttentionConfig.of(arch="sm90", head_dim=128, cache="linear")
GIVEN = ("q", "k", "v", "cu_q_len", "cu_k_len", "out")
ADDRESSES = [0x1000 * (at + 1) if name in GIVEN else 0 for at, name in enumerate(ARRAYS)]
COUNTERS = 0x77000
MAP_OFFSETS = {name: at for name, _, at in struct_layout.leaves("TmaArguments")}
VALUES: Values = {
    **{
        "token_num": 100,
        "batch_size": 3,
        "num_heads": 8,
        "num_kv_heads": 2,
        "size_per_head_v": 128,
    },
    **{"stride": 1024, "max_k_len": 4096, "cp_size": 1, "linear_iter_params.token_count": 4096},
    **{f"linear_iter_params.{name}_head_stride": 128 for name in "kv"},
    **{f"linear_iter_params.{name}_token_stride": 256 for name in "kv"},
}


class Encoder:
    """The driver's encoder: a map that names its address, or a refusal."""

    def __init__(self) -> None:
        self.encoded: list[int] = []
        self.layouts: list[RowsLayout] = []
        self.refused: set[int] = set()

    def __call__(self, layout: RowsLayout, address: int) -> bytes:
        if address in self.refused:
            raise DriverError("the driver refuses")
        self.encoded.append(address)
        self.layouts.append(layout)
        return address.to_bytes(TENSOR_MAP_BYTES, "little")


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    found = Encoder()
    monkeypatch.setattr(map_encoder, "tensor_map", found)
    counters = SimpleNamespace(address=lambda stream: COUNTERS + stream)
    monkeypatch.setattr(tma_launch, "counters_of", lambda context: counters)
    return found


def make_launch(
    main: AttentionConfig = CONFIG, cluster: int = 1, **values: int
) -> tuple[TmaLaunch, list[Any]]:
    log: list[Any] = []
    kernels = []
    for config in (main, reduction_of(main)):
        tile = tiling(config)
        limits = KernelLimits(tile.cta_q, tile.cta_s, 1, tile.threads, tile.shared_bytes)
        function = Recorder(config.name, log, size=struct_layout.size_of("TmaArguments"))
        function.context = SimpleNamespace(device=SimpleNamespace(sm_count=132))
        kernels.append(Kernel(config, tile, limits, cast(Any, function), cast(Any, None)))
    problem = Problem(100, 3, 100, 4096, 8, 2, 128)
    made = plan(problem, DeviceLimits(132), kernels[0].limits, SplitPolicy.off())
    made = replace(made, cluster=cluster)
    call = PlannedCall(kernels[0], kernels[1], made, Cache.LINEAR, VALUES | values)
    return TmaLaunch(call), log


def changed(**addresses: int) -> list[int]:
    return [addresses.get(name, old) for name, old in zip(ARRAYS, ADDRESSES, strict=True)]


def map_of(content: bytes, name: str) -> int:
    """The address that a launched map names."""
    begin = MAP_OFFSETS[name]
    return int.from_bytes(content[begin : begin + TENSOR_MAP_BYTES], "little")


def test_a_map_is_encoded_once_for_each_address(encoder: Encoder) -> None:
    launch, log = make_launch()
    launch.run(ADDRESSES, 7)
    first = {name: ADDRESSES[ARRAYS.index(name)] for name in ("q", "k", "v", "out")}
    assert encoder.encoded == [*first.values()]
    launch.run(list(ADDRESSES), 7)
    launch.run(changed(k=0xABC00), 7)
    assert encoder.encoded[4:] == [0xABC00]
    for content, own in ((log[1][-1], first), (log[2][-1], first | {"k": 0xABC00})):
        assert {name: map_of(content, name) for name in own} == own
    launch.run(ADDRESSES, 7)
    assert map_of(log[-1][-1], "k") == first["k"]
    assert len(encoder.encoded) == 5, "both are known"


def test_encoded_maps_do_not_pile_up(encoder: Encoder) -> None:
    launch, log = make_launch()
    addresses = [0x10000 * at for at in range(1, 200)]
    for address in (*addresses, *addresses):
        launch.run(changed(q=address), 7)
        assert map_of(log[-1][-1], "q") == address
    assert len(encoder.encoded) > len(addresses) + 3, "what is old is forgotten"


def test_a_refused_map_is_named_launches_nothing_and_is_tried_again(encoder: Encoder) -> None:
    launch, log = make_launch()
    launch.run(ADDRESSES, 7)
    encoder.refused.add(0xABC00)
    for _ in range(2):
        with pytest.raises(ArgumentError, match="v cannot be read by TMA") as error:
            launch.run(changed(v=0xABC00), 7)
        assert error.value.argument == "v"
    assert len(log) == 1
    encoder.refused.clear()
    launch.run(changed(v=0xABC00), 7)
    assert map_of(log[-1][-1], "v") == 0xABC00
    launch.run(ADDRESSES, 7)
    assert map_of(log[-1][-1], "v") == ADDRESSES[ARRAYS.index("v")]


def test_the_counter_is_that_of_the_stream_of_each_launch(encoder: Encoder) -> None:
    launch, log = make_launch()
    for stream in (7, 9):
        launch.run(ADDRESSES, stream)
    at = MAP_OFFSETS["params.counters"]
    found = [int.from_bytes(entry[-1][at : at + 8], "little") for entry in log]
    assert found == [COUNTERS + 7, COUNTERS + 9]


def test_a_launch_may_begin_while_the_one_before_it_ends(encoder: Encoder) -> None:
    launch, _ = make_launch()
    assert cast(Any, launch._kernel.function).begins_early, "the kernel waits by itself"


def test_a_launch_has_the_clusters_of_its_plan(encoder: Encoder) -> None:
    for cluster in (1, 4):
        launch, _ = make_launch(cluster=cluster)
        assert cast(Any, launch._kernel.function).cluster == cluster


def test_a_launch_of_a_part_leaves_multiprocessors_to_the_gather_before_it(
    encoder: Encoder,
) -> None:
    launch, _ = make_launch(cp_size=2, cp_rank=1)
    assert not cast(Any, launch._kernel.function).begins_early


@pytest.mark.parametrize("dtype", Dtype)
def test_maps_are_of_the_elements_of_the_kernel_and_their_boxes_of_one_sequence(
    dtype: Dtype, encoder: Encoder
) -> None:
    launch, _ = make_launch(replace(CONFIG, dtype=dtype))
    launch.run(ADDRESSES, 7)
    assert len(encoder.layouts) == 4
    for layout in encoder.layouts:
        assert layout.is_bf16 == (dtype is Dtype.BF16)
        assert len(layout.box) == len(layout.dims)
        assert all(extent == 1 for extent in layout.box[3:])


def test_a_kernel_is_told_how_many_packs_of_heads_a_group_has(encoder: Encoder) -> None:
    launch, log = make_launch(num_heads=24, num_kv_heads=2)
    launch.run(ADDRESSES, 7)
    content = log[-1][-1]
    heads, packs = (
        int.from_bytes(content[MAP_OFFSETS[name] :][:4], "little")
        for name in ("pack_heads", "group_packs")
    )
    assert (heads, packs) == (1, 12)
