/* offload.c - membership on one side, a set of attention nodes on the other. */
#include "cli/offload.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "worker/worker.h"

#define LINK_MS 1000u /* for a link and its first answer */
#define LOOK_MS 1500u /* for a view of the cluster */

size_t offload_options_flags(offload_options *o, hd_flag *flags) {
    const hd_flag own[] = {
        {"attention", HD_FLAG_STRING, &o->attention, "auto|nodes|local",
         "where KV is: on attention nodes, in this process, or on nodes where there are any", false},
        {"kv-replicas", HD_FLAG_U64, &o->replicas, "N", "attention nodes that keep the same", false},
        {"kv-lanes", HD_FLAG_U64, &o->lanes, "N",
         "parts that the KV heads are split into over attention nodes; the same for all workers of a model", false},
        {"kv-range", HD_FLAG_U64, &o->range_tokens, "TOKENS",
         "a context up to so long lies on one attention node where it fits; a power of two", false},
        {"micro-batches", HD_FLAG_STRING, &o->micro_batches, "auto|N",
         "parts of a step that take turns at attention nodes and products, 1 to 4; auto measures", false},
        {"prefill-at", HD_FLAG_STRING, &o->prefill_at, "worker|nodes|auto",
         "where prompts attend; auto: here where --hot-memory is given and nodes compute less", false},
        {"attention-timeout", HD_FLAG_DURATION, &o->answer_timeout, "TIME",
         "an attention node that has not answered after so long is lost", false},
        {"replica-timeout", HD_FLAG_DURATION, &o->late, "TIME",
         "with --kv-replicas: an attention node that is so much later than others with the same is given up", false},
        {"attention-wait", HD_FLAG_DURATION, &o->wait, "TIME", "for attention nodes at start", false},
    };
    memcpy(flags, own, sizeof(own));
    return sizeof(own) / sizeof(own[0]);
}

static bool is_one_of(const char *text, const char *a, const char *b, const char *c) {
    return strcmp(text, a) == 0 || strcmp(text, b) == 0 || strcmp(text, c) == 0;
}

static uint32_t micro_batches_of(const offload_options *o) {
    return strcmp(o->micro_batches, "auto") == 0 ? 0 : (uint32_t)(o->micro_batches[0] - '0');
}

hd_status offload_options_check(const offload_options *o, hd_error *error) {
    if (!is_one_of(o->attention, "auto", "nodes", "local"))
        return hd_error_set(error, HD_INVALID, "--attention: '%s' is none of auto, nodes, local", o->attention);
    if (!is_one_of(o->prefill_at, "worker", "nodes", "auto"))
        return hd_error_set(error, HD_INVALID, "--prefill-at: '%s' is none of worker, nodes, auto", o->prefill_at);
    if (o->range_tokens < 1024 || (o->range_tokens & (o->range_tokens - 1)) != 0)
        return hd_error_set(error, HD_INVALID, "--kv-range must be a power of two, and at least 1024");
    if (o->replicas == 0 || o->replicas > PLACEMENT_REPLICAS_MAX)
        return hd_error_set(error, HD_INVALID, "--kv-replicas must be 1 to %u", PLACEMENT_REPLICAS_MAX);
    if (o->lanes == 0 || o->lanes > PLACEMENT_NODES_MAX)
        return hd_error_set(error, HD_INVALID, "--kv-lanes must be 1 to %u", PLACEMENT_NODES_MAX);
    bool is_number = o->micro_batches[0] >= '1' && o->micro_batches[0] <= '4' && o->micro_batches[1] == '\0';
    if (!is_number && strcmp(o->micro_batches, "auto") != 0)
        return hd_error_set(error, HD_INVALID, "--micro-batches: '%s' is neither auto nor 1 to 4", o->micro_batches);
    return HD_OK;
}

/* ---- What membership says, on the loop's thread ---- */

static void on_node(void *context, const membership_node *told) {
    offload *o = context;
    if (strcmp(told->role, "attention-node") != 0) return;
    if (node_set_put(o->set, told->id, told->address, told->state != NODE_READY) != HD_OK)
        hd_log(HD_LOG_WARN, "attention_node_ignored", "node=%s reason=too_many", told->id);
}

static void on_gone(void *context, const char *id) {
    node_set_remove(((offload *)context)->set, id);
}

static void follow(void *context) {
    static const membership_handlers handlers = {.on_node = on_node, .on_gone = on_gone};
    offload *o = context;
    (void)o->cluster->membership->ops->follow(o->cluster->membership, &handlers, o);
}

/* ---- In the place of an engine ---- */

/* Memory for prompts that are prefilled here. */
static uint64_t stage_bytes(const offload *o, const node *n) {
    if (strcmp(o->options->prefill_at, "worker") == 0) return n->memory.hot_bytes;
    return strcmp(o->options->prefill_at, "auto") == 0 && o->node->hot_memory > 0 ? n->memory.hot_bytes : 0;
}

static hd_status open_set(offload *o, const node *n, hd_error *error) {
    attention_layer_table layers;
    hd_status status = transport_grpc_open(o->cluster->tls, &o->wire);
    if (status == HD_OK) status = worker_layer_table(n->config, n->settings.kv_dtype, &layers);
    if (status != HD_OK) return hd_error_set(error, status, "no memory for the links to attention nodes");
    node_set_config config = {.sharded = {.layers = layers,
                                          .kv_dtype = n->settings.kv_dtype,
                                          .step_rows_max = (uint32_t)o->node->max_batch_tokens,
                                          .sequences_max = n->running_max,
                                          .range_min = o->options->range_tokens,
                                          .replicas = (uint32_t)o->options->replicas,
                                          .late_ms = o->options->late,
                                          .stage_where_faster = strcmp(o->options->prefill_at, "auto") == 0,
                                          .kernels = n->kernels,
                                          .pool = n->pool},
                              .lanes = (uint32_t)o->options->lanes,
                              .stage_bytes = stage_bytes(o, n),
                              .transport = o->wire,
                              .model_name = n->settings.model_name,
                              .answer_ms = o->options->answer_timeout,
                              .link_ms = LINK_MS};
    memcpy(config.fingerprint, n->weights->fingerprint, sizeof(config.fingerprint));
    status = node_set_open(&config, &o->set, error);
    free((void *)layers.streams);
    free((void *)layers.layers);
    return status;
}

/* Nodes do not have the worker's file, and must not answer as if there were none. */
static hd_status check_overrides(const offload *o, hd_error *error) {
    if (o->node->selection_overrides == NULL) return HD_OK;
    return hd_error_set(error, HD_UNSUPPORTED,
                        "--selection-overrides works where keys and values are in this process: leave it out, or give "
                        "--attention local");
}

static hd_status open_attention(void *context, node *n, hd_error *error) {
    offload *o = context;
    bool is_auto = strcmp(o->options->attention, "auto") == 0;
    hd_status status = open_set(o, n, error);
    if (status != HD_OK) return status;
    rpc_loop_call(o->cluster->loop, follow, o);
    if (is_auto) {
        status = node_set_wait(o->set, LOOK_MS, error);
        if (status == HD_TIMED_OUT && node_set_is_empty(o->set)) {
            hd_log(HD_LOG_INFO, "no_attention_nodes", "attention=local");
            return HD_OK; /* node->attention unset: an engine */
        }
    }
    if (status != HD_OK || !is_auto) {
        hd_log(HD_LOG_INFO, "waiting_for_attention_nodes", "lanes=%llu", (unsigned long long)o->options->lanes);
        status = node_set_wait(o->set, o->options->wait, error);
    }
    if (status == HD_OK) status = check_overrides(o, error);
    if (status == HD_OK) n->attention = node_set_attention(o->set);
    return status;
}

void offload_prepare(offload *o, const offload_options *options, const node_options *node_flags, cluster *in,
                     node_settings *settings) {
    settings->micro_batches = micro_batches_of(options);
    if (strcmp(options->attention, "local") == 0) return;
    *o = (offload){.options = options, .node = node_flags, .cluster = in};
    settings->open_attention = open_attention;
    settings->context = o;
}

void offload_close(offload *o) {
    if (o->cluster != NULL && o->cluster->loop != NULL)
        cluster_leave(o->cluster); /* nobody tells the set of nodes any more */
    node_set_close(o->set);
    if (o->wire != NULL) o->wire->ops->close(o->wire);
    *o = (offload){.set = NULL};
}
