/* node.c - opens the modules in their order and closes them in reverse. */
#include "cli/node.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "attention-node/engine.h"
#include "attention-node/selection.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "cli/node_device.h"
#include "model/architecture.h"

/* Code, tokenizer, request bodies on their way, and a share for what the kernel keeps for us. */
#define WORKING_BYTES_FIXED ((uint64_t)256 << 20)
#define WORKING_SHARE 32u
#define INDEX_SHARE 8u /* of the hot memory */

static uint32_t least(uint64_t a, uint64_t b) {
    return (uint32_t)(a < b ? a : b);
}

/* An upper bound of the buffers of a step: the row buffers of the forward pass are of these sizes, each counted in
 * fp32. */
static uint64_t working_bytes(const node_options *options, const node *n, uint64_t usable_bytes) {
    const model_config *m = n->config;
    uint64_t row = 2ull * m->hidden_size + 3ull * (m->query_heads + 2 * m->kv_heads) * m->head_dim +
                   2ull * m->intermediate_size +
                   2ull * m->experts_per_token * (m->expert_intermediate_size + m->hidden_size);
    uint64_t logits = (uint64_t)n->running_max * m->vocabulary_size;
    return (options->max_batch_tokens * row + logits) * sizeof(float) + WORKING_BYTES_FIXED +
           usable_bytes / WORKING_SHARE;
}

static model_share share_of(const node *n) {
    const collective *c = n->settings.collective;
    return c != NULL ? (model_share){c->rank, c->count} : (model_share){0, 1};
}

static hd_status plan_memory(const node_options *options, node *n, hd_error *error) {
    if (n->queue != NULL) return HD_OK; /* of the device, which was chosen with it */
    uint64_t usable = hd_memory_limit_bytes(), available = hd_memory_available_bytes();
    if (available < usable) usable = available;
    memory_request request = {.usable_bytes = usable,
                              .weights_dtype = hd_dtype_name(n->settings.weights_dtype),
                              .working_bytes = working_bytes(options, n, usable),
                              .kv_bytes_per_token = model_kv_bytes_per_token(n->config, n->settings.kv_dtype),
                              .hot_bytes = options->hot_memory,
                              .warm_bytes = options->warm_memory,
                              .cold_bytes = options->cold_size,
                              /* On attention nodes there may be room for more; an engine checks for itself. */
                              .context_tokens = n->settings.open_attention != NULL ? 0 : options->max_context,
                              .model_tokens = n->config->max_positions};
    hd_status status = model_weights_estimate(options->model_directory, n->config, n->settings.weights_dtype,
                                              share_of(n), &request.weights_bytes, error);
    return status == HD_OK ? memory_plan_make(&request, &n->memory, error) : status;
}

/* Without a cold tier identities are compared within this process alone, so the key may be new at each start; a key
 * that nobody knows makes it impossible to search for colliding prompts. */
static hd_status draw_key(unsigned char *key, size_t bytes, hd_error *error) {
    return getrandom(key, bytes, 0) == (ssize_t)bytes ? HD_OK
                                                      : hd_error_set(error, HD_IO, "the system gave no random bytes");
}

typedef struct index_need {
    const engine_config *config;
    const char *selection;
} index_need;

static uint64_t bytes_for(void *context, uint64_t tokens, bool with_keys) {
    const index_need *need = context;
    return engine_index_bytes(need->config, need->selection, tokens, with_keys);
}

static bool begins_with(const char *text, const char *beginning) {
    return strncmp(text, beginning, strlen(beginning)) == 0;
}

/* By the longest request that may be searched for; the config has the whole hot memory as yet. */
static uint64_t index_bytes(const node_options *options, const node *n, const engine_config *config) {
    char chosen[SELECTION_TEXT_BYTES];
    bool is_auto = begins_with(options->selection, SELECTION_AUTO);
    if (options->index_memory > 0) return options->index_memory;
    if (!is_auto && !begins_with(options->selection, "retrieval")) return 0;
    if (selection_resolve(options->selection, UINT64_MAX, 0, chosen, NULL) != HD_OK) return 0;
    uint64_t context = options->max_context > 0 ? options->max_context : n->config->max_positions;
    index_need need = {.config = config, .selection = chosen};
    index_request request = {.hot_bytes = config->hot_bytes,
                             .kv_bytes_per_token = model_kv_bytes_per_token(n->config, n->settings.kv_dtype),
                             .has_cold = config->cold_bytes > 0,
                             .longest = context < n->memory.context_fits ? context : n->memory.context_fits,
                             .is_fixed = options->max_context > 0,
                             .full_up_to = is_auto ? options->full_up_to : 0,
                             .bytes_for = bytes_for,
                             .context = &need};
    uint64_t bytes = memory_plan_index_bytes(&request);
    /* Who asks for retrieval is told what it lacks, by whoever lacks it. */
    return bytes == 0 && !is_auto ? config->hot_bytes / INDEX_SHARE : bytes;
}

static hd_status open_engine(const node_options *options, node *n, hd_error *error) {
    engine_config config = {.kv_dtype = n->settings.kv_dtype,
                            .hot_bytes = n->memory.hot_bytes,
                            .warm_bytes = n->memory.warm_bytes,
                            .cold_directory = options->cold_dir,
                            .cold_bytes = options->cold_size,
                            .index_builders = hd_pool_thread_count(n->pool),
                            .step_rows_max = (uint32_t)options->max_batch_tokens,
                            .sequences_max = n->running_max,
                            .kernels = n->kernels,
                            .pool = n->pool,
                            .queue = n->queue};
    memcpy(config.fingerprint, n->weights->fingerprint, sizeof(config.fingerprint));
    hd_status status = draw_key(config.key, sizeof(config.key), error);
    if (status != HD_OK) return status;
    status = worker_layer_table(n->config, n->settings.kv_dtype, &config.layers);
    if (status != HD_OK) return hd_error_set(error, status, "no memory for the layer table");
    config.index_bytes = n->queue != NULL ? 0 : index_bytes(options, n, &config);
    if (config.index_bytes >= config.hot_bytes)
        status = hd_error_set(error, HD_INVALID, "--index-memory is part of the hot memory and has to be less");
    config.hot_bytes -= config.index_bytes;
    if (status == HD_OK && options->selection_overrides != NULL)
        status = selection_overrides_read(options->selection_overrides, &config.layers, &n->overrides, error);
    config.overrides = &n->overrides;
    n->index_bytes = config.index_bytes;
    if (status == HD_OK) status = engine_open(&config, &n->attention, error);
    free((void *)config.layers.streams);
    free((void *)config.layers.layers);
    return status;
}

static hd_status open_ranks(const node_options *options, node *n, hd_error *error) {
    if (n->settings.collective == NULL) return HD_OK;
    uint64_t logits = n->running_max, rows = options->max_batch_tokens;
    ranks_config config = {.collective = n->settings.collective,
                           .model = n->config,
                           .weights = n->weights,
                           .kernels = n->kernels,
                           .pool = n->pool,
                           .rows_max = (uint32_t)(rows > logits ? rows : logits)};
    return ranks_open(&config, &n->ranks, error);
}

static hd_status open_weights(const node_options *options, node *n, hd_error *error) {
    uint64_t start = hd_now_ns();
    hd_status status = model_weights_open(options->model_directory, n->config, n->settings.weights_dtype, share_of(n),
                                          n->pool, &n->weights, error);
    if (status != HD_OK) return status;
    char size[32], quoted[48];
    hd_log(HD_LOG_INFO, "weights_loaded", "bytes=%s dtype=%s seconds=%.2f",
           hd_log_quote(hd_format_size(n->weights->bytes, size, sizeof(size)), quoted, sizeof(quoted)),
           hd_dtype_name(n->weights->dtype), (double)(hd_now_ns() - start) * 1e-9);
    return HD_OK;
}

static void log_configuration(const node_options *options, const node *n) {
    char model[300], directory[1024], cold[1024], weights[2][48], hot[2][48], warm[2][48], size[2][48], limit[2][48];
    char indexes[2][48];
    hd_format_size(n->weights->bytes, weights[0], sizeof(weights[0]));
    hd_format_size(n->memory.hot_bytes, hot[0], sizeof(hot[0]));
    hd_format_size(n->index_bytes, indexes[0], sizeof(indexes[0]));
    hd_format_size(n->memory.warm_bytes, warm[0], sizeof(warm[0]));
    hd_format_size(options->cold_size, size[0], sizeof(size[0]));
    hd_format_size(hd_memory_limit_bytes(), limit[0], sizeof(limit[0]));
    attention_stats stats;
    n->attention->ops->stats(n->attention, &stats);
    uint64_t fits = stats.blocks_total * HD_BLOCK_TOKENS;
    uint64_t context = options->max_context > 0 ? options->max_context : n->config->max_positions;
    hd_log(HD_LOG_INFO, "configuration",
           "version=%s model=%s directory=%s architecture=%s weights=%s weights_bytes=%s kv=%s kv_bytes_per_token=%llu "
           "hot_memory=%s index_memory=%s warm_memory=%s cold_dir=%s cold_size=%s "
           "memory_limit=%s selection=%s kernels=%s threads=%u max_batch_tokens=%llu max_running=%u max_requests=%llu",
           HADAL_VERSION, hd_log_quote(n->settings.model_name, model, sizeof(model)),
           hd_log_quote(options->model_directory, directory, sizeof(directory)), n->config->architecture->name,
           hd_dtype_name(n->weights->dtype), hd_log_quote(weights[0], weights[1], sizeof(weights[1])),
           hd_dtype_name(n->settings.kv_dtype),
           (unsigned long long)model_kv_bytes_per_token(n->config, n->settings.kv_dtype),
           hd_log_quote(hot[0], hot[1], sizeof(hot[1])), hd_log_quote(indexes[0], indexes[1], sizeof(indexes[1])),
           hd_log_quote(warm[0], warm[1], sizeof(warm[1])),
           hd_log_quote(options->cold_dir != NULL ? options->cold_dir : "", cold, sizeof(cold)),
           hd_log_quote(size[0], size[1], sizeof(size[1])), hd_log_quote(limit[0], limit[1], sizeof(limit[1])),
           options->selection, n->device != NULL ? n->device->ops->name : n->kernels->name,
           hd_pool_thread_count(n->pool), (unsigned long long)options->max_batch_tokens, n->running_max,
           (unsigned long long)options->max_requests);
    kernel_device_report devices;
    kernel_device_report_make(&devices);
    hd_log(HD_LOG_INFO, "devices", "%s", devices.text);
    /* The bound of one request, and what all of them together can hold. */
    hd_log(HD_LOG_INFO, "context", "tokens_max=%llu tokens_fit=%llu model_positions=%llu",
           (unsigned long long)(context < fits ? context : fits), (unsigned long long)fits,
           (unsigned long long)n->config->max_positions);
}

/* The plan counted keys and values alone; the engine knows what its tables take. */
static hd_status check_context(const node_options *options, const node *n, hd_error *error) {
    attention_stats stats;
    n->attention->ops->stats(n->attention, &stats);
    uint64_t fits = stats.blocks_total * HD_BLOCK_TOKENS;
    char hot[32];
    if (options->max_context <= fits) return HD_OK;
    return hd_error_set(
        error, HD_NO_MEMORY,
        "--max-context %llu does not fit: the %s for keys and values hold %llu tokens beside their tables; "
        "lower --max-context, or give more memory",
        (unsigned long long)options->max_context, hd_format_size(n->memory.hot_bytes, hot, sizeof(hot)),
        (unsigned long long)fits);
}

static hd_status open_pool(const node_options *options, node *n, hd_error *error) {
    hd_status status = hd_pool_open((unsigned)options->threads, &n->pool);
    if (status == HD_OK) return HD_OK;
    return hd_error_set(error, status, "cannot start %llu threads", (unsigned long long)options->threads);
}

hd_status node_serve_rank(const node_options *options, const node_settings *settings, hd_error *error) {
    node n = {.settings = *settings};
    n.running_max = least(least(options->max_requests, options->max_batch_tokens), NODE_RUNNING_MAX);
    hd_status status = kernel_ops_choose(options->kernels, &n.kernels, error);
    if (status == HD_OK) status = model_config_open(options->model_directory, &n.config, error);
    if (status == HD_OK) status = open_pool(options, &n, error);
    if (status == HD_OK) status = open_weights(options, &n, error);
    if (status == HD_OK) status = open_ranks(options, &n, error);
    if (status == HD_OK) ranks_serve(n.ranks);
    node_close(&n, 0);
    return status;
}

hd_status node_open(const node_options *options, const node_settings *settings, bool needs_text, node *n,
                    hd_error *error) {
    *n = (node){.settings = *settings};
    n->running_max = least(least(options->max_requests, options->max_batch_tokens), NODE_RUNNING_MAX);
    hd_status status = kernel_ops_choose(options->kernels, &n->kernels, error);
    if (status == HD_OK) status = model_config_open(options->model_directory, &n->config, error);
    if (status == HD_OK && needs_text) status = text_model_open(options->model_directory, &n->text, error);
    if (status == HD_OK) status = node_device_choose(options, n, error);
    if (status == HD_OK) status = plan_memory(options, n, error);
    if (status == HD_OK) status = open_pool(options, n, error);
    if (status == HD_OK) status = open_weights(options, n, error);
    if (status == HD_OK) status = open_ranks(options, n, error);
    if (status == HD_OK && settings->open_attention != NULL)
        status = settings->open_attention(settings->context, n, error);
    n->is_offloaded = n->attention != NULL;
    if (status == HD_OK && !n->is_offloaded) {
        status = open_engine(options, n, error);
        if (status == HD_OK) status = check_context(options, n, error);
    }
    if (status == HD_OK) log_configuration(options, n);
    else node_close(n, 0);
    return status;
}

hd_status node_start(const node_options *options, node *n, hd_error *error) {
    hd_status status = hd_metrics_open(&n->metrics);
    if (status != HD_OK) return hd_error_set(error, status, "no memory for metrics");
    worker_config config = {.model_name = n->settings.model_name,
                            .model = n->config,
                            .weights = n->weights,
                            .kernels = n->kernels,
                            .pool = n->pool,
                            .ranks = n->ranks,
                            .attention = n->attention,
                            .queue = n->queue,
                            .batch_tokens_max = (uint32_t)options->max_batch_tokens,
                            .requests_max = (uint32_t)options->max_requests,
                            .running_max = n->running_max,
                            .context_max = options->max_context,
                            .micro_batches = n->settings.micro_batches,
                            .selection = options->selection,
                            .full_up_to = node_full_up_to(options, n),
                            .metrics = n->metrics};
    status = worker_open(&config, &n->worker, error);
    if (status == HD_OK && n->queue != NULL) model_weights_drop(n->weights); /* the device has them */
    return status;
}

void node_close(node *n, uint64_t drain_ms) {
    worker_close(n->worker, drain_ms);
    hd_metrics_close(n->metrics);
    if (n->attention != NULL && !n->is_offloaded) n->attention->ops->close(n->attention);
    selection_overrides_fini(&n->overrides);
    ranks_close(n->ranks);
    model_weights_close(n->weights);
    hd_pool_close(n->pool);
    text_model_close(n->text);
    model_config_close(n->config);
    node_device_close(n);
    *n = (node){.worker = NULL};
}
