/* SPDX-License-Identifier: Apache-2.0 */
/* attn_c.h from C99. */
#include <stdio.h>

#include "attn/attn_c.h"

int main(void) {
  attn_kernel_info_t info = {0};
  attn_params_t params = {0};
  int kernel = -1;
  info.struct_size = sizeof(info);
  if (attn_kernel_info(0, ATTN_ANY_DEVICE, &info) != ATTN_SUCCESS) {
    return 1;
  }
  printf("%d %s\n", attn_kernel_count(), info.name);
  params.struct_size = sizeof(params) - 8;
  if (attn_find(&params, ATTN_ANY_DEVICE, &kernel) != ATTN_INVALID_ARGUMENT) {
    return 1;
  }
  printf("%s: %s\n", attn_last_error_field(), attn_status_string(ATTN_INVALID_ARGUMENT));
  return 0;
}
