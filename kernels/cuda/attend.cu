/* attend.cu - the attention kernels as nvcc compiles them. */
#include "kernels/cuda/attend_every.h"
#include "kernels/cuda/kernel_entry.h"

CUDA_ATTEND_KERNELS(CUDA_KERNEL_ENTRY)

const void *const cuda_attend_functions[] = {CUDA_ATTEND_KERNELS(CUDA_KERNEL_ADDRESS)};
