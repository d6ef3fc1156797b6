/* decoder.c - steps of one span. */
#include "bench/decoder.h"

#include <stdlib.h>

#include "worker/forward.h"

#define EPOCH 1u

struct decoder {
    decoder_config config;
    forward *forward;
    rope_table *rope;
    uint64_t name, length;
    bool is_open;
};

hd_status decoder_open(const decoder_config *config, decoder **out) {
    decoder *d = calloc(1, sizeof(*d));
    if (d == NULL) return HD_NO_MEMORY;
    d->config = *config;
    forward_config shape = {.model = config->model,
                            .weights = config->weights,
                            .kernels = config->kernels,
                            .pool = config->pool,
                            .attention = config->attention,
                            .rows_max = config->batch_tokens_max,
                            .spans_max = 1,
                            .logits_rows_max = 1};
    d->rope = malloc(rope_table_bytes(&config->model->rope));
    hd_status status = d->rope != NULL ? forward_open(&shape, &d->forward) : HD_NO_MEMORY;
    if (status == HD_OK) *out = d;
    else decoder_close(d);
    return status;
}

static void end_sequence(decoder *d) {
    attention *a = d->config.attention;
    if (d->is_open) a->ops->sequence_close(a, d->name, EPOCH, true, false);
    d->is_open = false;
}

void decoder_close(decoder *d) {
    if (d == NULL) return;
    end_sequence(d);
    forward_close(d->forward);
    free(d->rope);
    free(d);
}

static hd_status run(decoder *d, const uint32_t *tokens, uint32_t count, bool needs_logits, hd_error *error) {
    forward_span span = {.rows = {d->name, EPOCH, d->length, count, tokens},
                         .need = needs_logits ? FORWARD_LAST_LOGITS : FORWARD_NO_LOGITS,
                         .rope = d->rope};
    bool has_begun;
    hd_status status = forward_step(d->forward, &span, 1, &has_begun, error);
    if (status == HD_OK) d->length += count;
    return status;
}

hd_status decoder_start(decoder *d, const uint32_t *prompt, uint64_t prompt_count, uint64_t tokens_max,
                        const char *selection, const float **logits, hd_error *error) {
    attention *a = d->config.attention;
    end_sequence(d);
    d->name++;
    rope_table_init(d->rope, &d->config.model->rope, tokens_max);
    attention_sequence_params params = {.sequence = d->name,
                                        .epoch = EPOCH,
                                        .token_ids = prompt,
                                        .token_count = prompt_count,
                                        .tokens_max = tokens_max,
                                        .prompt_count = prompt_count,
                                        .reuse_max = prompt_count - 1,
                                        .variant = rope_table_variant(&d->config.model->rope, tokens_max),
                                        .selection = selection};
    hd_status status = a->ops->sequence_open(a, &params, &d->length, error);
    d->is_open = status == HD_OK;
    while (status == HD_OK && d->length < prompt_count) {
        uint64_t left = prompt_count - d->length, most = d->config.batch_tokens_max;
        status = run(d, prompt + d->length, (uint32_t)(left < most ? left : most), left <= most, error);
    }
    if (status == HD_OK) *logits = forward_logits(d->forward, 0, 1);
    return status;
}

hd_status decoder_step(decoder *d, uint32_t token, const float **logits, hd_error *error) {
    hd_status status = run(d, &token, 1, true, error);
    if (status == HD_OK) *logits = forward_logits(d->forward, 0, 1);
    return status;
}
