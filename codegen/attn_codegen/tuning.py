# SPDX-License-Identifier: Apache-2.0
"""What the tiles of a configuration cost, as measured: the plan picks one by it.

A tuning file is JSON. For each configuration, named without a tile, it lists the tiles that a plan
may pick and two numbers of each, which attn_runtime/cost.py and attn/cost.h read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any, Final

from attn_codegen.config import Arch, AttentionConfig, Cache, Dtype, KvDtype
from attn_codegen.errors import CodegenError, TuningError
from attn_codegen.tile import PANEL, Tiling
from attn_codegen.tiling import tilings

SCHEMA: Final = 1
FILE_NAME: Final = "tuning.json"
DEFAULT_TILE: Final = "default"
"""What a tuning file and the command line call the tile without a word."""
COST_MAX: Final = 2**16 - 1

_NEXT: Final = (
    "write one with attn-codegen tune, or leave it out for the one that comes with attn-codegen"
)
_FLOPS_PER_NS: Final = {Arch.SM80: 2700, Arch.SM90: 5000}
"""What an SM of Hopper reaches in the products of long sequences: for what was not measured."""


@dataclass(frozen=True, slots=True)
class TileCost:
    """Nanoseconds, on a full device, of a query tile and of each key tile that it sees."""

    tile_ns: int
    step_ns: int


Costs = Mapping[str, TileCost]
"""By tile word; "" is the default tile."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """A tuning file. `costs` by the names of configurations without a tile."""

    device: str
    command: str
    costs: Mapping[str, Costs]

    def of(self, config: AttentionConfig) -> dict[str, TileCost]:
        """The tiles of a configuration that a plan may pick, the default tile first.

        What was not measured stands on what is most like it: the same tiles in bf16, over a paged
        cache, at the width that shared memory holds. Where there is none, the default tile has the
        cost of its arithmetic.
        """
        known = tilings(replace(config, tile=""))
        for name in _alike(config):
            costs = self.costs.get(name, {})
            if "" in costs:
                return {word: costs[word] for word in known if word in costs}
        return {"": _estimate(config, known[""])}

    def cost(self, config: AttentionConfig) -> TileCost:
        """The cost of the tile that a configuration names."""
        tile = tilings(replace(config, tile=""))[config.tile]
        return self.of(config).get(config.tile) or _estimate(config, tile)

    def to_text(self) -> str:
        """The canonical text: sorted, LF."""
        configurations = {
            name: {word or DEFAULT_TILE: asdict(cost) for word, cost in sorted(costs.items())}
            for name, costs in sorted(self.costs.items())
        }
        head = {"schema": SCHEMA, "device": self.device, "command": self.command}
        return json.dumps(head | {"configurations": configurations}, indent=2) + "\n"


@cache
def shipped() -> Tuning:
    """The tuning that comes with the package."""
    return parse(files("attn_codegen").joinpath(FILE_NAME).read_text("utf-8"), FILE_NAME)


def read(path: Path) -> Tuning:
    """The tuning file of a user. Raises TuningError."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        why = error.strerror or str(error)
        raise TuningError(f"the tuning file {path} cannot be read ({why}): {_NEXT}") from error
    return parse(text, str(path))


def parse(text: str, where: str) -> Tuning:
    """A tuning file; `where` is its path in messages. Raises TuningError."""
    try:
        data = json.loads(text)
        if not isinstance(data, dict):
            raise _refused(where, "it holds no JSON object")
        if data["schema"] != SCHEMA:
            raise _refused(where, f"its schema is {data['schema']!r}, this version reads {SCHEMA}")
        costs = {name: _costs(name, tiles, where) for name, tiles in data["configurations"].items()}
        return Tuning(str(data["device"]), str(data["command"]), costs)
    except (ValueError, AttributeError) as error:
        raise _refused(where, f"it is not such JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise _refused(where, f"it lacks {error}") from error


def _costs(name: str, tiles: Mapping[str, Mapping[str, int]], where: str) -> dict[str, TileCost]:
    """The tiles of one configuration, checked."""
    try:
        config = AttentionConfig.parse(name)
    except CodegenError as error:
        raise _refused(where, str(error)) from error
    known = tilings(replace(config, tile=""))
    costs = {}
    for given, numbers in tiles.items():
        word = "" if given == DEFAULT_TILE else given
        if config.tile or word not in known:
            words = ", ".join(word or DEFAULT_TILE for word in known)
            raise _refused(where, f"{name} has the tile {given!r}, and there are {words}")
        cost = costs[word] = TileCost(numbers["tile_ns"], numbers["step_ns"])
        for value in (cost.tile_ns, cost.step_ns):
            if type(value) is not int or not 0 <= value <= COST_MAX:
                raise _refused(where, f"{name} has the cost {value!r}, not 0 to {COST_MAX} ns")
    if "" not in costs:
        raise _refused(where, f"{name} lacks the tile {DEFAULT_TILE!r}, which is always there")
    return costs


def _refused(where: str, fault: str) -> TuningError:
    return TuningError(f"{where} is not a tuning file ({fault}): {_NEXT}")


def _alike(config: AttentionConfig) -> Iterator[str]:
    """Names of configurations with nearly the same kernel, the nearest first."""
    widest = -(-max(config.head_dim, config.head_dim_v) // PANEL) * PANEL
    widths = [(config.head_dim, config.head_dim_v), (widest, widest)]
    caches = [config.cache, Cache.LINEAR if config.cache is Cache.LINEAR else Cache.PAGED]
    dtypes = [config.dtype, Dtype.BF16]
    for (width, width_v), kv_cache, dtype in product(widths, caches, dtypes):
        yield replace(
            config,
            dtype=dtype,
            kv_dtype=KvDtype.SAME,
            head_dim=width,
            head_dim_v=width_v,
            cache=kv_cache,
            tile="",
        ).name


def _estimate(config: AttentionConfig, tile: Tiling) -> TileCost:
    """A step is two products; around them, a tile costs about as much as a step."""
    flops: Any = 2 * tile.cta_q * tile.cta_s * (config.head_dim + config.head_dim_v)
    step = flops * tile.ctas_per_sm // _FLOPS_PER_NS.get(config.arch, _FLOPS_PER_NS[Arch.SM80])
    return TileCost(min(step, COST_MAX), min(step, COST_MAX))
