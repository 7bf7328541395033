# SPDX-License-Identifier: Apache-2.0
"""Whole calls of Attention and CacheWriter, over arrays in host memory and a GPU that only notes
what is launched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from test_launch import Recorder
from test_launch_arrays import CudaInterface

from attn_codegen import struct_layout
from attn_codegen.config import AttentionConfig, Mode
from attn_codegen.tiling import tiling
from attn_runtime import (
    Attention,
    CacheWriter,
    SplitPolicy,
    attention,
    cache_writer,
    driver,
    kernel,
)
from attn_runtime.driver import Device
from attn_runtime.errors import ArgumentError
from attn_runtime.kernel import Kernel, nominal_limits

HEADS, KV_HEADS, D, BLOCK_LEN = 8, 2, 64, 16
SIZES = {Mode.WRITE: "AttentionParams"}

Log = list[tuple[str, int, int, Any, bytes]]


class FakeContext:
    """The primary context of a GPU that every address belongs to."""

    def __init__(self, ordinal: int = 0) -> None:
        self.device = Device(ordinal, "A GPU", (8, 0), 108, 166_912)

    def is_current(self) -> bool:
        return True


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """What was launched: symbol, grid, threads, stream, the bytes of its arguments."""
    found: Log = []
    context = FakeContext()

    def load(config: AttentionConfig, *_: object) -> Kernel:
        size = struct_layout.size_of(SIZES.get(config.mode, "Arguments"))
        function = cast(Any, Recorder(config.name, found, size=size))
        limits = nominal_limits(config)
        return Kernel(config, tiling(config), limits, function, cast(Any, None))

    monkeypatch.setattr(kernel, "_kernels", {})
    monkeypatch.setattr(kernel, "_load", load)
    monkeypatch.setattr(driver, "context_of_pointer", lambda _: context)
    monkeypatch.setattr(driver, "context_of_device", lambda _: context)
    return found


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A word for every call that was checked."""
    found: list[str] = []

    def counted(module: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(module, name)

        def count(*args: Any, **kwargs: Any) -> Any:
            found.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, count)

    counted(attention, "prepare_call")
    counted(cache_writer, "check_write")
    return found


def array(*shape: int, dtype: str = "f2") -> CudaInterface:
    """A new array, aligned as a GPU's are."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 256, "u1")
    start = -raw.__array_interface__["data"][0] % 256
    return CudaInterface(raw[start : start + size].view(dtype).reshape(shape))


def sums(*lens: int) -> CudaInterface:
    return CudaInterface(np.cumsum([0, *lens], dtype="i4"))


def pools() -> dict[str, CudaInterface]:
    """A paged cache of two sequences, and their lengths."""
    shape = (12, BLOCK_LEN, KV_HEADS, D)
    table = array(2, 6, dtype="i4")
    return {"k": array(*shape), "v": array(*shape), "block_table": table, "cu_k_len": sums(50, 70)}


def prefill(tokens: int = 9) -> dict[str, Any]:
    own = {"q": array(tokens, HEADS, D), "out": array(tokens, HEADS, D)}
    return pools() | own | {"cu_q_len": sums(4, tokens - 4), "stream": 7}


def writing(tokens: int = 9) -> dict[str, Any]:
    own = {name: array(tokens, KV_HEADS, D) for name in ("k_new", "v_new")}
    return pools() | own | {"cu_q_len": sums(4, tokens - 4), "stream": 7}


def attention_of(**changes: Any) -> Attention:
    given = {"num_heads": HEADS, "num_kv_heads": KV_HEADS, "head_dim": D, "dtype": "f16"}
    return Attention(**(given | {"split": "off"} | changes))


def address(given: CudaInterface) -> int:
    pointer: int = given.facts["data"][0]
    return pointer


def launched(entry: tuple[str, int, int, Any, bytes]) -> Any:
    """The AttentionParams that a kernel was launched with."""
    size = struct_layout.size_of("AttentionParams")
    return np.frombuffer(entry[-1][:size], struct_layout.numpy_dtype("AttentionParams"))[0]


def test_a_repeated_call_is_checked_once_and_has_its_own_addresses(
    log: Log, checks: list[str]
) -> None:
    attend, calls = attention_of(), [prefill(), prefill()]
    for given in calls:
        assert attend(**given) is given["out"]
    assert checks == ["prepare_call"]
    for given, entry in zip(calls, log, strict=True):
        assert (entry[0], entry[3]) == ("prefill_sm80_f16_d64_paged_causal", 7)
        found = launched(entry)
        assert [found["q"], found["out"]] == [address(given["q"]), address(given["out"])]
        assert found["paged_iter_params"]["k"] == address(given["k"])
        assert (found["token_num"], found["batch_size"], found["max_k_len"]) == (9, 2, 96)


def test_a_call_of_another_kind_is_checked_anew_and_the_first_is_remembered(
    log: Log, checks: list[str]
) -> None:
    attend = attention_of()
    for tokens in (9, 20, 9):
        attend(**prefill(tokens))
    assert checks == ["prepare_call"] * 2
    assert [launched(entry)["token_num"] for entry in log] == [9, 20, 9]


def test_what_is_refused_is_not_launched_and_not_remembered(log: Log, checks: list[str]) -> None:
    attend = attention_of()
    for _ in range(2):
        with pytest.raises(ArgumentError, match="block_table is missing"):
            attend(**prefill() | {"block_table": None})
    assert (log, checks) == ([], ["prepare_call"] * 2)


def test_a_workspace_that_is_too_small_is_refused_with_the_bytes_it_takes(log: Log) -> None:
    given = prefill() | {"workspace": array(16, dtype="u1"), "max_k_len": 1000}
    attend = attention_of(split=SplitPolicy.fixed(2))
    with pytest.raises(
        ArgumentError, match=r"workspace has 16 bytes, and this call needs (\d+)"
    ) as no:
        attend(**given)
    assert log == []
    needed = int(str(no.value).split("needs ")[1].split(":")[0])
    attend(**given | {"workspace": array(needed, dtype="u1")})
    assert [entry[0] for entry in log] == [attend.config.name, "reduce_sm80_f16_d64"]


def test_a_heuristic_call_does_with_the_workspace_that_it_is_given(log: Log) -> None:
    attend = attention_of(split="heuristic")
    attend(**prefill() | {"workspace": array(16, dtype="u1"), "max_k_len": 100_000})
    assert [entry[0] for entry in log] == [attend.config.name]


def test_an_attention_for_another_gpu_refuses_the_arrays_of_this_one(log: Log) -> None:
    with pytest.raises(ArgumentError, match="built for GPU 1: move q"):
        attention_of(device=1)(**prefill())
    assert log == []


def test_a_writer_begins_early_only_where_its_code_waits_for_the_launch_before_it(
    log: Log,
) -> None:
    write = CacheWriter(num_kv_heads=KV_HEADS, head_dim=D, dtype="f16")
    write(**writing())
    (loaded,) = kernel._kernels.values()
    function = cast(Recorder, loaded.function)
    assert not function.begins_early
    function.ptx_version = 90
    write(**writing(20))
    assert function.begins_early


def test_a_writer_launches_nothing_where_tokens_belong_to_no_sequence(log: Log) -> None:
    write = CacheWriter(num_kv_heads=KV_HEADS, head_dim=D, dtype="f16")
    given = writing()
    write(**given)
    assert len(log) == 1
    none = {"cu_q_len": sums(), "cu_k_len": sums(), "block_table": array(0, 6, dtype="i4")}
    write(**given | none)
    assert len(log) == 1


def test_a_writer_remembers_its_calls_and_writes_each_to_its_own_cache(
    log: Log, checks: list[str]
) -> None:
    write = CacheWriter(num_kv_heads=KV_HEADS, head_dim=D, dtype="f16")
    calls = [writing(), writing(20), writing()]
    for given in calls:
        write(**given)
    assert checks == ["check_write"] * 2
    for given, entry in zip(calls, log, strict=True):
        assert entry[0] == "write_sm80_f16_d64_paged"
        found = launched(entry)
        assert [found["k"], found["v"]] == [address(given["k_new"]), address(given["v_new"])]
        assert found["paged_iter_params"]["v"] == address(given["v"])
