// SPDX-License-Identifier: Apache-2.0
// A cluster of decode CTAs puts the parts of a tile together in shared memory, where the way
// through L2 takes two round trips and a fence.
#pragma once

#include "attn/sm80/decode_output.cuh"
#include "attn/sm90/cluster.cuh"

namespace attn::sm90 {

constexpr int kMostClusterCtas = 8;  // that every device has

// What the CTAs of a cluster send to one of them: parts of the rows that it adds up. The parts of a
// row follow each other.
template <class Config>
struct ClusterParts {
  using Row = sm80::MergedRow<Config>;
  static constexpr int kRows = sm80::DecodeTraits<Config>::kRows;
  // Of a tile in two or three parts it adds half of the rows up, of one in eight parts one row.
  static constexpr int kParts = kRows / 4 * (kMostClusterCtas - 1);
  static_assert(kMostClusterCtas == 8 && kRows == 8, "the parts of a CTA's rows have room");

  alignas(16) float output[kParts][Config::kHeadDim];  // in the order of MergedRow
  float2 max_sum[kParts];
  Barrier has_come[kRows / 2];  // all parts of a row
};

// The CTAs of a cluster have neighbouring ranges of a column. Where a tile has no ranges beyond
// these, and they nothing else, each of its CTAs adds some of its rows up:
//
//   2^n <= parts < 2^(n + 1):   row r goes to the CTA of part r mod 2^n
template <class Config>
class Cluster {
  using Parts = ClusterParts<Config>;
  using Row = typename Parts::Row;

 public:
  static constexpr bool kExists = true;

  // Called by all threads of all CTAs. The others may send when all have come here.
  __device__ __forceinline__ explicit Cluster(Parts& parts)
      : parts_(parts), size_(cluster_size()), rank_(cluster_rank()) {
    if (threadIdx.x == 0) {
#pragma unroll
      for (Barrier& barrier : parts.has_come) {
        barrier.init(1);
      }
      fence_barrier_init();
    }
    __syncwarp();
    arrive_at_cluster();
  }

  // The column of this CTA, and which of its ranges.
  __device__ __forceinline__ sm80::ColumnPlace place(int columns) const {
    const sm80::ColumnPlace place = sm80::ColumnPlace::of(quotient(blockIdx.x, size_), columns);
    return {place.column, place.range * size_ + rank_};
  }

  // Whether as many ranges from the first one on are all here.
  __device__ __forceinline__ bool holds(int first, int count) const {
    return rank_of(first) + count <= size_;
  }

  // Called by all threads of a CTA that has work, once, before it sends anything.
  __device__ __forceinline__ void wait_for_others() const { wait_for_cluster(); }

  // A tile in parts, of which this CTA has one.
  struct Tile {
    int first;  // range
    int part;
    int parts;
    int rows;

    // The n of the formula above.
    __device__ __forceinline__ int shift() const { return 31 - __clz(parts); }
    // The part whose CTA adds a row up, and the row's place there.
    __device__ __forceinline__ int leader(int row) const { return row & ((1 << shift()) - 1); }
    __device__ __forceinline__ int place(int row) const { return row >> shift(); }
    // The row at a place of this CTA; it may have none.
    __device__ __forceinline__ int row_at(int place) const { return part + (place << shift()); }
    __device__ __forceinline__ bool has_rows() const { return part < 1 << shift(); }
  };

  // Sends this CTA's part of a row to the one that adds it up. Called by a warp.
  __device__ __forceinline__ void leave(const Tile& tile,
                                        int row,
                                        const Row& part,
                                        int lane) const {
    const int leader = tile.leader(row);
    const int own = tile.place(row);
    const int place = own * tile.parts + tile.part;
    const auto theirs = [&](const void* here) {
      return address_in_cluster(shared_address(here), rank_of(tile.first) + leader);
    };
    const uint32_t barrier = theirs(&parts_.has_come[own].word);
    const uint32_t output = theirs(parts_.output[place]);
#pragma unroll
    for (int step = 0; step < Row::kSteps; ++step) {
      if (Row::has(step, lane)) {
        const int bytes = Row::place(step, lane) * static_cast<int>(sizeof(float));
        send(output + bytes, part.output[step].x, barrier);
      }
    }
    if (lane == 0) {
      send(theirs(&parts_.max_sum[place]), {part.max, part.sum}, barrier);
    }
  }

  // All parts of a row.
  struct RowParts {
    const typename Row::Vector* output;
    const float2* max_sum;
    int count;

    __device__ __forceinline__ const typename Row::Vector& vector(int part,
                                                                  int step,
                                                                  int lane) const {
      constexpr int kVectors = Config::kHeadDim / Row::kVector;
      return output[part * kVectors + (Row::has(step, lane) ? step * 32 + lane : 0)];
    }
  };

  // Waits for the parts of one of this CTA's rows. Called by a warp.
  __device__ __forceinline__ RowParts receive(const Tile& tile, int row, int lane) const {
    const int own = tile.place(row);
    const int place = own * tile.parts;
    if (lane == 0) {
      constexpr int kPartBytes = sizeof(parts_.output[0]) + sizeof(parts_.max_sum[0]);
      parts_.has_come[own].arrive_and_expect(tile.parts * kPartBytes);
    }
    __syncwarp();  // lane 0 may sleep while it waits, and holds nobody up
    wait_for_sent(parts_.has_come[own]);
    return {reinterpret_cast<const typename Row::Vector*>(parts_.output[place]),
            parts_.max_sum + place,
            tile.parts};
  }

 private:
  __device__ __forceinline__ int rank_of(int range) const { return range & (size_ - 1); }

  Parts& parts_;
  int size_;  // a power of two
  int rank_;
};

}  // namespace attn::sm90
