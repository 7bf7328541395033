# SPDX-License-Identifier: Apache-2.0
"""What holds of the rules, the valid space and the presets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attn_codegen import presets, rules, space
from attn_codegen.config import (
    AXIS_NAMES,
    Arch,
    AttentionConfig,
    Cache,
    Dtype,
    KvDtype,
    Mask,
    Mode,
    reduction_of,
)
from attn_codegen.errors import ConfigError
from attn_codegen.tile import SM80_SHARED_LIMIT, SM90_SHARED_LIMIT
from attn_codegen.tiling import tilings

widths = st.one_of(
    st.integers(-8, 320), st.sampled_from(range(16, 257, 16)), st.sampled_from([64, 128])
)
configs = st.builds(
    AttentionConfig,
    mode=st.sampled_from([Mode.PREFILL, *Mode]),
    arch=st.sampled_from([Arch.SM80, *Arch]),
    dtype=st.sampled_from(Dtype),
    kv_dtype=st.sampled_from([KvDtype.SAME, *KvDtype]),
    head_dim=widths,
    head_dim_v=st.one_of(st.none(), widths),
    cache=st.sampled_from([*Cache, None]),
    mask=st.sampled_from([*Mask, None]),
    tile=st.sampled_from(["", "", "t1x1"]),
)

REFUSED = {
    "arch-emitted": AttentionConfig(arch=Arch.SM75),
    "reduce-one-arch": AttentionConfig.of(mode="reduce", arch="sm90"),
    "write-one-arch": AttentionConfig.of(mode="write", arch="sm90"),
    "write-has-no-mask": AttentionConfig(mode=Mode.WRITE),
    "decode-one-width": AttentionConfig(mode=Mode.DECODE, head_dim_v=64, cache=Cache.PAGED),
    "decode-causal": AttentionConfig(mode=Mode.DECODE, mask=Mask.FULL),
    "kv-dtype-emitted": AttentionConfig(
        mode=Mode.REDUCE, kv_dtype=KvDtype.INT8, cache=None, mask=None
    ),
    "quantised-one-width": AttentionConfig.of(
        mode="write", kv_dtype="int8", head_dim_v=64, cache="paged"
    ),
    "decode-codes-width": AttentionConfig(mode=Mode.DECODE, kv_dtype=KvDtype.INT8, head_dim=80),
    "int4-head-dim": AttentionConfig.of(mode="write", kv_dtype="int4", head_dim=80),
    "head-dim-range": AttentionConfig(head_dim=272),
    "head-dim-step": AttentionConfig(head_dim=100),
    "head-dim-v-range": AttentionConfig(head_dim_v=272, cache=Cache.PAGED),
    "head-dim-v-step": AttentionConfig(head_dim_v=100, cache=Cache.PAGED),
    "block-one-width": AttentionConfig(head_dim=192, head_dim_v=128, cache=Cache.BLOCK),
    "mode-has-cache": AttentionConfig(cache=None),
    "attention-has-mask": AttentionConfig(mask=None),
    "reduce-has-no-cache": AttentionConfig(mode=Mode.REDUCE, mask=None),
    "reduce-has-no-mask": AttentionConfig(mode=Mode.REDUCE, cache=None),
    "reduce-one-width": AttentionConfig.of(mode="reduce", head_dim=192, head_dim_v=128),
    "tile-known": AttentionConfig(tile="t1x1"),
}


def failed(config: AttentionConfig) -> list[str]:
    return [verdict.rule.id for verdict in rules.evaluate(config) if not verdict.passed]


def message(config: AttentionConfig) -> str:
    return next(verdict.message for verdict in rules.evaluate(config) if not verdict.passed)


def test_rule_ids_are_unique_and_name_known_axes() -> None:
    assert len({rule.id for rule in rules.RULES}) == len(rules.RULES)
    for rule in rules.RULES:
        assert rule.axis in AXIS_NAMES
        assert rule.beside in ("", *AXIS_NAMES)


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.id)
def test_each_rule_alone_refuses_its_example(rule: rules.Rule) -> None:
    assert failed(REFUSED[rule.id]) == [rule.id]
    assert not rules.is_valid(REFUSED[rule.id])


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.id)
def test_each_refusal_says_what_got_and_what_to_do(rule: rules.Rule) -> None:
    config = REFUSED[rule.id]
    value = config.axes()[rule.axis]
    got, next_step = message(config).split(": ", 1)
    assert got.startswith(f"{rule.axis} {'none' if value is None else value} is not supported")
    assert next_step
    assert rule.reason != rule.hint


def test_a_refused_head_dim_names_its_neighbours() -> None:
    assert message(AttentionConfig(dtype=Dtype.BF16, head_dim=100)) == (
        "head_dim 100 is not supported for bf16: use a multiple of 16 up to 256 (nearest: 96, 112)"
    )
    assert message(AttentionConfig(head_dim=300)).endswith("(nearest: 256)")
    assert message(AttentionConfig(head_dim=0)).endswith("(nearest: 16)")


def test_a_refused_tile_names_those_there_are() -> None:
    hopper = AttentionConfig.of(arch="sm90", dtype="bf16", cache="linear", tile="t1x1")
    tiles = [word for word in tilings(AttentionConfig.parse(hopper.name[:-5])) if word]
    assert message(hopper).endswith(f"({hopper.name[:-5]} has {', '.join(tiles)})")
    assert message(AttentionConfig(tile="t1x1")).endswith("_causal has no other)")


def test_two_rules_that_refuse_alike_say_so_once() -> None:
    assert failed(AttentionConfig(head_dim=8)) == ["head-dim-range", "head-dim-step"]
    assert len(rules.faults(AttentionConfig(head_dim=8))) == 1


def test_every_failed_rule_is_told_at_once() -> None:
    config = AttentionConfig(arch=Arch.SM70, head_dim=100, cache=None, mask=None)
    rules = ["arch-emitted", "head-dim-step", "mode-has-cache", "attention-has-mask"]
    assert failed(config) == rules
    with pytest.raises(ConfigError) as caught:
        space.require_valid(config)
    for word in ("arch sm70", "head_dim 100", "cache none", "mask none", "Nearest valid"):
        assert word in str(caught.value)


@settings(max_examples=300)
@given(configs)
def test_the_valid_space_holds_exactly_what_the_rules_pass(config: AttentionConfig) -> None:
    assert rules.is_valid(config) == (config in set(space.valid_space()))
    assert rules.is_valid(config) == (not failed(config))


@settings(max_examples=50, deadline=None)
@given(configs)
def test_the_nearest_configurations_are_valid_and_distinct(config: AttentionConfig) -> None:
    near = space.nearest(config)
    assert len(set(near)) == 3
    assert all(map(rules.is_valid, near))
    if rules.is_valid(config):
        assert near[0] == config
        assert space.require_valid(config) is config


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        (AttentionConfig(head_dim=100), "prefill_sm80_f16_d96_block_causal"),
        (AttentionConfig(arch=Arch.SM75), "prefill_sm80_f16_d128_block_causal"),
        (
            AttentionConfig(head_dim=576, head_dim_v=512, cache=Cache.PAGED),
            "prefill_sm80_f16_d256_paged_causal",
        ),
        (AttentionConfig(head_dim_v=64), "prefill_sm80_f16_d128_v64_linear_causal"),
        (AttentionConfig(mode=Mode.REDUCE), "reduce_sm80_f16_d128"),
    ],
)
def test_the_nearest_configuration_keeps_what_a_model_fixes(
    asked: AttentionConfig, nearest: str
) -> None:
    assert nearest in [config.name for config in space.nearest(asked)]


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_kernel_of_a_preset_is_valid_and_ends_in_its_reduction(name: str) -> None:
    preset = presets.preset(name)
    assert all(map(rules.is_valid, preset))
    assert presets.with_reductions(preset) == preset
    assert list(preset) == sorted(set(preset), key=lambda config: config.name)
    for config in preset:
        assert config.mode is Mode.REDUCE or reduction_of(config) in preset


def test_the_default_preset_is_the_product_that_common_engines_need() -> None:
    preset = presets.preset("default")
    attention = [config for config in preset if config.mode is Mode.PREFILL]
    assert len(preset) <= 250
    for cache in Cache:
        for mask in Mask:
            for dtype in Dtype:
                dims = {
                    c.head_dim
                    for c in attention
                    if (c.cache, c.mask, c.dtype) == (cache, mask, dtype)
                }
                assert dims == {64, 128, 192, 256}
    unequal = {(c.cache, c.head_dim, c.head_dim_v) for c in attention if c.head_dim_v != c.head_dim}
    assert unequal == {(Cache.LINEAR, 192, 128), (Cache.PAGED, 192, 128)}


def test_every_preset_is_part_of_all() -> None:
    for name in presets.PRESETS:
        assert set(presets.preset(name)) <= set(presets.preset("all"))


def test_what_turbomind_decodes_it_can_write() -> None:
    """Blocks of q's own type, and of int8 and int4; linear rows are written by whoever has them."""
    preset = presets.preset("turbomind")
    decoded = [c for c in preset if c.mode is Mode.DECODE and c.cache is Cache.BLOCK]
    assert {c.kv_dtype for c in decoded} == {KvDtype.SAME, KvDtype.INT8, KvDtype.INT4}
    for config in decoded:
        assert replace(config, mode=Mode.WRITE, mask=None) in preset
    assert {c.cache for c in preset} == {Cache.LINEAR, Cache.BLOCK, None}
    plain = {c for c in preset if c.kv_dtype is KvDtype.SAME and c.mode is not Mode.WRITE}
    assert plain <= set(presets.preset("default"))


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'al': use default, all or turbomind"):
        presets.preset("al")


def test_every_default_tile_fits_the_smallest_device_of_its_family() -> None:
    limits = {Arch.SM80: SM80_SHARED_LIMIT, Arch.SM90: SM90_SHARED_LIMIT}
    for config in space.valid_space():
        for word, tile in tilings(config).items():
            limit = SM90_SHARED_LIMIT if word else limits[config.arch]
            assert 0 <= tile.shared_bytes <= limit, config.name
            assert 32 <= tile.threads <= 1024, config.name
            assert tile.ctas_per_sm * (tile.shared_bytes + 1024) <= 228 * 1024, config.name


def test_every_tile_consists_of_the_steps_of_its_products() -> None:
    """Of rows and of keys: mma.sync takes 16 and 16, with the rows of decode as its 8 columns;
    wgmma takes 64 rows."""
    steps = {Mode.PREFILL: {Arch.SM80: 16, Arch.SM90: 64}, Mode.DECODE: dict.fromkeys(Arch, 8)}
    for config in space.valid_space():
        if config.mode in steps:
            for word, tile in tilings(config).items():
                rows = steps[config.mode][config.arch]
                assert tile.cta_q % rows == tile.cta_s % 16 == 0, f"{config.name} {word}"


def test_every_configuration_has_a_default_tile() -> None:
    assert all("" in tilings(config) for config in space.valid_space())


@pytest.mark.parametrize("cache", list(Cache))
@pytest.mark.parametrize("dtype", list(Dtype))
def test_int4_of_64_has_no_tile_for_which_ptxas_makes_an_illegal_instruction(
    dtype: Dtype, cache: Cache
) -> None:
    """CUDA 13.0, for sm_90; tests/nvcc/test_gates.py looks for it in the units that it compiles."""
    config = AttentionConfig.of(
        mode=Mode.DECODE, dtype=dtype, kv_dtype=KvDtype.INT4, head_dim=64, cache=cache
    )
    assert tilings(config).keys() == {"", "t16x128"}
    wide = AttentionConfig.parse(f"{config.name}_t32x128")
    assert message(wide).endswith(f"({config.name} has t16x128)")
