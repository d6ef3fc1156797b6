#include "tests/worker/rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void open_weights(rig *r, const char *directory) {
    hd_error error = {.text = ""};
    collective *c = r->options.collective;
    model_share share = {c != NULL ? c->rank : 0, c != NULL ? c->count : 1};
    if (model_weights_open(directory, r->model, r->options.dtype, share, r->pool, &r->weights, &error) != HD_OK)
        fail_msg("%s", error.text);
    if (c == NULL) return;
    ranks_config config = {.collective = c,
                           .model = r->model,
                           .weights = r->weights,
                           .kernels = r->kernels,
                           .pool = r->pool,
                           .rows_max = r->options.rows_max};
    if (ranks_open(&config, &r->ranks, &error) != HD_OK) fail_msg("%s", error.text);
}

void rig_open(rig *r, const char *directory, const rig_options *options) {
    hd_error error = {.text = ""};
    *r = (rig){.options = *options};
    if (model_config_open(directory, &r->model, &error) != HD_OK) fail_msg("%s", error.text);
    assert_int_equal(hd_pool_open(options->threads, &r->pool), HD_OK);
    if (kernel_ops_choose(NULL, &r->kernels, &error) != HD_OK) fail_msg("%s", error.text);
    open_weights(r, directory);
    assert_int_equal(worker_layer_table(r->model, options->dtype, &r->layers), HD_OK);
    engine_config engine = {
        .layers = r->layers,
        .kv_dtype = options->dtype,
        /* Tables of blocks and sequences come on top of the pages. */
        .hot_bytes = options->hot_bytes,
        .warm_bytes = options->warm_bytes,
        .step_rows_max = options->rows_max,
        .sequences_max = options->sequences_max,
        .kernels = r->kernels,
        .pool = r->pool,
        .queue = options->queue,
    };
    memcpy(engine.fingerprint, r->weights->fingerprint, sizeof(engine.fingerprint));
    if (engine_open(&engine, &r->attention, &error) != HD_OK) fail_msg("%s", error.text);
}

void rig_close(rig *r) {
    if (r->attention != NULL) r->attention->ops->close(r->attention);
    ranks_close(r->ranks);
    free((void *)r->layers.streams);
    free((void *)r->layers.layers);
    model_weights_close(r->weights);
    model_config_close(r->model);
    hd_pool_close(r->pool);
}

forward *rig_forward(const rig *r, uint32_t rows_max, uint32_t spans_max) {
    forward *f = NULL;
    forward_config config = {.model = r->model,
                             .weights = r->weights,
                             .kernels = r->kernels,
                             .pool = r->pool,
                             .queue = r->options.queue,
                             .attention = r->attention,
                             .ranks = r->ranks,
                             .rows_max = rows_max,
                             .spans_max = spans_max,
                             .logits_rows_max = rows_max};
    assert_int_equal(forward_open(&config, &f), HD_OK);
    return f;
}

float *rig_logits(const rig *r, const uint32_t *token_ids, uint32_t count, uint32_t chunk, uint64_t rope_tokens) {
    hd_error error = {.text = ""};
    attention *a = r->attention;
    forward *f = rig_forward(r, chunk, 1);
    rope_table *rope = malloc(rope_table_bytes(&r->model->rope));
    assert_non_null(rope);
    rope_table_init(rope, &r->model->rope, rope_tokens);
    uint64_t cached = 0;
    attention_sequence_params params = {
        .sequence = 1, .epoch = 1, .token_ids = token_ids, .token_count = count, .tokens_max = count};
    if (a->ops->sequence_open(a, &params, &cached, &error) != HD_OK) fail_msg("%s", error.text);

    uint32_t vocabulary = r->model->vocabulary_size;
    float *logits = malloc((size_t)count * vocabulary * sizeof(float));
    assert_non_null(logits);
    for (uint32_t done = 0; done < count;) {
        uint32_t rows = count - done < chunk ? count - done : chunk;
        forward_span span = {
            .rows = {.sequence = 1, .epoch = 1, .first_position = done, .count = rows, .token_ids = token_ids + done},
            .need = FORWARD_ALL_LOGITS,
            .rope = rope};
        bool has_begun;
        if (forward_step(f, &span, 1, &has_begun, &error) != HD_OK) fail_msg("%s", error.text);
        const float *part = forward_logits(f, 0, rows);
        for (uint32_t i = 0; i < rows; i++) {
            memcpy(logits + (size_t)(done + i) * vocabulary, part + i * forward_logits_stride(f),
                   vocabulary * sizeof(float));
        }
        done += rows;
    }
    assert_int_equal(a->ops->sequence_close(a, 1, 1, false, false), HD_OK);
    free(rope);
    forward_close(f);
    return logits;
}

void *rig_read_file(const char *directory, const char *name, size_t *bytes) {
    char path[4096];
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    FILE *file = fopen(path, "rb");
    if (file == NULL) fail_msg("cannot open %s", path);
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    char *data = malloc((size_t)size + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, (size_t)size, file), size);
    fclose(file);
    data[size] = '\0';
    if (bytes != NULL) *bytes = (size_t)size;
    return data;
}
