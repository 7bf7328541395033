# SPDX-License-Identifier: Apache-2.0
"""The head dims that the default preset leaves out, in both kernel families."""

from __future__ import annotations

import pytest
from test_preset import check

from attn_codegen.config import Arch, AttentionConfig, Cache, Dtype, Mask
from attn_codegen.presets import preset
from attn_codegen.rules import is_valid
from attn_codegen.tiling import tiling
from cases import Kernel, random_tasks

pytestmark = pytest.mark.gpu

UNEQUAL = [(16, 240), (64, 128), (64, 256), (80, 112), (128, 64), (128, 192), (144, 128)]
UNEQUAL += [(192, 64), (192, 256), (240, 16), (256, 64), (256, 128), (256, 192)]
WIDTHS = [(width, width) for width in range(16, 257, 16)] + UNEQUAL
FORMS = [(Dtype.BF16, Cache.LINEAR, Mask.CAUSAL), (Dtype.F16, Cache.PAGED, Mask.FULL)]
TASKS = 4


def kernels() -> list[Kernel]:
    """A causal kernel on a linear cache and a full one on a paged cache of each width."""
    configs = [
        AttentionConfig(
            arch=arch, dtype=dtype, head_dim=width, head_dim_v=width_v, cache=cache, mask=mask
        )
        for arch in (Arch.SM80, Arch.SM90)
        for width, width_v in WIDTHS
        for dtype, cache, mask in FORMS
    ]
    usual = set(preset("default"))
    tiles = {config: tiling(config) for config in configs if is_valid(config)}
    return [
        Kernel(config, tile.cta_q, tile.cta_s)
        for config, tile in tiles.items()
        if config not in usual
    ]


@pytest.mark.parametrize(
    "kernel", [pytest.param(kernel, id=kernel.config.name) for kernel in kernels()]
)
def test_unusual_width_gives_the_oracle_s_output(kernel: Kernel) -> None:
    for task in random_tasks(kernel, TASKS):
        assert not check(kernel, task), str(task)
