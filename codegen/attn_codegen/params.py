# SPDX-License-Identifier: Apache-2.0
"""The one declaration of the kernel arguments: the C and C++ structs and what the runtime packs come
from it (struct_layout.py has their bytes)."""

from __future__ import annotations

from dataclasses import dataclass

from attn_codegen.config import Arch, AttentionConfig, Mode

POINTER = "pointer"

# kind: (bytes, `struct` code, numpy code); every kind is aligned to its own size.
SCALARS: dict[str, tuple[int, str, str]] = {
    POINTER: (8, "Q", "<u8"),
    "int64_t": (8, "q", "<i8"),
    "int": (4, "i", "<i4"),
    "float": (4, "f", "<f4"),
    "bool": (1, "?", "?"),
    "TensorMap": (128, "128s", "V128"),
}


@dataclass(frozen=True, slots=True)
class Field:
    """One member: its C++ type and name, the initial value, and what it holds (shape, unit, meaning)."""

    cpp: str
    name: str
    doc: str
    init: str = "0"

    @property
    def kind(self) -> str:
        """The scalar kind that fixes size and alignment, or the name of a nested struct."""
        if self.cpp in STRUCTS_BY_NAME or self.cpp.removesuffix("<T>") in STRUCTS_BY_NAME:
            return self.cpp.removesuffix("<T>")
        if self.cpp in ENUMS:
            return "int"
        return self.cpp if self.cpp in SCALARS else POINTER


@dataclass(frozen=True, slots=True)
class Struct:
    """A C struct: template over the element type T when any member is a pointer to T."""

    name: str
    doc: str
    fields: tuple[Field, ...]
    is_template: bool = False


ENUMS = ("CacheType", "KvType", "KeySharding", "CpForm", "Merge")

# One member a line: a table to be read.
# fmt: off
# ruff: noqa: E501

LINEAR = Struct(
    "LinearIteratorParams",
    "K and V of all sequences, rows back to back: the t-th key that is here of sequence b is row\n"
    "cu_rows[b] + t. Of a quantised cache, the elements of k and v are codes (attn/kv_type.h).",
    (
        Field("const void*", "k", "T [token_count, num_kv_heads, head_dim] through the strides below", "nullptr"),
        Field("const void*", "v", "T [token_count, num_kv_heads, head_dim_v]", "nullptr"),
        Field("int64_t", "k_token_stride", "elements between two tokens of one head of K"),
        Field("int64_t", "k_head_stride", "elements between two KV heads of one token of K"),
        Field("int64_t", "v_token_stride", "the same of V"),
        Field("int64_t", "v_head_stride", "the same of V"),
        Field("int64_t", "token_count", "rows that exist in K and in V"),
        Field("const int*", "cu_rows", "[batch_size] first row of each sequence; null: cu_k_len", "nullptr"),
        Field("const void*", "k_pairs", "int8, int4: T [token_count, num_kv_heads, 2] (scale, zero) of each row of K", "nullptr"),
        Field("const void*", "v_pairs", "the same of V", "nullptr"),
        Field("int64_t", "k_pair_token_stride", "elements of T between two tokens; even"),
        Field("int64_t", "k_pair_head_stride", "elements of T between two KV heads; even"),
        Field("int64_t", "v_pair_token_stride", "the same of V; even"),
        Field("int64_t", "v_pair_head_stride", "the same of V; even"),
    ),
)

BLOCK = Struct(
    "BlockIteratorParams",
    "TurboMind's cache. A block holds, from layer_offset on: [kv_head][K, V][token][head_dim] of T,\n"
    "or codes and behind them, of int8 and int4, T [kv_head][K, V][token][scale, zero].",
    (
        Field("const int64_t*", "block_ptrs", "[cu_block_nums[batch_size]] addresses of blocks", "nullptr"),
        Field("const int*", "cu_block_nums", "[batch_size + 1] first entry of each sequence", "nullptr"),
        Field("int64_t", "layer_offset", "bytes from a block's address to this layer's part"),
        Field("int", "block_len", "tokens of a block"),
    ),
)

PAGED = Struct(
    "PagedIteratorParams",
    "K and V pools indexed by a block table: token t of sequence b is row t % block_len of block\n"
    "block_table[b][t / block_len]. Any strides: NHD, HND and one interleaved pool all fit. Of a\n"
    "quantised cache, the elements of k and v are codes (attn/kv_type.h).",
    (
        Field("const void*", "k", "T pool [block_count, block_len, num_kv_heads, head_dim]", "nullptr"),
        Field("const void*", "v", "T pool [block_count, block_len, num_kv_heads, head_dim_v]", "nullptr"),
        Field("int64_t", "k_block_stride", "elements between two blocks of K"),
        Field("int64_t", "k_token_stride", "elements between two rows of a block of K"),
        Field("int64_t", "k_head_stride", "elements between two KV heads of a row of K"),
        Field("int64_t", "v_block_stride", "the same of V"),
        Field("int64_t", "v_token_stride", "the same of V"),
        Field("int64_t", "v_head_stride", "the same of V"),
        Field("const void*", "k_pairs", "int8, int4: T pool [block_count, block_len, num_kv_heads, 2] (scale, zero) of K", "nullptr"),
        Field("const void*", "v_pairs", "the same of V", "nullptr"),
        Field("int64_t", "k_pair_block_stride", "elements of T between two blocks; even"),
        Field("int64_t", "k_pair_token_stride", "elements of T between two tokens; even"),
        Field("int64_t", "k_pair_head_stride", "elements of T between two KV heads; even"),
        Field("int64_t", "v_pair_block_stride", "the same of V; even"),
        Field("int64_t", "v_pair_token_stride", "the same of V; even"),
        Field("int64_t", "v_pair_head_stride", "the same of V; even"),
        Field("const int*", "block_table", "[batch_size, max_blocks] block ids; unused entries may be wild", "nullptr"),
        Field("int", "max_blocks", "entries of one row of block_table"),
        Field("int", "block_count", "blocks of a pool"),
        Field("int", "block_len", "tokens of a block"),
    ),
)

PARAMS = Struct(
    "AttentionParams",
    "One attention call over a batch of variable-length sequences.",
    (
        Field("T*", "out", "[token_num, num_heads, size_per_head_v]", "nullptr"),
        Field("const T*", "q", "token t, head h at q + t * stride + h * size_per_head", "nullptr"),
        Field("int64_t", "stride", "elements between two tokens of q"),
        Field("float*", "lse", "[num_heads, token_num] natural log, or null; -inf where nothing is attended", "nullptr"),
        Field("const int*", "cu_q_len", "[batch_size + 1] on the device; a sequence may be empty", "nullptr"),
        Field("const int*", "cu_k_len", "[batch_size + 1] on the device; lengths of whole sequences on every rank", "nullptr"),
        Field("const bool*", "finished", "[batch_size] or null; rows of a finished sequence are left alone", "nullptr"),
        Field("const float*", "k_scale", "e4m3: code * k_scale, above 0, is the element of K; null: 1", "nullptr"),
        Field("const float*", "v_scale", "e4m3: the same of V", "nullptr"),
        Field("int", "kv_scale_stride", "0: one k_scale and one v_scale; 1: [num_kv_heads] of each"),
        Field("const T*", "k", "write, decode: new token t, head h at k + t * k_stride + h * size_per_head; null: none", "nullptr"),
        Field("const T*", "v", "write, decode: new token t, head h at v + t * v_stride + h * size_per_head_v; null: none", "nullptr"),
        Field("int64_t", "k_stride", "elements between two new tokens of k"),
        Field("int64_t", "v_stride", "elements between two new tokens of v"),
        Field("const float*", "sinks", "[num_heads] or null: a logit per head that only adds to the denominator; decode", "nullptr"),
        Field("LinearIteratorParams", "linear_iter_params", "read where cache is linear", ""),
        Field("BlockIteratorParams", "block_iter_params", "read where cache is block", ""),
        Field("PagedIteratorParams", "paged_iter_params", "read where cache is paged", ""),
        Field("int", "token_num", "rows of q and out; write: rows of k and v"),
        Field("int", "batch_size", "sequences"),
        Field("int", "max_q_len", "upper bound of the query lengths; a larger one gives the same result"),
        Field("int", "max_k_len", "upper bound of the key lengths; a larger one gives the same result"),
        Field("int", "num_heads", "query heads"),
        Field("int", "num_kv_heads", "divides num_heads; the group size is num_heads / num_kv_heads"),
        Field("int", "size_per_head", "head_dim of q and K"),
        Field("int", "size_per_head_v", "head_dim of V and out; 0: size_per_head"),
        Field("float", "inv_sqrt_dh", "softmax scale, above 0"),
        Field("int", "window_size", "0: none; w: position p sees keys above p - w (full: below p + w); unseen blocks may be gone"),
        Field("bool", "causal", "whether query i of n sees key j of m only if j <= i + m - n; dispatch picks the kernel by it", "true"),
        Field("KvType", "kv_type", "how the cache is quantised; dispatch picks the kernel by it", "KvType::kSame"),
        Field("CacheType", "cache", "which *_iter_params is read; dispatch picks the kernel by it", "CacheType::kBlock"),
        Field("int", "max_split_k", "splits that the workspace holds; 1: never split, 0: no bound"),
        Field("int", "split_cnt", "0: the planner chooses; n: split the keys of each tile n ways"),
        Field("int", "split_size", "0: by count; n: one split per n keys, whatever the batch (batch-invariant)"),
        Field("float*", "partial_O", "[splits, token_num, num_heads, size_per_head_v] unnormalised; workspace", "nullptr"),
        Field("float*", "partial_ML", "[splits, token_num, num_heads, 2] (max in log2 units, sum); workspace", "nullptr"),
        Field("int*", "counters", "zeroed once by the owner, reset themselves; null where no kernel needs them", "nullptr"),
        Field("int", "cp_rank", "context parallel: this rank"),
        Field("int", "cp_size", "context parallel: ranks that the keys of each sequence are spread over", "1"),
        Field("KeySharding", "cp_sharding", "which keys each of them has", "KeySharding::kInterleaved"),
        Field("int", "cp_chunk", "keys interleaved: consecutive ones that go to one rank", "1"),
        Field("CpForm", "cp_form", "what a rank has at the end", "CpForm::kScaled"),
        Field("float*", "cp_O", "[token_num, num_heads, size_per_head_v] own O, unnormalised; anything if sum is 0", "nullptr"),
        Field("float*", "cp_ML", "[token_num, num_heads, 2] this rank's part: (max in log2 units, sum); workspace", "nullptr"),
        Field("int64_t", "cp_stride", "floats from a rank's part to that of the next rank; even"),
        Field("int64_t", "cp_out_stride", "elements between two tokens of out; 0: back to back; only where cp_size > 1"),
        Field("CpCallback", "cp_fn", "called between the kernel and the reduction: gathers the parts of the ranks", "nullptr"),
        Field("void*", "cp_fn_ctx", "argument of cp_fn", "nullptr"),
        Field("const int*", "offset_q", "[batch_size] position of each sequence's first query; null: queries are the last", "nullptr"),
        Field("CUstream_st*", "stream", "a cudaStream_t", "nullptr"),
    ),
    is_template=True,
)

TILE_PLAN = Struct(
    "TilePlan",
    "The part of a plan that the kernels read (attn/plan.h makes it).",
    (
        Field("int", "q_tiles", "query tiles of one head that the grid has room for"),
        Field("int", "tiles_per_sequence", "tiles of each sequence; 0: found from cu_q_len by search"),
        Field("int", "split_cnt", "most splits of a query tile", "1"),
        Field("int", "split_tiles", "0: equal splits; n: split s holds the key tiles [s * n, (s + 1) * n)"),
        Field("int", "cta_q", "query tokens of a tile"),
        Field("int", "cta_s", "keys of a tile"),
        Field("int", "packed_heads", "rows of a token in a tile, of query heads of a group: row r is head r % n of token r / n", "1"),
        Field("int", "section", "heads, of one sequence or of all, whose tiles are computed together: their K and V fit into L2", "1"),
        Field("Merge", "merge", "what the reduction merges", "Merge::kSplits"),
    ),
)

RANGE_PLAN = Struct(
    "RangePlan",
    "How decode kernels share the keys of all sequences out (attn/decode_ranges.cuh cuts them).",
    (
        Field("int", "ctas", "CTAs that are launched: the ranges of all columns together"),
        Field("int", "columns", "row tiles of all KV heads, if no sequence has more than cta_q query tokens"),
        Field("int", "ranges", "ctas / columns"),
        Field("int", "group", "num_heads / num_kv_heads"),
        Field("int", "row_heads", "query heads of a row tile"),
        Field("int", "head_tiles", "row tiles of the heads of a group"),
        Field("int", "row_slots", "rows that the workspace holds of a row tile"),
        Field("int", "pieces", "1: whole splits of TilePlan are shared out; 0: stages, reduced in the kernel"),
        Field("int", "aligned_units", "most units of a range for cuts that go to the ends of tiles"),
        Field("int", "streamed_units", "most units of a column for which L2 keeps nothing of K and V"),
    ),
)

ARGUMENTS = Struct(
    "Arguments",
    "What the attention kernel and the reduction take, by value.",
    (
        Field("AttentionParams<T>", "params", "the call", ""),
        Field("TilePlan", "plan", "how it is cut", ""),
    ),
    is_template=True,
)

DECODE_ARGUMENTS = Struct(
    "DecodeArguments",
    "What a decode kernel takes. It begins like Arguments.",
    (
        Field("AttentionParams<T>", "params", "the call", ""),
        Field("TilePlan", "plan", "row tiles and splits", ""),
        Field("RangePlan", "ranges", "which CTA computes what", ""),
    ),
    is_template=True,
)

TMA_ARGUMENTS = Struct(
    "TmaArguments",
    "What a kernel takes that reads its tiles by TMA. It begins like Arguments. The maps hold 16-bit\n"
    "elements in boxes of 64 columns, with a 128-byte swizzle and zeros outside.",
    (
        Field("AttentionParams<T>", "params", "the call", ""),
        Field("TilePlan", "plan", "how it is cut", ""),
        Field("int", "group_packs", "packs of query heads that share a KV head", "1"),
        Field("int", "pack_heads", "query heads of a pack: a token's rows behind them are nobody's", "1"),
        Field("TensorMap", "q", "[token_num, num_heads, head_dim], box 64 rows: packed_heads heads of each token", ""),
        Field("TensorMap", "k", "[token_count, num_kv_heads, head_dim], box cta_s tokens; pools: of tokens of a block", ""),
        Field("TensorMap", "v", "[token_count, num_kv_heads, head_dim_v], the same of V", ""),
        Field("TensorMap", "out", "[token_num, num_heads, head_dim_v], box 16 rows, likewise", ""),
    ),
    is_template=True,
)

# fmt: on

STRUCTS = (
    LINEAR,
    BLOCK,
    PAGED,
    PARAMS,
    TILE_PLAN,
    RANGE_PLAN,
    ARGUMENTS,
    DECODE_ARGUMENTS,
    TMA_ARGUMENTS,
)
STRUCTS_BY_NAME = {struct.name: struct for struct in STRUCTS}


def arguments_of(config: AttentionConfig) -> str:
    """The struct that a kernel takes by value."""
    if config.mode is Mode.WRITE:
        return "AttentionParams"
    if config.mode is Mode.DECODE:
        return "DecodeArguments"
    return "TmaArguments" if config.arch is Arch.SM90 else "Arguments"
