/* prompt.h - a request's prompts as token ids: the template rendered, the text tokenised.
 *
 * This is the slow part of a request: 64 MiB of text take 20 s, on a request thread.
 * Threads: one at a time; the text_model may be in use by others. */
#ifndef COORDINATOR_PROMPT_H
#define COORDINATOR_PROMPT_H

#include "coordinator/request.h"
#include "model/text/text.h"

typedef struct prompt {
    uint32_t *ids;
    size_t id_count;
    char *text; /* echo: what the answer begins with; else NULL */
    size_t text_bytes;
} prompt;

/* The chat of context rendered, cut after its last message where the answer continues it. *text is malloc'ed. */
hd_status prompt_render(const text_model *model, const request *r, char **text, size_t *text_bytes, api_error *error);

/* request->prompt_count prompts, malloc'ed as one array; prompts_free frees it and them. */
hd_status prompts_build(const text_model *model, const request *r, prompt **prompts, api_error *error);
/* Refuses a prompt without tokens, and one with an id that the model has no embedding for. */
hd_status prompts_check(const prompt *prompts, const request *r, uint32_t vocabulary_size, api_error *error);
/* The field that a prompt came from, for messages: "messages", "prompt" or "prompt[3]". */
void prompt_name(const request *r, uint32_t index, char *name, size_t name_bytes);
void prompts_free(prompt *prompts, size_t count); /* accepts NULL */

#endif
