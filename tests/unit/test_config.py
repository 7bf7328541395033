# SPDX-License-Identifier: Apache-2.0
"""What holds of names: one configuration, one name, both ways."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attn_codegen import rules, space
from attn_codegen.config import (
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

head_dims = st.one_of(st.integers(-(10**6), 10**6), st.sampled_from([64, 128, 192, 256]))
configs = st.builds(
    AttentionConfig,
    mode=st.sampled_from(Mode),
    arch=st.sampled_from(Arch),
    dtype=st.sampled_from(Dtype),
    kv_dtype=st.sampled_from(KvDtype),
    head_dim=head_dims,
    head_dim_v=st.one_of(st.none(), head_dims),
    cache=st.one_of(st.none(), st.sampled_from(Cache)),
    mask=st.one_of(st.none(), st.sampled_from(Mask)),
    tile=st.one_of(st.just(""), st.from_regex(r"t[0-9][0-9a-z]{0,9}", fullmatch=True)),
)
words = st.sampled_from(
    [*Mode, *Arch, *Dtype, *KvDtype, *Cache, *Mask, "d128", "v64", "d0128", "d-0", "t64", "", "x"]
)


@given(configs)
def test_a_name_parses_back_to_its_configuration(config: AttentionConfig) -> None:
    assert AttentionConfig.parse(config.name) == config


def test_every_valid_name_parses_back_and_is_unlike_the_others() -> None:
    names = [config.name for config in space.valid_space()]
    assert [AttentionConfig.parse(name).name for name in names] == names
    assert len(set(names)) == len(names)


@given(st.one_of(st.text(), st.lists(words, max_size=9).map("_".join)))
def test_a_text_is_the_name_of_what_it_parses_to_or_is_refused(text: str) -> None:
    try:
        config = AttentionConfig.parse(text)
    except ConfigError:
        return
    assert config.name == text


@given(configs)
def test_a_name_can_be_a_c_symbol_and_a_file_stem(config: AttentionConfig) -> None:
    assert config.name.replace("-", "_").isidentifier()
    assert config.name.isascii()
    assert config.name == config.name.lower()


@given(configs)
def test_axes_in_words_make_the_same_configuration(config: AttentionConfig) -> None:
    given_axes = {axis: value for axis, value in config.axes().items() if value is not None}
    missing = {axis: None for axis in ("cache", "mask") if axis not in given_axes}
    assert dataclasses.replace(AttentionConfig.of(**given_axes), **missing) == config


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (AttentionConfig(), "prefill_sm80_f16_d128_block_causal"),
        (
            AttentionConfig(
                mode=Mode.DECODE, dtype=Dtype.BF16, kv_dtype=KvDtype.INT8, cache=Cache.PAGED
            ),
            "decode_sm80_bf16_int8_d128_paged_causal",
        ),
        (
            AttentionConfig(arch=Arch.SM90, head_dim=192, head_dim_v=128, tile="t128x128u2"),
            "prefill_sm90_f16_d192_v128_block_causal_t128x128u2",
        ),
        (AttentionConfig.of(mode="reduce", dtype="bf16"), "reduce_sm80_bf16_d128"),
    ],
)
def test_names_are_spelled_as_documented(config: AttentionConfig, name: str) -> None:
    assert config.name == name


def test_axes_left_out_take_the_documented_defaults() -> None:
    assert AttentionConfig.of() == AttentionConfig(
        Mode.PREFILL, Arch.SM80, Dtype.F16, KvDtype.SAME, 128, 128, Cache.BLOCK, Mask.CAUSAL, ""
    )
    assert AttentionConfig.of(head_dim=96).head_dim_v == 96


def test_a_reduction_left_to_defaults_has_no_cache_and_no_mask() -> None:
    config = AttentionConfig.of(mode=Mode.REDUCE)
    assert config.cache is None
    assert config.mask is None
    assert rules.is_valid(config)


def test_the_reduction_has_the_width_of_the_output() -> None:
    config = AttentionConfig.of(dtype="bf16", head_dim=192, head_dim_v=128, cache="paged")
    assert reduction_of(config).name == "reduce_sm80_bf16_d128"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "has '' where mode stands: use prefill, decode, write or reduce"),
        ("prefil_sm80_f16_d128_block_causal", "has 'prefil' where mode stands"),
        ("prefill_sm80", "has nothing where dtype stands: use f16 or bf16"),
        (
            "prefill_sm80_f16_128_block_causal",
            "has '128' where head_dim stands: use d and a number",
        ),
        (
            "prefill_sm80_f16_d128_causal_block",
            "has 'block' out of place: the words are mode, arch",
        ),
        (
            "prefill_sm80_f16_d128_block_causl",
            "has 'causl' out of place (nearest: causal): the words are mode, arch",
        ),
        ("prefill_sm80_f16_d0128_block_causal", "has 'd0128' where head_dim stands"),
        (
            "prefill_sm80_f16_same_d128_block_causal",
            "is not canonical: use 'prefill_sm80_f16_d128_",
        ),
        (
            "prefill_sm80_f16_d128_v128_block_causal",
            "is not canonical: use 'prefill_sm80_f16_d128_",
        ),
        ("prefill_sm80_f16_d128_block_causal\n", "has 'causal\\n' out of place"),
    ],
)
def test_a_wrong_name_is_refused_with_what_may_stand_there(name: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AttentionConfig.parse(name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"dtype": "fp16"}, "unknown dtype 'fp16': use f16 or bf16"),
        ({"head_size": 128}, "unknown axis 'head_size': use mode, arch, dtype"),
        ({"head_dim": "128"}, "head_dim '128' is not a whole number"),
        ({"head_dim": True}, "head_dim True is not a whole number"),
        ({"tile": "128x64"}, "tile '128x64' is not a tile word"),
        ({"tile": "t64_causal"}, "tile 't64_causal' is not a tile word"),
    ],
)
def test_a_wrong_axis_is_refused_with_what_is_allowed(axes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AttentionConfig.of(**axes)
    assert str(caught.value).startswith(said)
