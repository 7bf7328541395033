# SPDX-License-Identifier: Apache-2.0
"""The vendored library on a quantised cache: C writes and reads the bytes that Python does."""

from __future__ import annotations

import pytest
from c_calls import Int8Pool, c_decode, c_write
from harness import ints, same_bits

import c_abi
from attn_runtime import Attention
from attn_runtime.build import default_target
from attn_runtime.cache_writer import CacheWriter
from c_abi import Library
from cmake_project import Project, checked, emit, missing_cmake
from reference_torch import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(missing_cmake() is not None, reason=missing_cmake() or ""),
]

WATCHDOG_S = 200
NAMES = ("write_sm80_bf16_int8_d128_paged", "decode_sm80_bf16_int8_d128_paged_causal")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder = emit(tmp_path_factory.mktemp("quantised") / "generated", NAMES)
    project = Project(folder, folder.with_name("build"))
    architecture = f"{default_target().removeprefix('sm_')}-real"
    checked(project.configure(ATTN_SHARED="ON", CMAKE_CUDA_ARCHITECTURES=architecture))
    project.make()
    return Library(project.build / "libattn.so")


def test_c_and_python_write_and_read_the_same_quantised_cache(library: Library) -> None:
    heads, dim, block_len, tokens = 2, 128, 16, 70
    k_new, v_new = torch.randn(2, tokens, heads, dim, device="cuda", dtype=torch.bfloat16)
    sequences = {
        "cu_q_len": ints([0, 30, tokens]),
        "cu_k_len": ints([0, 30, tokens]),
        "block_table": ints([[3, 1, 0], [2, 5, 4]]),
    }
    pools = []
    for _ in range(2):
        codes = torch.full((2, 6, block_len, heads, dim), 0x5A, dtype=torch.uint8, device="cuda")
        pairs = torch.full((2, 6, block_len, heads, 2), 7.0, dtype=k_new.dtype, device="cuda")
        pools.append(Int8Pool(codes, pairs, sequences))
    ours, theirs = pools
    writer = CacheWriter(num_kv_heads=heads, head_dim=dim, kv_dtype="int8")
    writer(k_new, v_new, *ours.codes, **ours.arguments())
    assert library.write(c_write(k_new, v_new, theirs)) == c_abi.SUCCESS, library.last_error()
    torch.cuda.synchronize()
    assert torch.equal(ours.codes, theirs.codes)
    assert same_bits(ours.pairs, theirs.pairs)
    assert not (ours.codes == 0x5A).all()

    sequences["cu_q_len"] = ints([0, 1, 4])  # one new token, and three
    q = torch.randn(4, 4 * heads, dim, device="cuda", dtype=k_new.dtype)
    decode = Attention(
        num_heads=4 * heads,
        num_kv_heads=heads,
        head_dim=dim,
        mode="decode",
        kv_dtype="int8",
        split="off",
        tile="default",
    )
    expected = decode(q, *ours.codes, **ours.arguments(), max_q_len=4, max_k_len=3 * block_len)
    out = torch.full_like(q, torch.nan)
    assert library.decode(c_decode(q, out, theirs)) == c_abi.SUCCESS, library.last_error()
    torch.cuda.synchronize()
    assert same_bits(out, expected)
    assert torch.isfinite(out).all()

    # The rows of the new tokens once more, by the decode call itself.
    lacking = Int8Pool(ours.codes.clone(), ours.pairs.clone(), sequences)
    for block, rows in ((1, slice(13, 14)), (4, slice(5, 8))):  # tokens 29 of 30, 37 to 39 of 40
        lacking.codes[:, block, rows] = 0
        lacking.pairs[:, block, rows] = 0
    new = tuple(torch.cat([rows[29:30], rows[67:]]) for rows in (k_new, v_new))
    out.fill_(torch.nan)
    assert library.decode(c_decode(q, out, lacking, new)) == c_abi.SUCCESS, library.last_error()
    torch.cuda.synchronize()
    assert same_bits(out, expected)
    assert torch.equal(lacking.codes, ours.codes)
    assert same_bits(lacking.pairs, ours.pairs)
