/* memory_plan.h - who gets which bytes, decided before anything is loaded, or refused with the numbers.
 *
 *   usable = weights + working memory + hot memory + warm memory (keys and values, both)
 *
 * With a cold tier a context may be as large as hot memory and the tier's files together: warm memory holds copies.
 *
 * Threads: a pure function. */
#ifndef CLI_MEMORY_PLAN_H
#define CLI_MEMORY_PLAN_H

#include <stdint.h>

#include "base/status.h"

typedef struct memory_request {
    uint64_t usable_bytes; /* what the machine and the control group leave to this process */
    uint64_t weights_bytes;
    const char *weights_dtype;   /* for the sentence */
    uint64_t working_bytes;      /* activations, request bodies, code: everything that is neither weights nor KV */
    uint64_t kv_bytes_per_token; /* >= 1 */
    uint64_t hot_bytes;          /* asked for; 0: what is left */
    uint64_t warm_bytes;         /* asked for; 0: a quarter of what is left where there is a cold tier, else none */
    uint64_t cold_bytes;         /* of files; 0: no cold tier */
    uint64_t context_tokens;     /* asked for; 0: no more than fits */
    uint64_t model_tokens;       /* the model's own bound */
} memory_request;

typedef struct memory_plan {
    uint64_t hot_bytes, warm_bytes;
    uint64_t context_fits; /* tokens that hot_bytes holds, about: the engine's own tables take a little of it */
} memory_plan;

hd_status memory_plan_make(const memory_request *request, memory_plan *plan, hd_error *error);

#endif
