/* answer_completion.c - text_completion, whole and in chunks, with its parallel arrays of log-probabilities. */
#include <inttypes.h>

#include "coordinator/answer.h"

static void write_top(const generation *g, const worker_logprob *logprobs, text_buffer *out) {
    if (logprobs == NULL) {
        text_buffer_text(out, "null");
        return;
    }
    /* The likeliest, and the token itself where it is not one of them. */
    text_buffer_text(out, "{");
    bool is_listed = false;
    for (int32_t k = 1; k <= g->request.logprobs; k++) {
        if (k > 1) text_buffer_text(out, ",");
        answer_token_text(g, logprobs[k].token_id, out);
        text_buffer_text(out, ":");
        text_buffer_json_logprob(out, logprobs[k].logprob);
        is_listed = is_listed || logprobs[k].token_id == logprobs[0].token_id;
    }
    if (!is_listed) {
        if (g->request.logprobs > 0) text_buffer_text(out, ",");
        answer_token_text(g, logprobs[0].token_id, out);
        text_buffer_text(out, ":");
        text_buffer_json_logprob(out, logprobs[0].logprob);
    }
    text_buffer_text(out, "}");
}

static void write_logprobs(const generation *g, const choice *c, size_t entries, text_buffer *out) {
    if (g->request.logprobs < 0) {
        text_buffer_text(out, ",\"logprobs\":null");
        return;
    }
    text_buffer_text(out, ",\"logprobs\":{\"tokens\":[");
    for (size_t i = 0; i < entries; i++) {
        if (i > 0) text_buffer_text(out, ",");
        answer_token_text(g, c->log.entries[i].id, out);
    }
    text_buffer_text(out, "],\"token_logprobs\":[");
    for (size_t i = 0; i < entries; i++) {
        const worker_logprob *logprobs = token_log_logprobs(&c->log, i);
        if (i > 0) text_buffer_text(out, ",");
        if (logprobs != NULL) text_buffer_json_logprob(out, logprobs[0].logprob);
        else text_buffer_text(out, "null");
    }
    text_buffer_text(out, "],\"top_logprobs\":[");
    for (size_t i = 0; i < entries; i++) {
        if (i > 0) text_buffer_text(out, ",");
        write_top(g, token_log_logprobs(&c->log, i), out);
    }
    text_buffer_text(out, "],\"text_offset\":[");
    for (size_t i = 0; i < entries; i++)
        text_buffer_format(out, i > 0 ? ",%" PRIu64 : "%" PRIu64, c->log.entries[i].text_point);
    text_buffer_text(out, "]}");
}

static void write_parts(const generation *g, const choice *c, size_t bytes, size_t entries, text_buffer *out) {
    text_buffer_format(out, "{\"index\":%u,\"text\":", c->index);
    text_buffer_json(out, c->text.bytes, bytes);
    write_logprobs(g, c, entries, out);
    answer_finish_reason(c, out);
    answer_token_ids(g, c, entries, out);
}

static void write_chunk(const generation *g, const choice *c, size_t ready_bytes, size_t ready_entries,
                        text_buffer *out) {
    write_parts(g, c, ready_bytes, ready_entries, out);
    text_buffer_text(out, "}");
}

static void write_choice(const generation *g, const choice *c, text_buffer *out) {
    write_parts(g, c, c->text.count, c->log.count, out);
    answer_prompt_logprobs(g, c->index / g->request.choices, out);
    text_buffer_text(out, "}");
}

const answer_format answer_completion = {
    .id_prefix = "cmpl",
    .object = "text_completion",
    .chunk_object = "text_completion",
    .write_chunk = write_chunk,
    .write_choice = write_choice,
};
