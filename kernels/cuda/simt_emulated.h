/* simt_emulated.h - the words of simt.h in the emulator; included by simt.h alone.
 *
 * What only touches the calling thread is here; what several threads do together is emulator.c. */
#ifndef KERNELS_CUDA_SIMT_EMULATED_H
#define KERNELS_CUDA_SIMT_EMULATED_H

#include <math.h>
#include <string.h>

#include "kernels/dtype.h"

#define SIMT_FUNCTION static inline __attribute__((unused))
#define SIMT_UNROLL
#define SIMT_KEEP_LOOP

/* Of the thread that runs now. */
extern uint32_t emulated_thread, emulated_thread_count, emulated_block, emulated_block_count;
extern unsigned char *emulated_shared;

void simt_sync(void);
void simt_sync_warp(void);
float simt_shuffle_xor(float value, uint32_t mask);
float simt_shuffle(float value, uint32_t lane);
uint32_t simt_shuffle_xor_u32(uint32_t value, uint32_t mask);
void simt_copy16(void *shared, const void *global, bool is_valid);
void simt_copy_commit(void);
void simt_copy_wait(uint32_t pending);
void simt_load_matrices(uint32_t r[4], const void *row);
void simt_load_matrices_transposed(uint32_t r[4], const void *row);
void simt_mma(float d[4], const uint32_t a[4], const uint32_t b[2]);

SIMT_FUNCTION uint32_t simt_thread(void) {
    return emulated_thread;
}
SIMT_FUNCTION uint32_t simt_thread_count(void) {
    return emulated_thread_count;
}
SIMT_FUNCTION uint32_t simt_block(void) {
    return emulated_block;
}
SIMT_FUNCTION uint32_t simt_block_count(void) {
    return emulated_block_count;
}
SIMT_FUNCTION unsigned char *simt_shared(void) {
    return emulated_shared;
}

SIMT_FUNCTION float simt_multiply(float a, float b) {
    return a * b;
}
SIMT_FUNCTION float simt_add(float a, float b) {
    return a + b;
}
SIMT_FUNCTION float simt_multiply_add(float a, float b, float c) {
    return fmaf(a, b, c);
}

SIMT_FUNCTION float simt_exp2(float x) {
    return exp2f(x);
}
SIMT_FUNCTION float simt_log(float x) {
    return logf(x);
}
SIMT_FUNCTION float simt_tanh(float x) {
    return tanhf(x);
}
SIMT_FUNCTION float simt_reciprocal_sqrt(float x) {
    return 1.0f / sqrtf(x);
}

SIMT_FUNCTION float simt_bits_to_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}
SIMT_FUNCTION uint32_t simt_float_to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

SIMT_FUNCTION uint16_t simt_to_bf16(float value) {
    return hd_f32_to_bf16(value);
}
SIMT_FUNCTION float simt_from_bf16(uint16_t value) {
    return hd_bf16_to_f32(value);
}
SIMT_FUNCTION uint32_t simt_pack_bf16(float low, float high) {
    return (uint32_t)hd_f32_to_bf16(low) | (uint32_t)hd_f32_to_bf16(high) << 16;
}

#endif
