/* request.h - what a client asks for, parsed and in range: one struct for chat and for completions.
 *
 * Parsing touches neither tokenizer nor worker: bytes in, a request or an api_error out, so it can be fuzzed alone. The
 * body's JSON stays alive (the prompt lies in it) until request_drop_body; everything else is the request's own copy.
 * Threads: one at a time. */
#ifndef COORDINATOR_REQUEST_H
#define COORDINATOR_REQUEST_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/api_error.h"
#include "coordinator/body_fields.h"
#include "proto/worker_rpc.h"

#define REQUEST_STOPS_MAX 16u
#define REQUEST_STOP_BYTES_MAX 1024u
#define REQUEST_STOP_IDS_MAX 128u
#define REQUEST_LOGIT_BIAS_MAX 2048u
#define REQUEST_CHOICES_MAX 128u
#define REQUEST_PROMPTS_MAX 2048u
#define REQUEST_TOTAL_CHOICES_MAX 2048u /* prompts x n */

typedef enum { REQUEST_CHAT, REQUEST_COMPLETION } request_kind;

/* What the served model allows, and what it does where the request is silent. */
typedef struct request_limits {
    const char *model_name;
    uint32_t vocabulary_size;
    float default_temperature, default_top_p;
    uint32_t default_top_k;
    float default_min_p, default_repetition_penalty;
} request_limits;

typedef struct request_stop {
    char *text;
    size_t text_bytes;
} request_stop;

typedef struct request {
    request_kind kind;

    json_t *body;
    json_t *context;           /* chat: what the template reads */
    const char *chat_template; /* in body; NULL: the model's */
    json_t *final_message;     /* in context: the last message's content where continue_final_message is set */
    json_t *prompt;            /* completions: in body; a string, or an array of strings, ids, or arrays of ids */
    uint32_t prompt_count;
    bool add_special_tokens;

    worker_sampling sampling; /* its arrays are the request's own */
    bool has_seed;
    uint32_t choices; /* n */
    uint64_t max_tokens;
    bool has_max_tokens;
    request_stop stops[REQUEST_STOPS_MAX];
    uint32_t stop_count;
    char *selection;  /* NULL: the worker's default */
    char *cache_salt; /* NULL: none */
    bool no_cache;

    bool is_stream, include_usage, return_progress;
    bool echo, include_stop_text, skip_special_tokens, return_token_ids, tokens_as_ids;
    int32_t logprobs;        /* -1: none. What the answer shows; the worker may be asked for more */
    int32_t prompt_logprobs; /* -1: none */
} request;

void request_init(request *r, request_kind kind, const request_limits *limits);
void request_fini(request *r);
void request_drop_body(request *r);

/* The two bodies. On failure the request is to be finished as well. The error's status is 400, or 404 for another
 * model's name. */
hd_status request_parse_chat(request *r, const request_limits *limits, const char *body, size_t body_bytes,
                             api_error *error);
hd_status request_parse_completion(request *r, const request_limits *limits, const char *body, size_t body_bytes,
                                   api_error *error);

/* The bodies of /tokenize (a prompt or a chat, as the request it would be) and /detokenize (ids, malloc'ed for the
 * caller). */
hd_status request_parse_tokenize(request *r, const request_limits *limits, const char *body, size_t body_bytes,
                                 bool *wants_texts, api_error *error);
hd_status request_parse_detokenize(const request_limits *limits, const char *body, size_t body_bytes, uint32_t **ids,
                                   size_t *id_count, api_error *error);

/* The parts they share. */
void request_parse_model(body_fields *fields, const request_limits *limits);
void request_parse_chat_context(request *r,
                                body_fields *fields); /* messages, tools, template: sets context and final_message */
void request_parse_options(request *r, body_fields *fields, const request_limits *limits);
/* An id of the vocabulary, or the fields are refused under that name. */
bool request_parse_token_id(body_fields *fields, const char *name, const json_t *value, uint32_t vocabulary_size,
                            uint32_t *id);

#endif
