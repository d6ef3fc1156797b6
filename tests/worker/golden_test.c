/* golden_test.c - the forward pass against Hugging Face transformers, and against itself in other chunks, batches
 * and thread counts. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/worker/golden_model.h"
#include "tests/worker/rig.h"

static const rig_options f32_options = {
    .dtype = HD_F32, .threads = 2, .hot_bytes = 64 << 20, .rows_max = 1280, .sequences_max = 2};
static const rig_options bf16_options = {
    .dtype = HD_BF16, .threads = 2, .hot_bytes = 64 << 20, .rows_max = 1280, .sequences_max = 2};

/* The largest distance from transformers' logits. NaN counts as infinitely far. */
static double worst_error(const golden_model *m, const float *logits) {
    double worst = 0;
    for (uint32_t i = 0; i < m->logit_count; i++) {
        const float *ours = logits + (size_t)m->logit_positions[i] * m->vocabulary,
                    *theirs = m->logits + (size_t)i * m->vocabulary;
        for (uint32_t k = 0; k < m->vocabulary; k++) {
            double error = fabs((double)ours[k] - theirs[k]);
            if (!(error <= worst)) worst = isnan(error) ? INFINITY : error;
        }
    }
    return worst;
}

static double worst_error_of_directory(const golden_model *m, const char *directory) {
    rig r;
    rig_open(&r, directory, &f32_options);
    float *logits = rig_logits(&r, m->token_ids, m->token_count, m->token_count, m->rope_length);
    double worst = worst_error(m, logits);
    free(logits);
    rig_close(&r);
    return worst;
}

static void f32_logits_are_those_of_transformers_in_both_forms_of_config(void **state) {
    const char *const *names;
    size_t count = golden_model_names(&names);
    bool is_off = false;
    for (size_t i = 0; i < count; i++) {
        golden_model m;
        golden_model_open(&m, names[i]);
        assert_true(m.logits_rms >= 1);
        const json_t *configs = json_object_get(m.index, "configs");
        for (size_t k = 0; k < json_array_size(configs); k++) {
            const char *config_name = json_string_value(json_array_get(configs, k));
            char *directory = golden_directory_copy(&m, config_name);
            double worst = worst_error_of_directory(&m, directory);
            golden_directory_remove(directory);
            print_message("%-18s %-18s off by %.1e of the RMS\n", m.name, config_name, worst / m.logits_rms);
            is_off = is_off || worst > m.tolerance;
        }
        golden_model_close(&m);
    }
}

static void every_alteration_of_a_model_is_noticed(void **state) {
    const char *const *names;
    size_t count = golden_model_names(&names), alterations = 0;
    for (size_t i = 0; i < count; i++) {
        golden_model m;
        golden_model_open(&m, names[i]);
        const json_t *altered = json_object_get(m.index, "altered");
        for (size_t k = 0; k < json_array_size(altered); k++, alterations++) {
            const json_t *alteration = json_array_get(altered, k);
            char *directory = golden_directory_alter(&m, alteration);
            double worst = worst_error_of_directory(&m, directory);
            golden_directory_remove(directory);
            const char *name = json_string_value(json_object_get(alteration, "name"));
            if (worst <= m.tolerance) fail_msg("%s with '%s' still passes", m.name, name);
            /* It is the alteration that was meant: seen at the stored positions alone, it moves them no further than it
             * moves the worst of all positions in transformers, and not a hundred times less. */
            double expected = json_number_value(json_object_get(alteration, "moves_logits_by"));
            double moved = worst / m.logits_rms;
            if (moved > 1.02 * expected + 0.01 || moved < 0.01 * expected) {
                fail_msg("%s with '%s' moves %g, not %g", m.name, name, moved, expected);
            }
        }
        golden_model_close(&m);
    }
    assert_true(alterations >= 40);
}

static uint32_t argmax(const float *logits, uint32_t count) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++) {
        if (logits[i] > logits[best]) best = i;
    }
    return best;
}

static void bf16_picks_the_same_token_wherever_transformers_own_bf16_leaves_no_doubt(void **state) {
    const char *const *names;
    size_t count = golden_model_names(&names), counted = 0, agreed = 0;
    for (size_t i = 0; i < count; i++) {
        golden_model m;
        rig r;
        golden_model_open(&m, names[i]);
        rig_open(&r, m.directory, &bf16_options);
        float *logits = rig_logits(&r, m.token_ids, m.token_count, m.token_count, m.rope_length);
        size_t here = 0, agreed_here = 0;
        for (uint32_t k = 0; k < m.token_count; k++) {
            if (!(m.positions[k].margin > m.positions[k].difference)) continue;
            here++;
            agreed_here += argmax(logits + (size_t)k * m.vocabulary, m.vocabulary) == m.positions[k].f32_argmax;
        }
        print_message("%-18s %zu of %zu positions agree\n", m.name, agreed_here, here);
        counted += here;
        agreed += agreed_here;
        free(logits);
        rig_close(&r);
        golden_model_close(&m);
    }
    print_message("all: %zu of %zu positions agree\n", agreed, counted);
    assert_true(counted >= 10000);
    assert_true((double)agreed >= 0.999 * (double)counted);
}

/* Positions used where bits are compared: past every window, every original_max_position_embeddings and, for some
 * models, a group of blocks. */
static uint32_t compared_length(const golden_model *m) {
    bool is_long = strcmp(m->name, "llama") == 0 || strcmp(m->name, "mistral") == 0;
    return is_long ? m->token_count : 300;
}

static void assert_same_bits(const golden_model *m, const float *got, const float *expected, uint32_t rows,
                             const char *what, uint32_t value) {
    for (uint32_t row = 0; row < rows; row++) {
        if (memcmp(got + (size_t)row * m->vocabulary, expected + (size_t)row * m->vocabulary,
                   m->vocabulary * sizeof(float)) != 0) {
            fail_msg("%s: other bits at position %u with %s %u", m->name, row, what, value);
        }
    }
}

static void compare_chunks_and_threads(const char *name, const rig_options *options) {
    static const uint32_t chunks[] = {1, 7, 64, 1000};
    golden_model m;
    golden_model_open(&m, name);
    uint32_t length = compared_length(&m);
    rig r;
    rig_open(&r, m.directory, options);
    float *expected = rig_logits(&r, m.token_ids, length, length, m.rope_length);
    for (size_t i = 0; i < sizeof(chunks) / sizeof(chunks[0]); i++) {
        float *got = rig_logits(&r, m.token_ids, length, chunks[i], m.rope_length);
        assert_same_bits(&m, got, expected, length, "chunks of", chunks[i]);
        free(got);
    }
    rig_close(&r);
    for (unsigned threads = 1; threads <= 4; threads++) {
        rig_options other = *options;
        other.threads = threads;
        rig_open(&r, m.directory, &other);
        float *got = rig_logits(&r, m.token_ids, length, 64, m.rope_length);
        assert_same_bits(&m, got, expected, length, "threads", threads);
        free(got);
        rig_close(&r);
    }
    free(expected);
    golden_model_close(&m);
}

static void bits_do_not_depend_on_chunks_or_threads(void **state) {
    const char *const *names;
    size_t count = golden_model_names(&names);
    for (size_t i = 0; i < count; i++) {
        compare_chunks_and_threads(names[i], &f32_options);
        compare_chunks_and_threads(names[i], &bf16_options);
    }
}

/* Many sequences at once, each a part of the golden tokens from another start, advancing by chunks of their own
 * sizes. */
static void compare_batch(const rig *r, const golden_model *m, float *const *alone, uint32_t batch) {
    enum { LENGTH = 48 };
    attention *a = r->attention;
    hd_error error = {.text = ""};
    forward *f = rig_forward(r, 64 * 13, 64);
    rope_table *rope = malloc(rope_table_bytes(&r->model->rope));
    assert_non_null(rope);
    rope_table_init(rope, &r->model->rope, m->rope_length);
    uint32_t done[64] = {0};
    for (uint32_t i = 0; i < batch; i++) {
        uint64_t cached;
        attention_sequence_params params = {
            .sequence = i + 1, .epoch = 1, .token_ids = m->token_ids + i, .token_count = LENGTH, .tokens_max = LENGTH};
        if (a->ops->sequence_open(a, &params, &cached, &error) != HD_OK) fail_msg("%s", error.text);
    }
    for (bool is_done = false; !is_done;) {
        forward_span spans[64];
        uint32_t members[64], span_count = 0;
        for (uint32_t i = 0; i < batch; i++) {
            uint32_t chunk = i % 3 == 0 ? 1 : i % 13 + 1, rows = LENGTH - done[i] < chunk ? LENGTH - done[i] : chunk;
            if (rows == 0) continue;
            members[span_count] = i;
            spans[span_count++] = (forward_span){.rows = {.sequence = i + 1,
                                                          .epoch = 1,
                                                          .first_position = done[i],
                                                          .count = rows,
                                                          .token_ids = m->token_ids + i + done[i]},
                                                 .need = i % 2 == 0 ? FORWARD_ALL_LOGITS : FORWARD_LAST_LOGITS,
                                                 .rope = rope};
        }
        is_done = span_count == 0;
        if (is_done) break;
        bool has_begun;
        if (forward_step(f, spans, span_count, &has_begun, &error) != HD_OK) fail_msg("%s", error.text);
        const float *logits = forward_logits(f, 0, forward_logits_rows(f));
        for (uint32_t s = 0; s < span_count; s++) {
            uint32_t i = members[s], rows = spans[s].rows.count,
                     first = spans[s].need == FORWARD_ALL_LOGITS ? 0 : rows - 1;
            for (uint32_t row = first; row < rows; row++, logits += forward_logits_stride(f)) {
                assert_same_bits(m, logits, alone[i] + (size_t)(done[i] + row) * m->vocabulary, 1, "a batch of", batch);
            }
            done[i] += rows;
        }
    }
    for (uint32_t i = 0; i < batch; i++) assert_int_equal(a->ops->sequence_close(a, i + 1, 1, false, false), HD_OK);
    free(rope);
    forward_close(f);
}

static void bits_do_not_depend_on_the_batch(void **state) {
    static const char *const names[] = {"llama", "mistral", "qwen3-moe", "mixtral"};
    static const uint32_t batches[] = {1, 2, 3, 5, 8, 17, 33, 64};
    for (size_t n = 0; n < 2 * sizeof(names) / sizeof(names[0]); n++) {
        rig_options options = n % 2 == 0 ? f32_options : bf16_options;
        options.sequences_max = 66;
        golden_model m;
        rig r;
        golden_model_open(&m, names[n / 2]);
        rig_open(&r, m.directory, &options);
        float *alone[64];
        for (uint32_t i = 0; i < 64; i++) alone[i] = rig_logits(&r, m.token_ids + i, 48, 48, m.rope_length);
        for (size_t i = 0; i < sizeof(batches) / sizeof(batches[0]); i++) compare_batch(&r, &m, alone, batches[i]);
        for (uint32_t i = 0; i < 64; i++) free(alone[i]);
        rig_close(&r);
        golden_model_close(&m);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f32_logits_are_those_of_transformers_in_both_forms_of_config),
        cmocka_unit_test(every_alteration_of_a_model_is_noticed),
        cmocka_unit_test(bf16_picks_the_same_token_wherever_transformers_own_bf16_leaves_no_doubt),
        cmocka_unit_test(bits_do_not_depend_on_chunks_or_threads),
        cmocka_unit_test(bits_do_not_depend_on_the_batch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
