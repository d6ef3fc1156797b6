/* served_model.h - the models that this coordinator answers for: one in a process of its own, those of all workers in a
 * cluster.
 *
 * A model that was once served stays listed; when all its workers have gone, its requests wait for one (router.h).
 * Threads: add from one thread; everything else from any. */
#ifndef COORDINATOR_SERVED_MODEL_H
#define COORDINATOR_SERVED_MODEL_H

#include <stdatomic.h>

#include "coordinator/request.h"
#include "model/text/text.h"
#include "proto/worker_rpc.h"

#define SERVED_MODELS_MAX 64u

typedef struct served_model { /* borrowed by the set, and unchanged once it was added */
    worker_rpc *worker;
    worker_info info;
    const text_model *text;
    request_limits limits;
    uint64_t created_s;    /* when the model was made ready */
    char fingerprint[160]; /* what decides an answer's bits: version, kernels, number formats */
} served_model;

typedef struct model_set {
    const served_model *models[SERVED_MODELS_MAX];
    _Atomic uint32_t count;
} model_set;

/* Fills a model from its worker's info. name NULL: the worker's. */
void served_model_init(served_model *model, worker_rpc *worker, const worker_info *info, const text_model *text,
                       const char *name, uint64_t created_s);
/* Prompt and answer together, at most, now: it grows when attention nodes join. */
uint64_t served_model_context_max(const served_model *model);
hd_status model_set_add(model_set *set, const served_model *model);                            /* HD_FULL */
const served_model *model_set_find(const model_set *set, const char *name, size_t name_bytes); /* or NULL */
/* The model that a JSON body names at its top level; the first where it names none, or one that is not here; NULL where
 * there is no model at all. */
const served_model *model_set_of_body(const model_set *set, const char *body, size_t body_bytes);

#endif
