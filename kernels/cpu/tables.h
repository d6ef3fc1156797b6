/* tables.h - the CPU tables by name; everybody else asks kernel_ops_choose. */
#ifndef KERNELS_CPU_TABLES_H
#define KERNELS_CPU_TABLES_H

#include "kernels/ops.h"

extern const kernel_ops kernel_cpu_portable, kernel_cpu_avx2, kernel_cpu_avx512, kernel_cpu_avx512bf16, kernel_cpu_amx;

#endif
