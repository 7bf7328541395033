# SPDX-License-Identifier: Apache-2.0
"""What attention over n ranks takes, from figures of one GPU and of one link; to be held against
tests/gpu/bench_context_parallel.py.

    python tests/scaling.py --prefill-ms 190 --decode-ms 1.0 --link-gbs 200 --gather-us 25

prefill, a ring of n steps; C is the time on one GPU, b the bytes of K and V of the prompt, p those
of the parts of all its rows:

    step = C / n^2        exchange = b / n / link + latency        parts = 2 p / memory
    prefill(n) = (n - 1) max(step, exchange) + step + parts

Each rank writes and reads n parts of its 1 / n of the rows, so that `parts` does not shrink.

decode, of which all but the reading of K and V is fixed:

    decode(n) = read / n + fixed + gather(n)        gather(n) = latency + (n - 2) hop
"""

from __future__ import annotations

import argparse
from dataclasses import MISSING, dataclass, fields

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
RANKS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Figures:
    """What is measured, and, for more than a host, assumed."""

    prefill_ms: float
    """Of the prompt, on one GPU."""
    decode_ms: float
    """Of a step over the cache, on one GPU."""
    link_gbs: float
    """GB/s from a GPU to the next one of a ring within a host."""
    gather_us: float
    """Of the parts of two ranks, alone."""
    tokens: int = 131_072
    keys: int = 1_048_576
    fixed_us: float = 12.0
    """Of a decode step: launches, and the ends of kernels, which more ranks do not shorten."""
    memory_gbs: float = 3350.0
    link_us: float = 15.0
    hop_us: float = 1.0
    """What a gather takes longer for each rank more."""
    host_gpus: int = 8
    network_gbs: float = 45.0
    """GB/s of a GPU to one of another host."""
    network_us: float = 20.0


def prefill_ms(figures: Figures, ranks: int) -> float:
    """Of the prompt in a ring."""
    step = figures.prefill_ms / ranks**2
    if ranks == 1:
        return step
    parts = 2 * figures.tokens * HEADS * 4 * (HEAD_DIM + 2) / figures.memory_gbs / 1e6
    return (ranks - 1) * max(step, exchange_ms(figures, ranks)) + step + parts


def exchange_ms(figures: Figures, ranks: int) -> float:
    """Of K and V of one rank, to the next: as slow as the slowest link of the ring."""
    within = ranks <= figures.host_gpus
    moved = figures.tokens * KV_HEADS * 2 * HEAD_DIM * 2 / ranks
    speed = figures.link_gbs if within else min(figures.link_gbs, figures.network_gbs)
    return moved / speed / 1e6 + (figures.link_us if within else figures.network_us) / 1e3


def decode_ms(figures: Figures, ranks: int) -> float:
    """Of a step over the cache."""
    fixed = figures.fixed_us / 1e3
    read = figures.decode_ms - fixed
    if ranks == 1:
        return figures.decode_ms
    gather = figures.gather_us + (ranks - 2) * figures.hop_us
    if ranks > figures.host_gpus:
        gather += figures.network_us
    return read / ranks + fixed + gather / 1e3


def table(figures: Figures) -> str:
    """Milliseconds and times one GPU, for up to 64 ranks."""
    lines = ["| ranks | prefill, ms | times 1 | decode, ms | times 1 |", "|---|---|---|---|---|"]
    for ranks in RANKS:
        prefill, decode = prefill_ms(figures, ranks), decode_ms(figures, ranks)
        lines.append(
            f"| {ranks} | {prefill:.2f} | {prefill_ms(figures, 1) / prefill:.2f} "
            f"| {decode:.3f} | {decode_ms(figures, 1) / decode:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Prints the table of the figures given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for field in fields(Figures):
        kind = int if field.type == "int" else float
        name = "--" + field.name.replace("_", "-")
        measured = field.default is MISSING
        default = None if measured else field.default
        parser.add_argument(name, type=kind, required=measured, default=default)
    print(table(Figures(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
