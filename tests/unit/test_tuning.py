# SPDX-License-Identifier: Apache-2.0
"""Tuning files: what they say of a configuration, what stands in, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from attn_codegen import presets, renderer, tuning
from attn_codegen.config import AttentionConfig, Cache, Dtype, Mode
from attn_codegen.errors import TuningError
from attn_codegen.tiling import tilings
from attn_codegen.tuning import TileCost, Tuning
from commands import run

NAME = "prefill_sm90_bf16_d128_linear_causal"
CONFIG = AttentionConfig.parse(NAME)
TUNING = Tuning(
    device="a device",
    command="a command",
    costs={NAME: {"": TileCost(3000, 1400), "t128x128": TileCost(2000, 1500)}},
)


def text_with(configurations: object) -> str:
    """A tuning file with the given table."""
    head = {"schema": 1, "device": "d", "command": "c"}
    return json.dumps(head | {"configurations": configurations})


def test_a_tuning_file_reads_back_as_it_was_written():
    assert tuning.parse(TUNING.to_text(), "a.json") == TUNING


def test_the_shipped_file_is_canonical_and_says_how_it_was_made():
    shipped = tuning.shipped()
    text = tuning.files("attn_codegen").joinpath(tuning.FILE_NAME).read_text("utf-8")
    assert shipped.to_text() == text
    assert shipped.command and shipped.device


def test_every_configuration_of_the_preset_has_its_default_tile_first():
    for config in presets.preset("default"):
        if config.mode is Mode.PREFILL:
            assert next(iter(tuning.shipped().of(config))) == "", config.name


def test_a_plan_picks_among_the_tiles_that_the_file_lists():
    assert list(TUNING.of(CONFIG)) == ["", "t128x128"]
    only = Tuning("d", "c", {NAME: {"": TileCost(1, 1)}})
    assert list(only.of(CONFIG)) == [""]
    assert "t128x128" in tilings(CONFIG)


@pytest.mark.parametrize(
    "alike",
    [
        replace(CONFIG, dtype=Dtype.F16),
        replace(CONFIG, head_dim=112, head_dim_v=112),
        replace(CONFIG, head_dim=80, head_dim_v=80, dtype=Dtype.F16),
    ],
    ids=lambda config: config.name,
)
def test_what_was_not_measured_stands_on_what_is_most_like_it(alike):
    assert TUNING.of(alike) == TUNING.of(CONFIG)


def test_gathered_caches_do_not_stand_on_the_linear_one():
    paged = replace(CONFIG, cache=Cache.PAGED)
    assert list(TUNING.of(paged)) == [""]
    assert TUNING.of(paged) != {"": TUNING.costs[NAME][""]}
    measured = Tuning("d", "c", {paged.name: {"": TileCost(7, 8)}})
    assert measured.of(replace(CONFIG, cache=Cache.BLOCK)) == {"": TileCost(7, 8)}


def test_the_estimate_of_what_nobody_measured_grows_with_the_work():
    nothing = Tuning("d", "c", {})
    steps = [
        nothing.cost(replace(CONFIG, head_dim=width, head_dim_v=width)).step_ns
        for width in (80, 96, 112, 128)
    ]
    assert steps == sorted(steps) and steps[0] > 0


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "not such JSON"),
        ("[]", "it holds no JSON object"),
        ("{}", "lacks 'schema'"),
        (json.dumps({"schema": 2}), "its schema is 2, this version reads 1"),
        (text_with([]), "not such JSON"),
        (text_with({"prefill": {}}), "'prefill' has nothing where arch stands"),
        (text_with({NAME: {}}), "lacks the tile 'default'"),
        (text_with({NAME: {"default": {"tile_ns": 1}}}), "lacks 'step_ns'"),
        (text_with({NAME: {"t9x9": {"tile_ns": 1, "step_ns": 1}}}), "tile 't9x9', and there are"),
        (text_with({NAME: {"default": {"tile_ns": -1, "step_ns": 1}}}), "the cost -1, not 0 to"),
        (text_with({NAME: {"default": {"tile_ns": 1.5, "step_ns": 1}}}), "the cost 1.5"),
        (text_with({f"{NAME}_t128x128": {"default": {}}}), "has the tile 'default'"),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_fault(text, fault):
    with pytest.raises(TuningError, match="attn-codegen tune") as caught:
        tuning.parse(text, "my.json")
    assert "my.json" in str(caught.value)
    assert fault in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(TuningError, match=r"No such file or directory\): write one with attn-code"):
        tuning.read(tmp_path / "none.json")


def test_costs_are_part_of_the_unit_and_of_its_digest():
    dearer = Tuning("d", "c", {NAME: {"": TileCost(3001, 1400)}})
    texts = [renderer.render([CONFIG], tuning=given) for given in (TUNING, dearer)]
    unit = f"kernels/{NAME}.cu"
    assert "entry.tile_ns = 3000;" in texts[0][unit]
    assert "entry.tile_ns = 3001;" in texts[1][unit]
    digests = [json.loads(text["manifest.json"])["kernels"][0]["digest"] for text in texts]
    assert digests[0] != digests[1]


def test_the_default_preset_has_the_tiles_of_its_tuning():
    chosen = presets.preset("default", TUNING)
    assert CONFIG in chosen and replace(CONFIG, tile="t128x128") in chosen
    paged = replace(CONFIG, cache=Cache.PAGED)
    assert paged in chosen and replace(paged, tile="t128x128") not in chosen


def test_emit_takes_a_tuning_file_of_the_user(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(TUNING.to_text())
    out = str(tmp_path / "out")
    done = run("emit", "--out", out, "--tuning", str(file), "--config", NAME)
    assert done.code == 0, done.err
    assert "entry.tile_ns = 3000;" in (tmp_path / "out" / "kernels" / f"{NAME}.cu").read_text()


def test_a_broken_tuning_file_is_one_line_on_stderr(tmp_path):
    file = tmp_path / "broken.json"
    file.write_text("{}")
    done = run("emit", "--out", str(tmp_path / "out"), "--tuning", str(file))
    assert done.code == 1
    assert done.err.count("\n") == 1 and "is not a tuning file" in done.err
    assert not (tmp_path / "out").exists()
