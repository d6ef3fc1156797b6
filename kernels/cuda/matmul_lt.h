/* matmul_lt.h - products by cuBLASLt, with the same bits for a row whatever the number of rows.
 *
 * A library is free to choose another order of summation for another shape. So for each (n, k) one algorithm is
 * chosen for few rows and one for many, both without splitting k between blocks, and the one for many is taken only
 * if it gave, bit for bit, what the one for few gives: that is tried out when the shape is prepared. Where no
 * candidate passes, the one for few serves all. Threads: one a queue. */
#ifndef KERNELS_CUDA_MATMUL_LT_H
#define KERNELS_CUDA_MATMUL_LT_H

#include <stdbool.h>

#include "kernels/device.h"

typedef struct matmul_lt matmul_lt;

/* HD_NOT_FOUND where there is no cuBLASLt. stream: a cudaStream_t. */
hd_status matmul_lt_open(void *stream, matmul_lt **out, hd_error *error);
void matmul_lt_close(matmul_lt *lt); /* accepts NULL */

hd_status matmul_lt_prepare(matmul_lt *lt, const uint16_t *weights, uint32_t n, uint32_t k);
/* HD_NOT_FOUND: the shape was not prepared. The bias is left to the caller. */
hd_status matmul_lt_run(matmul_lt *lt, const device_matmul *call);

/* "13.1.0 (/path)", or why there is none; for the log. */
void matmul_lt_describe(char *text, size_t bytes);

#endif
