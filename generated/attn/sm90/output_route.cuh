// SPDX-License-Identifier: Apache-2.0
// The output of a warp on its way out, while the next tile is under way: the two forms of
// OutputRoute. Both have
//
//   send      a finished tile
//   skip      the same for a tile whose result went to the workspace
//   go_on     behind the softmax of the next tile's first block: what had to wait for TMA
//   end       behind the last tile
#pragma once

#include "attn/sm90/output.cuh"
#include "attn/sm90/prefill_traits.cuh"
#include "attn/sm90/shared_storage.cuh"
#include "attn/sm90/warps.cuh"

namespace attn::sm90 {

template <class Traits, OutputRoute kRoute = Traits::kOutputRoute>
class OutputPath;

// Through this warp's own 16 rows of the finished Q: nobody else reads or writes them. They are
// handed back to the loader when TMA has read them.
template <class Traits>
class OutputPath<Traits, OutputRoute::kThroughQuery> {
  using T = typename Traits::T;
  using Storage = SharedStorage<Traits>;

 public:
  __device__ __forceinline__
  OutputPath(Storage& storage, const Arguments<T>& arguments, int row_group, WarpgroupThread thread)
      : storage_(storage), arguments_(arguments), row_group_(row_group), thread_(thread) {}

  template <class Softmax, int kOutput>
  __device__ __forceinline__ void send(const Softmax& softmax,
                                       const float (&output)[kOutput],
                                       int query_slot,
                                       OutputRows rows) {
    const float first = softmax.inverse(0);
    const float second = softmax.inverse(1);
    char* const own = reinterpret_cast<char*>(&storage_.q[query_slot][row_group_]) +
                      thread_.warp() * Traits::kWarpRows * 128;
    const StagedPanels panels{own, Traits::kQueryPanelBytes};
    uint32_t packed[kOutput / 2];
    pack_columns<T, 0>(packed, output, first, second);
    stage_columns(panels, packed, thread_.lane());
    send_panels<Traits, Traits::kPanelsV>(arguments_, panels, 0, rows, thread_.lane());
    unreleased_slot_ = query_slot;
  }

  __device__ __forceinline__ void skip(int query_slot) { unreleased_slot_ = query_slot; }

  __device__ __forceinline__ void go_on() {
    if (unreleased_slot_ >= 0 && thread_.lane() == 0) {
      wait_stores_read();
      storage_.q_empty[unreleased_slot_][row_group_].arrive();
    }
  }

  __device__ __forceinline__ void end() {
    if (thread_.lane() == 0) {
      wait_stores_read();  // the writes themselves end with the kernel
    }
  }

 private:
  Storage& storage_;
  const Arguments<T>& arguments_;
  const int row_group_;
  const WarpgroupThread thread_;
  int unreleased_slot_ = -1;  // of Q, whose rows TMA may still read
};

// Through the warp's staging: the first panels at once, the others, which wait in registers, behind
// the next tile's first softmax. By then TMA has read the first ones.
template <class Traits>
class OutputPath<Traits, OutputRoute::kThroughStaging> {
  using T = typename Traits::T;
  using Storage = SharedStorage<Traits>;

 public:
  __device__ __forceinline__
  OutputPath(Storage& storage, const Arguments<T>& arguments, int row_group, WarpgroupThread thread)
      : storage_(storage), arguments_(arguments), row_group_(row_group), thread_(thread) {}

  template <class Softmax, int kOutput>
  __device__ __forceinline__ void send(const Softmax& softmax,
                                       const float (&output)[kOutput],
                                       int /*query_slot*/,
                                       OutputRows rows) {
    const float first = softmax.inverse(0);
    const float second = softmax.inverse(1);
    uint32_t packed[kOutput / 2 - kLateHalf];
    pack_columns<T, 0>(packed, output, first, second);
    wait_staging();
    stage_columns(staging(), packed, thread_.lane());
    send_panels<Traits, Traits::kEarlyPanels>(arguments_, staging(), 0, rows, thread_.lane());
    pack_columns<T, kOutput - 2 * kLateHalf>(late_half_, output, first, second);
    late_rows_ = rows;
  }

  // Nothing waits. The registers are set all the same: otherwise they would count as used through
  // the next tile.
  __device__ __forceinline__ void skip(int /*query_slot*/) {
#pragma unroll
    for (int i = 0; i < kLateHalf; ++i) {
      late_half_[i] = 0;
    }
    late_rows_.count = 0;
  }

  __device__ __forceinline__ void go_on() {
    if (late_rows_.count > 0) {
      wait_staging();
      stage_columns(staging(), late_half_, thread_.lane());
      send_panels<Traits, Traits::kLatePanels>(arguments_,
                                               staging(),
                                               Traits::kEarlyPanels * Traits::kPanelColumns,
                                               late_rows_,
                                               thread_.lane());
    }
  }

  __device__ __forceinline__ void end() {
    go_on();
    if (thread_.lane() == 0) {
      wait_stores_read();  // the writes themselves end with the kernel
    }
  }

 private:
  __device__ __forceinline__ StagedPanels staging() const {
    auto& rows = storage_.staging[row_group_ * 4 + thread_.warp()];
    return {reinterpret_cast<char*>(&rows), static_cast<int>(sizeof(rows.panel[0]))};
  }

  __device__ __forceinline__ void wait_staging() {
    if (thread_.lane() == 0) {
      wait_stores_read();
    }
    __syncwarp();  // TMA has read what the staging held
  }

  static constexpr int kLateHalf = Traits::kLatePanels * Traits::kPanelColumns / 4;

  Storage& storage_;
  const Arguments<T>& arguments_;
  const int row_group_;
  const WarpgroupThread thread_;

  uint32_t late_half_[kLateHalf];
  OutputRows late_rows_{0, 0, 0, kWholeRow};
};

}  // namespace attn::sm90
