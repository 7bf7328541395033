# SPDX-License-Identifier: Apache-2.0
"""`bench all`: the commands behind every published figure, one after the other, and their page."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from attn_runtime.bench import results as files
from attn_runtime.bench.errors import BenchError
from attn_runtime.bench.plot import plot
from attn_runtime.bench.report import header, unique
from attn_runtime.bench.results import AnyResults
from attn_runtime.files import replace_text, require_writable

Echo = Callable[[str], None]
PAGE: Final = "speed.md"
_READING: Final = (
    "Outputs are checked against float64 first; contenders run in one process, in shuffled rounds "
    "back to back, and medians count. Work is 4 x head_dim operations for each pair of a query and "
    "a key, causal squares halved. `x NAME` is how many times as fast as NAME ours is: cudnn and "
    "flash are cuDNN and FlashAttention-2 through torch's SDPA, which read rows that lie end to "
    "end, linear is ours on such rows, and same is ours on the cache that is not quantised."
)
_LAUNCHES: Final = (
    "Cold: one launch behind 256 MB of writes. Stream: launches back to back over caches that no "
    "L2 holds."
)


@dataclass(frozen=True, slots=True)
class Step:
    """A command of `attn-codegen bench`; its name is that of its files, and the note stands above
    its table."""

    name: str
    title: str
    command: str
    note: str = ""
    is_drawn: bool = False
    has_rounds: bool = True


STEPS: Final = (
    Step(
        "prefill",
        "Prefill by sequence length",
        "prefill --grid fa3 --peers cudnn",
        "2048 / head_dim heads.",
        is_drawn=True,
    ),
    Step(
        "prefill-f16",
        "Prefill by sequence length, f16",
        "prefill --grid fa3 --dtype f16 --peers cudnn",
    ),
    Step(
        "prefill-paged",
        "Prefill on a paged cache",
        "prefill --cache paged --lengths 1k,4k,16k --peers linear,cudnn",
    ),
    Step(
        "prefill-batch-1",
        "Prefill of one short sequence",
        "prefill --batch 1 --heads 16 --lengths 512,1k,2k,4k --peers cudnn",
    ),
    Step(
        "prefill-chunk",
        "A chunk of a long prompt",
        "prefill --chunk 512:32k --heads 32 --kv-heads 8 --peers cudnn,flash",
    ),
    Step(
        "prefill-ragged",
        "Prefill of sequences of random lengths",
        "prefill --model llama3-8b --varlen --cache paged --lengths 2k --peers linear,flash",
    ),
    Step(
        "prefill-gathered",
        "The same in blocks that TMA cannot read, whose rows are gathered",
        "prefill --model llama3-8b --varlen --cache paged --lengths 2k --block-len 7 "
        "--peers linear",
    ),
    Step(
        "prefill-sm80",
        "Prefill with the instructions of Ampere",
        "prefill --arch sm80 --head-dim 64 --head-dim 128 --head-dim 192 --head-dim 256 "
        "--lengths 512,2k,8k,16k --peers flash",
        "`mma.sync` and `cp.async`, which every GPU since Ampere has.",
    ),
    Step("decode", "Decode", "decode --peers flash", _LAUNCHES, is_drawn=True),
    Step(
        "decode-codes",
        "Decode on quantised caches",
        "decode --kv same,int8,int4,e4m3 --layout hnd --peers none --batch 8,64 --context 4k,16k",
        _LAUNCHES,
    ),
    Step(
        "prefill-codes",
        "Prefill on quantised caches",
        "prefill --kv same,int8,int4,e4m3 --cache paged --layout hnd --heads 32 --kv-heads 8 "
        "--lengths 8k --tokens 8192 --mask causal --peers none",
    ),
    Step(
        "prefill-codes-sm80",
        "The same with the instructions of Ampere",
        "prefill --kv same,int8,int4,e4m3 --cache paged --layout hnd --heads 32 --kv-heads 8 "
        "--lengths 8k --tokens 8192 --mask causal --peers none --arch sm80",
    ),
    Step("write", "Writing into a cache", "write"),
    Step("overhead", "The host's time of a call", "overhead", has_rounds=False),
)


def choose(names: str | None) -> tuple[Step, ...]:
    """The steps of a list with commas, in their own order; None for all. Raises BenchError."""
    if names is None:
        return STEPS
    wanted, known = {name.strip() for name in names.split(",")}, [step.name for step in STEPS]
    if unknown := sorted(wanted - set(known)):
        raise BenchError(f"--only {unknown[0]} is unknown: use some of {', '.join(known)}")
    return tuple(step for step in STEPS if step.name in wanted)


def line_of(step: Step, rounds: int) -> str:
    """What a user would type."""
    return f"attn-codegen bench {_words(step, rounds)}"


def _words(step: Step, rounds: int) -> str:
    return f"{step.command} --rounds {rounds}" if step.has_rounds else step.command


def run(steps: Sequence[Step], folder: Path, rounds: int, echo: Echo) -> list[Step]:
    """Run each in a process of its own, which leaves NAME.json in the folder; those that failed.

    Raises OutputError where nothing can be written.
    """
    require_writable(folder, "--out")
    failed = []
    for step in steps:
        saved = folder / f"{step.name}.json"
        saved.unlink(missing_ok=True)
        echo(f"\n$ {line_of(step, rounds)}")
        words = (*_words(step, rounds).split(), "--save", str(saved))
        if subprocess.run([sys.executable, "-m", "attn_codegen", "bench", *words]).returncode:
            failed.append(step)
    return failed


def write_page(folder: Path, echo: Echo) -> None:
    """Write the page of all results in a folder, where there are any, and draw their pictures where
    matplotlib is.

    Raises OSError, OutputError, and BenchError for a file that holds something else.
    """
    require_writable(folder, "--out")
    known = [(step, folder / f"{step.name}.json") for step in STEPS]
    found = [(step, files.load(path)) for step, path in known if path.exists()]
    if not found:
        echo(f"\n{folder} has no results: no page is written")
        return
    pictures = [
        step for step, results in found if step.is_drawn and _is_drawn(step, results, folder, echo)
    ]
    replace_text(folder / PAGE, page(found, pictures))
    echo(f"\n{folder / PAGE}: {len(found)} of {len(STEPS)} tables")


def _is_drawn(step: Step, results: AnyResults, folder: Path, echo: Echo) -> bool:
    try:
        plot(results, folder / f"{step.name}.png")
    except BenchError as error:
        echo(f"no picture: {error}")
        return False
    return True


def page(found: Sequence[tuple[Step, AnyResults]], pictures: Sequence[Step] = ()) -> str:
    """The tables in the order of STEPS, below what all of them were measured on."""
    machines = unique(", ".join(_machine(results)) for _, results in found)
    lines = ["<!-- SPDX-License-Identifier: Apache-2.0 -->", "# Speed", ""]
    lines += ["`attn-codegen bench all` measured this, and wrote it:", ""]
    lines += [*(f"- {machine}" for machine in machines), "", _READING]
    for step, results in found:
        lines += ["", f"## {step.title}", "", f"`attn-codegen bench {step.command}`", ""]
        lines += [step.note, ""] if step.note else []
        if len(machines) > 1:
            lines += [f"{', '.join(_machine(results))}  "]
        body = files.body(results, markdown=True)
        # Two spaces at the end of a line of text keep it a line of its own in markdown.
        lines += [
            line if not line or line.startswith("|") else f"{line}  "
            for line in (results.title, *body)
        ]
        if step in pictures:
            lines += ["", f"![{step.title}]({step.name}.png)"]
    return "\n".join(lines) + "\n"


def _machine(results: AnyResults) -> list[str]:
    """Device and date, then versions."""
    return header(results.title, results.facts)[:2]
