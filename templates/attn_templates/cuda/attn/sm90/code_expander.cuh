// SPDX-License-Identifier: Apache-2.0
// A producer warpgroup that turns the codes of K and V into elements, block by block.
#pragma once

#include "attn/sm80/ordered_codes.cuh"
#include "attn/sm90/prefill_traits.cuh"

namespace attn::sm90 {

__device__ __forceinline__ void store_shared(uint32_t shared, uint4 x) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};\n" ::"r"(shared),
               "r"(x.x),
               "r"(x.y),
               "r"(x.z),
               "r"(x.w)
               : "memory");
}

// volatile, so that what is read is read where the program says.
__device__ __forceinline__ uint4 load_shared_16(uint32_t shared) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(shared));
  return x;
}

__device__ __forceinline__ uint32_t load_shared_4(uint32_t shared) {
  uint32_t x;
  asm volatile("ld.shared.u32 %0, [%1];\n" : "=r"(x) : "r"(shared));
  return x;
}

// From the slots that the loader fills with codes to those of the consumers, in the order in which
// the loader brings them. The exponentials of the consumers go through the same queue as what is
// read and written here, and make both slow. So a block is read at once, in pieces of 16 bytes,
// into registers, after which the loader may bring the next; then it is expanded and written.
//
// A piece is 16 or 32 codes, and becomes 2 or 4 chunks of 16 bytes within a panel. The warps take
// groups of 8 or 16 rows in turn:
//
//   lane l    piece l % kLanes of a panel of row (b2, b1, b0) of eight, where i = l / kLanes,
//             b2 = bit 0 of i, b1 = bit 1, b0 = b2 ^ bit 2; bit 3 of i chooses the eight
//
// Both sides are swizzled: chunk c of row r lies at c ^ (r % 8). With these rows a quarter of a
// warp meets no bank twice, neither where it reads nor where it writes.
template <class Traits>
class CodeExpander {
  using T = typename Traits::T;
  using Tkv = typename Traits::Config::Tkv;
  using Kv = typename Traits::Kv;
  using Storage = SharedStorage<Traits>;
  using Scale = sm80::PairScale<T, Tkv>;

  static constexpr int kPanels = Traits::kPanels;        // of elements
  static constexpr int kPanelCodeBytes = 8 * Kv::kBits;  // of a row, that become a panel
  static constexpr int kLanes = kPanelCodeBytes / 16;    // of a row
  static constexpr int kChunks = 8 / kLanes;             // that a piece becomes
  static constexpr int kWords = Kv::kBits / 4;           // of a piece, that become a chunk
  static constexpr int kGroupRows = 32 / kLanes;         // that a warp takes at once
  static constexpr int kTurnRows = 4 * kGroupRows;       // that all of them do
  static constexpr int kTurns = (Traits::kCtaS + kTurnRows - 1) / kTurnRows;

  static_assert(Traits::kCtaS % kGroupRows == 0, "a block of keys is whole groups of rows");

  // What a lane reads of a block.
  struct Codes {
    uint4 pieces[kTurns][kPanels];
    uint32_t pairs[kTurns] = {};
  };

 public:
  __device__ __forceinline__ explicit CodeExpander(Storage& storage)
      : storage_(storage), thread_{threadIdx.x % 128} {
    const int lane = thread_.lane();
    const int index = lane / kLanes;
    const int piece = lane % kLanes;
    const int row = index / 8 * 8 + index % 2 * 4 + index / 2 % 2 * 2 + (index ^ index / 4) % 2;
    row_ = thread_.warp() * kGroupRows + row;
    source_ = row_ * 128 + ((piece ^ row % 8) << 4);
    target_ = row_ * 128 + ((piece * kChunks ^ row % 8) << 4);
  }

  __device__ __forceinline__ void run() {
    uint32_t phase = 0;
    while (true) {
      storage_.work_full.wait(phase);  // the work is visible
      const int first = warp_uniform(storage_.work[phase].item.first_block);
      const int end = warp_uniform(storage_.work[phase].item.end_block);
      if (end == 0) {
        return;
      }
      if (thread_.lane() == 0) {
        storage_.work_empty.arrive();
      }
#pragma unroll 1
      for (int block = end; block >= first; --block) {  // V runs one block behind K
        if (block > first) {
          expand_keys();
        }
        if (block < end) {
          expand_values();
        }
      }
      phase ^= 1;
    }
  }

 private:
  __device__ __forceinline__ void expand_keys() {
    const int slot = keys_.slot;
    const int to = key_elements_.slot;
    storage_.k_full[slot].wait(keys_.phase);  // codes and pairs have landed
    Codes codes;
    read(codes, storage_.k[slot].panel, storage_.pairs.keys_of(slot), storage_.k_empty[slot]);
    storage_.expanded.k_empty[to].wait(key_elements_.phase ^ 1);  // all consumers have left it
    write(storage_.elements.k[to].panel, codes, storage_.expanded.k_full[to]);
    keys_.advance();
    key_elements_.advance();
  }

  __device__ __forceinline__ void expand_values() {
    const int slot = values_.slot;
    const int to = value_elements_.slot;
    storage_.v_full[slot].wait(values_.phase);  // codes and pairs have landed
    Codes codes;
    read(codes, storage_.v[slot].panel, storage_.pairs.values_of(slot), storage_.v_empty[slot]);
    storage_.expanded.v_empty[to].wait(value_elements_.phase ^ 1);  // all consumers have left it
    write(storage_.elements.v[to].panel, codes, storage_.expanded.v_full[to]);
    values_.advance();
    value_elements_.advance();
  }

  // Reads a block, and hands its slot back.
  template <class Panel, int kCodePanels>
  __device__ __forceinline__ void read(Codes& codes,
                                       const Panel (&panels)[kCodePanels],
                                       const uint32_t* pairs,
                                       Barrier& empty) const {
    const uint32_t source = shared_address(&panels[0]);
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      // A warp without rows in this turn reads the first of the block, for nothing.
      const int rows = takes_part(turn) ? turn * kTurnRows : -kGroupRows * thread_.warp();
      if constexpr (Kv::kHasPairs) {
        codes.pairs[turn] = load_shared_4(shared_address(pairs) + (row_ + rows) * 4);
      }
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel) {
        // The swizzle of this lane's place, apart from what is the same for all lanes.
        const int byte = panel * kPanelCodeBytes;
        const int place = source_ ^ byte % 128;
        const int offset = rows * 128 + byte / 128 * static_cast<int>(sizeof(Panel));
        codes.pieces[turn][panel] = load_shared_16(place + (source + offset));
      }
    }
    __syncwarp();  // all lanes have read
    if (thread_.lane() == 0) {
      empty.arrive();
    }
  }

  // Writes what the codes of a block stand for.
  template <class Panel>
  __device__ __forceinline__ void write(Panel (&panels)[kPanels],
                                        const Codes& codes,
                                        Barrier& full) const {
    const uint32_t target = shared_address(&panels[0]);
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      if (takes_part(turn)) {
        const Scale scale = Scale::of(codes.pairs[turn]);
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) {
          const uint4 piece = codes.pieces[turn][panel];
          const uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
          const int offset = turn * kTurnRows * 128 + panel * static_cast<int>(sizeof(Panel));
          if (exists(panel)) {
#pragma unroll
            for (int chunk = 0; chunk < kChunks; ++chunk) {
              store_shared((target_ ^ chunk << 4) + (target + offset),
                           sm80::expand_eight<T, Tkv>(words + chunk * kWords, scale));
            }
          }
        }
      }
    }
    fence_async_proxy();
    __syncwarp();  // all lanes have written and fenced
    if (thread_.lane() == 0) {
      full.arrive();
    }
  }

  // Whether this warp has rows in a turn.
  __device__ __forceinline__ bool takes_part(int turn) const {
    return (turn + 1) * kTurnRows <= Traits::kCtaS ||
           turn * kTurnRows + warp_uniform(thread_.warp()) * kGroupRows < Traits::kCtaS;
  }

  // Whether the rows are long enough for this lane's piece of a panel.
  __device__ __forceinline__ bool exists(int panel) const {
    constexpr int kPieceCodes = 128 / Kv::kBits;
    return (panel + 1) * Traits::kPanelColumns <= Traits::kHeadDim ||
           panel * Traits::kPanelColumns + thread_.lane() % kLanes * kPieceCodes < Traits::kHeadDim;
  }

  Storage& storage_;
  const WarpgroupThread thread_;
  int row_;  // the first of this lane
  int source_;
  int target_;

  RingPosition<Traits::kLoadedStages> keys_;
  RingPosition<Traits::kLoadedStages> values_;
  RingPosition<Traits::kStages> key_elements_;
  RingPosition<Traits::kStages> value_elements_;
};

}  // namespace attn::sm90
