/* rows.cu - the kernels over rows, pages and logits as nvcc compiles them. */
#include "kernels/cuda/attend_finish.h"
#include "kernels/cuda/kernel_entry.h"
#include "kernels/cuda/page_kernels.h"
#include "kernels/cuda/row_kernels.h"
#include "kernels/cuda/sample_kernel.h"

CUDA_ROW_KERNELS(CUDA_KERNEL_ENTRY)

const void *const cuda_row_functions[] = {CUDA_ROW_KERNELS(CUDA_KERNEL_ADDRESS)};
