/* coordinator.c - the address that clients talk to, in front of the workers of a cluster. */
#include <string.h>

#include "base/log.h"
#include "cli/cluster.h"
#include "cli/command.h"
#include "cli/server.h"
#include "cli/signals.h"
#include "coordinator/router.h"

static struct {
    server_options server;
    cluster_options cluster;
    const char *operator_listen, *log_level;
} options = {.server = SERVER_OPTIONS_DEFAULTS, .cluster = CLUSTER_OPTIONS_DEFAULTS, .log_level = "info"};

static size_t coordinator_flags(hd_flag *flags) {
    const hd_flag own[] = {
        {"operator-listen", HD_FLAG_STRING, &options.operator_listen, "HOST:PORT",
         "where operators connect (default: --listen, with an admin key where there are keys)", false},
        {"log-level", HD_FLAG_STRING, &options.log_level, "debug|info|warn|error", "what is logged", false},
    };
    memcpy(flags, own, sizeof(own));
    size_t count = sizeof(own) / sizeof(own[0]);
    count += server_options_flags(&options.server, flags + count);
    return count + cluster_options_flags(&options.cluster, flags + count);
}

static hd_status check_options(hd_error *error) {
    hd_status status = server_options_check(&options.server, error);
    if (status == HD_OK) status = cluster_options_check(&options.cluster, error);
    return status == HD_OK ? node_options_log_level(options.log_level, error) : status;
}

static cli_exit coordinator_run(const cli_command *command, const cli_arguments *arguments) {
    static model_set models;
    hd_error error = {{0}};
    cluster c = {.loop = NULL};
    router *routes = NULL;
    coordinator *front = NULL;
    hd_metrics *metrics = NULL;
    if (check_options(&error) != HD_OK) return cli_misuse(command, &error);
    signals_load();
    hd_status status = hd_metrics_open(&metrics);
    if (status != HD_OK) hd_error_write(&error, "no memory for metrics");
    if (status == HD_OK) status = cluster_open(&options.cluster, "coordinator", &c, &error);
    if (status == HD_OK) {
        router_config config = {
            .loop = c.loop, .membership = c.membership, .tls = c.tls, .models = &models, .metrics = metrics};
        status = router_open(&config, &routes, &error);
    }
    if (status == HD_OK)
        status =
            server_open_cluster(&options.server, routes, &models, options.operator_listen, metrics, &front, &error);
    if (status == HD_OK) status = cluster_join(&c, &options.cluster, coordinator_address(front), &error);
    if (status == HD_OK) {
        signals_hold();
        const char *signal_name = signals_wait();
        hd_log(HD_LOG_INFO, "ending", "signal=%s second_signal=ends_at_once", signal_name);
        cluster_set_state(&c, NODE_DRAINING);
    }
    coordinator_close(front, options.cluster.drain_timeout);
    router_close(routes);
    cluster_close(&c);
    hd_metrics_close(metrics);
    if (status != HD_OK) return cli_fail(&error);
    hd_log(HD_LOG_INFO, "ended", "status=ok");
    return CLI_DONE;
}

const cli_command coordinator_command = {
    .name = "coordinator",
    .arguments = "",
    .summary = "the OpenAI API in front of a cluster's workers",
    .details =
        "Serves every model that the cluster's workers have. Several may run; each knows its own requests.\n"
        "    hadal coordinator --etcd http://10.0.0.1:2379 --listen 127.0.0.1:8000 --operator-listen 127.0.0.1:8001\n"
        "SIGTERM finishes what runs, within --drain-timeout; a second one ends at once.\n",
    .positionals_min = 0,
    .positionals_max = 0,
    .flags = coordinator_flags,
    .run = coordinator_run,
};
