/* elementwise.c - the operations that touch each number once: whole vectors, then what is left through a part of
 * one. */
#include "kernels/cpu/elementwise.h"

#include <math.h>

static size_t lanes_left(size_t count, size_t done) {
    return count - done < VEC_LANES ? count - done : VEC_LANES;
}

/* One vector of count <= VEC_LANES elements of any format; a part goes through a buffer, so that nothing beyond it
 * is touched. */
static vec read_part(const void *from, hd_dtype dtype, size_t index, size_t count) {
    if (dtype == HD_F32) return vec_load_part((const float *)from + index, count);
    uint16_t halves[VEC_LANES] = {0};
    const uint16_t *source = (const uint16_t *)from + index;
    if (count < VEC_LANES) source = memcpy(halves, source, count * sizeof(uint16_t));
    return dtype == HD_BF16 ? vec_from_bf16(source) : vec_from_f16(source);
}

static void write_part(void *to, hd_dtype dtype, size_t index, vec value, size_t count) {
    if (dtype == HD_F32) {
        vec_store_part((float *)to + index, value, count);
        return;
    }
    uint16_t halves[VEC_LANES], *target = (uint16_t *)to + index;
    uint16_t *place = count < VEC_LANES ? halves : target;
    if (dtype == HD_BF16) {
        vec_to_bf16(place, value);
    } else {
        vec_to_f16(place, value);
    }
    if (count < VEC_LANES) memcpy(target, halves, count * sizeof(uint16_t));
}

void table_convert(const void *input, hd_dtype input_dtype, void *output, hd_dtype output_dtype, size_t count) {
    for (size_t i = 0; i < count; i += VEC_LANES) {
        size_t lanes = lanes_left(count, i);
        write_part(output, output_dtype, i, read_part(input, input_dtype, i, lanes), lanes);
    }
}

void table_add_scaled(float *y, const float *x, float factor, size_t count) {
    for (size_t i = 0; i < count; i += VEC_LANES) {
        size_t lanes = lanes_left(count, i);
        vec_store_part(y + i, vec_fma(vec_load_part(x + i, lanes), vec_set(factor), vec_load_part(y + i, lanes)),
                       lanes);
    }
}

/* Four sums side by side: the addition's latency would bound one, and shorter chains round less. */
static float sum_of_squares(const float *x, uint32_t width) {
    vec sums[4] = {vec_set(0.0f), vec_set(0.0f), vec_set(0.0f), vec_set(0.0f)};
    for (uint32_t i = 0; i < width; i += VEC_LANES) {
        vec value = vec_load_part(x + i, lanes_left(width, i));
        vec *sum = &sums[i / VEC_LANES % 4];
        *sum = vec_fma(value, value, *sum);
    }
    return vec_sum(vec_add(vec_add(sums[0], sums[1]), vec_add(sums[2], sums[3])));
}

void table_rmsnorm(const float *input, size_t input_stride, const float *weight, float eps, uint32_t row_count,
                   uint32_t width, hd_dtype dtype, void *output, size_t output_stride) {
    size_t padded =
        HD_ALIGN_UP(width, KERNEL_K_ALIGN) < output_stride ? HD_ALIGN_UP(width, KERNEL_K_ALIGN) : output_stride;
    for (uint32_t row = 0; row < row_count; row++) {
        const float *x = input + row * input_stride;
        size_t first = row * output_stride;
        vec factor = vec_set(1.0f / sqrtf(sum_of_squares(x, width) / (float)width + eps));
        for (uint32_t i = 0; i < width; i += VEC_LANES) {
            size_t lanes = lanes_left(width, i);
            vec value = vec_mul(vec_mul(vec_load_part(x + i, lanes), factor), vec_load_part(weight + i, lanes));
            write_part(output, dtype, first + i, value, lanes);
        }
        for (size_t i = width; i < padded; i += VEC_LANES)
            write_part(output, dtype, first + i, vec_set(0.0f), lanes_left(padded, i));
    }
}

void table_rope(float *row, uint32_t head_count, uint32_t head_dim, uint32_t rotary_dim, const float *cosines,
                const float *sines) {
    uint32_t half = rotary_dim / 2;
    for (uint32_t head = 0; head < head_count; head++) {
        float *low = row + (size_t)head * head_dim, *high = low + half;
        for (uint32_t i = 0; i < half; i += VEC_LANES) {
            size_t lanes = lanes_left(half, i);
            vec x = vec_load_part(low + i, lanes), y = vec_load_part(high + i, lanes);
            vec cosine = vec_load_part(cosines + i, lanes), sine = vec_load_part(sines + i, lanes);
            vec_store_part(low + i, vec_sub(vec_mul(x, cosine), vec_mul(y, sine)), lanes);
            vec_store_part(high + i, vec_fma(x, sine, vec_mul(y, cosine)), lanes);
        }
    }
}

void table_logits_summary(const float *logits, uint32_t count, uint32_t *argmax, float *max, float *log_sum_exp) {
    vec largest = vec_set(-INFINITY);
    uint32_t whole = count - count % VEC_LANES;
    for (uint32_t i = 0; i < whole; i += VEC_LANES) largest = vec_max(largest, vec_load(logits + i));
    float top = vec_largest(largest);
    for (uint32_t i = whole; i < count; i++) top = logits[i] > top ? logits[i] : top;
    if (max != NULL) *max = top;
    if (argmax != NULL) {
        uint32_t i = 0;
        while (i < whole && vec_equal(vec_load(logits + i), vec_set(top)) == 0) i += VEC_LANES;
        while (i + 1 < count && logits[i] != top) i++;
        *argmax = i < count ? i : 0; /* nothing equals a NaN */
    }
    if (log_sum_exp == NULL) return;
    vec sum = vec_set(0.0f), rest = vec_set(0.0f);
    for (uint32_t i = 0; i < whole; i += VEC_LANES) {
        vec difference = vec_sub(vec_load(logits + i), vec_set(top));
        sum = vec_add(sum, vec_exp2(vec_mul(difference, vec_set(LOG2_E))));
    }
    if (whole < count) {
        size_t lanes = count - whole;
        vec last = vec_select(vec_load_part(logits + whole, lanes), vec_set(-INFINITY), 0, (int)lanes);
        rest = vec_exp2(vec_mul(vec_sub(last, vec_set(top)), vec_set(LOG2_E)));
    }
    *log_sum_exp = top + logf(vec_sum(vec_add(sum, rest)));
}
