/* vector.h - one vector of floats, whatever its width, and the functions made of it; each source under cpu/ that
 * includes it is compiled once per table.
 *
 * Threads: pure functions. */
#ifndef KERNELS_CPU_VECTOR_H
#define KERNELS_CPU_VECTOR_H

#include <stddef.h>

#if defined(__AVX512F__)
#include "kernels/cpu/vector_avx512.h"
#else
#include "kernels/cpu/vector_avx2.h"
#endif

/* Names that several tables define get the table's name behind them. */
#define TABLE_JOIN_(name, table) name##_##table
#define TABLE_JOIN(name, table) TABLE_JOIN_(name, table)
#define TABLE_NAME(name) TABLE_JOIN(name, KERNEL_TABLE)

#define LOG2_E 1.44269504088896341f
#define LOG2_E_REST 1.92596303e-8f /* log2(e) less what LOG2_E holds of it */
#define LN_2 0.693147180559945309f

/* 2^x within 1.5e-7, exactly 1 at 0, and 0 at minus infinity: a polynomial of the fraction (minimax on [0, 1) with
 * the constant held at 1) times a power of two. */
static inline vec vec_exp2(vec x) {
    vec r = vec_fraction(x), p = vec_set(0x1.e974fap-10f);
    p = vec_fma(p, r, vec_set(0x1.277856p-7f));
    p = vec_fma(p, r, vec_set(0x1.c91ce6p-5f));
    p = vec_fma(p, r, vec_set(0x1.ebdb56p-3f));
    p = vec_fma(p, r, vec_set(0x1.62e4bap-1f));
    p = vec_fma(p, r, vec_set(1.0f));
    return vec_times_power(p, x);
}

/* 2^x within 3e-6, and exactly 1 at 0: for what is rounded to bf16 next. */
static inline vec vec_exp2_short(vec x) {
    vec r = vec_fraction(x), p = vec_set(0x1.b7f730p-7f);
    p = vec_fma(p, r, vec_set(0x1.abf868p-5f));
    p = vec_fma(p, r, vec_set(0x1.ee2450p-3f));
    p = vec_fma(p, r, vec_set(0x1.62d6c6p-1f));
    p = vec_fma(p, r, vec_set(1.0f));
    return vec_times_power(p, x);
}

/* e^x within 3e-7 for |x| <= 87, where larger ones are held: what is lost in x * log2(e) is put back as a factor. */
static inline vec vec_exp(vec x) {
    x = vec_min(vec_max(x, vec_set(-87.0f)), vec_set(87.0f));
    vec scaled = vec_mul(x, vec_set(LOG2_E));
    vec lost = vec_fma(x, vec_set(LOG2_E), vec_sub(vec_set(0.0f), scaled));
    lost = vec_fma(x, vec_set(LOG2_E_REST), lost);
    vec power = vec_exp2(scaled);
    return vec_fma(power, vec_mul(lost, vec_set(LN_2)), power);
}

#endif
