# SPDX-License-Identifier: Apache-2.0
"""`attn-codegen bench write`: words become types here; attn_runtime.bench measures."""

from __future__ import annotations

import json
from pathlib import Path

import click

from attn_codegen.cli_bench_options import (
    block_len_option,
    cache_option,
    dtype_option,
    kv_option,
    rounds_option,
    save_option,
    tokens_option,
)
from attn_codegen.config import Cache, Dtype, KvDtype
from attn_codegen.options import json_option


@click.command()
@dtype_option
@click.option(
    "--head-dim",
    "head_dims",
    type=int,
    multiple=True,
    default=(64, 128),
    help="Repeat for more.  [default: 64 and 128]",
)
@click.option(
    "--kv-heads", type=click.IntRange(min=1), default=8, show_default=True, help="KV heads."
)
@tokens_option
@cache_option(Cache.PAGED)
@block_len_option
@kv_option("same,int8,int4,e4m3")
@rounds_option()
@save_option
@json_option
def write(
    dtype: str,
    head_dims: tuple[int, ...],
    kv_heads: int,
    tokens: int,
    cache: str,
    block_len: int,
    kv_dtypes: tuple[KvDtype, ...],
    rounds: int,
    save: Path | None,
    as_json: bool,
) -> None:
    """Microseconds of writing new rows of K and V into a cache, and the share of the rate of a copy
    that the launch reaches.

    A launch reads every row once and writes what the cache keeps of it; both count. Launches follow
    each other in a CUDA graph over copies that no L2 holds, and the driver's copy is timed in the
    same shuffled rounds. What the cache holds is checked first.

    \b
    Examples:
      attn-codegen bench write
      attn-codegen bench write --head-dim 128 --kv int8,int4 --cache block --block-len 16
    """
    from attn_runtime.bench import results as files
    from attn_runtime.bench import write as command
    from attn_runtime.bench.key_stores import Setup
    from attn_runtime.bench.timing import Schedule

    request = command.Request(
        head_dims=head_dims,
        num_kv_heads=kv_heads,
        tokens=tokens,
        kv_dtypes=kv_dtypes,
        setup=Setup(Dtype(dtype), Cache(cache), block_len),
        schedule=Schedule(rounds=rounds, warm_ms=60.0),
    )
    results = command.run(request, click.echo if not as_json else lambda _: None)
    if as_json:
        click.echo(json.dumps(results.to_json(), indent=2))
    if save is not None:
        files.save(results, save)
