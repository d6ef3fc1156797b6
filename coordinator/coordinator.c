/* coordinator.c - opens the parts in the order in which they need each other, and ends them in reverse.
 *
 * The ticker is the one thread that looks at the clock for all requests: a table of a few thousand entries every 50 ms
 * costs less than a timer for each. */
#include "coordinator/coordinator.h"

#include <pthread.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/memory.h"
#include "base/threads.h"
#include "coordinator/api.h"
#include "coordinator/generation.h"
#include "coordinator/listen_address.h"

#define TICK_NS 50000000L
#define IDLE_TIMEOUT_S 120u
#define FLUSH_MS 2000u /* for the last answers to leave */
#define BODIES_BYTES_MAX (1ull << 30)
#define OPERATOR_CONNECTIONS_MAX 64u
#define OPERATOR_BODY_BYTES (64u << 10)

struct coordinator {
    api api;
    model_set models; /* of a process with a worker of its own */
    served_model model;
    api_port port, operator_port;
    http_server *operator_http; /* NULL: operators come to the clients' port */
    char address[LISTEN_ADDRESS_BYTES], operator_address[LISTEN_ADDRESS_BYTES];
    pthread_t ticker;
    bool has_ticker;
    pthread_mutex_t lock; /* guards is_closing */
    pthread_cond_t closing;
    bool is_closing;
};

static void tick_one(struct generation *g, void *context) {
    generation_tick(g, *(uint64_t *)context);
}

static void end_one(struct generation *g, void *context) {
    generation_end(g);
}

static void *ticker_main(void *context) {
    coordinator *c = context;
    pthread_mutex_lock(&c->lock);
    while (!c->is_closing) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += TICK_NS;
        if (until.tv_nsec >= 1000000000L) {
            until.tv_sec++;
            until.tv_nsec -= 1000000000L;
        }
        pthread_cond_timedwait(&c->closing, &c->lock, &until);
        pthread_mutex_unlock(&c->lock);
        uint64_t now_ns = api_now_ns(&c->api);
        sequence_table_visit(c->api.sequences, tick_one, &now_ns);
        pthread_mutex_lock(&c->lock);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

static unsigned threads_or(unsigned configured, unsigned minimum, unsigned share) {
    if (configured > 0) return configured < minimum ? minimum : configured;
    unsigned threads = hd_cpu_limit() / share;
    return threads < minimum ? minimum : threads > 8 ? 8 : threads;
}

static void init_api(coordinator *c, const coordinator_config *config) {
    api *a = &c->api;
    a->registry = config->metrics;
    a->clock = config->clock != NULL ? *config->clock : hd_clock_system;
    a->body_bytes_max = config->body_bytes_max;
    a->default_max_tokens = config->default_max_tokens;
    a->request_timeout_ms = config->request_timeout_ms;
    a->queue_timeout_ms = config->queue_timeout_ms;
    a->keep_alive_ms = config->keep_alive_ms;
    atomic_init(&a->next_id, 1);
    a->models = config->models;
    a->router = config->router;
    if (config->worker == NULL) return;
    worker_info info;
    config->worker->ops->info(config->worker, &info);
    served_model_init(&c->model, config->worker, &info, config->text, config->model_name, api_wall_s(a));
    model_set_add(&c->models, &c->model);
    a->models = &c->models;
}

static hd_status open_pools(api *a, const coordinator_config *config) {
    unsigned request_threads = threads_or(config->request_threads, 2, 2);
    work_pool_config requests = {
        .name = "request",
        .thread_count = request_threads,
        .lane_threads_max = {request_threads, request_threads - 1},
        .lane_items_max = {config->connections_max, config->connections_max},
    };
    unsigned reply_threads = threads_or(config->reply_threads, 1, 4);
    work_pool_config replies = {
        .name = "reply",
        .thread_count = reply_threads,
        .lane_threads_max = {reply_threads, 0},
        .lane_items_max = {config->connections_max, 0},
    };
    hd_status status = sequence_table_open(config->connections_max, &a->sequences);
    if (status == HD_OK) status = work_pool_open(&replies, &a->reply_pool);
    if (status == HD_OK) status = work_pool_open(&requests, &a->request_pool);
    return status;
}

static uint64_t bodies_bytes_max(const coordinator_config *config) {
    uint64_t bytes = config->bodies_bytes_max;
    if (bytes == 0) {
        bytes = hd_memory_available_bytes() / 8;
        if (bytes > BODIES_BYTES_MAX) bytes = BODIES_BYTES_MAX;
    }
    return bytes > config->body_bytes_max ? bytes : config->body_bytes_max;
}

static hd_status open_http(coordinator *c, const coordinator_config *config, hd_error *error) {
    http_config http = {
        .thread_count = threads_or(config->http_threads, 1, 4),
        .connections_max = config->connections_max,
        .idle_timeout_s = IDLE_TIMEOUT_S,
        .stall_timeout_s = (uint32_t)((config->stall_timeout_ms + 999) / 1000),
        .body_bytes_max = config->body_bytes_max,
        .bodies_bytes_max = bodies_bytes_max(config),
    };
    bool must_be_loopback = c->api.keys == NULL, has_operators = config->operator_address != NULL;
    c->port = (api_port){&c->api, has_operators ? API_CLIENTS : API_ALL};
    api_router_callbacks(&c->port, &http.callbacks);
    hd_status status = listen_address_open(config->listen_address, must_be_loopback, &http.listener, c->address, error);
    if (status == HD_OK) status = http_server_open(&http, &c->api.http, error);
    if (status != HD_OK || !has_operators) return status;
    c->operator_port = (api_port){&c->api, API_OPERATORS};
    http.thread_count = 1;
    http.connections_max = OPERATOR_CONNECTIONS_MAX;
    http.body_bytes_max = http.bodies_bytes_max = OPERATOR_BODY_BYTES;
    api_router_callbacks(&c->operator_port, &http.callbacks);
    status =
        listen_address_open(config->operator_address, must_be_loopback, &http.listener, c->operator_address, error);
    return status == HD_OK ? http_server_open(&http, &c->operator_http, error) : status;
}

static hd_status start_ticker(coordinator *c) {
    if (pthread_create(&c->ticker, NULL, ticker_main, c) != 0) return HD_NO_MEMORY;
    pthread_setname_np(c->ticker, "ticker");
    c->has_ticker = true;
    return HD_OK;
}

hd_status coordinator_open(const coordinator_config *config, coordinator **out, hd_error *error) {
    if (sodium_init() < 0) return hd_error_set(error, HD_IO, "libsodium cannot be initialised");
    coordinator *c = calloc(1, sizeof(*c));
    if (c == NULL) return hd_error_set(error, HD_NO_MEMORY, "no memory for the coordinator");
    pthread_mutex_init(&c->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&c->closing, &attributes);
    pthread_condattr_destroy(&attributes);
    init_api(c, config);
    hd_status status = HD_OK;
    if (config->api_keys_file != NULL) status = api_keys_open(config->api_keys_file, &c->api.keys, error);
    if (status == HD_OK && serving_metrics_init(&c->api.metrics, config->metrics,
                                                config->worker != NULL ? &c->model.info : NULL) != HD_OK) {
        status = hd_error_set(error, HD_NO_MEMORY, "no memory for the metrics");
    }
    if (status == HD_OK && (open_pools(&c->api, config) != HD_OK || start_ticker(c) != HD_OK)) {
        status = hd_error_set(error, HD_NO_MEMORY, "no memory for the coordinator's threads");
    }
    if (status == HD_OK) status = open_http(c, config, error);
    if (status != HD_OK) {
        coordinator_close(c, 0);
        return status;
    }
    char model[160];
    const char *name = config->worker != NULL ? c->model.limits.model_name : "those of the cluster's workers";
    hd_log(HD_LOG_INFO, "listening", "address=%s operators=%s model=%s keys=%zu context_max=%llu body_bytes_max=%llu",
           c->address, c->operator_http != NULL ? c->operator_address : c->address,
           hd_log_quote(name, model, sizeof(model)), c->api.keys != NULL ? api_keys_count(c->api.keys) : 0,
           (unsigned long long)c->model.info.context_max, (unsigned long long)config->body_bytes_max);
    *out = c;
    return HD_OK;
}

const char *coordinator_address(const coordinator *c) {
    return c->address;
}

/* Lets requests end by themselves, then makes them; returns when the worker holds nothing of ours. */
static void drain(coordinator *c, uint64_t drain_ms) {
    api *a = &c->api;
    atomic_store(&a->is_ending, true);
    hd_log(HD_LOG_INFO, "draining", "requests=%u", http_server_open_exchanges(a->http));
    if (http_server_wait_idle(a->http, drain_ms)) return;
    sequence_table_visit(a->sequences, end_one, NULL);
    if (!http_server_wait_idle(a->http, FLUSH_MS)) http_server_abort(a->http);
}

void coordinator_close(coordinator *c, uint64_t drain_ms) {
    if (c == NULL) return;
    if (c->api.http != NULL) {
        drain(c, drain_ms);
        http_server_stop(c->api.http); /* before the pools: no request comes to them any more */
    }
    if (c->operator_http != NULL) {
        http_server_wait_idle(c->operator_http, FLUSH_MS);
        http_server_stop(c->operator_http);
    }
    work_pool_close(c->api.request_pool);
    if (c->api.sequences != NULL) sequence_table_wait_empty(c->api.sequences);
    pthread_mutex_lock(&c->lock);
    c->is_closing = true;
    pthread_cond_broadcast(&c->closing);
    pthread_mutex_unlock(&c->lock);
    if (c->has_ticker) pthread_join(c->ticker, NULL);
    work_pool_close(c->api.reply_pool);
    http_server_close(c->api.http);
    http_server_close(c->operator_http);
    sequence_table_close(c->api.sequences);
    api_keys_close(c->api.keys);
    pthread_cond_destroy(&c->closing);
    pthread_mutex_destroy(&c->lock);
    free(c);
}
