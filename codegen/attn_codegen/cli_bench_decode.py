# SPDX-License-Identifier: Apache-2.0
"""`attn-codegen bench decode`: words become types here; attn_runtime.bench measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from attn_codegen.cli_bench_options import (
    block_len_option,
    dtype_option,
    kv_option,
    model_heads,
    peers_help,
    plot_option,
    rounds_option,
    save_option,
    words,
)
from attn_codegen.config import Arch, Dtype, KvDtype
from attn_codegen.errors import SelectionError
from attn_codegen.options import json_option


@click.command()
@dtype_option
@click.option("--head-dim", type=int, help="Width of a head.  [default: 128]")
@click.option("--heads", type=click.IntRange(min=1), help="Query heads.  [default: 32]")
@click.option("--kv-heads", type=click.IntRange(min=1), help="KV heads.  [default: 8]")
@click.option("--group", type=click.IntRange(min=1), help="Query heads per KV head.")
@click.option("--model", metavar="NAME", help="The heads of a public model, such as llama3-8b.")
@click.option("--batch", "batches", metavar="B,B,...", help="Sequences.  [default: 1,8,32,64,128]")
@click.option(
    "--context", "contexts", metavar="S,S,...", help="Keys of each.  [default: 1k,4k,16k]"
)
@click.option(
    "--queries",
    type=click.IntRange(1, 8),
    default=1,
    show_default=True,
    help="Query tokens of each sequence.",
)
@click.option("--ragged", is_flag=True, help="Lengths drawn uniformly from 1 to --context.")
@click.option(
    "--layout",
    type=click.Choice(["nhd", "hnd", "interleaved"]),
    default="interleaved",
    show_default=True,
    help="How the pools lie.",
)
@click.option("--scattered", is_flag=True, help="Take blocks from all over the pool.")
@block_len_option
@kv_option("same")
@click.option("--arch", type=words(Arch), help="Kernel family.  [default: the fastest]")
@click.option("--peers", help=peers_help % "cudnn,flash,fa3,flashinfer")
@rounds_option()
@save_option
@plot_option
@json_option
def decode(
    dtype: str,
    batches: str | None,
    contexts: str | None,
    queries: int,
    ragged: bool,
    layout: str,
    scattered: bool,
    block_len: int,
    kv_dtypes: tuple[KvDtype, ...],
    arch: str | None,
    peers: str | None,
    rounds: int,
    save: Path | None,
    plot: Path | None,
    as_json: bool,
    **heads: Any,
) -> None:
    """Microseconds of a decode launch, and the share of the memory's bandwidth that it reaches.

    Cold: one launch behind 256 MB of writes. Stream: launches back to back over copies of the cache
    that no L2 holds. Both are CUDA graphs, medians over shuffled rounds. The bandwidth is measured
    in the same run: in order, and in pieces of 32 KB in random order, of which the share is. Every
    cell is checked against float64 first. Quantised caches (--kv) are compared with the one that is
    not, where that is among them.

    \b
    Examples:
      attn-codegen bench decode
      attn-codegen bench decode --model llama3-70b --batch 64 --context 16k --block-len 16
      attn-codegen bench decode --batch 64 --context 32k --ragged --peers none
      attn-codegen bench decode --kv same,int8,int4,e4m3 --layout hnd --peers none
    """
    from attn_runtime.bench import decode as command
    from attn_runtime.bench import decode_shapes
    from attn_runtime.bench import peers as known
    from attn_runtime.bench import results as files
    from attn_runtime.bench.decode_peers import NAMES
    from attn_runtime.bench.decode_pool import DecodeSetup
    from attn_runtime.bench.key_stores import Layout
    from attn_runtime.bench.plot import plot as draw
    from attn_runtime.bench.plot import require_matplotlib
    from attn_runtime.bench.timing import Schedule

    if plot is not None:
        require_matplotlib(plot)
    own = _heads(heads)
    cells = [
        cell
        for kv_dtype in kv_dtypes
        for cell in decode_shapes.decode_cells(
            _numbers("batch", batches, decode_shapes.BATCHES),
            _numbers("context", contexts, decode_shapes.CONTEXTS),
            own,
            queries,
            is_ragged=ragged,
            kv_dtype=kv_dtype,
        )
    ]
    family = Arch(arch) if arch else None
    setup = DecodeSetup(Dtype(dtype), own, Layout(layout), block_len, family, scattered)
    chosen, schedule = tuple(known.choose(peers, NAMES)), Schedule(rounds=rounds, warm_ms=60.0)
    request = command.Request(tuple(cells), setup, chosen, schedule)
    results = command.run(request, click.echo if not as_json else lambda _: None)
    if as_json:
        click.echo(json.dumps(results.to_json(), indent=2))
    if save is not None:
        files.save(results, save)
    if plot is not None:
        draw(results, plot)


def _numbers(what: str, text: str | None, usual: tuple[int, ...]) -> tuple[int, ...]:
    from attn_runtime.bench.shapes import parse_length

    return usual if text is None else tuple(parse_length(one, what) for one in text.split(","))


def _heads(given: dict[str, Any]) -> Any:
    """The Heads that the options ask for."""
    from attn_runtime.bench.shapes import heads_for

    options = (given["head_dim"], given["heads"], given["kv_heads"], given["group"])
    if given["model"] is not None:
        return model_heads(given["model"], options)
    num_heads = given["heads"] or 32
    if given["group"] is None:
        return heads_for(given["head_dim"] or 128, num_heads, given["kv_heads"] or 8)
    if given["heads"] and given["kv_heads"]:
        raise SelectionError("--group is --heads / --kv-heads: give two of the three")
    if given["kv_heads"]:
        num_heads = given["group"] * given["kv_heads"]
    if num_heads % given["group"]:
        raise SelectionError(
            f"--group {given['group']} does not divide {num_heads} heads: give a divisor of them"
        )
    return heads_for(given["head_dim"] or 128, num_heads, num_heads // given["group"])
