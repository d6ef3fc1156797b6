/* answer_chat.c - chat.completion and chat.completion.chunk. */
#include "coordinator/answer.h"

static void write_top(const generation *g, const worker_logprob *logprobs, text_buffer *out) {
    text_buffer_text(out, ",\"top_logprobs\":[");
    for (int32_t k = 1; k <= g->request.logprobs; k++) {
        text_buffer_text(out, k > 1 ? ",{" : "{");
        answer_token_text_and_bytes(g, logprobs[k].token_id, out);
        text_buffer_text(out, ",\"logprob\":");
        text_buffer_json_logprob(out, logprobs[k].logprob);
        text_buffer_text(out, "}");
    }
    text_buffer_text(out, "]}");
}

static void write_logprobs(const generation *g, const choice *c, size_t entries, text_buffer *out) {
    if (g->request.logprobs < 0) {
        text_buffer_text(out, ",\"logprobs\":null");
        return;
    }
    text_buffer_text(out, ",\"logprobs\":{\"content\":[");
    bool is_first = true;
    for (size_t i = 0; i < entries; i++) {
        const worker_logprob *logprobs = token_log_logprobs(&c->log, i);
        if (logprobs == NULL) continue;
        text_buffer_text(out, is_first ? "{" : ",{");
        answer_token_text_and_bytes(g, c->log.entries[i].id, out);
        text_buffer_text(out, ",\"logprob\":");
        text_buffer_json_logprob(out, logprobs[0].logprob);
        write_top(g, logprobs, out);
        is_first = false;
    }
    text_buffer_text(out, "],\"refusal\":null}");
}

static void write_chunk(const generation *g, const choice *c, size_t ready_bytes, size_t ready_entries,
                        text_buffer *out) {
    text_buffer_format(out, "{\"index\":%u,\"delta\":{", c->index);
    if (!c->is_first_written) text_buffer_text(out, "\"role\":\"assistant\",");
    if (!c->is_first_written || ready_bytes > 0) {
        text_buffer_text(out, "\"content\":");
        text_buffer_json(out, c->text.bytes, ready_bytes);
    }
    text_buffer_text(out, "}");
    write_logprobs(g, c, ready_entries, out);
    answer_finish_reason(c, out);
    answer_token_ids(g, c, ready_entries, out);
    text_buffer_text(out, "}");
}

static void write_choice(const generation *g, const choice *c, text_buffer *out) {
    text_buffer_format(out, "{\"index\":%u,\"message\":{\"role\":\"assistant\",\"content\":", c->index);
    text_buffer_json(out, c->text.bytes, c->text.count);
    text_buffer_text(out, ",\"refusal\":null}");
    write_logprobs(g, c, c->log.count, out);
    answer_finish_reason(c, out);
    answer_token_ids(g, c, c->log.count, out);
    answer_prompt_logprobs(g, c->index / g->request.choices, out);
    text_buffer_text(out, "}");
}

const answer_format answer_chat = {
    .id_prefix = "chatcmpl",
    .object = "chat.completion",
    .chunk_object = "chat.completion.chunk",
    .write_chunk = write_chunk,
    .write_choice = write_choice,
};
