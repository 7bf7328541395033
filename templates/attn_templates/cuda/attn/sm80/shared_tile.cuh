// SPDX-License-Identifier: Apache-2.0
// A tile of 16-bit rows in shared memory, swizzled so that ldmatrix and 16-byte copies meet no
// bank conflict.
#pragma once

#include "attn/sm80/instructions.cuh"

namespace attn::sm80 {

// Rows are padded to a multiple of 64 elements (128 bytes, all 32 banks); within each 128 bytes the
// 16-byte chunk c of row r lies at c ^ (r % 8), so eight rows of one column cover eight different
// chunks.
template <class T, int kRows, int kColumns>
struct SharedTile {
  static constexpr int kPitch = (kColumns + 63) / 64 * 64;  // elements from one row to the next
  static constexpr int kPitchBytes = kPitch * sizeof(T);
  static constexpr int kChunks = kColumns / 8;  // 16-byte chunks that a row really has

  alignas(128) T data[kRows * kPitch];

  // Bytes from the start of the tile to a chunk.
  __device__ __forceinline__ static int chunk_offset(int row, int chunk) {
    return row * kPitchBytes + ((chunk ^ (row & 7)) << 4);
  }

  // The place of a chunk `rows` further down than one of row r at `place`, which may include the
  // address of a tile. r and `rows` have no bit in common.
  __device__ __forceinline__ static uint32_t below(uint32_t place, int rows) {
    return (place ^ ((rows & 7) << 4)) + rows * kPitchBytes;
  }
};

// The same for rows that may be narrower than 128 bytes: as many as fit share a line of 128 bytes.
// Its chunk c lies at c ^ (line % 8), so that eight rows of a column still cover eight chunks.
template <class T, int kRows, int kColumns>
struct PackedTile {
  static constexpr int kChunks = kColumns / 8;
  // Rows of a line: several where a row is a half, a quarter or an eighth of it.
  static constexpr int kShare = kChunks < 8 && 8 % kChunks == 0 ? 8 / kChunks : 1;
  static constexpr int kPitch = kShare > 1 ? kColumns : (kColumns + 63) / 64 * 64;
  static constexpr int kPitchBytes = kPitch * sizeof(T);
  static_assert(kRows % (8 * kShare) == 0 || kRows == 16, "fragments begin at the same swizzle");

  alignas(128) T data[kRows * kPitch];

  __device__ __forceinline__ static int chunk_offset(int row, int chunk) {
    const int line = row / kShare;
    const int position = row % kShare * kChunks + chunk;
    return line * (kPitchBytes * kShare) + ((position ^ (line & 7)) << 4);
  }

  // As SharedTile::below, for whole lines.
  __device__ __forceinline__ static uint32_t below(uint32_t place, int rows) {
    const int line = rows / kShare;
    return (place ^ ((line & 7) << 4)) + line * (kPitchBytes * kShare);
  }
};

// Where a lane of ldmatrix.x4 points for the 16x16 fragment at the origin of a tile. Fragment
// (i, j) of the grid of 16x16 fragments is then
//   (origin ^ (j % 4) * 32) + j / 4 * 128 + i * 16 * pitch        bytes
// because a step of 16 columns is two chunks, and the XOR only meets the low three bits of the
// chunk.
template <class Tile>
struct FragmentAddress {
  uint32_t origin;

  // Matrices in the order (rows 0-7, columns 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15): the A
  // operand from rows of Q, and the B operand from transposed rows of V.
  __device__ __forceinline__ static FragmentAddress row_major(const Tile& tile, int lane) {
    return of(tile, row_major_place(lane));
  }

  __device__ __forceinline__ static uint32_t row_major_place(int lane) {
    return Tile::chunk_offset(lane % 16, lane / 16);
  }

  // Matrices in the order (rows 0-7, columns 0-7), (0-7, 8-15), (8-15, 0-7), (8-15, 8-15): the B
  // operand from rows of K.
  __device__ __forceinline__ static FragmentAddress column_major(const Tile& tile, int lane) {
    return of(tile, column_major_place(lane));
  }

  __device__ __forceinline__ static uint32_t column_major_place(int lane) {
    return Tile::chunk_offset(lane % 8 + lane / 16 * 8, lane / 8 % 2);
  }

  // From one of those places, in bytes.
  __device__ __forceinline__ static FragmentAddress of(const Tile& tile, uint32_t place) {
    return {shared_address(&tile) + place};
  }

  __device__ __forceinline__ uint32_t at(int row_fragment, int column_fragment) const {
    return (origin ^ (column_fragment % 4 * 32)) + column_fragment / 4 * 128 +
           row_fragment * 16 * Tile::kPitchBytes;
  }
};

}  // namespace attn::sm80
