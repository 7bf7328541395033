# SPDX-License-Identifier: Apache-2.0
"""How attention scales over the GPUs of a machine, one process each, exchanged by NCCL.

    python tests/gpu/bench_context_parallel.py                  # 1, 2, 4, ... of the visible GPUs
    python tests/gpu/bench_context_parallel.py --ranks 1,2 --tokens 131072 --keys 1048576
    python tests/gpu/bench_context_parallel.py --ranks 1 --alone 2,4,8   # what a rank computes

prefill: a causal prompt, 32 query and 8 KV heads of 128, bf16, in a ring. decode: one new token
over a cache of that many keys, paged in blocks of 64, keys interleaved, parts gathered, in a CUDA
graph. chunk: the same with a piece of a prompt, with its exchange behind the kernel, and in rounds
of heads. Times are medians over rounds of the slowest rank, from CUDA events around calls that
follow one another without a pause; `exchange` is the same number of bytes alone, with no kernel
beside it. "1 of n" is one GPU at the work of a rank of n, with copies in its own memory in place
of what goes round a ring, and nothing gathered.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alone import Alone

HEADS, KV_HEADS, HEAD_DIM, BLOCK_LEN = 32, 8, 128, 64
ROUNDS = 7
WARM_MS = 1500  # until a card is at its power limit, and swings no more
ROW = "row: "  # before a row of the table that a rank measured, as JSON


def main() -> None:
    """Starts the ranks of every size, and prints the table."""
    arguments = parsed()
    if "RANK" in os.environ:
        run_rank(arguments)
        return
    first: dict[str, float] = {}
    print("| what | ranks | ms | times 1 rank | exchange alone, ms | bytes received per rank |")
    print("|---|---|---|---|---|---|")
    groups = [(size, None) for size in arguments.ranks or default_sizes()]
    for size, alone in [*groups, *((1, of) for of in arguments.alone)]:
        for row in rows_of(size, alone):
            if size == 1 and alone is None:
                first[row["what"]] = row["ms"]
            speedup = first.get(row["what"], float("nan")) / row["ms"]
            print(
                f"| {row['what']} | {size if alone is None else f'1 of {alone}'} "
                f"| {row['ms']:.3f} | {speedup:.2f} "
                f"| {row['exchange_ms']:.3f} | {row['bytes']:,} |",
                flush=True,
            )


def parsed() -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=numbers)
    parser.add_argument("--alone", type=numbers, default=[], help="ranks that one GPU stands for")
    parser.add_argument("--tokens", type=int, default=131_072, help="of the prompt")
    parser.add_argument("--piece", type=int, help="tokens of a piece: interleaved, not in zig-zag")
    parser.add_argument("--keys", type=int, default=1_048_576, help="of the decode cache")
    parser.add_argument("--chunk", type=pair, default=(8192, 131_072), help="tokens:keys")
    parser.add_argument("--only", choices=("prefill", "decode", "chunk"))
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds, of an exchange")
    return parser.parse_args()


def numbers(text: str) -> list[int]:
    """1,2,4"""
    return [int(one) for one in text.split(",")]


def pair(text: str) -> tuple[int, int]:
    """tokens:keys"""
    tokens, keys = text.split(":")
    return int(tokens), int(keys)


def default_sizes() -> list[int]:
    """1, 2, 4, ... as far as there are GPUs."""
    import torch

    sizes = [1]
    while sizes[-1] * 2 <= torch.cuda.device_count():
        sizes.append(sizes[-1] * 2)
    return sizes


def rows_of(size: int, alone: int | None) -> Iterator[dict[str, Any]]:
    """What rank 0 of a group of processes measures, row by row; `alone`: as one rank of so many."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"WORLD_SIZE": str(size), "ALONE": str(alone or "")}
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
    assert started[0].stdout is not None  # rank 0 has a pipe
    other = []
    for line in started[0].stdout:
        if line.startswith(ROW):
            yield json.loads(line.removeprefix(ROW))
        else:
            other.append(line)
    if any([process.wait() for process in started]):
        raise SystemExit(f"a rank of {size} failed:\n{''.join(other)}")


def run_rank(arguments: argparse.Namespace) -> None:
    """Measures as one rank; rank 0 prints."""
    import torch
    import torch.distributed as dist

    rank = int(os.environ["RANK"])
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    for measure in (prefill, decode, chunk):
        if arguments.only not in (None, measure.__name__):
            continue
        for row in measure(arguments):
            if rank == 0:
                print(f"{ROW}{json.dumps(row)}", flush=True)
        torch.cuda.empty_cache()
    dist.barrier()
    dist.destroy_process_group()


def communicator() -> Alone | None:
    """That of a rank without others; None: torch's default group."""
    from alone import Alone

    size = os.environ["ALONE"]
    return Alone(int(size)) if size else None


def is_exchanged(size: int) -> bool:
    """Whether there is another rank to exchange with."""
    return size > 1 and communicator() is None


def prefill(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A causal prompt in a ring."""
    import torch

    from attn_runtime.ring import RingAttention

    lens = (arguments.tokens,)
    ring = RingAttention(
        communicator(),
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        timeout_s=arguments.timeout,
        **({"sharding": "interleaved", "chunk": arguments.piece} if arguments.piece else {}),
    )
    layout = ring.layout(lens)
    rows = layout.rows(layout.rank)
    q, k, v = (
        torch.randn(rows, heads, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    (ms,) = timed([lambda: ring(q, k, v, lens=lens)], 3)
    moved = layout.most_rows * KV_HEADS * 2 * HEAD_DIM * 2
    send, receive = (torch.empty(moved, dtype=torch.uint8, device="cuda") for _ in range(2))
    stream = torch.cuda.current_stream().cuda_stream

    def exchange() -> None:
        for _ in range(layout.size - 1):
            ring.group.rotate(send.data_ptr(), receive.data_ptr(), moved, stream)

    (alone,) = timed([exchange], 3) if is_exchanged(layout.size) else (0.0,)
    what = f"prefill {arguments.tokens} tokens, ring"
    what += f" of pieces of {arguments.piece}" if arguments.piece else ""
    received = moved * (layout.size - 1)
    return [{"what": what, "ms": ms, "exchange_ms": alone, "bytes": received}]


def decode(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One new token over a long cache."""
    keys = arguments.keys
    call, group = over_cache("decode", 1, keys, arguments.timeout)
    (ms,) = timed([call], 20, in_graph=True)
    return [row_of(f"decode over {keys} keys", ms, group, 1, 20)]


def chunk(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A piece of a prompt over the cache of what came before: in one round of heads, and in as many
    as the runtime takes."""
    tokens, keys = arguments.chunk
    calls, groups = zip(
        *(over_cache("prefill", tokens, keys, arguments.timeout, rounds) for rounds in (1, None)),
        strict=True,
    )
    times = timed(calls, 3, in_graph=True)
    what = f"chunk of {tokens} tokens over {keys} keys"
    return [
        row_of(f"{what}, {how}", ms, groups[0], tokens, 3)
        for how, ms in zip(("one round", "in rounds"), times, strict=True)
    ]


def row_of(what: str, ms: float, group: Any, tokens: int, repeats: int) -> dict[str, Any]:
    """A row of the table; times the gather of the parts of so many tokens alone."""
    import torch

    size, floats = group.ranks.size, tokens * HEADS * (HEAD_DIM + 2)
    parts = torch.empty(floats * size, device="cuda")

    def exchange() -> None:
        group.gather(parts.data_ptr(), floats, torch.cuda.current_stream().cuda_stream)

    (alone,) = timed([exchange], repeats, in_graph=True) if is_exchanged(size) else (0.0,)
    return {"what": what, "ms": ms, "exchange_ms": alone, "bytes": 4 * floats * (size - 1)}


def over_cache(
    mode: str, tokens: int, keys: int, timeout: float, rounds: int | None = None
) -> tuple[Callable[[], Any], Any]:
    """A call whose queries every rank has, over a paged cache that is spread; and its group."""
    import torch

    from attn_runtime import Attention, ContextParallel

    group = ContextParallel(communicator(), timeout_s=timeout, rounds=rounds)
    attention = Attention(
        mode=mode,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        context_parallel=group,
    )
    (own,) = group.local_lens([keys])
    blocks = -(-own // BLOCK_LEN)
    pool = (blocks, BLOCK_LEN, KV_HEADS, HEAD_DIM)
    k, v = (torch.randn(pool, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    q = torch.randn(tokens, HEADS, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    table = torch.randperm(blocks, device="cuda").int().view(1, -1)
    cu_q, cu_k = (
        torch.tensor([0, length], device="cuda", dtype=torch.int32) for length in (tokens, keys)
    )
    out = torch.empty_like(q)
    bounds = {"max_q_len": tokens, "max_k_len": keys}
    size = attention.workspace_size(token_num=tokens, batch_size=1, **bounds)
    workspace = torch.zeros(max(size, 1), dtype=torch.uint8, device="cuda")
    given = {"cu_q_len": cu_q, "cu_k_len": cu_k, "block_table": table} | bounds
    return lambda: attention(q, k, v, out=out, workspace=workspace, **given), group


def timed(
    calls: Sequence[Callable[[], Any]], repeats: int, *, in_graph: bool = False
) -> list[float]:
    """Milliseconds of each call: the slowest rank, the median of rounds, in which the calls take
    turns. In a graph, the host's time to enqueue a short call does not count."""
    runs = [captured(call, repeats) if in_graph else repeated(call, repeats) for call in calls]
    for run in runs:
        run()  # loads kernels
    once = sum(slowest_ms(run) for run in runs)
    for _ in range(int(WARM_MS / once)):
        for run in runs:
            run()
    rounds = [[slowest_ms(run) / repeats for run in runs] for _ in range(ROUNDS)]
    return [median(found) for found in zip(*rounds, strict=True)]


def slowest_ms(run: Callable[[], Any]) -> float:
    """Milliseconds of the rank that takes longest."""
    import torch
    import torch.distributed as dist

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    dist.barrier()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    slowest = torch.tensor(begin.elapsed_time(end), device="cuda")
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return float(slowest)


def repeated(call: Callable[[], Any], repeats: int) -> Callable[[], None]:
    """So many calls."""

    def run() -> None:
        for _ in range(repeats):
            call()

    return run


def captured(call: Callable[[], Any], repeats: int) -> Callable[[], None]:
    """So many calls in a CUDA graph."""
    import torch

    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        repeated(call, repeats)()
    replay: Callable[[], None] = graph.replay
    return replay


if __name__ == "__main__":
    main()
