# SPDX-License-Identifier: Apache-2.0
"""What `bench` times: grids, shapes of one's own, and how much work each is."""

from __future__ import annotations

import pytest

from attn_codegen.config import Mask
from attn_runtime.bench import shapes
from attn_runtime.bench.errors import BenchError
from attn_runtime.bench.shapes import Grid, Heads, Shape, geometric_mean, heads_for
from reference import visible

BOTH = (Mask.FULL, Mask.CAUSAL)


def shape_of(q_len: int, k_len: int, mask: Mask) -> Shape:
    return Shape((q_len,), (k_len,), Heads(8, 2, 64), mask, "row", "column")


def test_the_paper_s_grid_has_36_cells_of_16k_tokens_and_2048_columns() -> None:
    heads = tuple(heads_for(width, None, None) for width in (64, 128, 256))
    cells = Grid(heads, BOTH).shapes()
    assert len(cells) == 36
    assert {cell.token_num for cell in cells} == {16_384}
    assert {cell.heads.num_heads * cell.heads.head_dim for cell in cells} == {2048}
    assert len({(cell.row, cell.column) for cell in cells}) == 36


def test_work_is_4_b_h_s2_d_and_half_of_it_when_causal() -> None:
    full, causal = (shapes.parse_shape("4x16x16x1024x1024x128", (mask,))[0].flops for mask in BOTH)
    assert full == 4 * 4 * 16 * 1024**2 * 128
    assert causal == full / 2


@pytest.mark.parametrize(("q_len", "k_len"), [(64, 64), (16, 200), (200, 200), (100, 40)])
def test_work_counts_the_pairs_of_the_mask_but_for_half_a_diagonal(q_len: int, k_len: int) -> None:
    for mask in BOTH:
        pairs = visible(q_len, k_len, mask is Mask.CAUSAL, 0).sum()
        counted = shape_of(q_len, k_len, mask).flops / (4 * 64 * 8)
        diagonal = min(q_len, k_len) / 2 if mask is Mask.CAUSAL else 0
        assert counted == pairs - diagonal


def test_a_batch_replaces_the_tokens() -> None:
    grid = Grid((Heads(16, 16, 128),), (Mask.FULL,), (512, 65_536), batch=1)
    assert [cell.q_lens for cell in grid.shapes()] == [(512,), (65_536,)]


def test_a_sequence_longer_than_the_tokens_is_refused_with_a_way_out() -> None:
    with pytest.raises(BenchError, match=r"8192.*4096 tokens.*--tokens.*--lengths.*--batch"):
        Grid((Heads(16, 16, 128),), BOTH, tokens=4096).shapes()


@pytest.mark.parametrize("mean", [512, 3000, 16_384])
def test_random_lengths_fill_the_tokens_and_are_the_same_again(mean: int) -> None:
    lens = shapes.ragged_lens(mean, 16_384)
    assert sum(lens) == 16_384
    assert min(lens) >= 1 and max(lens) < 2 * mean
    assert lens == shapes.ragged_lens(mean, 16_384)


def test_random_lengths_scatter_around_the_mean() -> None:
    lens = shapes.ragged_lens(512, 1 << 20)
    assert sum(lens) / len(lens) == pytest.approx(512, rel=0.05)
    assert len(set(lens)) > 500


def test_a_chunk_is_one_sequence_with_more_keys_than_queries() -> None:
    assert shapes.parse_chunk("512:32k") == (512, 32_768)
    (one,) = shapes.chunk(512, 32_768, [Heads(32, 8, 128)], [Mask.CAUSAL])
    assert (one.q_lens, one.k_lens, one.column) == ((512,), (32_768,), "512:32k")
    assert not one.is_square


@pytest.mark.parametrize(
    ("text", "said"),
    [("512", "QUERIES:KEYS"), ("4k:512", "more queries than keys"), ("a:512", "chunk 'a'")],
)
def test_a_chunk_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(BenchError, match=said):
        shapes.parse_chunk(text)


@pytest.mark.parametrize("text", ["0", "-4", "1.5k", "k", ""])
def test_a_length_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(
        BenchError, match="no whole number from 1 on: write one, such as 64, 4096 or 4k"
    ):
        shapes.parse_length(text)


@pytest.mark.parametrize(
    "text", ["4x32x8x2048x128", "4x32x8x2048x2048x0", "axbxcxdxexf", "1x8x3x16x16x64"]
)
def test_a_shape_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BenchError):
        shapes.parse_shape(text, BOTH)


def test_a_file_of_shapes_has_one_a_line_and_comments() -> None:
    text = "# ours\n2x32x8x512x4096x128\n\n1x16x16x7x7x64  # tiny\n"
    found = shapes.parse_shapes(text, BOTH)
    assert [(one.batch_size, one.k_lens[0], one.mask) for one in found] == [
        (2, 4096, Mask.FULL),
        (2, 4096, Mask.CAUSAL),
        (1, 7, Mask.FULL),
        (1, 7, Mask.CAUSAL),
    ]
    with pytest.raises(BenchError, match="holds no shape"):
        shapes.parse_shapes("# nothing\n", BOTH)


def test_the_heads_of_every_model_can_be_grouped() -> None:
    for name, heads in shapes.MODELS.items():
        assert heads_for(heads.head_dim, heads.num_heads, heads.num_kv_heads) == heads, name
        assert heads.head_dim % 16 == 0, name
    with pytest.raises(BenchError, match="do not divide"):
        heads_for(128, 32, 5)


def test_grouped_heads_and_equal_widths_are_told_apart_in_the_table() -> None:
    rows = {cell.row for cell in Grid((Heads(32, 8, 128), Heads(16, 16, 128)), BOTH).shapes()}
    assert rows == {"128 32/8 full", "128 32/8 causal", "128 16/16 full", "128 16/16 causal"}


def test_the_geometric_mean_of_a_ratio_and_its_inverse_is_one() -> None:
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    assert geometric_mean([1.0, 1.0, 8.0]) == pytest.approx(2.0)
