/* worker.c - opens the batcher within the limits that model, configuration and attention set, and shows it as a
 * worker_rpc. */
#include "worker/worker.h"

#include "base/memory.h"
#include "kernels/device.h"
#include "worker/batcher.h"
#include "worker/forward.h"
#include "worker/step.h"

struct worker {
    worker_rpc rpc; /* first: the rpc's self is the worker */
    worker_config config;
    worker_info info;
    batcher *batcher;
};

static hd_status submit(worker_rpc *self, worker_request *request, hd_error *error) {
    return batcher_submit(((worker *)self)->batcher, request, error);
}

static void cancel(worker_rpc *self, uint64_t id, uint32_t choice) {
    batcher_cancel(((worker *)self)->batcher, id, choice);
}

static void info(worker_rpc *self, worker_info *out) {
    worker *w = (worker *)self;
    worker_load load;
    batcher_load(w->batcher, &load);
    *out = w->info;
    out->context_max = load.context_max;
}

static void load(worker_rpc *self, worker_load *out) {
    batcher_load(((worker *)self)->batcher, out);
}

static void cache_reset(worker_rpc *self) {
    batcher_cache_reset(((worker *)self)->batcher);
}

static const worker_rpc_ops rpc_ops = {
    .name = "in process",
    .submit = submit,
    .cancel = cancel,
    .info = info,
    .load = load,
    .cache_reset = cache_reset,
};

static uint64_t least(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* Positions that the model can be used at: rope scaling stretches what it was trained on. */
static uint64_t model_context(const model_config *model) {
    const rope_config *rope = &model->rope;
    switch (rope->kind) {
    case ROPE_NONE:
    case ROPE_LLAMA3: break; /* max_position_embeddings is stretched already */
    case ROPE_LINEAR:
    case ROPE_DYNAMIC: return (uint64_t)((double)model->max_positions * rope->factor);
    case ROPE_YARN:
        /* Checkpoints differ in whether it is stretched already; original_max_position_embeddings never is. */
        if (rope->original_max_position * rope->factor > (double)model->max_positions) {
            return (uint64_t)(rope->original_max_position * rope->factor);
        }
    }
    return model->max_positions;
}

static void fill_info(worker *w) {
    const worker_config *config = &w->config;
    const model_config *model = config->model;
    attention_stats stats;
    config->attention->ops->stats(config->attention, &stats);
    uint64_t context_max = model_context(model);
    if (config->context_max > 0) context_max = least(context_max, config->context_max);
    hd_dtype kv_dtype = config->attention->ops->kv_dtype(config->attention);
    w->info = (worker_info){
        .model_name = config->model_name,
        .kernels = config->queue != NULL ? config->queue->device->ops->name : config->kernels->name,
        .weights_dtype = hd_dtype_name(config->weights->dtype),
        .kv_dtype = hd_dtype_name(kv_dtype),
        .selection = config->selection != NULL ? config->selection : "full",
        .vocabulary_size = model->vocabulary_size,
        .context_max = context_max,
        .kv_bytes = stats.budget_bytes,
        .kv_bytes_per_token = model_kv_bytes_per_token(model, kv_dtype),
        .eos_ids = model->eos_ids,
        .eos_id_count = model->eos_id_count,
        .default_temperature = model->default_temperature,
        .default_top_p = model->default_top_p,
        .default_top_k = model->default_top_k,
        .default_min_p = model->default_min_p,
        .default_repetition_penalty = model->default_repetition_penalty,
    };
}

hd_status worker_device_check(const model_config *model, hd_dtype weights_dtype, hd_error *error) {
    return forward_device_check(model, weights_dtype, error);
}

uint64_t worker_device_bytes(const model_config *model, uint32_t batch_tokens_max) {
    return forward_device_bytes(model, batch_tokens_max, (uint32_t)least(batch_tokens_max, STEP_SLICE_ROWS));
}

hd_status worker_open(const worker_config *config, worker **out, hd_error *error) {
    if (config->batch_tokens_max == 0 || config->requests_max == 0 || config->running_max == 0) {
        return hd_error_set(error, HD_INVALID,
                            "a worker needs room for at least one row a step, one request and one running choice");
    }
    worker *w = hd_alloc_zeroed(sizeof(*w), HD_CACHE_LINE);
    if (w == NULL) return hd_error_set(error, HD_NO_MEMORY, "no memory for a worker");
    w->rpc.ops = &rpc_ops;
    w->config = *config;
    w->config.running_max = (uint32_t)least(config->running_max, config->batch_tokens_max);
    fill_info(w);
    hd_status status = batcher_open(&w->config, w->info.context_max, &w->batcher, error);
    if (status == HD_OK) *out = w;
    else worker_close(w, 0);
    return status;
}

void worker_close(worker *w, uint64_t drain_ms) {
    if (w == NULL) return;
    batcher_close(w->batcher, drain_ms);
    hd_free(w);
}

worker_rpc *worker_rpc_of(worker *w) {
    return &w->rpc;
}
