/* answer.c - see answer.h. */
#include "coordinator/answer.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/sse.h"

void answer_begin(generation *g, const char *request_id) {
    text_buffer *head = &g->head;
    text_buffer_text(head, "{\"id\":\"");
    text_buffer_format(head, "%s-%s\",\"object\":\"%s\",\"created\":%" PRIu64 ",\"model\":", g->format->id_prefix,
                       request_id, g->request.is_stream ? g->format->chunk_object : g->format->object, g->created_s);
    text_buffer_json_text(head, g->model->limits.model_name);
    text_buffer_text(head, ",\"system_fingerprint\":");
    text_buffer_json_text(head, g->model->fingerprint);
    text_buffer_text(head, ",\"choices\":[");
}

static void write_head(generation *g) {
    text_buffer_append(&g->out, g->head.bytes, g->head.count);
}

static void write_usage(const generation *g, text_buffer *out) {
    uint64_t completion_tokens = 0;
    for (uint32_t i = 0; i < g->choice_count; i++) completion_tokens += g->choices[i].token_count;
    text_buffer_format(out,
                       "{\"prompt_tokens\":%" PRIu64 ",\"completion_tokens\":%" PRIu64 ",\"total_tokens\":%" PRIu64
                       ",\"prompt_tokens_details\":{\"cached_tokens\":%" PRIu64 "}}",
                       g->prompt_tokens, completion_tokens, g->prompt_tokens + completion_tokens, g->cached_tokens);
}

/* Which selection made the answer. */
static void write_selection(generation *g, text_buffer *out) {
    char selection[sizeof(g->selection)];
    pthread_mutex_lock(&g->lock);
    memcpy(selection, g->selection, sizeof(selection));
    pthread_mutex_unlock(&g->lock);
    text_buffer_text(out, ",\"hadal\":{\"selection\":");
    text_buffer_json_text(out, selection);
    text_buffer_text(out, "}");
}

void answer_write_whole(generation *g) {
    text_buffer *out = &g->out;
    write_head(g);
    for (uint32_t i = 0; i < g->choice_count; i++) {
        if (i > 0) text_buffer_text(out, ",");
        g->format->write_choice(g, &g->choices[i], out);
    }
    text_buffer_text(out, "],\"usage\":");
    write_usage(g, out);
    write_selection(g, out);
    text_buffer_text(out, "}");
}

void answer_write_chunk(generation *g, choice *c) {
    text_buffer *out = &g->out;
    size_t bytes = choice_ready_bytes(c), entries = choice_ready_entries(c);
    sse_event_begin(out);
    write_head(g);
    g->format->write_chunk(g, c, bytes, entries, out);
    text_buffer_text(out, "]");
    if (g->request.include_usage) text_buffer_text(out, ",\"usage\":null");
    if (c->finish != CHOICE_OPEN) write_selection(g, out);
    text_buffer_text(out, "}");
    sse_event_end(out);
    choice_take(c, bytes, entries);
    c->is_first_written = true;
    c->is_closed = c->finish != CHOICE_OPEN;
}

void answer_write_usage_chunk(generation *g) {
    text_buffer *out = &g->out;
    sse_event_begin(out);
    write_head(g);
    text_buffer_text(out, "],\"usage\":");
    write_usage(g, out);
    write_selection(g, out);
    text_buffer_text(out, "}");
    sse_event_end(out);
}

void answer_write_progress(generation *g, uint64_t prompt_done, uint64_t now_ns) {
    text_buffer *out = &g->out;
    uint64_t elapsed_ms = g->started_ns > 0 ? (now_ns - g->started_ns) / 1000000u : 0;
    double remaining_s = prefill_estimate_remaining_s(&g->estimate, g->prompt_tokens);
    sse_event_begin(out);
    write_head(g);
    text_buffer_format(out,
                       "],\"prompt_progress\":{\"total\":%" PRIu64 ",\"cache\":%" PRIu64 ",\"processed\":%" PRIu64
                       ",\"time_ms\":%" PRIu64 ",\"estimated_remaining_ms\":",
                       g->prompt_tokens, g->cached_tokens, prompt_done, elapsed_ms);
    if (remaining_s < 0.0) text_buffer_text(out, "null}}");
    else text_buffer_format(out, "%.0f}}", remaining_s * 1000.0);
    sse_event_end(out);
}

void answer_write_error(generation *g, const api_error *error) {
    sse_event_begin(&g->out);
    api_error_write(error, &g->out);
    sse_event_end(&g->out);
    sse_done(&g->out);
}

void answer_finish_reason(const choice *c, text_buffer *out) {
    static const char *const reasons[] = {
        [CHOICE_OPEN] = "null", [CHOICE_STOP] = "\"stop\"", [CHOICE_LENGTH] = "\"length\""};
    text_buffer_format(out, ",\"finish_reason\":%s", reasons[c->finish]);
    if (c->finish == CHOICE_OPEN) return;
    text_buffer_text(out, ",\"stop_reason\":");
    if (c->stop_string >= 0) {
        const request_stop *stop = &c->request->stops[c->stop_string];
        text_buffer_json(out, stop->text, stop->text_bytes);
    } else if (c->stop_id >= 0) {
        text_buffer_format(out, "%" PRId64, c->stop_id);
    } else {
        text_buffer_text(out, "null");
    }
}

void answer_token_ids(const generation *g, const choice *c, size_t entries, text_buffer *out) {
    if (!g->request.return_token_ids) return;
    const prompt *p = &g->prompts[c->index / g->request.choices];
    if (!c->is_first_written) {
        text_buffer_text(out, ",\"prompt_token_ids\":[");
        for (size_t i = 0; i < p->id_count; i++) text_buffer_format(out, i > 0 ? ",%u" : "%u", p->ids[i]);
        text_buffer_text(out, "]");
    }
    text_buffer_text(out, ",\"token_ids\":[");
    bool is_first = true;
    for (size_t i = 0; i < entries; i++) {
        if (c->log.entries[i].is_prompt) continue;
        text_buffer_format(out, is_first ? "%u" : ",%u", c->log.entries[i].id);
        is_first = false;
    }
    text_buffer_text(out, "]");
}

static void write_rank(const worker_logprob *group, uint32_t width, uint32_t place, text_buffer *out) {
    /* Place 0 is the token itself: its rank is known where it is among the likeliest. */
    uint32_t rank = place;
    for (uint32_t k = 1; place == 0 && k < width && rank == 0; k++) {
        if (group[k].token_id == group[0].token_id) rank = k;
    }
    if (rank == 0) text_buffer_text(out, ",\"rank\":null");
    else text_buffer_format(out, ",\"rank\":%u", rank);
}

static bool is_repeated(const worker_logprob *group, uint32_t place) {
    return place > 0 && group[place].token_id == group[0].token_id;
}

void answer_prompt_logprobs(const generation *g, uint32_t part_index, text_buffer *out) {
    if (g->request.prompt_logprobs < 0) return;
    const generation_part *part = &g->parts[part_index];
    uint32_t stride = g->prompt_logprob_width, width = (uint32_t)g->request.prompt_logprobs + 1;
    text_buffer_text(out, ",\"prompt_logprobs\":[null");
    for (uint64_t position = 1; position < part->request.prompt_count; position++) {
        const worker_logprob *group = part->prompt_logprobs + position * stride;
        text_buffer_text(out, ",{");
        for (uint32_t k = 0; k < width; k++) {
            if (is_repeated(group, k)) continue;
            text_buffer_format(out, k > 0 ? ",\"%u\":{\"logprob\":" : "\"%u\":{\"logprob\":", group[k].token_id);
            text_buffer_json_logprob(out, group[k].logprob);
            write_rank(group, width, k, out);
            text_buffer_text(out, ",\"decoded_token\":");
            answer_token_text(g, group[k].token_id, out);
            text_buffer_text(out, "}");
        }
        text_buffer_text(out, "}");
    }
    text_buffer_text(out, "]");
}

void answer_token_text(const generation *g, uint32_t id, text_buffer *out) {
    if (g->request.tokens_as_ids) {
        text_buffer_format(out, "\"token_id:%u\"", id);
        return;
    }
    char *text;
    unsigned char *bytes;
    size_t byte_count;
    if (text_token(g->model->text, id, &text, &bytes, &byte_count) != HD_OK) {
        text_buffer_text(out, "\"\"");
        return;
    }
    text_buffer_json_text(out, text);
    free(text);
    free(bytes);
}

void answer_token_text_and_bytes(const generation *g, uint32_t id, text_buffer *out) {
    char *text = NULL;
    unsigned char *bytes = NULL;
    size_t byte_count = 0;
    if (text_token(g->model->text, id, &text, &bytes, &byte_count) != HD_OK) byte_count = 0;
    text_buffer_text(out, "\"token\":");
    if (g->request.tokens_as_ids) text_buffer_format(out, "\"token_id:%u\"", id);
    else text_buffer_json_text(out, text != NULL ? text : "");
    text_buffer_text(out, ",\"bytes\":[");
    for (size_t i = 0; i < byte_count; i++) text_buffer_format(out, i > 0 ? ",%u" : "%u", bytes[i]);
    text_buffer_text(out, "]");
    free(text);
    free(bytes);
}
