# SPDX-License-Identifier: Apache-2.0
"""TFLOP/s beside torch's scaled_dot_product_attention in the same run, and the host's time a call.

    python tests/gpu/bench_sdpa.py [--head-dim 128] [--dtype bf16] [--cache linear] [--peers flash]

16384 tokens in sequences of equal length, 16 heads, normal data (never zeros, which run cooler).
Each cell: 0.15 s of warming up for each contender, then rounds in shuffled order, each of some
20 ms between CUDA events; the median over the rounds counts.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

TESTS = Path(__file__).parents[1]
for folder in ("codegen", "runtime", "templates"):
    sys.path.append(str(TESTS.parent / folder))

import torch  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from attn_runtime import Attention  # noqa: E402

TOKENS = 16_384
HEADS = 16
LENGTHS = (512, 1024, 2048, 4096, 8192, 16_384)
WARM_S = 0.15
ROUND_MS = 20.0
ROUNDS = 9
BLOCK_LEN = 64
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}

Call = Callable[[], Any]


def main() -> None:
    arguments = parse()
    peers = [name for name in arguments.peers.split(",") if name]
    properties = torch.cuda.get_device_properties(0)
    print(f"{properties.name}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    print(f"{arguments.dtype} d{arguments.head_dim} {arguments.cache}, {TOKENS} tokens, TFLOP/s")
    print(f"{'mask':7}{'S':>7}{'ours':>8}" + "".join(f"{p:>8}{'ratio':>8}" for p in peers))
    for mask in ("full", "causal"):
        for length in LENGTHS:
            contenders = {"ours": our_call(arguments, mask, length)}
            contenders |= {name: peer_call(arguments, mask, length, name) for name in peers}
            rates = measure(contenders, flops(arguments.head_dim, mask, length))
            row = f"{mask:7}{length:>7}{rates['ours']:>8.0f}"
            for name in peers:
                row += f"{rates[name]:>8.0f}{rates['ours'] / rates[name]:>8.2f}"
            print(row, flush=True)
    print(f"host: {host_microseconds(arguments):.1f} us a call with everything given")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--cache", choices=("linear", "paged"), default="linear")
    parser.add_argument("--arch", choices=("sm80", "sm90"), help="default: the fastest there is")
    parser.add_argument("--peers", default="flash", help="of flash and cudnn, with commas")
    return parser.parse_args()


def flops(head_dim: int, mask: str, length: int) -> float:
    """Two products of 2 length^2 head_dim for each head and sequence; half of it under the mask."""
    whole = 4.0 * length * length * head_dim * HEADS * (TOKENS // length)
    return whole / 2 if mask == "causal" else whole


def normal(arguments: argparse.Namespace, *shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=DTYPES[arguments.dtype])


def our_call(arguments: argparse.Namespace, mask: str, length: int) -> Call:
    """All arguments given: nothing is allocated in a call."""
    batch, dim = TOKENS // length, arguments.head_dim
    attn = Attention(
        num_heads=HEADS,
        num_kv_heads=HEADS,
        head_dim=dim,
        dtype=arguments.dtype,
        cache=arguments.cache,
        mask=mask,
        arch=arguments.arch or None,
    )
    attn.prepare()
    lengths = torch.arange(batch + 1, device="cuda", dtype=torch.int32) * length
    given: dict[str, Any] = {
        "q": normal(arguments, TOKENS, HEADS, dim),
        "cu_q_len": lengths,
        "cu_k_len": lengths,
        "max_q_len": length,
        "max_k_len": length,
        "out": normal(arguments, TOKENS, HEADS, dim),
    }
    if arguments.cache == "paged":
        blocks = TOKENS // BLOCK_LEN
        table = torch.randperm(blocks, device="cuda").int().view(batch, -1)
        pools = [normal(arguments, blocks, BLOCK_LEN, HEADS, dim) for _ in range(2)]
        given |= {"block_table": table, "k": pools[0], "v": pools[1]}
    else:
        given |= {name: normal(arguments, TOKENS, HEADS, dim) for name in ("k", "v")}
    return lambda: attn(**given)


def peer_call(arguments: argparse.Namespace, mask: str, length: int, backend: str) -> Call:
    shape = (TOKENS // length, HEADS, length, arguments.head_dim)
    q, k, v = (normal(arguments, *shape) for _ in range(3))

    def call() -> torch.Tensor:
        with sdpa_kernel(BACKENDS[backend]):
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=mask == "causal"
            )

    return call


def measure(contenders: dict[str, Call], work: float) -> dict[str, float]:
    """TFLOP/s of each contender."""
    repeats = {name: warm_up(call) for name, call in contenders.items()}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name in random.sample(list(contenders), len(contenders)):
            samples[name].append(milliseconds(contenders[name], repeats[name]))
    return {name: work / median(times) / 1e9 for name, times in samples.items()}


def warm_up(call: Call) -> int:
    """Runs a call for WARM_S; returns how many make a round."""
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < WARM_S:
        call()
        torch.cuda.synchronize()
        count += 1
    return max(3, int(ROUND_MS / milliseconds(call, 5)))


def milliseconds(call: Call, repeats: int) -> float:
    """Of one call, by CUDA events around `repeats`."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(200_000)  # the queue fills while the device waits
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / repeats


def host_microseconds(arguments: argparse.Namespace) -> float:
    """Of one small call, in bursts that the launch queue holds."""
    attn = Attention(
        num_heads=HEADS,
        num_kv_heads=HEADS,
        head_dim=128,
        dtype=arguments.dtype,
        cache="linear",
        arch=arguments.arch or None,
    )
    one = torch.tensor([0, 1], device="cuda", dtype=torch.int32)
    q, k, v, out = (normal(arguments, 1, HEADS, 128) for _ in range(4))
    samples = []
    for _ in range(20):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(200):
            attn(q, k, v, cu_q_len=one, cu_k_len=one, max_q_len=1, max_k_len=1, out=out)
        samples.append((time.perf_counter() - begin) / 200 * 1e6)
    torch.cuda.synchronize()
    return median(samples[2:])


if __name__ == "__main__":
    main()
