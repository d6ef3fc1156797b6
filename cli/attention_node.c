/* attention_node.c - the role that keeps keys and values, until a signal ends it. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "attention-node/attention_service.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "cli/cluster.h"
#include "cli/command.h"
#include "cli/memory_plan.h"
#include "cli/node_options.h"
#include "cli/signals.h"
#include "proto/node_service.h"

/* Of what there is: for links, their steps and indexes that are being built, where no --hot-memory is given. */
#define REST_SHARE 5u
#define REST_LEAST_BYTES ((uint64_t)64 << 20)
#define INDEX_SHARE 8u /* of the hot memory */

static struct {
    cluster_options cluster;
    uint64_t hot_memory, warm_memory, cold_size, threads, max_workers, orphan_timeout;
    const char *cold_dir, *index_memory, *kv_dtype, *listen, *kernels, *log_level;
} options = {.cluster = CLUSTER_OPTIONS_DEFAULTS,
             .max_workers = 16,
             .orphan_timeout = 60000,
             .index_memory = "auto",
             .kv_dtype = "auto",
             .log_level = "info"};

static size_t attention_node_flags(hd_flag *flags) {
    const hd_flag own[] = {
        {"listen", HD_FLAG_STRING, &options.listen, "HOST:PORT", "where workers connect", false},
        {"hot-memory", HD_FLAG_SIZE, &options.hot_memory, "BYTES",
         "memory for keys and values (default: 80 % of what is available, less the warm memory)", false},
        {"warm-memory", HD_FLAG_SIZE, &options.warm_memory, "BYTES",
         "more of it; with a cold tier, for pages that come from there (then by default a quarter of what is left)",
         false},
        {"cold-dir", HD_FLAG_STRING, &options.cold_dir, "DIR",
         "directory for keys and values that memory does not hold; finished prompts are found there after a restart",
         false},
        {"cold-size", HD_FLAG_SIZE, &options.cold_size, "BYTES", "files in --cold-dir, taken at start", false},
        {"index-memory", HD_FLAG_STRING, &options.index_memory, "auto|BYTES",
         "of the hot memory, for indexes; auto is an eighth; with 0 no request is served by retrieval here", false},
        {"kv-dtype", HD_FLAG_STRING, &options.kv_dtype, "auto|f32|bf16|int8",
         "how keys and values are kept; auto: as the first worker says, else other workers are refused", false},
        {"threads", HD_FLAG_U64, &options.threads, "N", "compute threads (default: the CPUs this process may use)",
         false},
        {"kernels", HD_FLAG_STRING, &options.kernels, "NAME",
         "the table of kernels (default: the best that this CPU runs)", false},
        {"max-workers", HD_FLAG_U64, &options.max_workers, "N",
         "links of workers at once: one for each micro-batch, so a worker mostly has two", false},
        {"orphan-timeout", HD_FLAG_DURATION, &options.orphan_timeout, "TIME",
         "how long a lost worker's sequences wait for another one", false},
        {"log-level", HD_FLAG_STRING, &options.log_level, "debug|info|warn|error", "what is logged", false},
    };
    size_t count = cluster_options_flags(&options.cluster, flags);
    memcpy(flags + count, own, sizeof(own));
    return count + sizeof(own) / sizeof(own[0]);
}

typedef struct {
    cluster cluster;
    hd_pool *pool;
    transport *transport, *pages; /* steps, and blocks between nodes: threads and connections of their own */
    attention_service *service;
    node_service control;
    rpc_server *server;
} role;

static hd_dtype kv_dtype_of(const char *name) {
    return strcmp(name, "f32") == 0 ? HD_F32 : strcmp(name, "int8") == 0 ? HD_INT8 : HD_BF16;
}

static void close_role(role *r) {
    if (r->cluster.loop != NULL) cluster_leave(&r->cluster);
    attention_service_close(r->service);
    rpc_server_close(r->server);
    if (r->transport != NULL) r->transport->ops->close(r->transport);
    if (r->pages != NULL) r->pages->ops->close(r->pages);
    cluster_close(&r->cluster);
    hd_pool_close(r->pool);
}

static void on_usage(void *context, node_usage *usage) {
    role *r = context;
    attention_service_state state;
    attention_service_state_read(r->service, &state);
    *usage =
        (node_usage){.kv_bytes = (state.stats.blocks_sequences + state.stats.blocks_reserved) * state.stats.block_bytes,
                     .kv_capacity = r->cluster.node.kv_capacity,
                     .sequences = state.stats.sequences,
                     .appended_tokens = state.stats.appended_tokens,
                     .knows_safety = true,
                     .is_safe = state.is_drained};
}

static void on_drain(void *context, bool is_draining) {
    role *r = context;
    attention_service_set_draining(r->service, is_draining);
    cluster_set_state(&r->cluster, is_draining ? NODE_DRAINING : NODE_READY);
    hd_log(HD_LOG_INFO, is_draining ? "draining" : "undrained", "node=%s", r->cluster.node.id);
}

static hd_status plan_memory(attention_service_config *config, hd_error *error) {
    uint64_t available = hd_memory_available_bytes(), limit = hd_memory_limit_bytes();
    uint64_t usable = available < limit ? available : limit, index_bytes = 0;
    bool is_auto = strcmp(options.index_memory, "auto") == 0;
    if (!is_auto) (void)hd_parse_size(options.index_memory, &index_bytes); /* checked with the other flags */
    memory_request request = {.usable_bytes = usable,
                              .working_bytes = options.hot_memory > 0 ? REST_LEAST_BYTES : usable / REST_SHARE,
                              .kv_bytes_per_token = 1, /* no model is known here */
                              .hot_bytes = options.hot_memory,
                              .warm_bytes = options.warm_memory,
                              .cold_bytes = options.cold_size,
                              .index_bytes = index_bytes};
    memory_plan plan;
    hd_status status = memory_plan_make(&request, &plan, error);
    if (status != HD_OK) return status;
    config->index_is_optional = is_auto;
    config->index_bytes = is_auto ? plan.hot_bytes / INDEX_SHARE : index_bytes;
    config->hot_bytes = plan.hot_bytes - config->index_bytes;
    config->warm_bytes = plan.warm_bytes;
    return HD_OK;
}

/* The tier is opened with the first worker's model; a directory that cannot be one is refused before there is any. */
static hd_status check_cold(hd_error *error) {
    struct stat found;
    if (options.cold_dir == NULL) return HD_OK;
    if (stat(options.cold_dir, &found) == 0 && !S_ISDIR(found.st_mode))
        return hd_error_set(error, HD_INVALID, "--cold-dir %s is no directory", options.cold_dir);
    if (mkdir(options.cold_dir, 0700) != 0 && errno != EEXIST)
        return hd_error_set(error, HD_IO, "--cold-dir %s: %s", options.cold_dir, strerror(errno));
    if (access(options.cold_dir, R_OK | W_OK | X_OK) != 0)
        return hd_error_set(error, HD_IO, "--cold-dir %s: %s", options.cold_dir, strerror(errno));
    return HD_OK;
}

static void log_configuration(const attention_service_config *config) {
    char sizes[4][2][48], directory[1024];
    const uint64_t bytes[4] = {config->hot_bytes, config->warm_bytes, config->cold_bytes, config->index_bytes};
    for (int i = 0; i < 4; i++) {
        hd_format_size(bytes[i], sizes[i][0], sizeof(sizes[i][0]));
        hd_log_quote(sizes[i][0], sizes[i][1], sizeof(sizes[i][1]));
    }
    hd_log(HD_LOG_INFO, "configuration",
           "role=attention-node hot_memory=%s warm_memory=%s cold_dir=%s cold_size=%s index_memory=%s kv=%s kernels=%s "
           "threads=%u",
           sizes[0][1], sizes[1][1],
           hd_log_quote(options.cold_dir != NULL ? options.cold_dir : "", directory, sizeof(directory)), sizes[2][1],
           sizes[3][1], options.kv_dtype, config->kernels->name, hd_pool_thread_count(config->pool));
}

static hd_status open_service(role *r, hd_error *error) {
    attention_service_config config = {.cold_directory = options.cold_dir,
                                       .cold_bytes = options.cold_size,
                                       .links_max = (uint32_t)options.max_workers,
                                       .orphan_ms = options.orphan_timeout};
    config.has_kv_dtype = strcmp(options.kv_dtype, "auto") != 0;
    if (config.has_kv_dtype) config.kv_dtype = kv_dtype_of(options.kv_dtype);
    hd_status status = plan_memory(&config, error);
    if (status == HD_OK) status = check_cold(error);
    if (status != HD_OK) return status;
    if (getrandom(config.key, sizeof(config.key), 0) != (ssize_t)sizeof(config.key))
        return hd_error_set(error, HD_IO, "the system gave no random bytes");
    status = kernel_ops_choose(options.kernels, &config.kernels, error);
    if (status != HD_OK) return status;
    status = hd_pool_open((unsigned)options.threads, &r->pool);
    if (status != HD_OK)
        return hd_error_set(error, status, "cannot start %llu threads", (unsigned long long)options.threads);
    config.pool = r->pool;
    status = transport_grpc_open(r->cluster.tls, &r->transport);
    if (status == HD_OK) status = transport_grpc_open(r->cluster.tls, &r->pages);
    config.pages = r->pages;
    if (status == HD_OK) status = attention_service_open(&config, &r->service);
    if (status != HD_OK) return hd_error_set(error, status, "no memory for the service");
    log_configuration(&config);
    r->cluster.node.kv_capacity = config.hot_bytes + (config.cold_bytes > 0 ? config.cold_bytes : config.warm_bytes);
    snprintf(r->cluster.node.kernels, sizeof(r->cluster.node.kernels), "%s", config.kernels->name);
    return HD_OK;
}

static hd_status open_role(role *r, hd_error *error) {
    hd_status status = cluster_open(&options.cluster, "attention-node", &r->cluster, error);
    if (status == HD_OK) status = open_service(r, error);
    if (status != HD_OK) return status;
    rpc_method methods[2 + NODE_SERVICE_METHODS];
    status = transport_grpc_listen(r->transport, "step", attention_service_accept, r->service, &methods[0]);
    if (status == HD_OK)
        status = transport_grpc_listen(r->pages, "pages", attention_service_accept_pages, r->service, &methods[1]);
    r->control.node = &r->cluster.node;
    r->control.usage = on_usage;
    r->control.on_drain = on_drain;
    r->control.context = r;
    node_service_methods(&r->control, rpc_loop_queue(r->cluster.loop), methods + 2);
    rpc_server_config serving = {.listen_address = options.listen,
                                 .tls = r->cluster.tls,
                                 .methods = methods,
                                 .method_count = 2 + NODE_SERVICE_METHODS};
    if (status == HD_OK) status = rpc_server_open(&serving, &r->server, error);
    if (status == HD_OK) status = attention_service_start(r->service, r->transport);
    if (status != HD_OK) return error->text[0] != '\0' ? status : hd_error_set(error, status, "cannot serve");
    status = cluster_join(&r->cluster, &options.cluster, rpc_server_address(r->server), error);
    if (status == HD_OK)
        hd_log(HD_LOG_INFO, "listening", "address=%s role=attention-node", rpc_server_address(r->server));
    return status;
}

/* Nothing new comes; what is here goes to other nodes, or goes on until it is done, or the time is over. */
static void drain(role *r) {
    on_drain(r, true);
    uint64_t deadline = hd_now_ns() + options.cluster.drain_timeout * 1000000u;
    for (;;) {
        attention_service_state state;
        attention_service_state_read(r->service, &state);
        if (state.is_drained || hd_now_ns() >= deadline) {
            hd_log(HD_LOG_INFO, "drained", "sequences_left=%llu", (unsigned long long)state.stats.sequences);
            return;
        }
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    }
}

static hd_status check_options(hd_error *error) {
    if ((options.cold_dir != NULL) != (options.cold_size > 0))
        return hd_error_set(error, HD_INVALID, "--cold-dir and --cold-size go together, and one of them is missing");
    const char *kv = options.kv_dtype;
    if (strcmp(kv, "auto") != 0 && strcmp(kv, "f32") != 0 && strcmp(kv, "bf16") != 0 && strcmp(kv, "int8") != 0)
        return hd_error_set(error, HD_INVALID, "--kv-dtype: '%s' is none of auto, f32, bf16, int8", kv);
    uint64_t bytes;
    const char *index = options.index_memory;
    if (strcmp(index, "auto") != 0 && hd_parse_size(index, &bytes) != HD_OK)
        return hd_error_set(error, HD_INVALID, "--index-memory: '%s' is neither auto nor a size such as 512M or 16G",
                            index);
    return HD_OK;
}

static cli_exit attention_node_run(const cli_command *command, const cli_arguments *arguments) {
    hd_error error = {{0}};
    hd_status status = node_options_log_level(options.log_level, &error);
    if (status == HD_OK && options.listen == NULL)
        status = hd_error_set(&error, HD_INVALID, "--listen is missing: HOST:PORT");
    if (status == HD_OK) status = cluster_options_check(&options.cluster, &error);
    if (status == HD_OK) status = check_options(&error);
    if (status != HD_OK) return cli_misuse(command, &error);
    if (options.max_workers == 0 || options.max_workers > 1024) {
        hd_error_set(&error, HD_INVALID, "--max-workers must be 1 to 1024");
        return cli_misuse(command, &error);
    }
    signals_load();
    role r = {.pool = NULL};
    status = open_role(&r, &error);
    if (status == HD_OK) {
        signals_hold();
        const char *signal_name = signals_wait();
        hd_log(HD_LOG_INFO, "ending", "signal=%s second_signal=ends_at_once", signal_name);
        drain(&r);
    }
    close_role(&r);
    if (status != HD_OK) return cli_fail(&error);
    hd_log(HD_LOG_INFO, "ended", "status=ok");
    return CLI_DONE;
}

const cli_command attention_node_command = {
    .name = "attention-node",
    .arguments = "",
    .summary = "keep keys and values for the workers of a cluster, and attend to them",
    .details =
        "Joins a cluster as an attention node. It knows no model: the first worker that links says what is kept.\n"
        "    hadal attention-node --etcd http://10.0.0.1:2379 --listen 10.0.0.7:7001 --hot-memory 200G\n"
        "    hadal attention-node --etcd http://10.0.0.1:2379 --listen 10.0.0.7:7001 --hot-memory 100G "
        "--warm-memory 40G \\\n        --cold-dir /mnt/kv --cold-size 2T\n"
        "SIGTERM takes nothing new, waits until other nodes have what is here (--drain-timeout), then ends; a second "
        "one "
        "ends at once.\n",
    .positionals_min = 0,
    .positionals_max = 0,
    .flags = attention_node_flags,
    .run = attention_node_run,
};
