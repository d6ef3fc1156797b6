/* rpc_server.c - a port, its methods, and the streams that clients open on them. */
#include <assert.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/alloc.h>

#include "base/threads.h"
#include "proto/rpc_internal.h"

#define ACCEPTS_PER_METHOD 4u /* calls that gRPC may hand over before the queue's thread has come round */
#define CLOSE_POLL_NS 1000000ull
#define PING_INTERVAL_MS 200 /* clients that ping more often are cut off */

typedef struct acceptor {
    rpc_tag accepted;
    struct rpc_server *server;
    const rpc_method *method;
    void *registered;
    grpc_call *call;
    gpr_timespec deadline;
    grpc_metadata_array metadata;
} acceptor;

struct rpc_server {
    grpc_server *server;
    grpc_completion_queue *closed_events; /* for the end of closing alone; does no I/O */
    rpc_method methods[RPC_METHODS_MAX];
    unsigned method_count;
    acceptor acceptors[RPC_METHODS_MAX * ACCEPTS_PER_METHOD];
    acceptor stranger; /* for methods that are not listed: gRPC would let them wait for ever */
    grpc_call_details stranger_details;
    bool is_started;
    pthread_mutex_t lock; /* guards the two below */
    unsigned acceptors_out;
    bool is_closing;
    char address[RPC_ADDRESS_BYTES + 8];
};

static void arm(acceptor *a) {
    rpc_server *server = a->server;
    pthread_mutex_lock(&server->lock);
    if (!server->is_closing) {
        grpc_metadata_array_init(&a->metadata);
        grpc_completion_queue *events = a->method->queue->events;
        hd_handed_over(&a->accepted);
        grpc_call_error error = grpc_server_request_registered_call(
            server->server, a->registered, &a->call, &a->deadline, &a->metadata, NULL, events, events, &a->accepted);
        assert(error == GRPC_CALL_OK);
        (void)error;
        server->acceptors_out++;
    }
    pthread_mutex_unlock(&server->lock);
}

static void on_accepted(rpc_tag *tag, bool is_ok) {
    acceptor *a = (acceptor *)tag;
    rpc_stream *stream = NULL;
    if (is_ok) {
        stream =
            rpc_stream_new(a->call, a->method->queue, a->method->path, a->method->send_bytes_max, a->method->aligned);
        if (stream == NULL) grpc_call_unref(a->call); /* which refuses it */
    }
    if (stream != NULL) {
        stream->is_server = true;
        grpc_metadata_array_destroy(&stream->head);
        stream->head = a->metadata;
    } else {
        grpc_metadata_array_destroy(&a->metadata);
    }
    const rpc_method *method = a->method;
    rpc_server *server = a->server;
    if (is_ok) arm(a);
    /* Counted out only after it was armed again, so that close never sees zero in between. */
    pthread_mutex_lock(&server->lock);
    server->acceptors_out--;
    pthread_mutex_unlock(&server->lock);
    if (stream == NULL) return;
    rpc_stream_start(stream, NULL, 0, false); /* its callbacks wait for this thread, that is for on_open */
    method->on_open(method->context, stream);
}

static void on_stranger(rpc_tag *tag, bool is_ok);

static void arm_stranger(rpc_server *server) {
    acceptor *a = &server->stranger;
    pthread_mutex_lock(&server->lock);
    if (!server->is_closing) {
        *a = (acceptor){.accepted.run = on_stranger, .server = server, .method = &server->methods[0]};
        grpc_metadata_array_init(&a->metadata);
        grpc_call_details_init(&server->stranger_details);
        grpc_completion_queue *events = a->method->queue->events;
        hd_handed_over(&a->accepted);
        grpc_call_error error = grpc_server_request_call(server->server, &a->call, &server->stranger_details,
                                                         &a->metadata, events, events, &a->accepted);
        assert(error == GRPC_CALL_OK);
        (void)error;
        server->acceptors_out++;
    }
    pthread_mutex_unlock(&server->lock);
}

static void on_stranger(rpc_tag *tag, bool is_ok) {
    acceptor *a = (acceptor *)tag;
    rpc_server *server = a->server;
    rpc_stream *stream = is_ok ? rpc_stream_new(a->call, a->method->queue, "unknown", 0, false) : NULL;
    if (is_ok && stream == NULL) grpc_call_unref(a->call);
    char reason[200];
    if (is_ok) {
        char *name = grpc_slice_to_c_string(server->stranger_details.method);
        snprintf(reason, sizeof(reason), "no method %.150s on this node", name);
        gpr_free(name);
    }
    grpc_call_details_destroy(&server->stranger_details);
    grpc_metadata_array_destroy(&a->metadata);
    if (is_ok) arm_stranger(server);
    pthread_mutex_lock(&server->lock);
    server->acceptors_out--;
    pthread_mutex_unlock(&server->lock);
    if (stream == NULL) return;
    stream->is_server = true;
    rpc_stream_start(stream, NULL, 0, false);
    rpc_stream_refuse(stream, HD_UNSUPPORTED, reason);
}

static grpc_server_credentials *credentials_of(const rpc_tls *tls) {
    if (tls == NULL) return grpc_insecure_server_credentials_create();
    grpc_ssl_pem_key_cert_pair pair = {.private_key = tls->key, .cert_chain = tls->cert};
    return grpc_ssl_server_credentials_create_ex(tls->ca, &pair, 1,
                                                 tls->ca != NULL
                                                     ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                                     : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
                                                 NULL);
}

static hd_status bind_port(rpc_server *server, const rpc_server_config *config, hd_error *error) {
    hd_status status = rpc_address_check(config->listen_address, error);
    if (status != HD_OK) return status;
    if (config->tls != NULL && config->tls->cert == NULL)
        return hd_error_set(error, HD_INVALID, "listening with TLS on %s needs --tls-cert and --tls-key",
                            config->listen_address);
    grpc_server_credentials *credentials = credentials_of(config->tls);
    int port =
        credentials != NULL ? grpc_server_add_http2_port(server->server, config->listen_address, credentials) : 0;
    grpc_server_credentials_release(credentials);
    if (port == 0)
        return hd_error_set(error, HD_IO,
                            "cannot listen on %s: the address is not of this host, is in use, or the "
                            "certificates do not fit",
                            config->listen_address);
    const char *colon = strrchr(config->listen_address, ':');
    if (strncmp(config->listen_address, "unix:", 5) == 0)
        snprintf(server->address, sizeof(server->address), "%s", config->listen_address);
    else
        snprintf(server->address, sizeof(server->address), "%.*s:%d", (int)(colon - config->listen_address),
                 config->listen_address, port);
    return HD_OK;
}

static void register_queues(rpc_server *server) {
    for (unsigned i = 0; i < server->method_count; i++) {
        bool is_new = true;
        for (unsigned k = 0; k < i; k++) is_new &= server->methods[k].queue != server->methods[i].queue;
        if (is_new) grpc_server_register_completion_queue(server->server, server->methods[i].queue->events, NULL);
    }
    server->closed_events = grpc_completion_queue_create(
        grpc_completion_queue_factory_lookup(
            &(grpc_completion_queue_attributes){1, GRPC_CQ_NEXT, GRPC_CQ_NON_POLLING, NULL}),
        &(grpc_completion_queue_attributes){1, GRPC_CQ_NEXT, GRPC_CQ_NON_POLLING, NULL}, NULL);
    grpc_server_register_completion_queue(server->server, server->closed_events, NULL);
}

static void start(rpc_server *server) {
    for (unsigned i = 0; i < server->method_count; i++) {
        void *registered =
            grpc_server_register_method(server->server, server->methods[i].path, NULL, GRPC_SRM_PAYLOAD_NONE, 0);
        assert(registered != NULL); /* two methods of one path */
        for (unsigned k = 0; k < ACCEPTS_PER_METHOD; k++) {
            server->acceptors[i * ACCEPTS_PER_METHOD + k] = (acceptor){
                .accepted.run = on_accepted, .server = server, .method = &server->methods[i], .registered = registered};
        }
    }
    grpc_server_start(server->server);
    server->is_started = true;
    for (unsigned i = 0; i < server->method_count * ACCEPTS_PER_METHOD; i++) arm(&server->acceptors[i]);
    arm_stranger(server);
}

static grpc_arg integer(const char *key, uint64_t value) {
    return (grpc_arg){.type = GRPC_ARG_INTEGER, .key = (char *)key, .value.integer = (int)value};
}

hd_status rpc_server_open(const rpc_server_config *config, rpc_server **out, hd_error *error) {
    assert(config->method_count >= 1 && config->method_count <= RPC_METHODS_MAX);
    rpc_server *server = calloc(1, sizeof(*server));
    if (server == NULL) return hd_error_set(error, HD_NO_MEMORY, "no memory for a server");
    rpc_library_open();
    pthread_mutex_init(&server->lock, NULL);
    memcpy(server->methods, config->methods, config->method_count * sizeof(rpc_method));
    server->method_count = config->method_count;
    grpc_arg list[] = {
        integer(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH,
                config->message_bytes_max != 0 ? config->message_bytes_max : RPC_MESSAGE_BYTES_MAX),
        integer(GRPC_ARG_ALLOW_REUSEPORT,
                0), /* a port that another process has is an error, not a share of its calls */
        integer(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, PING_INTERVAL_MS),
        integer(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0),
        integer(GRPC_ARG_KEEPALIVE_TIME_MS, 2000),
        integer(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 4000),
        integer(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
    };
    grpc_channel_args arguments = {sizeof(list) / sizeof(list[0]), list};
    server->server = grpc_server_create(&arguments, NULL);
    register_queues(server);
    hd_status status = bind_port(server, config, error);
    if (status == HD_OK) {
        start(server);
        *out = server;
    } else {
        rpc_server_close(server);
    }
    return status;
}

/* Queues without a loop are polled by whoever closes: nobody else will. */
static void poll_own_queues(rpc_server *server) {
    for (unsigned i = 0; i < server->method_count; i++) {
        if (!server->methods[i].queue->has_loop) rpc_queue_poll(server->methods[i].queue, CLOSE_POLL_NS);
    }
}

typedef struct passing {
    rpc_tag tag; /* first */
    _Atomic bool is_done;
} passing;

static void on_passed(rpc_tag *tag, bool is_ok) {
    atomic_store(&((passing *)tag)->is_done, true);
}

/* Waits until loops have been through what gRPC has put into their queues so far. */
static void pass_loops(rpc_server *server) {
    for (unsigned i = 0; i < server->method_count; i++) {
        if (!server->methods[i].queue->has_loop) continue;
        passing p = {.tag.run = on_passed};
        rpc_queue_post(server->methods[i].queue, &p.tag);
        while (!atomic_load(&p.is_done)) usleep(CLOSE_POLL_NS / 1000);
    }
}

static bool is_drained(rpc_server *server) {
    pthread_mutex_lock(&server->lock);
    bool is_none_out = server->acceptors_out == 0;
    pthread_mutex_unlock(&server->lock);
    return is_none_out;
}

void rpc_server_close(rpc_server *server) {
    if (server == NULL) return;
    pthread_mutex_lock(&server->lock);
    server->is_closing = true;
    pthread_mutex_unlock(&server->lock);
    grpc_server_shutdown_and_notify(server->server, server->closed_events, server);
    grpc_server_cancel_all_calls(server->server);
    bool is_shut = false;
    while (!is_shut || !is_drained(server)) {
        grpc_event event = grpc_completion_queue_next(server->closed_events, rpc_deadline(CLOSE_POLL_NS), NULL);
        is_shut |= event.type == GRPC_OP_COMPLETE;
        poll_own_queues(server);
    }
    pass_loops(server); /* ends of streams are among it */
    grpc_server_destroy(server->server);
    grpc_completion_queue_shutdown(server->closed_events);
    while (grpc_completion_queue_next(server->closed_events, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type !=
           GRPC_QUEUE_SHUTDOWN) {}
    grpc_completion_queue_destroy(server->closed_events);
    pthread_mutex_destroy(&server->lock);
    free(server);
    rpc_library_close();
}

const char *rpc_server_address(const rpc_server *server) {
    return server->address;
}
