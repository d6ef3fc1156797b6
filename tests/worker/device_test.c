/* The forward pass, the engine and the sampler on a device: the emulated one, and a CUDA device where there is one.
 * Models whose heads no kernel takes are left out; golden_test.c has all of them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "attention-node/engine_bench.h"
#include "attention-node/engine_device.h"
#include "kernels/cuda/operations.h"
#include "tests/worker/bench.h"
#include "worker/device_draw.h"

static const char *const models[] = {"llama-head-dim", "qwen3"};
#define MODELS (sizeof(models) / sizeof(models[0]))
#define TOKENS 160u /* past a block */

static kernel_device *device;
static kernel_queue *queue;
static bool is_quick; /* as in tests/kernels/cuda/device_cases.h */

static rig_options options_of(uint32_t sequences_max) {
    return (rig_options){.dtype = HD_BF16,
                         .threads = 2,
                         .hot_bytes = 64 << 20,
                         .rows_max = 320,
                         .sequences_max = sequences_max,
                         .queue = queue};
}

static uint32_t argmax(const float *logits, uint32_t count) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++) {
        if (logits[i] > logits[best]) best = i;
    }
    return best;
}

static void the_same_token_wherever_transformers_own_bf16_leaves_no_doubt(void **state) {
    size_t counted = 0, agreed = 0;
    for (size_t i = 0; i < MODELS; i++) {
        golden_model m;
        rig r;
        golden_model_open(&m, models[i]);
        rig_options options = options_of(2);
        rig_open(&r, m.directory, &options);
        uint32_t count = is_quick ? TOKENS : m.token_count;
        float *logits = rig_logits(&r, m.token_ids, count, 320, m.rope_length);
        for (uint32_t k = 0; k < count; k++) {
            if (!(m.positions[k].margin > m.positions[k].difference)) continue;
            counted++;
            agreed += argmax(logits + (size_t)k * m.vocabulary, m.vocabulary) == m.positions[k].f32_argmax;
        }
        free(logits);
        rig_close(&r);
        golden_model_close(&m);
    }
    print_message("%zu of %zu positions agree\n", agreed, counted);
    assert_true(counted >= TOKENS);
    assert_true((double)agreed >= 0.998 * (double)counted);
}

/* One row at a time is a recorded step; many rows take another kernel of attention. */
static void bits_do_not_depend_on_chunks(void **state) {
    static const uint32_t chunks[] = {1, 23, 128};
    for (size_t i = 0; i < MODELS; i++) {
        golden_model m;
        rig r;
        golden_model_open(&m, models[i]);
        rig_options options = options_of(2);
        rig_open(&r, m.directory, &options);
        uint32_t count = is_quick ? 135 : TOKENS;
        float *expected = rig_logits(&r, m.token_ids, count, 320, m.rope_length);
        for (size_t c = 0; c < sizeof(chunks) / sizeof(chunks[0]); c++) {
            float *logits = rig_logits(&r, m.token_ids, count, chunks[c], m.rope_length);
            assert_memory_equal(logits, expected, (size_t)count * m.vocabulary * sizeof(float));
            free(logits);
        }
        free(expected);
        rig_close(&r);
        golden_model_close(&m);
    }
}

/* What a rig of these options opens its engine with. */
static engine_config engine_of(const rig *r, const rig_options *options) {
    return (engine_config){.layers = r->layers,
                           .kv_dtype = HD_BF16,
                           .hot_bytes = options->hot_bytes,
                           .step_rows_max = options->rows_max,
                           .sequences_max = options->sequences_max,
                           .kernels = r->kernels,
                           .pool = r->pool,
                           .queue = queue};
}

/* Device memory for one extent of blocks, pinned memory for one more. What is filled first leaves only the one or only
 * the other to the sequence, whichever is handed out first. */
static void bits_do_not_depend_on_which_memory_blocks_lie_in(void **state) {
    golden_model m;
    rig r;
    uint64_t cached;
    attention_stats stats;
    rig_options options = options_of(3);
    golden_model_open(&m, "qwen3");
    rig_open(&r, m.directory, &options);
    r.attention->ops->stats(r.attention, &stats);
    engine_config engine = engine_of(&r, &options);
    options.warm_bytes = 16 * stats.block_bytes;
    options.hot_bytes = engine_device_bytes(&engine, 32) + options.warm_bytes;
    rig_close(&r);
    rig_open(&r, m.directory, &options);
    attention *a = r.attention;
    a->ops->stats(a, &stats);
    assert_int_equal(stats.blocks_total, 32);
    float *first = rig_logits(&r, m.token_ids, TOKENS, 320, m.rope_length);
    attention_sequence_params params = {.sequence = 9, .epoch = 1, .tokens_max = 30 * HD_BLOCK_TOKENS};
    assert_int_equal(a->ops->sequence_open(a, &params, &cached, NULL), HD_OK);
    assert_int_equal(engine_fill_synthetic(a, 9, params.tokens_max, m.vocabulary, 1, NULL), HD_OK);
    float *last = rig_logits(&r, m.token_ids, TOKENS, 320, m.rope_length);
    assert_memory_equal(first, last, (size_t)TOKENS * m.vocabulary * sizeof(float));
    assert_int_equal(a->ops->sequence_close(a, 9, 1, false, false), HD_OK);
    free(first);
    free(last);
    rig_close(&r);
    golden_model_close(&m);
}

/* A device that has no more memory at the n-th request. */
static const kernel_device_ops *real_ops;
static uint32_t takes_left;

static hd_status take_unless_over(kernel_device *self, size_t bytes, kernel_place place, void **out) {
    if (takes_left == 0) return HD_NO_MEMORY;
    takes_left--;
    return real_ops->take(self, bytes, place, out);
}

static void what_fails_half_way_at_open_is_undone(void **state) {
    golden_model m;
    rig r;
    rig_options options = options_of(2);
    options.queue = NULL;
    golden_model_open(&m, "qwen3");
    rig_open(&r, m.directory, &options);
    engine_config engine = engine_of(&r, &options);
    real_ops = device->ops;
    kernel_device_ops failing = *real_ops;
    failing.take = take_unless_over;
    device->ops = &failing;
    uint32_t takes = 0;
    for (hd_status status = HD_NO_MEMORY; status != HD_OK; takes++) {
        attention *a = NULL;
        forward *f = NULL;
        hd_error error;
        takes_left = takes;
        status = engine_open(&engine, &a, &error);
        forward_config config = {.model = r.model,
                                 .weights = r.weights,
                                 .pool = r.pool,
                                 .queue = queue,
                                 .attention = a,
                                 .rows_max = 8,
                                 .spans_max = 2,
                                 .logits_rows_max = 2};
        if (status == HD_OK) status = forward_open(&config, &f);
        assert_true(status == HD_OK || status == HD_NO_MEMORY);
        assert_int_equal(f != NULL, status == HD_OK);
        forward_close(f);
        if (a != NULL) a->ops->close(a);
    }
    assert_true(takes > 5);
    device->ops = real_ops;
    rig_close(&r);
    golden_model_close(&m);
}

static void open_worker(bench *b, uint32_t running_max) {
    bench_open_on(b, queue, "qwen3", LARGE_BYTES, 64, 32, running_max, NULL);
}

#define ANSWER 4u

static client_request *make_request(bench *b, uint32_t id) {
    uint32_t prompt_count = 10 + 65 * id;
    return id % 2 == 0 ? bench_request(b, id, id, prompt_count, ANSWER) : bench_seeded(b, id, id, prompt_count, ANSWER);
}

/* Steps of other sizes are other recordings, and share their memory with steps that are not recorded. */
static void a_request_has_the_same_tokens_alone_and_among_others(void **state) {
    enum { COUNT = 3 };
    bench b;
    open_worker(&b, 8);
    client_request *alone[COUNT], *together[COUNT];
    for (uint32_t i = 0; i < COUNT; i++) {
        alone[i] = make_request(&b, i);
        bench_run(alone[i]);
        assert_ends_with(alone[i], WORKER_FINISH_LENGTH, ANSWER);
    }
    for (uint32_t i = 0; i < COUNT; i++) {
        together[i] = make_request(&b, i);
        together[i]->request.no_cache = i + 1 < COUNT; /* the longest finds its first block */
        client_submit(together[i]);
    }
    for (uint32_t i = 0; i < COUNT; i++) {
        client_wait(together[i]);
        assert_same_tokens(&together[i]->choices[0], &alone[i]->choices[0]);
    }
    assert_int_equal(together[COUNT - 1]->cached_tokens, 128);
    for (uint32_t i = 0; i < COUNT; i++) {
        client_request_free(alone[i]);
        client_request_free(together[i]);
    }
    bench_close(&b);
}

/* Forks copy the last block, on the device. */
static void choices_are_single_requests_with_seeds_in_a_row(void **state) {
    bench b;
    open_worker(&b, 4);
    client_request *both = bench_seeded(&b, 100, 3, 140, 4);
    both->request.choices = 2;
    bench_run(both);
    for (uint32_t i = 0; i < 2; i++) {
        client_request *one = bench_seeded(&b, 100 + i, 3, 140, 4);
        one->request.no_cache = true;
        bench_run(one);
        assert_same_tokens(&both->choices[i], &one->choices[0]);
        client_request_free(one);
    }
    client_request_free(both);
    bench_close(&b);
}

static void logprobs_come_with_the_tokens_that_come_without_them(void **state) {
    bench b;
    open_worker(&b, 4);
    client_request *plain = bench_request(&b, 1, 0, 40, 6), *told = bench_request(&b, 2, 0, 40, 6);
    told->request.sampling.logprobs = 2;
    told->request.sampling.prompt_logprobs = 0;
    client_submit(plain);
    client_submit(told);
    client_wait(plain);
    client_wait(told);
    assert_same_tokens(&plain->choices[0], &told->choices[0]);
    assert_int_equal(told->prompt_logprob_entries, 39);
    for (uint32_t i = 0; i < 6; i++) {
        assert_int_equal(told->logprobs[i * 3].token_id, told->choices[0].token_ids[i]);
        assert_true(told->logprobs[i * 3].logprob <= 0.0f);
    }
    client_request_free(plain);
    client_request_free(told);
    bench_close(&b);
}

static void what_a_device_does_not_do_is_refused_by_name(void **state) {
    bench b;
    open_worker(&b, 4);
    client_request *r = bench_request(&b, 1, 0, 20, 2);
    r->request.selection = "window,recent=512";
    bench_run(r);
    assert_true(r->has_failed);
    assert_int_equal(r->status, HD_UNSUPPORTED);
    assert_non_null(strstr(r->message, "device"));
    client_request_free(r);
    bench_close(&b);
}

/* ---- Draws ---- */

#define VOCABULARY 700u

static void *put(const void *host, size_t bytes) {
    void *memory, *pinned;
    assert_int_equal(device->ops->take(device, bytes, KERNEL_DEVICE_MEMORY, &memory), HD_OK);
    assert_int_equal(device->ops->take(device, bytes, KERNEL_PINNED_MEMORY, &pinned), HD_OK);
    memcpy(pinned, host, bytes);
    assert_int_equal(device->ops->copy(queue, memory, pinned, bytes), HD_OK);
    assert_int_equal(device->ops->wait(queue), HD_OK);
    device->ops->give(device, pinned, KERNEL_PINNED_MEMORY);
    return memory;
}

static uint32_t draw_on_device(const float *logits, const sample_row *row, const sample_change *changes) {
    sample_arguments call = {.logits = put(logits, VOCABULARY * sizeof(float)),
                             .stride = VOCABULARY,
                             .row_count = 1,
                             .count = VOCABULARY,
                             .rows = put(row, sizeof(*row)),
                             .changes = put(changes, VOCABULARY * sizeof(*changes)),
                             .token_ids = put(logits, sizeof(uint32_t))};
    uint32_t *token_id, result;
    assert_int_equal(device->ops->take(device, sizeof(*token_id), KERNEL_PINNED_MEMORY, (void **)&token_id), HD_OK);
    assert_int_equal(device_sample(queue, &call), HD_OK);
    assert_int_equal(device->ops->copy(queue, token_id, call.token_ids, sizeof(*token_id)), HD_OK);
    assert_int_equal(device->ops->wait(queue), HD_OK);
    result = *token_id;
    device->ops->give(device, token_id, KERNEL_PINNED_MEMORY);
    void *const memory[] = {call.logits, (void *)call.rows, (void *)call.changes, call.token_ids};
    for (size_t i = 0; i < 4; i++) device->ops->give(device, memory[i], KERNEL_DEVICE_MEMORY);
    return result;
}

/* The same token is biased twice, counted and forbidden. */
static void a_row_draws_what_the_sampler_draws(void **state) {
    static const worker_logit_bias bias[] = {{5, 2.0f}, {7, -3.0f}, {5, 1.5f}, {11, 4.0f}};
    static const uint32_t ends[] = {11, 13, VOCABULARY + 9}, stops[] = {13, 17};
    sample_change changes[VOCABULARY];
    device_draw drawing;
    sampler *s;
    token_counts counts;
    uint32_t mismatches = 0, changed = 0;
    assert_int_equal(device_draw_init(&drawing, VOCABULARY, changes, VOCABULARY), HD_OK);
    assert_int_equal(sampler_open(VOCABULARY, 1, kernel_ops_portable(), &s), HD_OK);
    assert_int_equal(token_counts_init(&counts, VOCABULARY), HD_OK);
    for (uint32_t i = 0; i < 60; i++) token_counts_add_prompt(&counts, &i, 1);
    for (uint32_t i = 5; i < 90; i += 2) token_counts_add_answer(&counts, i);
    for (uint64_t seed = 0; seed < 12; seed++) {
        float logits[VOCABULARY], row_logits[VOCABULARY];
        for (uint32_t i = 0; i < VOCABULARY; i++) {
            logits[i] = 6.0f * (float)sampler_uniform(seed, 1, i);
            if (i < 20) logits[i] += 1.5f; /* what is changed is likely */
        }
        worker_sampling sampling = {.temperature = seed % 4 == 0 ? 0.0f : 0.8f,
                                    .top_p = seed % 3 == 0 ? 0.9f : 1.0f,
                                    .top_k = seed % 5 == 0 ? 40 : 0,
                                    .repetition_penalty = 1.2f,
                                    .presence_penalty = 0.3f,
                                    .frequency_penalty = 0.1f,
                                    .seed = seed,
                                    .logit_bias = bias,
                                    .logit_bias_count = 4,
                                    .stop_ids = stops,
                                    .stop_id_count = 2,
                                    .logprobs = -1};
        sampler_row row = {.sampling = &sampling,
                           .logits = row_logits,
                           .counts = seed % 2 == 0 ? &counts : NULL,
                           .position = 9,
                           .may_end = seed % 6 == 0,
                           .end_ids = ends,
                           .end_id_count = 3};
        sample_row on_device;
        memcpy(row_logits, logits, sizeof(logits));
        sampler_draw(s, 0, &row);
        device_draw_begin(&drawing);
        assert_true(device_draw_add(&drawing, &row, &on_device));
        mismatches += draw_on_device(logits, &on_device, changes) != row.token_id;
        changed += on_device.change_count;
    }
    assert_true(changed > 0);
    assert_int_equal(mismatches, 0);
    token_counts_fini(&counts);
    sampler_close(s);
    device_draw_fini(&drawing);
}

static void rows_share_the_room_for_changes_until_it_is_full(void **state) {
    sample_change changes[8];
    uint32_t ids[5] = {0, 1, 2, 3, 4};
    worker_sampling sampling = {.repetition_penalty = 1, .top_p = 1, .logprobs = -1};
    sampler_row row = {.sampling = &sampling, .end_ids = ids, .end_id_count = 5};
    sample_row out;
    device_draw drawing;
    assert_int_equal(device_draw_init(&drawing, 8, changes, 8), HD_OK);
    device_draw_begin(&drawing);
    assert_true(device_draw_add(&drawing, &row, &out));
    assert_int_equal(out.first_change, 0);
    assert_int_equal(out.change_count, 5);
    assert_false(device_draw_add(&drawing, &row, &out));
    row.end_id_count = 3;
    assert_true(device_draw_add(&drawing, &row, &out));
    assert_int_equal(out.first_change, 5);
    assert_int_equal(out.change_count, 3);
    device_draw_skip(&drawing, &out);
    assert_int_equal(out.change_count, 0);
    device_draw_fini(&drawing);
}

static int run_on(const char *name) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_token_wherever_transformers_own_bf16_leaves_no_doubt),
        cmocka_unit_test(bits_do_not_depend_on_chunks),
        cmocka_unit_test(bits_do_not_depend_on_which_memory_blocks_lie_in),
        cmocka_unit_test(what_fails_half_way_at_open_is_undone),
        cmocka_unit_test(a_request_has_the_same_tokens_alone_and_among_others),
        cmocka_unit_test(choices_are_single_requests_with_seeds_in_a_row),
        cmocka_unit_test(logprobs_come_with_the_tokens_that_come_without_them),
        cmocka_unit_test(what_a_device_does_not_do_is_refused_by_name),
        cmocka_unit_test(a_row_draws_what_the_sampler_draws),
        cmocka_unit_test(rows_share_the_room_for_changes_until_it_is_full),
    };
    if (device->ops->queue_open(device, &queue) != HD_OK) return 1;
    int failures = _cmocka_run_group_tests(name, tests, sizeof(tests) / sizeof(tests[0]), NULL, NULL);
    device->ops->queue_close(queue);
    device->ops->close(device);
    return failures;
}

/* HADAL_DEVICE_TESTS as in tests/kernels/cuda/device_cases.h. */
int main(void) {
    const char *wanted = getenv("HADAL_DEVICE_TESTS");
    int failures = 0;
    hd_error error;
    if (wanted == NULL) {
        is_quick = true;
        if (kernel_device_emulated_open(&device) != HD_OK) return 1;
        failures = run_on("emulated");
    }
    if (kernel_device_cuda_open(0, &device, &error) != HD_OK) {
        print_message("cuda: left out: %s\n", error.text);
        return wanted == NULL ? failures : 1;
    }
    is_quick = wanted != NULL && strcmp(wanted, "cuda-quick") == 0;
    return failures + run_on(device->facts.name);
}
