/* engine_attend_test.c - what the engine computes: right, and the same bits however the work comes and is cut. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/attention-node/toy.h"

/* ---- Right ---- */

static void check_shape(const toy_shape *shape, const kernel_ops *kernels, uint64_t length, uint64_t chunk) {
    toy t;
    toy_sequence s;
    toy_init(&t, shape);
    t.config.kernels = kernels;
    t.config.hot_bytes = 64u << 20;
    toy_open(&t, 2);
    toy_sequence_init(&s, 1, 1, length);
    toy_sequence_push_text(&s, 5, length);
    uint64_t cached;
    assert_int_equal(toy_sequence_open(&t, &s, 0, &cached, NULL), HD_OK);
    toy_run(&t, &s, 0, length, chunk, NULL);
    const uint64_t positions[] = {0, 1, 126, 127, 128, 129, 1023, 1024, 1025, 1151, length - 1};
    for (size_t i = 0; i < sizeof(positions) / sizeof(positions[0]); i++) {
        if (positions[i] < length) toy_check_row(&t, &s, positions[i]);
    }
    toy_sequence_fini(&s);
    toy_fini(&t);
}

static void attention_is_right_for_every_kernel_table(void **state) {
    const kernel_ops *const *tables;
    size_t count = kernel_ops_list(&tables);
    for (size_t i = 0; i < count; i++) {
        if (!tables[i]->is_supported()) continue;
        static const hd_dtype dtypes[] = {HD_F32, HD_BF16, HD_INT8};
        for (int type = 0; type < 3; type++) {
            check_shape(&(toy_shape){1, 1, 3, 64, 64, dtypes[type], {0}, 0, false}, tables[i], 1160, 290);
        }
    }
}

static void attention_is_right_over_head_dims_and_groups(void **state) {
    const uint32_t dims[][2] = {{16, 16}, {80, 48}, {96, 96}, {128, 128}, {192, 128}, {256, 256}};
    for (size_t i = 0; i < sizeof(dims) / sizeof(dims[0]); i++) {
        check_shape(&(toy_shape){1, 1, 1 + (uint32_t)i, dims[i][0], dims[i][1], HD_F32, {0}, 0, false},
                    kernel_ops_portable(), 300, 77);
    }
}

static void windows_soft_cap_and_sinks_are_applied(void **state) {
    check_shape(&(toy_shape){3, 2, 2, 16, 16, HD_F32, {1, 100, 0}, 0, false}, kernel_ops_portable(), 1200, 150);
    check_shape(&(toy_shape){2, 1, 4, 16, 16, HD_F32, {0, 128}, 3.0f, false}, kernel_ops_portable(), 400, 64);
    check_shape(&(toy_shape){2, 2, 2, 16, 16, HD_F32, {0, 1100}, 0, true}, kernel_ops_portable(), 1200, 500);
}

/* ---- Bits ---- */

static const toy_shape two_layers = {2, 2, 2, 32, 16, HD_BF16, {0, 900}, 0, true};
static const toy_shape two_layers_int8 = {2, 2, 2, 32, 16, HD_INT8, {0, 900}, 0, true};

static float *outputs_of(const toy *t, uint64_t rows) {
    return calloc(t->shape.layer_count * rows * toy_row_floats(t), sizeof(float));
}

static size_t output_bytes(const toy *t, uint64_t rows) {
    return t->shape.layer_count * rows * toy_row_floats(t) * sizeof(float);
}

/* A sequence of `length` tokens from nothing, in chunks, on so many threads. */
static void run_alone(const toy_shape *shape, const kernel_ops *kernels, unsigned threads, uint64_t length,
                      uint64_t chunk, float *outputs) {
    toy t;
    toy_sequence s;
    toy_init(&t, shape);
    t.config.kernels = kernels;
    toy_open(&t, threads);
    toy_sequence_init(&s, 1, 1, length);
    toy_sequence_push_text(&s, 9, length);
    uint64_t cached;
    assert_int_equal(toy_sequence_open(&t, &s, 0, &cached, NULL), HD_OK);
    toy_run(&t, &s, 0, length, chunk, outputs);
    toy_sequence_fini(&s);
    toy_fini(&t);
}

static void check_chunks_and_threads(const toy_shape *shape, uint64_t length_max) {
    const uint64_t chunks[] = {1, 7, 64, 1000};
    const kernel_ops *const *tables;
    size_t table_count = kernel_ops_list(&tables);
    toy t;
    toy_init(&t, shape);
    float *reference = outputs_of(&t, length_max), *outputs = outputs_of(&t, length_max);
    for (size_t k = 0; k < table_count; k++) {
        if (!tables[k]->is_supported()) continue;
        uint64_t length = tables[k] == kernel_ops_portable() ? 400 : length_max; /* the portable table takes its time */
        run_alone(shape, tables[k], 1, length, 500, reference);
        for (unsigned threads = 1; threads <= 4; threads++) {
            uint64_t chunk = chunks[threads - 1];
            memset(outputs, 0, output_bytes(&t, length));
            run_alone(shape, tables[k], threads, length, chunk, outputs);
            assert_memory_equal(outputs, reference, output_bytes(&t, length));
        }
    }
    free(reference);
    free(outputs);
    toy_fini(&t);
}

static void bits_do_not_depend_on_chunks_and_threads(void **state) {
    check_chunks_and_threads(&two_layers, 3500);
    check_chunks_and_threads(&two_layers_int8, 1400);
}

/* Decoding alone, with many others, over a shared prefix, over a copy of it, and after a fork. */
static void bits_do_not_depend_on_the_batch_and_on_sharing(void **state) {
    enum { COUNT = 12 };
    const kernel_ops *const *tables;
    size_t table_count = kernel_ops_list(&tables);
    for (size_t k = 0; k < table_count; k++) {
        if (!tables[k]->is_supported() || tables[k] == kernel_ops_portable()) continue;
        const unsigned threads = k % 2 == 0 ? 3 : 1;        /* one thread cuts nothing but what is shared */
        const uint64_t prompt = 3456, length = prompt + 10; /* the prompt is of whole blocks */
        toy t;
        toy_init(&t, &two_layers);
        float *reference = outputs_of(&t, length), *outputs = outputs_of(&t, COUNT);
        run_alone(&two_layers, tables[k], 1, length, 333, reference);

        t.config.kernels = tables[k];
        t.config.hot_bytes = 24u << 20;
        toy_open(&t, threads);
        toy_sequence s[COUNT];
        uint64_t cached;
        for (uint64_t i = 0; i < COUNT; i++) {
            toy_sequence_init(&s[i], i, 1, length);
            if (i % 4 == 3) { /* another text, of another length */
                toy_sequence_push_text(&s[i], 100 + i, prompt - 300 * (i / 4));
            } else {
                toy_sequence_push_text(&s[i], 9, prompt);
            }
            uint64_t reuse = i % 4 == 1 ? 0 : UINT64_MAX;
            if (i % 4 == 2) {
                s[i].epoch = 5;
                assert_int_equal(t.attention->ops->fork(t.attention, 0, prompt, i, 5, length, NULL), HD_OK);
                cached = prompt;
            } else {
                assert_int_equal(toy_sequence_open(&t, &s[i], reuse, &cached, NULL), HD_OK);
            }
            assert_int_equal(cached, i % 4 == 2 ? prompt : i == 4 || i == 8 ? prompt - 1 : 0);
            if (cached < s[i].length) toy_run(&t, &s[i], cached, s[i].length - cached, 512, NULL);
        }
        /* All decode together, the texts going on as in the run alone. */
        toy_sequence whole;
        toy_sequence_init(&whole, 99, 1, length);
        toy_sequence_push_text(&whole, 9, length);
        for (uint64_t position = prompt; position < length; position++) {
            toy_rows rows[COUNT];
            for (uint64_t i = 0; i < COUNT; i++) {
                toy_sequence_push(&s[i], whole.tokens[position]);
                rows[i] = (toy_rows){&s[i], s[i].length - 1, 1};
            }
            assert_int_equal(toy_step(&t, rows, COUNT, outputs, NULL), HD_OK);
            size_t row_floats = toy_row_floats(&t);
            for (uint64_t i = 0; i < COUNT; i++) {
                for (uint32_t layer = 0; layer < 2 && i % 4 != 3; layer++) {
                    assert_memory_equal(outputs + (layer * COUNT + i) * row_floats,
                                        reference + (layer * length + position) * row_floats,
                                        row_floats * sizeof(float));
                }
            }
        }
        for (uint64_t i = 0; i < COUNT; i++) {
            size_t row_floats = toy_row_floats(&t);
            if (i % 4 == 3) { /* the strangers among them, against the same row alone */
                float *alone = outputs_of(&t, 1);
                toy_run(&t, &s[i], s[i].length - 1, 1, 1, alone);
                for (uint32_t layer = 0; layer < 2; layer++) {
                    assert_memory_equal(outputs + (layer * COUNT + i) * row_floats, alone + layer * row_floats,
                                        row_floats * sizeof(float));
                }
                free(alone);
                toy_check_row(&t, &s[i], s[i].length - 1);
            }
            toy_sequence_fini(&s[i]);
        }
        toy_sequence_fini(&whole);
        free(reference);
        free(outputs);
        toy_fini(&t);
    }
}

/* Fills every block there is with NaN, and lets go of them. */
static void poison(toy *t) {
    attention *a = t->attention;
    attention_stats stats;
    a->ops->stats(a, &stats);
    uint64_t capacity = stats.blocks_total * 128, cached;
    uint32_t tokens[128] = {0};
    unsigned char *nan = hd_alloc(128 * 128 * sizeof(float), 64);
    memset(nan, 0xff, 128 * 128 * sizeof(float)); /* in f32 and in bf16 */
    attention_sequence_params params = {.sequence = 1, .epoch = 1, .tokens_max = capacity};
    assert_int_equal(a->ops->sequence_open(a, &params, &cached, NULL), HD_OK);
    attention_tensor tensor = {.data = nan, .dtype = t->shape.dtype}, output = tensor;
    output.data = hd_alloc(128 * 128 * sizeof(float), 64);
    for (uint64_t done = 0; done < capacity; done += 128) {
        attention_rows rows = {1, 1, done, 128, tokens, false, 0};
        attention_layer_call call = {0, tensor, tensor, tensor, output, 32, {.out = NULL}, 0};
        assert_int_equal(a->ops->step_begin(a, &rows, 1, NULL), HD_OK);
        assert_int_equal(a->ops->submit(a, &call), HD_OK);
        assert_int_equal(a->ops->wait(a, 0), HD_OK);
        assert_int_equal(a->ops->step_end(a), HD_OK);
    }
    assert_int_equal(a->ops->sequence_close(a, 1, 1, false, false), HD_OK);
    hd_free(nan);
    hd_free(output.data);
}

/* What a page held before must not matter, not even NaN: another user's model may have produced it. */
static void a_blocks_former_life_leaves_no_trace(void **state) {
    const kernel_ops *const *tables;
    size_t table_count = kernel_ops_list(&tables);
    for (size_t k = 0; k < 2 * table_count; k++) {
        if (!tables[k / 2]->is_supported()) continue;
        toy t;
        toy_init(&t, &(toy_shape){1, 1, 2, 16, 16, k % 2 == 0 ? HD_F32 : HD_BF16, {0}, 0, false});
        t.config.kernels = tables[k / 2];
        t.config.step_rows_max = 256;
        toy_open_blocks(&t, 1, 6);
        poison(&t);
        toy_sequence s;
        toy_sequence_init(&s, 2, 1, 300);
        toy_sequence_push_text(&s, 1, 300);
        uint64_t cached;
        assert_int_equal(toy_sequence_open(&t, &s, 0, &cached, NULL), HD_OK);
        toy_run(&t, &s, 0, 300, 50, NULL);
        for (uint64_t p = 0; p < 300; p += 23) toy_check_row(&t, &s, p);
        toy_sequence_fini(&s);
        toy_fini(&t);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_is_right_for_every_kernel_table),
        cmocka_unit_test(attention_is_right_over_head_dims_and_groups),
        cmocka_unit_test(windows_soft_cap_and_sinks_are_applied),
        cmocka_unit_test(bits_do_not_depend_on_chunks_and_threads),
        cmocka_unit_test(bits_do_not_depend_on_the_batch_and_on_sharing),
        cmocka_unit_test(a_blocks_former_life_leaves_no_trace),
    };
    return cmocka_run_group_tests_name("engine_attend", tests, NULL, NULL);
}
