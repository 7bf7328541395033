// SPDX-License-Identifier: Apache-2.0
// What an sm90 attention kernel takes: the call, its plan, and the tensor maps that TMA reads them
// through.
#pragma once

#include "attn/params.h"
#include "attn/types.h"

namespace attn::sm90 {

template <class T>
using Arguments = TmaArguments<T>;

}  // namespace attn::sm90
