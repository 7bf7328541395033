// SPDX-License-Identifier: Apache-2.0
// A producer warpgroup that turns the codes of K and V into elements, block by block.
#pragma once

#include "attn/recomputed.cuh"
#include "attn/sm80/ordered_codes.cuh"
#include "attn/sm90/shared_storage.cuh"
#include "attn/sm90/warps.cuh"

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
// the loader brings them. The consumers need the registers: so a lane reads no more than kAhead
// pieces ahead: of 16 codes two, of 32 one.
//
// A piece is 16 or 32 codes, and becomes 2 or 4 chunks of 16 bytes within a panel. The warps take
// groups of 8 or 16 rows in turn, panel after panel:
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

  static constexpr int kPieces = kTurns * kPanels;  // of a lane
  static constexpr int kAhead = kPieces < 2 || kChunks > 2 ? 1 : 2;

  struct Piece {
    uint4 codes;
    uint32_t pair = 0;  // of the row, with its first piece
  };

  // A slot of the loader, and one of the consumers.
  struct Codes {
    const void* panels;
    uint32_t* pairs;
    Barrier& full;
    Barrier& empty;
    uint32_t phase;
  };
  struct Elements {
    void* panels;
    Barrier& full;
    Barrier& empty;
    uint32_t phase;
  };

 public:
  __device__ __forceinline__ explicit CodeExpander(Storage& storage)
      : storage_(storage), thread_{threadIdx.x % 128} {
    const int lane = thread_.lane();
    const int index = lane / kLanes;
    const int piece = lane % kLanes;
    const int row = index / 8 * 8 + index % 2 * 4 + index / 2 % 2 * 2 + (index ^ index / 4) % 2;
    const int bytes = (thread_.warp() * kGroupRows + row) * 128;
    source_ = bytes + ((piece ^ row % 8) << 4);
    target_ = bytes + ((piece * kChunks ^ row % 8) << 4);
  }

  __device__ __forceinline__ void run() {
    uint32_t phase = 0;
    while (true) {
      storage_.work_full.wait(phase);  // the work is visible
      const int first = warp_uniform(storage_.work[phase].item.first_block);
      const int end = warp_uniform(storage_.work[phase].item.end_block);
      if (end == 0) {
        break;
      }
      const int last_rows =
          warp_uniform(storage_.work[phase].item.k_len) - (end - 1) * Traits::kCtaS;
      if (thread_.lane() == 0) {
        storage_.work_empty.arrive();
      }
      // V runs one block behind K.
      int rows = 0;  // of the block whose V comes next; 0: there is none yet
#pragma unroll 1
      for (int left = end - first; left >= 0; --left) {
        if (left > 0) {
          expand_keys();
        }
        if (rows > 0) {
          expand_values(rows);
        }
        rows = rows == 0 ? last_rows : Traits::kCtaS;
      }
      phase ^= 1;
    }
    publish();
  }

 private:
  __device__ __forceinline__ void expand_keys() {
    const int from = keys_.from();
    const int to = keys_.to();
    expand({storage_.k[from].panel,
            storage_.pairs.keys_of(from),
            storage_.k_full[from],
            storage_.k_empty[from],
            keys_.from_phase()},
           {storage_.elements.k[to].panel,
            storage_.expanded.k_full[to],
            storage_.expanded.k_empty[to],
            keys_.to_phase()},
           Traits::kCtaS);
    keys_.advance();
  }

  __device__ __forceinline__ void expand_values(int rows) {
    const int from = values_.from();
    const int to = values_.to();
    expand({storage_.v[from].panel,
            storage_.pairs.values_of(from),
            storage_.v_full[from],
            storage_.v_empty[from],
            values_.from_phase()},
           {storage_.elements.v[to].panel,
            storage_.expanded.v_full[to],
            storage_.expanded.v_empty[to],
            values_.to_phase()},
           rows);
    values_.advance();
  }

  // `rows`: those that exist.
  __device__ __forceinline__ void expand(const Codes& from, const Elements& to, int rows) {
    if (!__all_sync(0xffffffffu, from.full.ended(from.phase))) {
      publish();                   // what the consumers may be waiting for
      from.full.wait(from.phase);  // codes and pairs have landed
    }
    if (Kv::kHasPairs && rows < Traits::kCtaS) {
      clear_pairs(from, rows);
    }
    Piece pieces[kAhead];
#pragma unroll
    for (int piece = 0; piece < kAhead; ++piece) {
      pieces[piece] = read(from, piece);
    }
    publish();                    // which takes no longer than these reads
    to.empty.wait(to.phase ^ 1);  // all consumers have left it
    Scale scale;
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const Piece now = pieces[piece % kAhead];
      if (piece + kAhead < kPieces) {
        pieces[piece % kAhead] = read(from, piece + kAhead);
      }
      if (piece % kPanels == 0) {
        scale = Scale::of(now.pair);
      }
      write(to, piece, now.codes, scale);
    }
    // Not before all that was read is in registers: a read may wait behind those of wgmma for
    // longer than TMA takes to bring the next codes.
    __syncwarp();  // all lanes have stored what they have read
    if (thread_.lane() == 0) {
      from.empty.arrive();
    }
    unpublished_ = shared_address(&to.full.word);
  }

  // The block that was written last, for the consumers. A fence lasts until the writes before it
  // have got to shared memory, which takes long while wgmma reads there. So a block is published
  // when the reads of the next are on their way, or before there is something to wait for.
  __device__ __forceinline__ void publish() {
    if (unpublished_ == 0) {
      return;
    }
    fence_async_proxy();
    __syncwarp();  // all lanes have written and fenced
    if (thread_.lane() == 0) {
      arrive_at(unpublished_);
    }
    unpublished_ = 0;
  }

  // Makes zeros of the pairs of this lane's rows behind the first `rows`, and so of what any codes
  // stand for there: wgmma multiplies those rows of V by 0, which a NaN would survive.
  __device__ __forceinline__ void clear_pairs(const Codes& codes, int rows) const {
#pragma unroll 1
    for (int row = first_row(); row < Traits::kCtaS; row += kTurnRows) {
      if (row >= rows) {
        codes.pairs[row] = 0;
      }
    }
    fence_async_proxy();  // TMA brings the next
  }

  __device__ __forceinline__ Piece read(const Codes& from, int index) const {
    const int turn = index / kPanels;
    const int panel = index % kPanels;
    // A warp without rows in this turn reads the first of the block, for nothing.
    const int rows = takes_part(turn) ? turn * kTurnRows : -kGroupRows * thread_.warp();
    Piece piece;
    if (Kv::kHasPairs && panel == 0) {
      piece.pair = load_shared_4(shared_address(from.pairs) + (first_row() + rows) * 4);
    }
    // The swizzle of this lane's place, apart from what is the same for all lanes.
    const int byte = panel * kPanelCodeBytes;
    piece.codes =
        load_shared_16((source_ ^ byte % 128) + (shared_address(from.panels) + rows * 128 +
                                                 byte / 128 * Traits::kKeyPanelBytes));
    return piece;
  }

  // Writes what the codes of a piece stand for.
  __device__ __forceinline__ void write(const Elements& to,
                                        int index,
                                        const uint4& codes,
                                        const Scale& scale) const {
    const int turn = index / kPanels;
    const int panel = index % kPanels;
    const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
    const int offset = turn * kTurnRows * 128 + panel * Traits::kKeyPanelBytes;
    if (takes_part(turn) && exists(panel)) {
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        store_shared((target_ ^ chunk << 4) + (shared_address(to.panels) + offset),
                     sm80::expand_eight<T, Tkv>(words + chunk * kWords, scale));
      }
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

  // The first of this lane's rows.
  __device__ __forceinline__ int first_row() const { return recomputed(source_) / 128u; }

  Storage& storage_;
  const WarpgroupThread thread_;
  int source_;
  int target_;

  RingPair<Traits::kLoadedStages, Traits::kStages> keys_;
  RingPair<Traits::kLoadedStages, Traits::kStages> values_;
  uint32_t unpublished_ = 0;  // the barrier of a block that was written; 0: there is none
};

}  // namespace attn::sm90
