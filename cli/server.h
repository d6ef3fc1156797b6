/* server.h - the coordinator's flags, and a coordinator opened with them on a node.
 *
 * Threads: main thread. */
#ifndef CLI_SERVER_H
#define CLI_SERVER_H

#include "cli/node.h"
#include "coordinator/coordinator.h"

typedef struct server_options {
    const char *listen, *api_keys;
    uint64_t max_body, request_timeout, queue_timeout; /* bytes; milliseconds, 0 for none */
    uint64_t stall_timeout, keep_alive;                /* milliseconds */
    uint64_t http_threads;                             /* 0: by the number of CPUs */
    uint64_t default_max_tokens;
} server_options;

#define SERVER_OPTIONS_DEFAULTS                                                                                        \
    {                                                                                                                  \
        .listen = "127.0.0.1:8000", .max_body = (uint64_t)64 << 20, .default_max_tokens = 4096,                        \
        .stall_timeout = 30000, .keep_alive = 10000                                                                    \
    }

/* Fills flags and returns how many. */
size_t server_options_flags(server_options *options, hd_flag *flags);
hd_status server_options_check(const server_options *options, hd_error *error);

/* node has a worker. The caller closes the coordinator before the node. */
hd_status server_open(const server_options *options, const node *node, coordinator **out, hd_error *error);
/* In front of a cluster. operator_listen may be NULL. The caller closes the coordinator before the router. */
hd_status server_open_cluster(const server_options *options, router *routes, const model_set *models,
                              const char *operator_listen, hd_metrics *metrics, coordinator **out, hd_error *error);

#endif
