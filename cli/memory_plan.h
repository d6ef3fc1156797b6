/* memory_plan.h - who gets which bytes, decided before anything is loaded, or refused with the numbers.
 *
 *   usable = weights + working memory + hot memory + warm memory (keys and values, both)
 *
 * With a cold tier a context may be as large as hot memory and the tier's files together: warm memory holds copies.
 *
 * Threads: a pure function. */
#ifndef CLI_MEMORY_PLAN_H
#define CLI_MEMORY_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef struct memory_request {
    uint64_t usable_bytes; /* what the machine and the control group leave to this process */
    uint64_t weights_bytes;
    const char *weights_dtype;   /* for the sentence; NULL: there are no weights here */
    uint64_t working_bytes;      /* activations, request bodies, code: everything that is neither weights nor KV */
    uint64_t kv_bytes_per_token; /* >= 1 */
    uint64_t hot_bytes;          /* asked for; 0: what is left */
    uint64_t warm_bytes;         /* asked for; 0: a quarter of what is left where there is a cold tier, else none */
    uint64_t cold_bytes;         /* of files; 0: no cold tier */
    uint64_t index_bytes;        /* asked for, of the hot memory */
    uint64_t context_tokens;     /* asked for; 0: no more than fits */
    uint64_t model_tokens;       /* the model's own bound */
} memory_request;

typedef struct memory_plan {
    uint64_t hot_bytes, warm_bytes;
    uint64_t context_fits; /* tokens that hot_bytes holds, about: the engine's own tables take a little of it */
} memory_plan;

hd_status memory_plan_make(const memory_request *request, memory_plan *plan, hd_error *error);

typedef struct index_request {
    uint64_t hot_bytes, kv_bytes_per_token;
    bool has_cold;       /* keys and values need not lie in hot memory */
    uint64_t longest;    /* tokens of a request, at most, and what hot memory and files hold without indexes */
    bool is_fixed;       /* that was asked for: no index may make it less */
    uint64_t full_up_to; /* tokens: shorter requests need no index */
    /* Of one request; ascending; UINT64_MAX: never enough. with_keys: what makes searches faster comes to it. */
    uint64_t (*bytes_for)(void *context, uint64_t tokens, bool with_keys);
    void *context;
} index_request;

/* How much of the hot memory is for indexes: what the longest request needs that then still fits, with the keys once
 * more where these fit as well, or an eighth where that is more and fits. 0: no request is long enough to need one, or nothing longer than full_up_to fits
 * beside its index, or what was asked for does not. */
uint64_t memory_plan_index_bytes(const index_request *request);

#endif
