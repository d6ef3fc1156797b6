/* kernel_list.h - every kernel: its name, its struct of arguments, the most threads of a block, blocks that a
 * multiprocessor should hold at once.
 *
 * A kernel takes its struct by value as its one parameter, so that launching is the same for all. */
#ifndef KERNELS_CUDA_KERNEL_LIST_H
#define KERNELS_CUDA_KERNEL_LIST_H

#include "kernels/cuda/attend_arguments.h"
#include "kernels/cuda/row_arguments.h"
#include "kernels/cuda/sample_arguments.h"

#define CUDA_ATTEND_KERNELS(X)                                                                                         \
    X(attend_split_64, attend_arguments, 256, 1)                                                                       \
    X(attend_split_80, attend_arguments, 256, 1)                                                                       \
    X(attend_split_96, attend_arguments, 256, 1)                                                                       \
    X(attend_split_128, attend_arguments, 256, 1)                                                                      \
    X(attend_split_256, attend_arguments, 128, 1)                                                                      \
    X(attend_block_64, attend_arguments, 256, 1)                                                                       \
    X(attend_block_80, attend_arguments, 256, 1)                                                                       \
    X(attend_block_96, attend_arguments, 256, 1)                                                                       \
    X(attend_block_128, attend_arguments, 256, 1)                                                                      \
    X(attend_block_256, attend_arguments, 256, 1)

#define CUDA_ROW_KERNELS(X)                                                                                            \
    X(attend_finish, attend_finish_arguments, 256, 1)                                                                  \
    X(rmsnorm, rmsnorm_arguments, 256, 4)                                                                              \
    X(split_rows, split_rows_arguments, 256, 4)                                                                        \
    X(silu_multiply, silu_multiply_arguments, 256, 4)                                                                  \
    X(add_bias, add_bias_arguments, 256, 4)                                                                            \
    X(page_store, page_store_arguments, 256, 4)                                                                        \
    X(page_summary, page_summary_arguments, 256, 4)                                                                    \
    X(page_score, page_score_arguments, 256, 4)                                                                        \
    X(logits_summary, logits_summary_arguments, 256, 4)                                                                \
    X(sample, sample_arguments, 512, 1)                                                                                \
    X(unpack, unpack_arguments, 256, 4)                                                                                \
    X(read_all, read_all_arguments, 256, 4)
#define CUDA_KERNELS(X) CUDA_ATTEND_KERNELS(X) CUDA_ROW_KERNELS(X)

#define CUDA_KERNEL_NAME(name, arguments, threads, blocks) CUDA_##name,
typedef enum { CUDA_KERNELS(CUDA_KERNEL_NAME) CUDA_KERNEL_COUNT } cuda_kernel;
#undef CUDA_KERNEL_NAME

#define CUDA_ARGUMENTS_BYTES_MAX 512u

#endif
