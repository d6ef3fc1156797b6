/* answer.h - a generation as JSON: whole, or chunk by chunk.
 *
 * What chat and completions share is here; the shape of one choice is the format's.
 * Threads: whichever reply thread runs the generation. */
#ifndef COORDINATOR_ANSWER_H
#define COORDINATOR_ANSWER_H

#include "coordinator/generation_state.h"
#include "coordinator/text_buffer.h"

typedef struct answer_format {
    const char *id_prefix, *object, *chunk_object;
    /* The choice in a chunk: its ready text and log entries, and how it ended where it has. */
    void (*write_chunk)(const generation *generation, const choice *choice, size_t ready_bytes, size_t ready_entries,
                        text_buffer *out);
    void (*write_choice)(const generation *generation, const choice *choice, text_buffer *out);
} answer_format;

extern const answer_format answer_chat, answer_completion;

/* Fills generation->head. */
void answer_begin(generation *g, const char *request_id);
/* Appends to generation->out. A chunk takes what was ready out of the choice. */
void answer_write_whole(generation *g);
void answer_write_chunk(generation *g, choice *c);
void answer_write_usage_chunk(generation *g);
void answer_write_progress(generation *g, uint64_t prompt_done, uint64_t now_ns);
void answer_write_error(generation *g, const api_error *error);

/* For the formats. */
void answer_finish_reason(const choice *c, text_buffer *out); /* ,"finish_reason":...,"stop_reason":... */
void answer_token_ids(const generation *g, const choice *c, size_t entries,
                      text_buffer *out);                                              /* with their comma, or nothing */
void answer_prompt_logprobs(const generation *g, uint32_t part, text_buffer *out);    /* the same */
void answer_token_text(const generation *g, uint32_t id, text_buffer *out);           /* a JSON string */
void answer_token_text_and_bytes(const generation *g, uint32_t id, text_buffer *out); /* "token":...,"bytes":[...] */

#endif
