# SPDX-License-Identifier: Apache-2.0
"""How attention scales over the GPUs of a machine, one process each, exchanged by NCCL.

    python tests/gpu/bench_context_parallel.py                  # 1, 2, 4, ... of the visible GPUs
    python tests/gpu/bench_context_parallel.py --ranks 1,2 --tokens 131072 --keys 1048576

prefill: a causal prompt, 32 query and 8 KV heads of 128, bf16, in a ring. decode: one new token
over a cache of that many keys, paged in blocks of 64, keys interleaved, parts gathered, in a CUDA
graph. Times are medians over rounds of the slowest rank, from CUDA events around calls that follow
one another without a pause; `exchange` is the same number of bytes alone, with no kernel beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from statistics import median
from typing import Any

HEADS, KV_HEADS, HEAD_DIM, BLOCK_LEN = 32, 8, 128, 64
ROUNDS = 7


def main() -> None:
    """Starts the ranks of every size, and prints the table."""
    arguments = parsed()
    if "RANK" in os.environ:
        run_rank(arguments)
        return
    sizes = arguments.ranks or default_sizes()
    first: dict[str, float] = {}
    print("| what | ranks | ms | times 1 rank | exchange alone, ms | bytes received per rank |")
    print("|---|---|---|---|---|---|")
    for size in sizes:
        for row in run_group(size):
            one = first.setdefault(row["what"], row["ms"] * size)
            speedup = one / row["ms"] if sizes[0] == 1 else float("nan")
            print(
                f"| {row['what']} | {size} | {row['ms']:.3f} | {speedup:.2f} "
                f"| {row['exchange_ms']:.3f} | {row['bytes']:,} |",
                flush=True,
            )


def parsed() -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=lambda text: [int(one) for one in text.split(",")])
    parser.add_argument("--tokens", type=int, default=131_072, help="of the prompt")
    parser.add_argument("--keys", type=int, default=1_048_576, help="of the decode cache")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds, of an exchange")
    return parser.parse_args()


def default_sizes() -> list[int]:
    """1, 2, 4, ... as far as there are GPUs."""
    import torch

    sizes = [1]
    while sizes[-1] * 2 <= torch.cuda.device_count():
        sizes.append(sizes[-1] * 2)
    return sizes


def run_group(size: int) -> list[dict[str, Any]]:
    """What rank 0 of a group of processes measured."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"WORLD_SIZE": str(size)}
    common.setdefault("NCCL_NVLS_ENABLE", "0")
    started = [
        subprocess.Popen(
            [sys.executable, *sys.argv],
            env=common | {"RANK": str(rank)},
            stdout=subprocess.PIPE if rank == 0 else None,
            text=True,
        )
        for rank in range(size)
    ]
    text, _ = started[0].communicate()
    if any(process.wait() for process in started):
        raise SystemExit(f"a rank of {size} failed:\n{text}")
    rows: list[dict[str, Any]] = json.loads(text.splitlines()[-1])
    return rows


def run_rank(arguments: argparse.Namespace) -> None:
    """Measures as one rank; rank 0 prints."""
    import torch
    import torch.distributed as dist

    rank = int(os.environ["RANK"])
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    rows = [prefill(arguments), decode(arguments)]
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        print(json.dumps(rows), flush=True)


def prefill(arguments: argparse.Namespace) -> dict[str, Any]:
    """A causal prompt in a ring."""
    import torch

    from attn_runtime.ring import RingAttention

    lens = (arguments.tokens,)
    ring = RingAttention(
        num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, timeout_s=arguments.timeout
    )
    layout = ring.layout(lens)
    rows = layout.rows(layout.rank)
    q, k, v = (
        torch.randn(rows, heads, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    ms = timed(lambda: ring(q, k, v, lens=lens), 3)
    moved = layout.most_rows * KV_HEADS * 2 * HEAD_DIM * 2
    send, receive = (torch.empty(moved, dtype=torch.uint8, device="cuda") for _ in range(2))
    stream = torch.cuda.current_stream().cuda_stream

    def exchange() -> None:
        for _ in range(layout.size - 1):
            ring.group.rotate(send.data_ptr(), receive.data_ptr(), moved, stream)

    return {
        "what": f"prefill {arguments.tokens} tokens, ring",
        "ms": ms,
        "exchange_ms": timed(exchange, 3) if layout.size > 1 else 0.0,
        "bytes": moved * (layout.size - 1),
    }


def decode(arguments: argparse.Namespace) -> dict[str, Any]:
    """One new token over a long cache."""
    import torch

    from attn_runtime import Attention, ContextParallel

    group = ContextParallel(timeout_s=arguments.timeout)
    attention = Attention(
        mode="decode",
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        context_parallel=group,
    )
    (own,) = group.local_lens([arguments.keys])
    blocks = -(-own // BLOCK_LEN)
    pool = (blocks, BLOCK_LEN, KV_HEADS, HEAD_DIM)
    k, v = (torch.randn(pool, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    q = torch.randn(1, HEADS, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    table = torch.randperm(blocks, device="cuda").int().view(1, -1)
    cu_q, cu_k = (
        torch.tensor([0, length], device="cuda", dtype=torch.int32)
        for length in (1, arguments.keys)
    )
    out = torch.empty_like(q)
    bounds = {"max_q_len": 1, "max_k_len": arguments.keys}
    size = attention.workspace_size(token_num=1, batch_size=1, **bounds)
    workspace = torch.empty(max(size, 1), dtype=torch.uint8, device="cuda")
    ms = timed(
        lambda: attention(
            *(q, k, v),
            cu_q_len=cu_q,
            cu_k_len=cu_k,
            block_table=table,
            out=out,
            workspace=workspace,
            **bounds,
        ),
        20,
        in_graph=True,
    )
    floats = HEADS * (HEAD_DIM + 2)
    parts = torch.empty(floats * group.ranks.size, device="cuda")

    def exchange() -> None:
        group.gather(parts.data_ptr(), floats, torch.cuda.current_stream().cuda_stream)

    alone = timed(exchange, 20, in_graph=True) if group.ranks.size > 1 else 0.0
    return {
        "what": f"decode over {arguments.keys} keys",
        "ms": ms,
        "exchange_ms": alone,
        "bytes": 4 * floats * (group.ranks.size - 1),
    }


def timed(call: Any, repeats: int, *, in_graph: bool = False) -> float:
    """Milliseconds of a call: the slowest rank, the median of rounds. In a graph, the host's time
    to enqueue a short call does not count."""
    import torch
    import torch.distributed as dist

    if in_graph:
        call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(repeats):
                call()
    rounds = []
    for _ in range(ROUNDS + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        dist.barrier()
        begin.record()
        if in_graph:
            graph.replay()
        else:
            for _ in range(repeats):
                call()
        end.record()
        torch.cuda.synchronize()
        slowest = torch.tensor(begin.elapsed_time(end) / repeats, device="cuda")
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        rounds.append(float(slowest))
    return median(rounds[1:])


if __name__ == "__main__":
    main()
