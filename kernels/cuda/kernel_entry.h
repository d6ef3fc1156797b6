/* kernel_entry.h - the entry points around kernel bodies; for .cu files only. */
#ifndef KERNELS_CUDA_KERNEL_ENTRY_H
#define KERNELS_CUDA_KERNEL_ENTRY_H

#include "kernels/cuda/kernel_list.h"
#include "kernels/cuda/simt.h"

#define CUDA_KERNEL_ENTRY(name, arguments, threads, blocks)                                                            \
    static_assert(sizeof(arguments) <= CUDA_ARGUMENTS_BYTES_MAX, #name);                                               \
    static __global__ void __launch_bounds__(threads, blocks) entry_##name(const __grid_constant__ arguments a) {      \
        name(&a);                                                                                                      \
    }
#define CUDA_KERNEL_ADDRESS(name, arguments, threads, blocks) (const void *)entry_##name,

extern "C" const void *const cuda_attend_functions[];
extern "C" const void *const cuda_row_functions[];

#endif
