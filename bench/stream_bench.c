/* stream_bench.c - one side lends the same bytes again and again, the other counts what comes. */
#include "bench/stream_bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "bench/report.h"
#include "proto/rpc.h"

#define PATH "/hadal.Bench/Stream"
#define QUEUED_BYTES_MAX ((uint64_t)4 << 20)
#define POLL_NS 50000000ull
#define DEADLINE_NS 120000000000ull
#define LOANS 256u /* more than are queued at once, whoever is late to give them back */

typedef struct stream_loan {
    rpc_loan loan; /* first */
    _Atomic bool is_out;
} stream_loan;

typedef struct stream_server {
    unsigned char *bytes; /* lent */
    uint64_t message_bytes;
    stream_loan loans[LOANS];
    uint32_t next;
} stream_server;

static void on_back(rpc_loan *loan) {
    atomic_store(&((stream_loan *)loan)->is_out, false);
}

static void send_more(void *context, rpc_stream *stream) {
    stream_server *s = context;
    const rpc_part part = {s->bytes, s->message_bytes};
    for (;;) {
        stream_loan *loan = &s->loans[s->next % LOANS];
        if (atomic_exchange(&loan->is_out, true)) return;
        loan->loan.release = on_back;
        if (rpc_stream_lend(stream, &part, 1, &loan->loan) != HD_OK) {
            atomic_store(&loan->is_out, false);
            return;
        }
        s->next++;
    }
}

static void on_server_end(void *context, rpc_stream *stream, const rpc_end *end) {
    rpc_stream_close(stream);
}

static void on_open(void *context, rpc_stream *stream) {
    static const rpc_handlers handlers = {.on_room = send_more, .on_end = on_server_end};
    rpc_stream_handle(stream, &handlers, context);
    send_more(context, stream);
}

static hd_status serve(const stream_bench_config *config, hd_error *error) {
    stream_server s = {.message_bytes = config->message_bytes};
    rpc_loop *loop = NULL;
    rpc_server *server = NULL;
    s.bytes = hd_alloc_zeroed(config->message_bytes, HD_CACHE_LINE);
    hd_status status = s.bytes != NULL ? rpc_loop_open("stream", &loop) : HD_NO_MEMORY;
    if (status != HD_OK) hd_error_set(error, status, "no memory for a server");
    if (status == HD_OK) {
        rpc_method method = {.path = PATH,
                             .queue = rpc_loop_queue(loop),
                             .on_open = on_open,
                             .context = &s,
                             .send_bytes_max = QUEUED_BYTES_MAX};
        rpc_server_config serving = {.listen_address = config->listen, .methods = &method, .method_count = 1};
        status = rpc_server_open(&serving, &server, error);
    }
    if (status == HD_OK) {
        printf("%s\n", rpc_server_address(server));
        fflush(stdout);
        while (getchar() != EOF) {}
    }
    rpc_server_close(server);
    rpc_loop_close(loop);
    hd_free(s.bytes);
    return status;
}

typedef struct stream_client {
    uint64_t bytes;
    bool has_ended;
    char reason[200];
} stream_client;

static void on_message(void *context, rpc_stream *stream, const rpc_message *message) {
    ((stream_client *)context)->bytes += message->count;
}

static void on_client_end(void *context, rpc_stream *stream, const rpc_end *end) {
    stream_client *c = context;
    c->has_ended = true;
    snprintf(c->reason, sizeof(c->reason), "%s", end->message);
}

static hd_status report(const stream_bench_config *config, uint64_t bytes, double seconds, hd_error *error) {
    json_t *json = bench_report_open("stream");
    fprintf(bench_report_table(config->json_path), "%.2f GB in %.2f s: %.3f GB/s\n", (double)bytes * 1e-9, seconds,
            (double)bytes * 1e-9 / seconds);
    json_object_set_new(json, "figures", json_pack("{s:I, s:f}", "bytes", (json_int_t)bytes, "seconds", seconds));
    return bench_report_write(json, config->json_path, error);
}

static hd_status read_stream(const stream_bench_config *config, hd_error *error) {
    static const rpc_handlers handlers = {.on_message = on_message, .on_end = on_client_end};
    stream_client c = {.bytes = 0};
    rpc_queue *queue = NULL;
    rpc_channel *channel = NULL;
    rpc_stream *stream = NULL;
    rpc_stream_config opened = {.method = PATH,
                                .deadline_ms = DEADLINE_NS / 1000000u,
                                .wait_for_ready = true,
                                .handlers = handlers,
                                .context = &c};
    hd_status status = rpc_queue_open(&queue);
    if (status == HD_OK) status = rpc_channel_open(&(rpc_channel_config){.address = config->connect}, &channel, error);
    if (status == HD_OK) status = rpc_stream_open(channel, queue, &opened, &stream);
    while (status == HD_OK && c.bytes == 0 && !c.has_ended) rpc_queue_poll(queue, POLL_NS);
    uint64_t first = c.bytes, start = hd_now_ns();
    while (status == HD_OK && c.bytes < config->total_bytes && !c.has_ended) rpc_queue_poll(queue, POLL_NS);
    double seconds = (double)(hd_now_ns() - start) * 1e-9;
    if (status == HD_OK && c.has_ended) status = hd_error_set(error, HD_PEER_LOST, "the stream ended: %s", c.reason);
    rpc_stream_close(stream);
    rpc_channel_close(channel);
    rpc_queue_close(queue);
    return status == HD_OK ? report(config, c.bytes - first, seconds, error) : status;
}

hd_status stream_bench_run(const stream_bench_config *config, hd_error *error) {
    return config->listen != NULL ? serve(config, error) : read_stream(config, error);
}
