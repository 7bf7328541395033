// SPDX-License-Identifier: Apache-2.0
// How the warpgroups of a CTA share its registers out.
#pragma once

namespace attn::sm90 {

// Registers of a thread, by its role. The CTA is launched with as many for every thread (65,536 /
// threads of an SM, rounded down to a multiple of 8); then the producers give some back, and the
// consumers take them. 0: the role keeps what it has, or there is none.
struct RegisterBudget {
  int producer;
  int expander;  // of a quantised cache: the warpgroup that turns codes into elements
  int consumer;

  // Of one warpgroup of each kind of producer, and `consumers` of 64 query rows each. More than the
  // CTA was launched with, and the consumers would wait forever.
  constexpr int sum(int consumers) const { return producer + expander + consumers * consumer; }
};

// What nobody has set down: more than any CTA has.
constexpr RegisterBudget kNoBudget{1 << 16, 0, 0};

// Eight registers less for two consumers of 128 columns are 4 % (measured).
// An expander of more than three panels of columns has more addresses to keep.
constexpr RegisterBudget register_budget(bool is_quantised,
                                         int panels,
                                         int consumers,
                                         int ctas_per_sm) {
  if (is_quantised) {
    return ctas_per_sm != 1 ? kNoBudget
           : consumers == 3 ? RegisterBudget{40, 56, 128}  // of 5 * 96
           : consumers != 2 ? kNoBudget
           : panels > 3     ? RegisterBudget{40, 40, 216}  // of 4 * 128
                            : RegisterBudget{32, 32, 224};
  }
  if (ctas_per_sm == 2) {
    return consumers == 1 ? RegisterBudget{40, 0, 208} : kNoBudget;  // of 2 * 128
  }
  switch (consumers) {
    case 1:
      return {0, 0, 0};  // 255 for every thread: there is nothing to move
    case 2:
      return {40, 0, 232};  // of 3 * 168
    case 3:
      return {32, 0, 160};  // of 4 * 128
    case 4:
      return {32, 0, 112};  // of 5 * 96
    default:
      return kNoBudget;
  }
}

}  // namespace attn::sm90
