/* node_device.c - what stands against a device, and its memory. */
#include "cli/node_device.h"

#include <stdlib.h>
#include <string.h>

#include "attention-node/engine_device.h"
#include "attention-node/selection.h"
#include "base/flags.h"
#include "base/log.h"
#include "base/memory.h"

/* The driver's context, the libraries' workspaces, parts of weights on their way. */
#define WORKING_BYTES_FIXED ((uint64_t)1 << 30)
#define SPARE_SHARE 32u /* of the device's memory: graphs, and what allocations leave unused */

static bool is_full(const char *text) {
    return strcmp(text, SELECTION_AUTO) == 0 || strcmp(text, "full") == 0;
}

static hd_status refuse(hd_error *error, const char *why) {
    return hd_error_set(error, HD_UNSUPPORTED, "%s", why);
}

static hd_status check_flags(const node_options *o, const node_settings *settings, hd_error *error) {
    if (!settings->takes_device) return refuse(error, "this subcommand computes on the CPU");
    if (settings->collective != NULL) return refuse(error, "the ranks of a worker compute on CPUs");
    if (settings->open_attention != NULL)
        return refuse(error, "keys and values on attention nodes go with weights on the CPU; give --attention local");
    if (!is_full(o->selection))
        return refuse(error, "there is no selection but full on a device yet; leave --selection out");
    if (o->selection_overrides != NULL)
        return refuse(error, "--selection-overrides has no use where everything is full");
    return HD_OK;
}

/* What only the engine knows. */
static hd_status check_attention(const node_options *o, const node *n, kernel_queue *queue, hd_error *error) {
    engine_config config = {.kv_dtype = n->settings.kv_dtype,
                            .cold_directory = o->cold_dir,
                            .index_bytes = o->index_memory,
                            .queue = queue};
    hd_status status = worker_layer_table(n->config, n->settings.kv_dtype, &config.layers);
    if (status != HD_OK) return hd_error_set(error, status, "no memory for the layer table");
    status = engine_device_check(&config, error);
    free((void *)config.layers.streams);
    free((void *)config.layers.layers);
    return status;
}

static hd_status plan(const node_options *o, const node *n, const kernel_device_facts *facts, memory_plan *memory,
                      hd_error *error) {
    memory_request request = {.usable_bytes = facts->memory_bytes - facts->memory_bytes / SPARE_SHARE,
                              .weights_dtype = hd_dtype_name(n->settings.weights_dtype),
                              .working_bytes =
                                  worker_device_bytes(n->config, (uint32_t)o->max_batch_tokens) + WORKING_BYTES_FIXED,
                              .kv_bytes_per_token = model_kv_bytes_per_token(n->config, n->settings.kv_dtype),
                              .hot_bytes = o->hot_memory,
                              /* With more in pinned memory, the engine knows what fits. */
                              .context_tokens = o->warm_memory > 0 ? 0 : o->max_context,
                              .model_tokens = n->config->max_positions};
    hd_status status = model_weights_estimate(o->model_directory, n->config, n->settings.weights_dtype,
                                              (model_share){0, 1}, &request.weights_bytes, error);
    if (status != HD_OK) return status;
    char weights[32], warm[32], host[32];
    size_t host_bytes = hd_memory_available_bytes();
    if (request.weights_bytes > host_bytes || o->warm_memory > host_bytes - request.weights_bytes) {
        return hd_error_set(error, HD_NO_MEMORY,
                            "the weights pass through this process's memory: they take %s and --warm-memory %s, of %s",
                            hd_format_size(request.weights_bytes, weights, sizeof(weights)),
                            hd_format_size(o->warm_memory, warm, sizeof(warm)),
                            hd_format_size(host_bytes, host, sizeof(host)));
    }
    status = memory_plan_make(&request, memory, error);
    if (status == HD_OK) memory->warm_bytes = o->warm_memory; /* of the host's memory, pinned */
    return status;
}

static hd_status open_device(const char *name, kernel_device **device, kernel_queue **queue, hd_error *error) {
    hd_status status;
    if (strcmp(name, "emulated") == 0) {
        status = kernel_device_emulated_open(device);
        if (status != HD_OK) return hd_error_set(error, status, "no memory for the emulator");
    } else {
        status = kernel_device_cuda_open(0, device, error);
        if (status != HD_OK) return status;
    }
    status = (*device)->ops->queue_open(*device, queue);
    return status == HD_OK ? HD_OK : hd_error_set(error, status, "%s gives no queue", (*device)->facts.name);
}

static hd_status try_device(const node_options *o, node *n, hd_error *error) {
    hd_status status = check_flags(o, &n->settings, error);
    if (status == HD_OK) status = worker_device_check(n->config, n->settings.weights_dtype, error);
    if (status == HD_OK) status = open_device(o->device, &n->device, &n->queue, error);
    if (status == HD_OK) status = check_attention(o, n, n->queue, error);
    if (status == HD_OK) status = plan(o, n, &n->device->facts, &n->memory, error);
    if (status != HD_OK) node_device_close(n);
    return status;
}

hd_status node_device_choose(const node_options *o, node *n, hd_error *error) {
    char quoted[600];
    hd_error reason = {.text = ""};
    if (strcmp(o->device, "cpu") == 0) return HD_OK;
    hd_status status = try_device(o, n, &reason);
    if (status == HD_OK) {
        const kernel_device_facts *facts = &n->device->facts;
        hd_log(HD_LOG_INFO, "device", "chosen=%s name=%s capability=%u multiprocessors=%u memory=%zu",
               n->device->ops->name, hd_log_quote(facts->name, quoted, sizeof(quoted)), facts->capability,
               facts->multiprocessors, facts->memory_bytes);
        return HD_OK;
    }
    if (strcmp(o->device, "auto") != 0) return hd_error_set(error, status, "--device %s: %s", o->device, reason.text);
    hd_log(HD_LOG_INFO, "device", "chosen=cpu reason=%s", hd_log_quote(reason.text, quoted, sizeof(quoted)));
    return HD_OK;
}

void node_device_close(node *n) {
    if (n->device == NULL) return;
    if (n->queue != NULL) n->device->ops->queue_close(n->queue);
    n->device->ops->close(n->device);
    n->device = NULL;
    n->queue = NULL;
}

uint64_t node_full_up_to(const node_options *options, const node *n) {
    return n->queue != NULL ? UINT64_MAX : options->full_up_to;
}
