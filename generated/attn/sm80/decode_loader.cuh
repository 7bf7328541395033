// SPDX-License-Identifier: Apache-2.0
// The copying end of a decode range, which fills the rings of its warps.
#pragma once

#include "attn/sm80/decode_append.cuh"
#include "attn/sm80/decode_copies.cuh"
#include "attn/sm80/decode_walk.cuh"

namespace attn::sm80 {

// Runs as many stages ahead of the computing end as the ring holds, and leaves it the segments that
// it enters.
template <class Config>
class StageLoader {
  using Traits = DecodeTraits<Config>;
  using Storage = DecodeStorage<Config>;

 public:
  __device__ __forceinline__ StageLoader(Storage& storage,
                                         const DecodeArguments<typename Config::T>& arguments,
                                         const Start& start,
                                         const CtaWork& work,
                                         int warp,
                                         int lane)
      : storage_(storage),
        walk_(arguments, start, lane),
        pieces_(arguments.params, work, {storage, warp}, lane),
        params_(arguments.params),
        warp_(warp),
        lane_(lane) {}

  // Enters the first segment. Reads no memory, and may be left out: the first advance does it, too.
  __device__ __forceinline__ void begin(const CtaWork& work) { enter_segment(work); }

  // Looks up the next stage.
  __device__ __forceinline__ void look_up() { pieces_.look_up(first_token()); }

  // Starts the copies of the stage that was looked up last, and looks up the next one: where none
  // was, the first call has nothing to copy. Each call is one group of copies, also where there are
  // none left.
  __device__ __forceinline__ void advance(int slot, const CtaWork& work) {
    if (stage_ < end_) {
      pieces_.copy(storage_.ring[warp_][slot], first_token());
      ++stage_;
    }
    copy_async_commit();
    if (stage_ == end_ && !walk_.is_at_end(work)) {
      enter_segment(work);
    }
    if (stage_ < end_) {
      look_up();
    }
  }

  // As many calls of advance that find nothing left.
  __device__ __forceinline__ static void skip(int calls) {
#pragma unroll 1
    for (; calls > 0; --calls) {
      copy_async_commit();
    }
  }

  // The place of the segment that is entered next. The computing end is there when it has left all
  // that were entered: there are fewer of them than places.
  __device__ __forceinline__ int next_segment() const { return next_segment_; }

  // Whether there is nothing left to copy, nor a segment to enter.
  __device__ __forceinline__ bool is_at_end(const CtaWork& work) const {
    return stage_ == end_ && walk_.is_at_end(work);
  }

 private:
  __device__ __forceinline__ int first_token() const {
    return stage_ * Traits::kCtaS + warp_ * Traits::kWarpTokens;
  }

  __device__ __forceinline__ void enter_segment(const CtaWork& work) {
    const Segment segment = walk_.next(work);
    stage_ = segment.stages.begin;
    end_ = segment.stages.end;
    pieces_.enter(segment, work.tile.kv_head);
    if (lane_ == 0) {
      storage_.segments[warp_][next_segment_] = segment;
    }
    if (params_.k != nullptr) {
      Appender<Config>(params_, work.tile.kv_head, warp_, lane_).append(segment);
    }
    __syncwarp();  // the segment is visible to the computing end, and new rows to the copies
    next_segment_ = Storage::next_segment(next_segment_);
  }

  Storage& storage_;
  Walk<Config> walk_;
  PieceLoader<Config> pieces_;
  const AttentionParams<typename Config::T>& params_;
  int warp_;
  int lane_;
  int stage_ = 0;
  int end_ = 0;
  int next_segment_ = 0;
};

}  // namespace attn::sm80
