// SPDX-License-Identifier: Apache-2.0
// A list of configurations as one type: attn/emitted.h is written in it.
#pragma once

#include <type_traits>

namespace attn {

template <class... Configs>
struct ConfigList {};

namespace detail {

template <class Config, class... Configs>
constexpr bool contains(ConfigList<Configs...>) {
  bool found = false;
  for (const bool is_same : {false, std::is_same_v<Config, Configs>...}) {
    found = found || is_same;
  }
  return found;
}

// Whether any of them computes in T.
template <class T, class... Configs>
constexpr bool has_element(ConfigList<Configs...>) {
  bool found = false;
  for (const bool is_same : {false, std::is_same_v<T, typename Configs::T>...}) {
    found = found || is_same;
  }
  return found;
}

}  // namespace detail

}  // namespace attn
