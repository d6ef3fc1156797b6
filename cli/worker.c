/* worker.c - weights and matrix products of one model, for the coordinators of a cluster. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "cli/cluster.h"
#include "cli/command.h"
#include "cli/node.h"
#include "cli/offload.h"
#include "cli/signals.h"
#include "proto/collective.h"
#include "proto/node_service.h"
#include "worker/worker_service.h"

#define DRAIN_POLL_US 20000u
#define DRAIN_LEAST_MS 300u /* for coordinators to see the state before connections end */

static struct {
    node_options node;
    cluster_options cluster;
    offload_options offload;
    const char *model, *listen;
} options = {.node = NODE_OPTIONS_DEFAULTS, .cluster = CLUSTER_OPTIONS_DEFAULTS, .offload = OFFLOAD_OPTIONS_DEFAULTS};

typedef struct running {
    node node;
    cluster cluster;
    offload offload;
    worker_service *service;
    node_service control;
    rpc_server *server;
} running;

static size_t worker_flags(hd_flag *flags) {
    const hd_flag own[] = {
        {"model", HD_FLAG_STRING, &options.model, "MODEL_DIR", "the model's directory, as downloaded", false},
        {"listen", HD_FLAG_STRING, &options.listen, "HOST:PORT", "where coordinators connect", false},
    };
    memcpy(flags, own, sizeof(own));
    size_t count = sizeof(own) / sizeof(own[0]);
    count += cluster_options_flags(&options.cluster, flags + count);
    count += offload_options_flags(&options.offload, flags + count);
    return count + node_options_flags(&options.node, flags + count);
}

static hd_status check_options(node_settings *settings, hd_error *error) {
    if (options.model == NULL) return hd_error_set(error, HD_INVALID, "--model is missing: a model directory");
    if (options.listen == NULL) return hd_error_set(error, HD_INVALID, "--listen is missing: HOST:PORT");
    options.node.model_directory = options.model;
    hd_status status = cluster_options_check(&options.cluster, error);
    if (status == HD_OK) status = offload_options_check(&options.offload, error);
    return status == HD_OK ? node_options_check(&options.node, settings, error) : status;
}

static void on_usage(void *context, node_usage *usage) {
    running *r = context;
    worker_rpc *rpc = worker_rpc_of(r->node.worker);
    worker_load load;
    rpc->ops->load(rpc, &load);
    uint64_t block_bytes = load.blocks_total > 0 ? r->cluster.node.kv_capacity / load.blocks_total : 0;
    *usage = (node_usage){.kv_bytes = (load.blocks_sequences + load.blocks_reserved) * block_bytes,
                          .kv_capacity = r->cluster.node.kv_capacity,
                          .sequences = worker_service_requests(r->service)};
}

static void on_drain(void *context, bool is_draining) {
    running *r = context;
    worker_service_set_draining(r->service, is_draining);
    cluster_set_state(&r->cluster, is_draining ? NODE_DRAINING : NODE_READY);
    hd_log(HD_LOG_INFO, is_draining ? "draining" : "undrained", "node=%s requests=%u", r->cluster.node.id,
           worker_service_requests(r->service));
}

/* The record that others see; address and id follow with the join. */
static void describe(running *r) {
    worker_info info;
    worker_rpc *rpc = worker_rpc_of(r->node.worker);
    rpc->ops->info(rpc, &info);
    membership_node *n = &r->cluster.node;
    snprintf(n->model, sizeof(n->model), "%s", info.model_name);
    snprintf(n->kernels, sizeof(n->kernels), "%s", info.kernels);
    snprintf(n->weights_dtype, sizeof(n->weights_dtype), "%s", info.weights_dtype);
    snprintf(n->kv_dtype, sizeof(n->kv_dtype), "%s", info.kv_dtype);
    for (size_t i = 0; i < sizeof(r->node.weights->fingerprint); i++)
        snprintf(n->fingerprint + 2 * i, 3, "%02x", r->node.weights->fingerprint[i]);
    n->kv_capacity = info.kv_bytes;
}

static hd_status start(running *r, hd_error *error) {
    worker_service_config config = {.worker = worker_rpc_of(r->node.worker),
                                    .loop = r->cluster.loop,
                                    .node_id = r->cluster.node.id,
                                    .model_directory = options.model,
                                    .fingerprint = r->node.weights->fingerprint};
    hd_status status = worker_service_open(&config, &r->service, error);
    if (status != HD_OK) return status;
    rpc_method methods[WORKER_SERVICE_METHODS + NODE_SERVICE_METHODS];
    worker_service_methods(r->service, methods);
    r->control.node = &r->cluster.node;
    r->control.usage = on_usage;
    r->control.on_drain = on_drain;
    r->control.context = r;
    node_service_methods(&r->control, rpc_loop_queue(r->cluster.loop), methods + WORKER_SERVICE_METHODS);
    rpc_server_config server = {.listen_address = options.listen,
                                .tls = r->cluster.tls,
                                .methods = methods,
                                .method_count = WORKER_SERVICE_METHODS + NODE_SERVICE_METHODS};
    status = rpc_server_open(&server, &r->server, error);
    if (status != HD_OK) return status;
    describe(r);
    status = cluster_join(&r->cluster, &options.cluster, rpc_server_address(r->server), error);
    if (status == HD_OK) hd_log(HD_LOG_INFO, "listening", "address=%s role=worker", rpc_server_address(r->server));
    return status;
}

/* Coordinators move what runs here to other workers; what has nowhere to go may end here, in time. */
static void drain(running *r) {
    uint64_t begin = hd_now_ns(), until = begin + options.cluster.drain_timeout * 1000000u;
    on_drain(r, true);
    while (hd_now_ns() < until &&
           (worker_service_requests(r->service) > 0 || hd_now_ns() - begin < DRAIN_LEAST_MS * 1000000u))
        usleep(DRAIN_POLL_US);
    uint32_t left = worker_service_requests(r->service);
    if (left > 0) hd_log(HD_LOG_WARN, "drain_timeout", "node=%s requests=%u", r->cluster.node.id, left);
}

/* Rank 0 drains and ends, and the others with it: signals are its business. Who ends without closing the collective
 * takes the others along (collective.h). */
static cli_exit serve_rank(const node_settings *settings, hd_error *error) {
    signals_hold();
    hd_status status = node_serve_rank(&options.node, settings, error);
    if (status != HD_OK) return cli_fail(error);
    settings->collective->ops->close(settings->collective);
    hd_log(HD_LOG_INFO, "ended", "status=ok");
    return CLI_DONE;
}

static cli_exit worker_run(const cli_command *command, const cli_arguments *arguments) {
    hd_error error = {{0}};
    node_settings settings;
    running r = {.server = NULL};
    if (check_options(&settings, &error) != HD_OK) return cli_misuse(command, &error);
    settings.takes_device = true; /* with --attention local */
    signals_load();
    hd_status status = HD_OK;
    if (collective_mpi_is_there()) status = collective_mpi_open(&settings.collective, &error);
    if (status == HD_OK && settings.collective != NULL && settings.collective->rank > 0)
        return serve_rank(&settings, &error);
    if (status == HD_OK) status = cluster_open(&options.cluster, "worker", &r.cluster, &error);
    if (status == HD_OK) offload_prepare(&r.offload, &options.offload, &options.node, &r.cluster, &settings);
    if (status == HD_OK) status = node_open(&options.node, &settings, true, &r.node, &error);
    if (status == HD_OK) status = node_start(&options.node, &r.node, &error);
    if (status == HD_OK) status = start(&r, &error);
    if (status == HD_OK) {
        signals_hold();
        const char *signal_name = signals_wait();
        hd_log(HD_LOG_INFO, "ending", "signal=%s second_signal=ends_at_once", signal_name);
        drain(&r);
    }
    if (r.cluster.loop != NULL) cluster_leave(&r.cluster);
    rpc_server_close(r.server); /* which ends the sessions and cancels their requests */
    node_close(&r.node, 0);
    offload_close(&r.offload);
    cluster_close(&r.cluster);
    worker_service_close(r.service);
    if (status != HD_OK) return cli_fail(&error);
    if (settings.collective != NULL) settings.collective->ops->close(settings.collective);
    hd_log(HD_LOG_INFO, "ended", "status=ok");
    return CLI_DONE;
}

const cli_command worker_command = {
    .name = "worker",
    .arguments = "",
    .summary = "one model's weights, for the coordinators of a cluster",
    .details = "Loads a model and takes its requests from the coordinators that meet in the same etcd.\n"
               "    hadal worker --etcd http://10.0.0.1:2379 --model ./Llama-3.2-1B-Instruct --listen 10.0.0.7:7000\n"
               "SIGTERM drains: coordinators move what runs here to other workers of the model, between two tokens; a "
               "second one\n"
               "ends at once. With mpirun, the model's weights are shared out over as many processes:\n"
               "    mpirun -n 2 hadal worker ...\n",
    .positionals_min = 0,
    .positionals_max = 0,
    .flags = worker_flags,
    .run = worker_run,
};
