/* choice.c - see choice.h. */
#include "coordinator/choice.h"

hd_status choice_init(choice *c, uint32_t index, const text_model *model, const request *r, const stop_set *stops,
                      uint32_t logprob_width) {
    *c = (struct choice){
        .index = index,
        .request = r,
        .keeps_log = logprob_width > 0 || r->return_token_ids,
        .stop_string = -1,
        .stop_id = -1,
    };
    text_buffer_init(&c->text);
    token_log_init(&c->log, logprob_width);
    stop_matcher_init(&c->matcher, stops);
    return text_stream_open(model, r->skip_special_tokens, &c->stream);
}

void choice_fini(choice *c) {
    if (c->stream != NULL) text_stream_close(c->stream);
    text_buffer_fini(&c->text);
    token_log_fini(&c->log);
}

static uint64_t text_end(const choice *c) {
    return c->text_base + c->text.count;
}

void choice_prepend(choice *c, const char *bytes, size_t count) {
    text_buffer_append(&c->text, bytes, count);
    c->text_points += utf8_count(bytes, count);
}

hd_status choice_log_prompt(choice *c, const text_model *model, const uint32_t *ids, size_t id_count,
                            const worker_logprob *logprobs, size_t width) {
    text_stream *stream;
    hd_status status = text_stream_open(model, c->request->skip_special_tokens, &stream);
    if (status != HD_OK) return status;
    token_entry entry = {.is_prompt = true, .text_byte = text_end(c), .text_point = c->text_points};
    for (size_t i = 0; status == HD_OK && i < id_count; i++) {
        entry.id = ids[i];
        token_log_add(&c->log, entry, i > 0 ? logprobs + i * width : NULL);
        const char *piece;
        size_t piece_bytes;
        status = text_stream_push(stream, ids[i], &piece, &piece_bytes);
        if (status != HD_OK) break;
        entry.text_byte += piece_bytes;
        entry.text_point += utf8_count(piece, piece_bytes);
    }
    text_stream_close(stream);
    return status;
}

static void log_token(choice *c, uint32_t id, const worker_logprob *logprobs) {
    if (!c->keeps_log) return;
    token_entry entry = {.id = id, .text_byte = text_end(c), .text_point = c->text_points};
    token_log_add(&c->log, entry, logprobs);
}

/* Takes the stop string that ends at the end of the text off again, unless it is to be shown, and the tokens behind it.
 * */
static void cut_at_stop(choice *c, uint32_t stop) {
    size_t stop_bytes = c->request->stops[stop].text_bytes;
    if (!c->request->include_stop_text) {
        c->text.count -= stop_bytes;
        c->text.bytes[c->text.count] = '\0';
    }
    token_log_truncate(&c->log, token_log_before(&c->log, text_end(c)));
    c->finish = CHOICE_STOP;
    c->stop_string = (int32_t)stop;
}

/* Adds text that a token has completed; true when a stop string ended in it. */
static bool add_text(choice *c, const char *bytes, size_t count, bool is_searched) {
    size_t used = count;
    uint32_t stop = 0;
    bool is_stopped = is_searched && stop_matcher_push(&c->matcher, bytes, count, &used, &stop);
    text_buffer_append(&c->text, bytes, used);
    c->text_points += utf8_count(bytes, used);
    if (is_stopped && !c->text.is_failed) cut_at_stop(c, stop);
    return is_stopped;
}

bool choice_push(choice *c, uint32_t id, const worker_logprob *logprobs) {
    if (c->finish != CHOICE_OPEN) return false;
    c->token_count++;
    log_token(c, id, logprobs);
    const char *piece;
    size_t piece_bytes;
    if (text_stream_push(c->stream, id, &piece, &piece_bytes) != HD_OK) {
        c->text.is_failed = true;
        return false;
    }
    return add_text(c, piece, piece_bytes, c->token_count > c->request->sampling.min_tokens);
}

static bool is_own_stop(const choice *c, uint32_t id) {
    for (uint32_t i = 0; i < c->request->sampling.stop_id_count; i++) {
        if (c->request->sampling.stop_ids[i] == id) return true;
    }
    return false;
}

void choice_finish(choice *c, choice_finish_reason reason, uint32_t stop_id) {
    if (c->finish != CHOICE_OPEN) return;
    const char *piece;
    size_t piece_bytes;
    if (reason == CHOICE_STOP) {
        /* The token that ended it was drawn as well, so it is counted; it is shown only where that was asked for. */
        c->token_count++;
        if (is_own_stop(c, stop_id)) {
            c->stop_id = stop_id;
            if (c->request->include_stop_text) {
                if (text_stream_push(c->stream, stop_id, &piece, &piece_bytes) == HD_OK)
                    add_text(c, piece, piece_bytes, false);
            }
        }
    }
    if (text_stream_finish(c->stream, &piece, &piece_bytes) == HD_OK) {
        if (add_text(c, piece, piece_bytes, c->token_count > c->request->sampling.min_tokens)) return;
    }
    c->finish = reason;
}

size_t choice_held(const choice *c) {
    return c->finish != CHOICE_OPEN ? 0 : stop_matcher_held(&c->matcher);
}

size_t choice_ready_bytes(const choice *c) {
    return c->text.count - choice_held(c);
}

size_t choice_ready_entries(const choice *c) {
    if (c->finish != CHOICE_OPEN) return c->log.count;
    return token_log_before(&c->log, c->text_base + choice_ready_bytes(c));
}

void choice_take(choice *c, size_t bytes, size_t entries) {
    text_buffer_drop(&c->text, bytes);
    c->text_base += bytes;
    token_log_drop(&c->log, entries);
}

bool choice_is_failed(const choice *c) {
    return c->text.is_failed || c->log.is_failed;
}
