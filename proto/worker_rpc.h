/* worker_rpc.h - how a coordinator speaks to a worker: one request, a stream of events.
 *
 * The coordinator sees a worker only through this table; in one process it is a queue to the worker's step thread,
 * on a cluster the same messages travel by gRPC. A request is submitted once and ends with exactly one
 * WORKER_FINISHED or WORKER_FAILED event.
 * Threads: submit, cancel and info may be called from any thread. on_event runs on the worker's thread (in process:
 * the step thread): it must only hand the event over, never block, and copies what it wants to keep. */
#ifndef PROTO_WORKER_RPC_H
#define PROTO_WORKER_RPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "base/trace.h"

#define WORKER_LOGPROBS_MAX 20u
#define WORKER_CHOICES_MAX 128u

typedef struct worker_logit_bias {
    uint32_t token_id;
    float bias; /* added to the logit before anything else */
} worker_logit_bias;

/* How tokens are drawn; worker/sampler.h has the formulas. Greedy where temperature is 0. The draw of (seed +
 * choice, position) is a function of these alone, so choice i of a request equals the only choice of one whose seed
 * is i higher. */
typedef struct worker_sampling {
    float temperature;
    uint32_t top_k;                            /* 0: all */
    float top_p;                               /* 1: all */
    float min_p;                               /* 0: off; keeps tokens with p >= min_p * p of the likeliest */
    float repetition_penalty;                  /* 1: off; over prompt and answer (as Hugging Face) */
    float presence_penalty, frequency_penalty; /* 0: off; over the answer (as OpenAI) */
    uint64_t seed;
    const worker_logit_bias *logit_bias;
    uint32_t logit_bias_count;
    const uint32_t *stop_ids; /* besides the model's eos ids */
    uint32_t stop_id_count;
    bool ignore_eos;
    uint32_t min_tokens; /* neither eos nor stop ids before */
    /* -1: none; else the drawn token's and this many likeliest: log softmax of the model's own logits, before bias,
     * penalties and temperature. */
    int32_t logprobs;
    int32_t prompt_logprobs; /* -1: none; else for every prompt token but the first */
} worker_sampling;

typedef struct worker_request worker_request;

typedef struct worker_logprob {
    uint32_t token_id;
    float logprob;
} worker_logprob;

typedef enum {
    WORKER_STARTED, /* admitted: cached_tokens is known, prefill begins */
    /* Prefill: prompt_done of prompt_count, after each chunk. Also before WORKER_STARTED, while another request
     * computes a prefix that this one waits for. */
    WORKER_PROGRESS,
    WORKER_PROMPT_LOGPROBS, /* positions position ..., before the first token */
    WORKER_TOKEN,
    WORKER_FINISHED, /* of one choice; `last` when it was the request's last choice */
    WORKER_FAILED,   /* of the whole request */
} worker_event_kind;

typedef enum { WORKER_FINISH_STOP, WORKER_FINISH_LENGTH, WORKER_FINISH_CANCELLED } worker_finish;

typedef struct worker_event {
    worker_event_kind kind;
    uint32_t choice;
    bool last;
    uint64_t cached_tokens, prompt_done, prompt_count;
    const char *selection; /* WORKER_STARTED: what the request's selection, or the worker's own, has come to */
    uint32_t token_id;     /* WORKER_TOKEN. A token that ends the choice by eos or stop id is not sent as a token */
    uint64_t position;     /* of the token in the sequence; of the first entry with WORKER_PROMPT_LOGPROBS */
    /* entry_count groups of logprob_count: first the token itself, then the likeliest, descending. */
    const worker_logprob *logprobs;
    uint32_t entry_count, logprob_count;
    worker_finish finish;
    uint32_t stop_id;    /* WORKER_FINISH_STOP: which */
    hd_status status;    /* WORKER_FAILED */
    const char *message; /* with HD_INVALID it may begin with the field of the client's request, as 'FIELD' */
} worker_event;

/* What a choice of a request that is taken over has said so far. */
typedef struct worker_answer {
    const uint32_t *token_ids;
    uint64_t token_count; /* less than max_tokens */
    bool has_ended;       /* nothing more is wanted of it, and no event will name it */
} worker_answer;

/* The caller's memory; alive and unchanged from submit until the last event has returned. */
struct worker_request {
    uint64_t id; /* unique in the coordinator; names the request in logs */
    const uint32_t *prompt_ids;
    uint64_t prompt_count;
    uint64_t max_tokens; /* of each choice; 0: the prompt alone, for its logprobs */
    uint32_t choices;    /* n, at most WORKER_CHOICES_MAX: the prompt is prefilled once */
    worker_sampling sampling;
    unsigned char salt[16];        /* tenant */
    const char *selection;         /* NAME[,key=value...]; NULL for the worker's default */
    bool no_cache;                 /* neither read nor keep prefix cache */
    char trace_id[HD_TRACE_BYTES]; /* names the request in the logs of all nodes */
    /* Of a request that another worker began: [choices]. The next token of each is the one that would have come there.
     * NULL for a request that begins. */
    const worker_answer *answers;
    /* With an epoch other than 0: choice i is `sequence` + i in attention, a name that every worker of the request
     * knows (its highest bit is clear), and the epoch says who owns it. 0: names of the worker's own. */
    uint64_t sequence, epoch;
    void (*on_event)(worker_request *request, const worker_event *event);
    void *context; /* the caller's */
    void *worker;  /* the worker's, from submit to the last event */
};

typedef struct worker_info {
    const char *model_name, *kernels, *weights_dtype, *kv_dtype, *selection; /* live as long as the worker */
    uint32_t vocabulary_size;
    uint64_t context_max; /* prompt + answer, at most: the model's, --max-context, and what the KV budget holds */
    uint64_t kv_bytes, kv_bytes_per_token;
    const uint32_t *eos_ids;
    uint32_t eos_id_count;
    float default_temperature, default_top_p; /* of generation_config.json; 1 where it is silent */
    uint32_t default_top_k;
    float default_min_p, default_repetition_penalty; /* 0 and 1 where it is silent */
} worker_info;

typedef struct worker_load {
    uint32_t running, waiting;                                               /* requests */
    uint64_t blocks_total, blocks_sequences, blocks_reserved, blocks_cached; /* of KV */
    uint64_t prefix_query_tokens, prefix_hit_tokens, preemptions;
    uint64_t is_draining; /* 1: it takes nothing new. A word: loads are compared as bytes */
    uint64_t context_max; /* as worker_info's, which it outgrows when attention nodes join; 0: that one */
    /* Totals since the start, of steps: their rows, and where their time went, which is the three together. wire is
     * what steps waited for attention nodes beyond the time that these worked. */
    uint64_t steps, step_rows, dense_us, wire_us, attention_us;
} worker_load;

typedef struct worker_rpc worker_rpc;
typedef struct worker_rpc_ops {
    const char *name;
    /* HD_OK: events will follow. HD_INVALID: can never run (the error says why, with the numbers). HD_FULL: the
     * queue is full now. */
    hd_status (*submit)(worker_rpc *self, worker_request *request, hd_error *error);
    /* Ends the request between two chunks or tokens; its choices finish with WORKER_FINISH_CANCELLED. Unknown ids
     * are ignored. choice UINT32_MAX cancels all choices. */
    void (*cancel)(worker_rpc *self, uint64_t id, uint32_t choice);
    void (*info)(worker_rpc *self, worker_info *info);
    void (*load)(worker_rpc *self, worker_load *load);
    void (*cache_reset)(worker_rpc *self); /* between two steps; does not wait for it */
} worker_rpc_ops;
struct worker_rpc {
    const worker_rpc_ops *ops;
};

#endif
