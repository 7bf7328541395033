# SPDX-License-Identifier: Apache-2.0
"""What an Attention refuses when it is built, and what it says then."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from attn_codegen.config import AttentionConfig, Cache, Dtype, Mask, Mode
from attn_codegen.errors import CodegenError, ConfigError
from attn_codegen.tuning import Tuning, shipped
from attn_runtime import ArgumentError, Attention, PlanError, SplitPolicy
from attn_runtime.settings import device_ordinal


def built(**changes: Any) -> Attention:
    return Attention(**({"num_heads": 32, "num_kv_heads": 8, "head_dim": 128} | changes))


def test_words_and_enums_mean_the_same() -> None:
    words = built(dtype="f16", cache="linear", mask="full")
    enums = built(dtype=Dtype.F16, cache=Cache.LINEAR, mask=Mask.FULL)
    assert words.settings == enums.settings
    assert words.config == AttentionConfig.parse("prefill_sm80_f16_d128_linear_full")


def test_what_is_left_out_has_the_usual_meaning() -> None:
    attention = Attention(num_heads=4, head_dim=64)
    settings = attention.settings
    assert settings.num_kv_heads == 4
    assert settings.softmax_scale == pytest.approx(1 / 8)
    assert settings.policy == SplitPolicy.heuristic()
    assert attention.config.name == "prefill_sm80_bf16_d64_paged_causal"


def test_an_attention_prints_as_its_kernel_and_its_heads() -> None:
    attention = Attention(num_heads=8, num_kv_heads=2, head_dim=64, mode="decode")
    assert repr(attention) == "<Attention decode_sm80_bf16_d64_paged_causal, 8 heads, 2 KV heads>"


def test_a_refused_combination_says_why_and_what_works() -> None:
    with pytest.raises(ConfigError) as error:
        built(head_dim=100)
    message = str(error.value)
    assert "head_dim 100 is not supported for bf16" in message
    assert "nearest: 96, 112" in message
    assert "mma.sync" in message, "the rule's reason"
    assert "prefill_sm80_bf16_d96_paged_causal" in message


def test_rules_that_fail_with_one_hint_say_it_once() -> None:
    with pytest.raises(ConfigError) as error:
        built(head_dim=264)
    message = str(error.value)
    assert message.count("head_dim 264 is not supported") == 1
    assert "; and mma.sync" in message, "both reasons"


@pytest.mark.parametrize("mode", ["train", "write", Mode.REDUCE])
def test_only_modes_of_attention_are_taken_and_offered(mode: str) -> None:
    with pytest.raises(ConfigError, match=f"^mode {mode} is not attention: use prefill or decode$"):
        built(mode=mode)


def test_the_block_layout_has_one_width() -> None:
    with pytest.raises(ConfigError, match="block layout stores rows of K and of V at one width"):
        built(cache="block", head_dim=192, head_dim_v=128)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0}, "num_heads is 0: it must be a whole number from 1"),
        ({"num_heads": 2.0}, "num_heads is 2.0"),
        ({"num_kv_heads": 0}, "num_kv_heads is 0"),
        ({"num_kv_heads": 5}, "num_kv_heads is 5: it must divide num_heads, which is 32"),
        ({"num_heads": 2**31}, "num_heads is 2147483648"),
        ({"window_size": -1}, "window_size is -1: give 0 for no window"),
        ({"window_size": -5}, "window_size is -5"),
        ({"softmax_scale": 0.0}, "softmax_scale is 0.0: it must be a finite float above 0"),
        ({"softmax_scale": -1.0}, "softmax_scale is -1.0"),
        ({"softmax_scale": math.nan}, "softmax_scale is nan"),
        ({"softmax_scale": math.inf}, "softmax_scale is inf"),
        ({"softmax_scale": 1e-60}, "softmax_scale is 1e-60"),
        ({"softmax_scale": "1"}, "softmax_scale is '1'"),
        ({"split": "always"}, "split is 'always': use 'heuristic', 'off'"),
        ({"split": 4}, "split is 4"),
        ({"split": SplitPolicy.fixed(0)}, "the value of SplitPolicy.fixed is 0"),
        ({"split": SplitPolicy.fixed_size(-1)}, "the value of SplitPolicy.fixed_size is -1"),
        ({"split": SplitPolicy.heuristic(-1)}, "max_split_k of split is -1"),
        ({"device": -1}, "device is -1: give the number of a GPU"),
        ({"device": "cpu"}, "device is 'cpu'"),
        ({"kernels": 5}, "kernels is 5: give the path of a folder"),
        ({"context_parallel": 4}, "context_parallel is 4: give a ContextParallel(group)"),
    ],
    ids=str,
)
def test_a_number_out_of_range_is_refused_by_its_name(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError) as error:
        built(**changes)
    assert message in str(error.value)
    assert [error.value.argument] == list(changes)


def test_errors_of_the_runtime_are_errors_of_the_toolkit() -> None:
    with pytest.raises(CodegenError):
        built(num_heads=0)
    assert issubclass(PlanError, CodegenError)
    with pytest.raises(ValueError):
        built(num_heads=0)


@pytest.mark.parametrize(
    ("dtype", "message"), [("f32", "unknown dtype 'f32'"), ("e4m3", "use f16 or bf16")]
)
def test_an_unknown_word_is_refused_with_those_that_are_known(dtype: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built(dtype=dtype)


@pytest.mark.parametrize(
    ("axis", "allowed"),
    [
        ("mask", "causal or full"),
        ("cache", "linear, block or paged"),
        ("dtype", "f16 or bf16"),
        ("head_dim", "a multiple of 16 up to 256"),
    ],
)
def test_none_is_no_word_for_the_usual_value(axis: str, allowed: str) -> None:
    with pytest.raises(ConfigError, match=f"^{axis} is None: use {allowed}$"):
        built(**{axis: None})


def test_a_width_may_be_any_whole_number_type() -> None:
    assert type(built(head_dim=np.int64(128)).config.head_dim) is int
    with pytest.raises(ConfigError, match=r"head_dim 128\.0 is not a whole number"):
        built(head_dim=128.0)


def test_devices_of_other_libraries_are_taken_by_their_number() -> None:
    class TorchDevice:
        index = 2

    class CupyDevice:
        id = 3

    devices = (None, "cuda", 1, "cuda:4", TorchDevice(), CupyDevice())
    assert [device_ordinal(device) for device in devices] == [None, None, 1, 4, 2, 3]


def test_host_tensors_are_refused_before_a_gpu_is_looked_for() -> None:
    torch = pytest.importorskip("torch", reason="needs torch: it is not installed")
    q = torch.zeros(4, 32, 128, dtype=torch.bfloat16)
    lengths = torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ArgumentError, match="q is in host memory: move it to a GPU"):
        built()(q, q, q, cu_q_len=lengths, cu_k_len=lengths, block_table=lengths)


def test_a_tile_is_a_word_or_default_and_none_leaves_it_to_the_plan():
    words = {None: None, "default": "", "t128x128": "t128x128"}
    given = {"num_heads": 8, "head_dim": 128, "arch": "sm90"}
    assert {word: Attention(**given, tile=word).settings.tile for word in words} == words
    with pytest.raises(ConfigError, match="tile t9x9 is not supported"):
        Attention(**given, tile="t9x9")
    with pytest.raises(ConfigError, match="tile t9x9 is not supported"):
        Attention(num_heads=8, head_dim=128, tile="t9x9")  # of whichever family
    assert Attention(num_heads=8, head_dim=64, cache="linear", tile="t64x64k2")  # of sm90 alone
    with pytest.raises(ArgumentError, match="tile is 128: give a tile word") as caught:
        Attention(**given, tile=128)
    assert caught.value.argument == "tile"


def test_a_tuning_is_that_of_the_package_or_of_a_file(tmp_path):
    mine = Tuning("a device", "a command", {})
    path = tmp_path / "mine.json"
    path.write_text(mine.to_text())
    given = {"num_heads": 8, "head_dim": 128}
    assert Attention(**given).settings.tuning == shipped()
    for tuning in (mine, path, str(path)):
        assert Attention(**given, tuning=tuning).settings.tuning == mine
    with pytest.raises(ArgumentError, match="tuning is 3: give the path"):
        Attention(**given, tuning=3)
