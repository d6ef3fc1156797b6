#include "tests/kernels/cases.h"

#include <stdlib.h>

const kernel_ops *table;

/* Blocks taken by a test, each with a link to the one before it. */
typedef struct taken_block {
    struct taken_block *next;
    void *memory;
} taken_block;
static taken_block *taken;

void *cases_take(size_t bytes) {
    taken_block *block = malloc(sizeof(*block));
    assert_non_null(block);
    block->memory = hd_alloc_zeroed(bytes > 0 ? bytes : 1, 64);
    assert_non_null(block->memory);
    block->next = taken;
    taken = block;
    return block->memory;
}

void cases_release(void) {
    while (taken != NULL) {
        taken_block *block = taken;
        taken = block->next;
        hd_free(block->memory);
        free(block);
    }
}

int cases_teardown(void **state) {
    cases_release();
    return 0;
}

int cases_run(const struct CMUnitTest *tests, size_t test_count) {
    const kernel_ops *const *tables;
    size_t table_count = kernel_ops_list(&tables);
    int failures = 0;
    for (size_t i = 0; i < table_count; i++) {
        table = tables[i];
        if (!table->is_supported()) {
            print_message("%s: not on this machine\n", table->name);
            continue;
        }
        failures += _cmocka_run_group_tests(table->name, tests, test_count, NULL, NULL);
    }
    return failures;
}

static uint64_t next_random(uint64_t *seed) { /* splitmix64 */
    uint64_t z = *seed += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

float cases_random(uint64_t *seed) {
    float sum = 0.0f; /* of 12 uniform numbers: variance 1 */
    for (int i = 0; i < 3; i++) {
        uint64_t bits = next_random(seed);
        for (int part = 0; part < 4; part++) sum += (float)(bits >> (16 * part) & 0xffff) / 65536.0f;
    }
    return sum - 6.0f;
}

uint32_t cases_random_below(uint64_t *seed, uint32_t bound) {
    return (uint32_t)(next_random(seed) >> 33) % bound;
}

void cases_fill(void *data, hd_dtype dtype, size_t count, float scale, uint64_t *seed) {
    for (size_t i = 0; i < count; i++) {
        float value = cases_random(seed) * scale;
        if (dtype == HD_F32) {
            ((float *)data)[i] = value;
        } else {
            ((uint16_t *)data)[i] = hd_f32_to_bf16(value);
        }
    }
}

float cases_get(const void *data, hd_dtype dtype, size_t index) {
    return dtype == HD_F32 ? ((const float *)data)[index] : hd_bf16_to_f32(((const uint16_t *)data)[index]);
}

kernel_matrix cases_matrix(hd_dtype dtype, uint32_t n, uint32_t k, uint64_t *seed) {
    kernel_matrix matrix;
    float *source = cases_take((size_t)n * k * sizeof(float));
    cases_fill(source, HD_F32, (size_t)n * k, 1.0f / sqrtf((float)k), seed);
    kernel_matrix_init(&matrix, dtype, n, k, cases_take(kernel_matrix_bytes(dtype, n, k)),
                       cases_take(HD_ALIGN_UP(n, KERNEL_N_ALIGN) * sizeof(float)));
    kernel_matrix_pack(&matrix, 0, source, HD_F32, k, n);
    return matrix;
}

cases_context cases_make_context(const kernel_page_shape *shape, uint32_t token_count, uint64_t *seed) {
    cases_context context = {.shape = *shape, .token_count = token_count};
    hd_dtype rows = kernel_row_dtype(shape->dtype);
    size_t bytes = hd_dtype_bits(rows) / 8;
    size_t key_count = (size_t)token_count * shape->key_dim, value_count = (size_t)token_count * shape->value_dim;
    context.keys = cases_take(key_count * bytes);
    context.values = cases_take(value_count * bytes);
    context.span_count = (token_count + HD_BLOCK_TOKENS - 1) / HD_BLOCK_TOKENS;
    context.spans = cases_take(context.span_count * sizeof(kernel_span));
    cases_fill(context.keys, rows, key_count, 1.0f, seed);
    cases_fill(context.values, rows, value_count, 1.0f, seed);
    for (uint32_t i = 0; i < context.span_count; i++) {
        uint32_t first = i * HD_BLOCK_TOKENS, left = token_count - first;
        uint32_t count = left < HD_BLOCK_TOKENS ? left : HD_BLOCK_TOKENS;
        void *keys = cases_take(kernel_page_key_bytes(shape)), *values = cases_take(kernel_page_value_bytes(shape));
        table->page_store(shape, keys, values, 0, count, (char *)context.keys + first * shape->key_dim * bytes,
                          shape->key_dim, (char *)context.values + first * shape->value_dim * bytes, shape->value_dim);
        if (shape->dtype == HD_INT8) { /* what is right is what the page says */
            kernel_page_rows(shape, keys, true, 0, count, (uint16_t *)context.keys + first * shape->key_dim);
            kernel_page_rows(shape, values, false, 0, count, (uint16_t *)context.values + first * shape->value_dim);
        }
        context.spans[i] = (kernel_span){.keys = keys, .values = values, .count = count, .position = first};
    }
    return context;
}

kernel_attend cases_attend(const cases_context *context, uint32_t row_count, uint32_t rows_at_position,
                           uint64_t *seed) {
    const kernel_page_shape *shape = &context->shape;
    size_t stride = HD_ALIGN_UP(shape->key_dim, KERNEL_K_ALIGN),
           bytes = hd_dtype_bits(kernel_row_dtype(shape->dtype)) / 8;
    char *queries = cases_take(row_count * stride * bytes);
    uint64_t *positions = cases_take(row_count * sizeof(uint64_t));
    uint32_t position_count = (row_count + rows_at_position - 1) / rows_at_position;
    for (uint32_t row = 0; row < row_count; row++) {
        uint32_t back = position_count - 1 - row / rows_at_position;
        cases_fill(queries + row * stride * bytes, kernel_row_dtype(shape->dtype), shape->key_dim, 1.0f, seed);
        positions[row] = context->token_count > back ? context->token_count - 1 - back : 0;
    }
    kernel_attend call = {
        .shape = *shape,
        .scale = 1.0f / sqrtf((float)shape->key_dim),
        .queries = queries,
        .query_stride = stride,
        .positions = positions,
        .row_count = row_count,
        .spans = context->spans,
        .span_count = context->span_count,
        .scratch = cases_take(table->scratch_bytes),
    };
    return cases_attend_again(&call);
}

kernel_attend cases_attend_again(const kernel_attend *call) {
    kernel_attend again = *call;
    again.partial.out_stride = call->shape.value_dim;
    again.partial.out = cases_take((size_t)call->row_count * again.partial.out_stride * sizeof(float));
    again.partial.max = cases_take(call->row_count * sizeof(float));
    again.partial.sum = cases_take(call->row_count * sizeof(float));
    return again;
}
