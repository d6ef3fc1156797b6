/* portable.c - the reference table in plain C: one obvious loop for each operation, whose answers define what is
 * right.
 *
 * It rounds where the header says that values are stored (bf16 inputs, outputs and attention weights) and nowhere
 * else, and sums in ascending order. */
#include <assert.h>
#include <math.h>

#include "kernels/cpu/gather.h"
#include "kernels/cpu/page.h"
#include "kernels/cpu/scan.h"
#include "kernels/cpu/tables.h"

static bool always(void) {
    return true;
}

static float element(const void *data, hd_dtype dtype, size_t index) {
    if (dtype == HD_F32) return ((const float *)data)[index];
    uint16_t half = ((const uint16_t *)data)[index];
    return dtype == HD_BF16 ? hd_bf16_to_f32(half) : hd_f16_to_f32(half);
}

static void set_element(void *data, hd_dtype dtype, size_t index, float value) {
    if (dtype == HD_F32) {
        ((float *)data)[index] = value;
    } else {
        ((uint16_t *)data)[index] = dtype == HD_BF16 ? hd_f32_to_bf16(value) : hd_f32_to_f16(value);
    }
}

/* One row times one panel: sums[c] = sum of input[k] * B[k, c]. */
static void multiply_panel(const kernel_matmul *call, uint32_t row, uint32_t panel, uint32_t width,
                           float sums[KERNEL_PANEL]) {
    const kernel_matrix *weights = call->weights;
    size_t start = (size_t)panel * KERNEL_PANEL * weights->k_padded;
    hd_dtype input_dtype = kernel_matrix_input_dtype(weights);
    for (uint32_t c = 0; c < KERNEL_PANEL; c++) sums[c] = 0.0f;
    for (uint32_t k = 0; k < weights->k; k++) {
        float a = element(call->input, input_dtype, row * call->input_stride + k);
        size_t pair = start + (size_t)(k / 2) * width * 2 + k % 2;
        if (weights->dtype == HD_F32) {
            const float *b = (const float *)weights->data + start + (size_t)k * width;
            for (uint32_t c = 0; c < width; c++) sums[c] += a * b[c];
        } else if (weights->dtype == HD_BF16) {
            const uint16_t *b = (const uint16_t *)weights->data + pair;
            for (uint32_t c = 0; c < width; c++) sums[c] += a * hd_bf16_to_f32(b[c * 2]);
        } else {
            const int8_t *b = (const int8_t *)weights->data + pair;
            for (uint32_t c = 0; c < width; c++) sums[c] += a * (float)b[c * 2];
        }
    }
    for (uint32_t c = 0; weights->scales != NULL && c < width; c++)
        sums[c] *= weights->scales[panel * KERNEL_PANEL + c];
}

static void matmul(const kernel_matmul *call, uint32_t first_panel, uint32_t panel_count) {
    const kernel_matrix *weights = call->weights;
    bool is_gated = call->epilogue == KERNEL_SWIGLU;
    assert(!is_gated || (first_panel % 2 == 0 && panel_count % 2 == 0 && call->bias == NULL));
    for (uint32_t panel = first_panel; panel < first_panel + panel_count; panel += is_gated ? 2 : 1) {
        uint32_t first = panel * KERNEL_PANEL;
        uint32_t width = weights->n_padded - first < KERNEL_PANEL ? weights->n_padded - first : KERNEL_PANEL;
        for (uint32_t row = 0; row < call->row_count; row++) {
            float sums[KERNEL_PANEL], ups[KERNEL_PANEL];
            multiply_panel(call, row, panel, width, sums);
            if (is_gated) {
                multiply_panel(call, row, panel + 1, width, ups);
                for (uint32_t c = 0; c < width; c++) {
                    float gated = sums[c] / (1.0f + expf(-sums[c])) * ups[c];
                    set_element(call->output, kernel_matrix_input_dtype(weights),
                                row * call->output_stride + first / 2 + c, gated);
                }
                continue;
            }
            float *output = (float *)call->output + row * call->output_stride;
            for (uint32_t n = first; n < first + width && n < weights->n; n++) {
                float value = sums[n - first] + (call->bias != NULL ? call->bias[n] : 0.0f);
                output[n] = call->epilogue == KERNEL_ADD ? output[n] + value : value;
            }
        }
    }
}

/* The keys or the values of a page. */
typedef struct page_side {
    const kernel_page_shape *shape;
    const void *elements;
    const uint16_t *exponents; /* of int8 */
    bool is_keys;
} page_side;

static page_side side_of(const kernel_page_shape *shape, const void *page, bool is_keys) {
    return (page_side){shape, page, shape->dtype == HD_INT8 ? page_exponents(shape, page, is_keys) : NULL, is_keys};
}

static float side_element(const page_side *side, uint32_t slot, uint32_t i) {
    size_t place = page_place(side->shape, side->is_keys, slot, i);
    if (side->shape->dtype != HD_INT8) return element(side->elements, side->shape->dtype, place);
    return (float)((const int8_t *)side->elements)[place] *
           page_power(side->exponents[i / KERNEL_INT8_GROUP * HD_BLOCK_TOKENS + slot]);
}

static float score(const kernel_attend *call, const page_side *keys, uint32_t row, uint32_t slot) {
    hd_dtype dtype = kernel_row_dtype(call->shape.dtype);
    float sum = 0.0f;
    for (uint32_t k = 0; k < call->shape.key_dim; k++)
        sum += element(call->queries, dtype, row * call->query_stride + k) * side_element(keys, slot, k);
    sum *= call->scale;
    return call->soft_cap > 0.0f ? call->soft_cap * tanhf(sum / call->soft_cap) : sum;
}

static void attend_row(const kernel_attend *call, uint32_t row) {
    float *out = call->partial.out + row * call->partial.out_stride;
    float max = -INFINITY, sum = 0.0f;
    for (uint32_t n = 0; n < call->shape.value_dim; n++) out[n] = 0.0f;
    for (uint32_t i = 0; i < call->span_count; i++) {
        const kernel_span *span = &call->spans[i];
        page_slots slots = page_slots_visible(span, call->positions[row], call->window);
        if (slots.first == slots.end) continue;
        page_side keys = side_of(&call->shape, span->keys, true), values = side_of(&call->shape, span->values, false);
        float weights[HD_BLOCK_TOKENS], span_max = -INFINITY;
        for (uint32_t slot = slots.first; slot < slots.end; slot++) {
            weights[slot] = score(call, &keys, row, slot);
            span_max = fmaxf(span_max, weights[slot]);
        }
        if (span_max > max) {
            float shrink = expf(max - span_max);
            for (uint32_t n = 0; n < call->shape.value_dim; n++) out[n] *= shrink;
            sum *= shrink;
            max = span_max;
        }
        for (uint32_t slot = slots.first; slot < slots.end; slot++) {
            float weight = expf(weights[slot] - max);
            if (call->shape.dtype != HD_F32) weight = hd_bf16_to_f32(hd_f32_to_bf16(weight));
            for (uint32_t n = 0; n < call->shape.value_dim; n++) out[n] += weight * side_element(&values, slot, n);
            sum += weight;
        }
    }
    call->partial.max[row] = max;
    call->partial.sum[row] = sum;
}

static void attend(const kernel_attend *call) {
    for (uint32_t row = 0; row < call->row_count; row++) attend_row(call, row);
}

static void merge(const kernel_partial *into, const kernel_partial *from, uint32_t row_count, uint32_t value_dim) {
    for (uint32_t row = 0; row < row_count; row++) {
        if (from->max[row] == -INFINITY) continue;
        float *out = into->out + row * into->out_stride;
        const float *other = from->out + row * from->out_stride;
        float max = fmaxf(into->max[row], from->max[row]);
        float keep = expf(into->max[row] - max), add = expf(from->max[row] - max);
        for (uint32_t n = 0; n < value_dim; n++) out[n] = out[n] * keep + other[n] * add;
        into->sum[row] = into->sum[row] * keep + from->sum[row] * add;
        into->max[row] = max;
    }
}

static void finish(const kernel_partial *partial, uint32_t row_count, uint32_t value_dim, const float *sink_logits,
                   hd_dtype dtype, void *output, size_t output_stride, float *lse) {
    for (uint32_t row = 0; row < row_count; row++) {
        const float *out = partial->out + row * partial->out_stride;
        float max = partial->max[row], sum = partial->sum[row], factor = 0.0f;
        if (max != -INFINITY) {
            float top = sink_logits != NULL ? fmaxf(max, sink_logits[row]) : max, keep = expf(max - top);
            sum = sum * keep + (sink_logits != NULL ? expf(sink_logits[row] - top) : 0.0f);
            factor = keep / sum;
            max = top + logf(sum);
        }
        for (uint32_t n = 0; n < value_dim; n++) set_element(output, dtype, row * output_stride + n, out[n] * factor);
        if (lse != NULL) lse[row] = max;
    }
}

static void rmsnorm(const float *input, size_t input_stride, const float *weight, float eps, uint32_t row_count,
                    uint32_t width, hd_dtype dtype, void *output, size_t output_stride) {
    for (uint32_t row = 0; row < row_count; row++) {
        const float *x = input + row * input_stride;
        double squares = 0.0;
        for (uint32_t i = 0; i < width; i++) squares += (double)x[i] * x[i];
        float factor = (float)(1.0 / sqrt(squares / width + eps));
        for (uint32_t i = 0; i < width; i++)
            set_element(output, dtype, row * output_stride + i, x[i] * factor * weight[i]);
        for (uint32_t i = width; i < HD_ALIGN_UP(width, KERNEL_K_ALIGN) && i < output_stride; i++) {
            set_element(output, dtype, row * output_stride + i, 0.0f);
        }
    }
}

static void rope(float *row, uint32_t head_count, uint32_t head_dim, uint32_t rotary_dim, const float *cosines,
                 const float *sines) {
    uint32_t half = rotary_dim / 2;
    for (uint32_t head = 0; head < head_count; head++) {
        float *low = row + (size_t)head * head_dim, *high = low + half;
        for (uint32_t i = 0; i < half; i++) {
            float x = low[i], y = high[i];
            low[i] = x * cosines[i] - y * sines[i];
            high[i] = y * cosines[i] + x * sines[i];
        }
    }
}

static void convert(const void *input, hd_dtype input_dtype, void *output, hd_dtype output_dtype, size_t count) {
    for (size_t i = 0; i < count; i++) set_element(output, output_dtype, i, element(input, input_dtype, i));
}

static void add_scaled(float *y, const float *x, float factor, size_t count) {
    for (size_t i = 0; i < count; i++) y[i] += factor * x[i];
}

static void logits_summary(const float *logits, uint32_t count, uint32_t *argmax, float *max, float *log_sum_exp) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++) {
        if (logits[i] > logits[best]) best = i;
    }
    double sum = 0.0;
    for (uint32_t i = 0; log_sum_exp != NULL && i < count; i++) sum += exp((double)logits[i] - logits[best]);
    if (argmax != NULL) *argmax = best;
    if (max != NULL) *max = logits[best];
    if (log_sum_exp != NULL) *log_sum_exp = (float)(logits[best] + log(sum));
}

const kernel_ops kernel_cpu_portable = {
    .name = "portable",
    .is_supported = always,
    .scratch_bytes = 64,
    .attend_rows_best = 32,
    .matmul = matmul,
    .attend = attend,
    .merge = merge,
    .finish = finish,
    .page_store = page_store,
    .gather = page_gather,
    .rmsnorm = rmsnorm,
    .rope = rope,
    .convert = convert,
    .add_scaled = add_scaled,
    .logits_summary = logits_summary,
    .scan = &kernel_scan_portable,
};
