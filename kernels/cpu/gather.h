/* gather.h - putting tokens from all over memory together in a page.
 *
 * Threads: pure functions on the caller's memory. */
#ifndef KERNELS_CPU_GATHER_H
#define KERNELS_CPU_GATHER_H

#include "kernels/ops.h"

/* In plain C, for every type; and one token. */
void page_gather_one(const kernel_page_shape *shape, const kernel_token *token, void *to_keys, void *to_values,
                     uint32_t to);
void page_gather_value(const kernel_page_shape *shape, const kernel_token *token, void *to_values, uint32_t to);
void page_gather(const kernel_page_shape *shape, const kernel_token *tokens, uint32_t count, void *to_keys,
                 void *to_values);

#if defined(KERNEL_TABLE)
#include "kernels/cpu/vector.h"
#define table_gather TABLE_NAME(kernel_gather)
void table_gather(const kernel_page_shape *shape, const kernel_token *tokens, uint32_t count, void *to_keys,
                  void *to_values);
#endif

#endif
