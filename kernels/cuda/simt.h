/* simt.h - the words that kernel bodies are written in.
 *
 * A body is a C function of one struct of arguments, run by every thread of every block of a grid. It is compiled
 * twice: by nvcc for the device (simt_device.h, inline PTX), and by the C compiler for the emulator (simt_emulated.h),
 * which runs it on the CPU, thread by thread, with the meaning that the PTX manual gives to each word. So the whole of
 * a kernel (tiles, fragments, barriers, the order of asynchronous copies) is tested where there is no device; only its
 * speed and what the hardware rounds are not.
 *
 *   1. Bodies are C11 and C++17 at once: no designated initialisers, no compound literals, explicit casts of void *.
 *   2. Words marked "warp" are reached by all 32 lanes of a warp together, words marked "block" by all its threads.
 *   3. Products and sums whose bits matter are written as simt_multiply, simt_add and simt_multiply_add: a compiler
 *      contracts the others as it likes.
 *
 *     simt_thread(), simt_thread_count(), simt_block(), simt_block_count()    one dimension each
 *     simt_lane(), simt_warp()
 *     simt_shared()                              dynamic shared memory, 128-byte aligned
 *     simt_sync() block, simt_sync_warp() warp   barriers
 *     simt_shuffle_xor(value, mask) warp, simt_shuffle(value, lane) warp      f32; _u32 the same for words
 *     simt_copy16(shared, global, is_valid)      asynchronous copy of 16 bytes, zeros where not valid
 *     simt_copy_commit(), simt_copy_wait(n)      all but the last n groups of this thread's copies have arrived; n a
 *     constant simt_load_matrices(r, row) warp            ldmatrix.x4: lane i names row i % 8 of matrix i / 8
 *     simt_load_matrices_transposed(r, row) warp simt_mma(d, a, b) warp                     d[4] += a[4] * b[2]:
 *     m16n8k16, bf16 in, f32 out simt_exp2, simt_log, simt_tanh, simt_reciprocal_sqrt simt_to_bf16, simt_from_bf16,
 *     simt_pack_bf16(low, high) */
#ifndef KERNELS_CUDA_SIMT_H
#define KERNELS_CUDA_SIMT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIMT_WARP 32u
#define SIMT_LOG2_E 1.4426950408889634f

typedef struct simt_vector { /* what one lane loads or stores at once */
    uint32_t words[4];
} simt_vector;

#ifdef __CUDACC__
#include "kernels/cuda/simt_device.h"
#else
#include "kernels/cuda/simt_emulated.h"
#endif

SIMT_FUNCTION float simt_infinity(void) {
    return simt_bits_to_float(0x7f800000u);
}

SIMT_FUNCTION float simt_max(float a, float b) {
    return a > b ? a : b;
}

/* exp(x) as every kernel here computes it. */
SIMT_FUNCTION float simt_exp(float x) {
    return simt_exp2(simt_multiply(x, SIMT_LOG2_E));
}

SIMT_FUNCTION uint32_t simt_lane(void) {
    return simt_thread() % SIMT_WARP;
}

SIMT_FUNCTION uint32_t simt_warp(void) {
    return simt_thread() / SIMT_WARP;
}

#endif
