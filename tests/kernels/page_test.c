/* Pages of int8, in every table, and token rows of any type: what is read back is near what was stored, a function of the token alone, and the
 * same whether a page, a row or a single token is read. */
#include "tests/kernels/cases.h"

static const uint32_t dims[][2] = {{64, 64}, {80, 80}, {16, 32}, {128, 96}, {256, 256}};
enum { DIM_COUNT = sizeof(dims) / sizeof(dims[0]), TOKENS = HD_BLOCK_TOKENS };

typedef struct page_case {
    kernel_page_shape shape;
    uint16_t *key_rows, *value_rows; /* as they were stored */
    void *keys, *values;
} page_case;

static page_case make_page(uint32_t d, uint64_t *seed) {
    page_case c = {.shape = {HD_INT8, dims[d][0], dims[d][1]}};
    c.key_rows = cases_take((size_t)TOKENS * c.shape.key_dim * sizeof(uint16_t));
    c.value_rows = cases_take((size_t)TOKENS * c.shape.value_dim * sizeof(uint16_t));
    cases_fill(c.key_rows, HD_BF16, (size_t)TOKENS * c.shape.key_dim, 3.0f, seed);
    cases_fill(c.value_rows, HD_BF16, (size_t)TOKENS * c.shape.value_dim, 0.01f, seed);
    /* Of many sizes, and a token of zeros. */
    for (uint32_t token = 0; token < TOKENS; token++) {
        for (uint32_t i = 0; i < c.shape.key_dim; i++) {
            uint16_t *key = &c.key_rows[token * c.shape.key_dim + i];
            *key = hd_f32_to_bf16(ldexpf(hd_bf16_to_f32(*key), (int)token - 64));
        }
    }
    memset(c.key_rows + 5 * c.shape.key_dim, 0, c.shape.key_dim * sizeof(uint16_t)); /* a token of zeros */
    c.keys = cases_take(kernel_page_key_bytes(&c.shape));
    c.values = cases_take(kernel_page_value_bytes(&c.shape));
    return c;
}

static void store(const page_case *c, uint32_t first, uint32_t count) {
    table->page_store(&c->shape, c->keys, c->values, first, count, c->key_rows + (size_t)first * c->shape.key_dim,
                      c->shape.key_dim, c->value_rows + (size_t)first * c->shape.value_dim, c->shape.value_dim);
}

static float largest_of(const uint16_t *row, uint32_t dim) {
    float largest = 0.0f;
    for (uint32_t i = 0; i < dim; i++) largest = fmaxf(largest, fabsf(hd_bf16_to_f32(row[i])));
    return largest;
}

/* Half a step; a step is at most a 64th of the largest of 32. */
static void assert_near(const uint16_t *stored, const uint16_t *read, uint32_t dim) {
    for (uint32_t token = 0; token < TOKENS; token++, stored += dim, read += dim) {
        for (uint32_t first = 0; first < dim; first += KERNEL_INT8_GROUP) {
            uint32_t count = dim - first < KERNEL_INT8_GROUP ? dim - first : KERNEL_INT8_GROUP;
            float largest = largest_of(stored + first, count);
            for (uint32_t i = first; i < first + count; i++)
                assert_true(fabsf(hd_bf16_to_f32(stored[i]) - hd_bf16_to_f32(read[i])) <= largest / 128.0f);
        }
    }
}

static void every_element_is_read_back_within_half_a_step(void **state) {
    uint64_t seed = 1;
    for (uint32_t d = 0; d < DIM_COUNT; d++) {
        page_case c = make_page(d, &seed);
        store(&c, 0, TOKENS);
        uint16_t *rows = cases_take((size_t)TOKENS * 256 * sizeof(uint16_t));
        uint16_t *rounded = cases_take((size_t)TOKENS * 256 * sizeof(uint16_t));
        kernel_page_rows(&c.shape, c.keys, true, 0, TOKENS, rows);
        assert_near(c.key_rows, rows, c.shape.key_dim);
        kernel_page_round_rows(&c.shape, c.key_rows, c.shape.key_dim, TOKENS, c.shape.key_dim, rounded);
        assert_memory_equal(rows, rounded, (size_t)TOKENS * c.shape.key_dim * sizeof(uint16_t));
        kernel_page_rows(&c.shape, c.values, false, 0, TOKENS, rows);
        assert_near(c.value_rows, rows, c.shape.value_dim);
        kernel_page_round_rows(&c.shape, c.value_rows, c.shape.value_dim, TOKENS, c.shape.value_dim, rounded);
        assert_memory_equal(rows, rounded, (size_t)TOKENS * c.shape.value_dim * sizeof(uint16_t));
        cases_release();
    }
}

/* Stored at once, or one by one and in another order. */
static void a_token_is_a_function_of_itself(void **state) {
    uint64_t seed = 2;
    for (uint32_t d = 0; d < DIM_COUNT; d++) {
        page_case c = make_page(d, &seed), other = c;
        other.keys = cases_take(kernel_page_key_bytes(&c.shape));
        other.values = cases_take(kernel_page_value_bytes(&c.shape));
        store(&c, 0, TOKENS);
        for (uint32_t i = 0; i < TOKENS; i++) store(&other, (i * 37 + 11) % TOKENS, 1);
        assert_memory_equal(c.keys, other.keys, kernel_page_key_bytes(&c.shape));
        assert_memory_equal(c.values, other.values, kernel_page_value_bytes(&c.shape));
        cases_release();
    }
}

/* The same page in bf16, token by token. */
static kernel_span read_page(const page_case *c, uint32_t shift) {
    const kernel_page_shape read = kernel_page_shape_read(&c->shape);
    void *keys = cases_take(kernel_page_key_bytes(&read)), *values = cases_take(kernel_page_value_bytes(&read));
    for (uint32_t i = 0; i < TOKENS; i++) {
        kernel_page_copy_key(&c->shape, c->keys, i, keys, (i + shift) % TOKENS);
        kernel_page_copy_value(&c->shape, c->values, i, values, (i + shift) % TOKENS);
    }
    return (kernel_span){.keys = keys, .values = values, .count = TOKENS};
}

static void a_token_copied_alone_is_what_its_row_says(void **state) {
    uint64_t seed = 3;
    for (uint32_t d = 0; d < DIM_COUNT; d++) {
        page_case c = make_page(d, &seed);
        const kernel_page_shape read = kernel_page_shape_read(&c.shape);
        store(&c, 0, TOKENS);
        kernel_span copied = read_page(&c, 3);
        uint16_t expected[256], actual[256];
        for (uint32_t i = 0; i < TOKENS; i++) {
            for (int is_keys = 0; is_keys < 2; is_keys++) {
                uint32_t dim = is_keys ? c.shape.key_dim : c.shape.value_dim;
                kernel_page_rows(&c.shape, is_keys ? c.keys : c.values, is_keys, i, 1, expected);
                kernel_page_rows(&read, is_keys ? copied.keys : copied.values, is_keys, (i + 3) % TOKENS, 1, actual);
                assert_memory_equal(expected, actual, dim * sizeof(uint16_t));
            }
        }
        cases_release();
    }
}

static void attention_has_the_bits_of_the_page_as_it_is_read(void **state) {
    static const uint32_t rows[] = {1, 7, 40};
    uint64_t seed = 4;
    for (uint32_t d = 0; d < DIM_COUNT; d++) {
        for (uint32_t r = 0; r < 3; r++) {
            kernel_page_shape shape = {HD_INT8, dims[d][0], dims[d][1]}, read = kernel_page_shape_read(&shape);
            cases_context context = cases_make_context(&shape, 400, &seed);
            kernel_attend bytes = cases_attend(&context, rows[r], 1 + r, &seed), halves = cases_attend_again(&bytes);
            kernel_span spans[4];
            for (uint32_t i = 0; i < 4; i++) {
                page_case c = {
                    .shape = shape, .keys = (void *)context.spans[i].keys, .values = (void *)context.spans[i].values};
                spans[i] = read_page(&c, 0);
                spans[i].count = context.spans[i].count;
                spans[i].position = context.spans[i].position;
            }
            halves.shape = read;
            halves.spans = spans;
            table->attend(&bytes);
            table->attend(&halves);
            assert_memory_equal(bytes.partial.out, halves.partial.out, rows[r] * shape.value_dim * sizeof(float));
            assert_memory_equal(bytes.partial.max, halves.partial.max, rows[r] * sizeof(float));
            assert_memory_equal(bytes.partial.sum, halves.partial.sum, rows[r] * sizeof(float));
            cases_release();
        }
    }
}

/* Whatever the type; and a row alone says what the page says of its token. */
static void token_rows_are_the_page_again(void **state) {
    static const hd_dtype dtypes[] = {HD_F32, HD_BF16, HD_INT8};
    uint64_t seed = 7;
    for (uint32_t n = 0; n < 3 * DIM_COUNT; n++) {
        kernel_page_shape shape = {dtypes[n % 3], dims[n / 3][0], dims[n / 3][1]};
        cases_context context = cases_make_context(&shape, TOKENS, &seed);
        const kernel_span *page = &context.spans[0];
        size_t key_bytes = kernel_page_key_bytes(&shape), value_bytes = kernel_page_value_bytes(&shape);
        size_t row_bytes = kernel_token_row_bytes(&shape);
        char *rows = cases_take(TOKENS * row_bytes);
        void *keys = cases_take(key_bytes), *values = cases_take(value_bytes);
        kernel_token_rows_read(&shape, page->keys, page->values, rows);
        kernel_token_rows_store(&shape, rows, keys, values);
        assert_memory_equal(keys, page->keys, key_bytes);
        assert_memory_equal(values, page->values, value_bytes);
        uint16_t expected[256], actual[256];
        for (uint32_t i = 0; i < TOKENS; i++) {
            for (int is_keys = 0; is_keys < 2; is_keys++) {
                uint32_t dim = is_keys ? shape.key_dim : shape.value_dim;
                kernel_page_rows(&shape, is_keys ? page->keys : page->values, is_keys, i, 1, expected);
                kernel_token_rows_part(&shape, rows + i * row_bytes, is_keys, 1, actual);
                assert_memory_equal(expected, actual, dim * sizeof(uint16_t));
            }
        }
        kernel_page_shape read = kernel_page_shape_read(&shape);
        kernel_token tokens[TOKENS];
        for (uint32_t i = 0; i < TOKENS; i++) tokens[i] = (kernel_token){.row = rows + i * row_bytes};
        void *gathered_keys = cases_take(kernel_page_key_bytes(&read)),
             *gathered_values = cases_take(kernel_page_value_bytes(&read));
        table->gather(&shape, tokens, TOKENS, gathered_keys, gathered_values);
        for (uint32_t i = 0; i < TOKENS; i++) {
            tokens[i] = (kernel_token){.keys = page->keys, .values = page->values, .slot = i};
        }
        void *right_keys = cases_take(kernel_page_key_bytes(&read)),
             *right_values = cases_take(kernel_page_value_bytes(&read));
        table->gather(&shape, tokens, TOKENS, right_keys, right_values);
        assert_memory_equal(gathered_keys, right_keys, kernel_page_key_bytes(&read));
        assert_memory_equal(gathered_values, right_values, kernel_page_value_bytes(&read));
        cases_release();
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(every_element_is_read_back_within_half_a_step, cases_teardown),
        cmocka_unit_test_teardown(a_token_is_a_function_of_itself, cases_teardown),
        cmocka_unit_test_teardown(a_token_copied_alone_is_what_its_row_says, cases_teardown),
        cmocka_unit_test_teardown(attention_has_the_bits_of_the_page_as_it_is_read, cases_teardown),
        cmocka_unit_test_teardown(token_rows_are_the_page_again, cases_teardown),
    };
    return cases_run(tests, sizeof(tests) / sizeof(tests[0]));
}
