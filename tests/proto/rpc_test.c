/* rpc_test.c - streams over a real port: messages, ends, bounds, deadlines, lent memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/log.h"
#include "proto/ping.pb-c.h"
#include "proto/rpc_unary.h"

#define PATIENCE_NS 20000000000ull

typedef struct world {
    rpc_loop *loop; /* the server's */
    rpc_server *server;
    rpc_channel *channel;
    rpc_queue *queue; /* the client's, polled by the test */
    rpc_unary_method ping;
    Hadal__PingAnswer answer;
    rpc_stream *_Atomic held; /* of the silent method */
    _Atomic unsigned silent_opens;
    _Atomic unsigned silent_ends, half_closes;
    _Atomic bool keep_paused;
} world;

/* -- the server: ping answers, echo returns what comes, silent takes and says nothing -- */

static hd_status on_ping(void *context, const ProtobufCMessage *message, rpc_unary_answer *answer, hd_error *error) {
    world *w = context;
    const Hadal__PingRequest *request = (const Hadal__PingRequest *)message;
    if (request->number == 13) return hd_error_set(error, HD_STALE, "number 13 is of yesterday");
    hadal__ping_answer__init(&w->answer);
    w->answer.number = request->number + 1;
    w->answer.node = (char *)"server";
    answer->message = &w->answer.base;
    return HD_OK;
}

static void echo_message(void *context, rpc_stream *stream, const rpc_message *message) {
    rpc_stream_send(stream, &(rpc_part){message->bytes, message->count}, 1);
}

static void echo_half_close(void *context, rpc_stream *stream) {
    rpc_stream_finish(stream, HD_OK, NULL);
}

static void close_at_end(void *context, rpc_stream *stream, const rpc_end *end) {
    rpc_stream_close(stream);
}

static void echo_open(void *context, rpc_stream *stream) {
    static const rpc_handlers handlers = {
        .on_message = echo_message, .on_half_close = echo_half_close, .on_end = close_at_end};
    rpc_stream_handle(stream, &handlers, context);
}

static void silent_end(void *context, rpc_stream *stream, const rpc_end *end) {
    world *w = context;
    w->silent_ends++;
    rpc_stream_close(stream);
}

static void silent_half_close(void *context, rpc_stream *stream) {
    ((world *)context)->half_closes++;
}

static void silent_open(void *context, rpc_stream *stream) {
    static const rpc_handlers handlers = {.on_half_close = silent_half_close, .on_end = silent_end};
    world *w = context;
    w->silent_opens++;
    rpc_stream_handle(stream, &handlers, w);
    if (w->keep_paused) rpc_stream_pause(stream);
    w->held = stream;
}

static void world_open_with(world *w, const rpc_tls *server_tls, const rpc_tls *client_tls) {
    *w = (world){.ping = {&hadal__ping_request__descriptor, on_ping, w}};
    assert_int_equal(rpc_loop_open("server", &w->loop), HD_OK);
    assert_int_equal(rpc_queue_open(&w->queue), HD_OK);
    rpc_method methods[] = {
        {.path = "/hadal.Test/Ping", .queue = rpc_loop_queue(w->loop), .on_open = rpc_unary_serve, .context = &w->ping},
        {.path = "/hadal.Test/Echo", .queue = rpc_loop_queue(w->loop), .on_open = echo_open, .context = w},
        {.path = "/hadal.Test/Silent", .queue = rpc_loop_queue(w->loop), .on_open = silent_open, .context = w},
    };
    rpc_server_config config = {
        .listen_address = "127.0.0.1:0", .tls = server_tls, .methods = methods, .method_count = 3};
    hd_error error;
    if (rpc_server_open(&config, &w->server, &error) != HD_OK) fail_msg("%s", error.text);
    rpc_channel_config channel = {.address = rpc_server_address(w->server),
                                  .tls = client_tls,
                                  .tls_name = client_tls != NULL ? "hadal.test" : NULL};
    if (rpc_channel_open(&channel, &w->channel, &error) != HD_OK) fail_msg("%s", error.text);
}

static void world_close(world *w) {
    rpc_channel_close(w->channel);
    rpc_server_close(w->server);
    rpc_loop_close(w->loop);
    rpc_queue_close(w->queue);
}

/* -- the client -- */

typedef struct call {
    rpc_stream *stream;
    unsigned messages, room, ends;
    size_t last_bytes;
    unsigned char *last;
    bool is_aligned;
    hd_status status;
    char reason[256];
} call;

static void on_message(void *context, rpc_stream *stream, const rpc_message *message) {
    call *c = context;
    c->messages++;
    c->is_aligned = (uintptr_t)message->bytes % 64 == 0;
    c->last_bytes = message->count;
    c->last = realloc(c->last, message->count + 1);
    memcpy(c->last, message->bytes, message->count);
}

static void on_room(void *context, rpc_stream *stream) {
    ((call *)context)->room++;
}

static void on_end(void *context, rpc_stream *stream, const rpc_end *end) {
    call *c = context;
    c->ends++;
    c->status = end->status;
    snprintf(c->reason, sizeof(c->reason), "%s", end->message);
}

static void call_open(world *w, call *c, rpc_stream_config config) {
    *c = (call){.status = HD_PENDING};
    config.handlers = (rpc_handlers){.on_message = on_message, .on_room = on_room, .on_end = on_end};
    config.context = c;
    assert_int_equal(rpc_stream_open(w->channel, w->queue, &config, &c->stream), HD_OK);
}

static void call_close(call *c) {
    rpc_stream_close(c->stream);
    free(c->last);
}

#define POLL_UNTIL(w, condition)                                                                                       \
    do {                                                                                                               \
        uint64_t until = hd_now_ns() + PATIENCE_NS;                                                                    \
        while (!(condition) && hd_now_ns() < until) rpc_queue_poll((w)->queue, 100000000);                             \
        assert_true(condition);                                                                                        \
    } while (0)

static hd_status ping(world *w, uint64_t number, uint64_t deadline_ms, const char *method, uint64_t *answer,
                      hd_error *error) {
    Hadal__PingRequest request = HADAL__PING_REQUEST__INIT;
    request.number = number;
    rpc_unary_config config = {
        .method = method, .answer_type = &hadal__ping_answer__descriptor, .deadline_ms = deadline_ms};
    ProtobufCMessage *message;
    hd_status status = rpc_unary_wait(w->channel, &config, &request.base, &message, error);
    if (status != HD_OK) return status;
    *answer = ((Hadal__PingAnswer *)message)->number;
    protobuf_c_message_free_unpacked(message, NULL);
    return HD_OK;
}

static void a_unary_call_is_answered(void **state) {
    world w;
    world_open_with(&w, NULL, NULL);
    hd_error error;
    uint64_t number = 0;
    assert_int_equal(ping(&w, 41, 0, "/hadal.Test/Ping", &number, &error), HD_OK);
    assert_int_equal(number, 42);
    world_close(&w);
}

static void a_refusal_keeps_its_status_and_its_sentence(void **state) {
    world w;
    world_open_with(&w, NULL, NULL);
    hd_error error;
    uint64_t number;
    assert_int_equal(ping(&w, 13, 0, "/hadal.Test/Ping", &number, &error), HD_STALE);
    assert_string_equal(error.text, "number 13 is of yesterday");
    assert_int_equal(ping(&w, 1, 0, "/hadal.Test/Nothing", &number, &error), HD_UNSUPPORTED);
    world_close(&w);
}

static void a_deadline_ends_a_call_that_gets_no_answer(void **state) {
    world w;
    world_open_with(&w, NULL, NULL);
    hd_error error;
    uint64_t number;
    assert_int_equal(ping(&w, 1, 200, "/hadal.Test/Silent", &number, &error), HD_TIMED_OUT);
    world_close(&w);
    assert_int_equal(w.silent_ends, w.silent_opens);
}

static void nobody_there_is_a_lost_peer(void **state) {
    world w;
    world_open_with(&w, NULL, NULL);
    char address[RPC_ADDRESS_BYTES];
    snprintf(address, sizeof(address), "%s", rpc_server_address(w.server));
    rpc_server_close(w.server);
    w.server = NULL;
    hd_error error;
    uint64_t number;
    assert_int_equal(ping(&w, 1, 5000, "/hadal.Test/Ping", &number, &error), HD_PEER_LOST);
    world_close(&w);
}

static void messages_come_back_in_order_and_whole(void **state) {
    world w;
    world_open_with(&w, NULL, NULL);
    call c;
    call_open(&w, &c, (rpc_stream_config){.method = "/hadal.Test/Echo", .aligned = true});
    size_t sizes[] = {0, 1, 5000, 70000, 3u << 20, 64};
    for (size_t i = 0; i < 6; i++) {
        unsigned char *bytes = malloc(sizes[i] + 1);
        for (size_t k = 0; k < sizes[i]; k++) bytes[k] = (unsigned char)(k * 7 + i);
        size_t half = sizes[i] / 2;
        assert_int_equal(rpc_stream_send(c.stream, (rpc_part[]){{bytes, half}, {bytes + half, sizes[i] - half}}, 2),
                         HD_OK);
        POLL_UNTIL(&w, c.messages == i + 1);
        assert_int_equal(c.last_bytes, sizes[i]);
        assert_memory_equal(c.last, bytes, sizes[i]);
        assert_true(sizes[i] == 0 || c.is_aligned);
        free(bytes);
    }
    rpc_stream_end_sending(c.stream);
    POLL_UNTIL(&w, c.ends == 1);
    assert_int_equal(c.status, HD_OK);
    assert_int_equal(c.messages, 6);
    call_close(&c);
    world_close(&w);
}

typedef struct loan_seen {
    rpc_loan loan;
    _Atomic unsigned released;
} loan_seen;

static void on_release(rpc_loan *loan) {
    ((loan_seen *)loan)->released++;
}

static void lent_memory_comes_back_once(void **state) {
    world w;
    world_open_with(&w, NULL, NULL);
    call c;
    call_open(&w, &c, (rpc_stream_config){.method = "/hadal.Test/Echo"});
    enum { LOANS = 20, BYTES = 100000 };
    loan_seen loans[LOANS] = {{.loan.release = on_release}};
    unsigned char *bytes = calloc(1, BYTES);
    for (int i = 0; i < LOANS; i++) {
        loans[i].loan.release = on_release;
        bytes[0] = (unsigned char)i;
        assert_int_equal(rpc_stream_lend(c.stream, (rpc_part[]){{bytes, 17}, {NULL, 0}, {bytes + 17, BYTES - 17}}, 3,
                                         &loans[i].loan),
                         HD_OK);
        POLL_UNTIL(&w, c.messages == (unsigned)i + 1);
        assert_int_equal(c.last_bytes, BYTES);
        assert_int_equal(c.last[0], i);
    }
    rpc_stream_cancel(c.stream);
    POLL_UNTIL(&w, c.ends == 1);
    loan_seen late = {.loan.release = on_release};
    assert_int_equal(rpc_stream_lend(c.stream, &(rpc_part){bytes, 1}, 1, &late.loan), HD_PEER_LOST);
    call_close(&c);
    world_close(&w);
    for (int i = 0; i < LOANS; i++) assert_int_equal(loans[i].released, 1);
    assert_int_equal(late.released, 0);
    free(bytes);
}

static void a_receiver_that_does_not_read_stops_its_sender(void **state) {
    world w;
    world_open_with(&w, NULL, NULL);
    w.keep_paused = true;
    call c;
    call_open(&w, &c, (rpc_stream_config){.method = "/hadal.Test/Silent", .send_bytes_max = 4u << 20});
    unsigned char *bytes = calloc(1, 1u << 20);
    unsigned sent = 0;
    hd_status status = HD_OK;
    POLL_UNTIL(&w, w.held != NULL);
    /* The windows of HTTP/2 hold some; then the queue fills. */
    for (unsigned i = 0; i < 200 && status == HD_OK; i++) {
        status = rpc_stream_send(c.stream, &(rpc_part){bytes, 1u << 20}, 1);
        if (status == HD_OK) sent++;
        for (int k = 0; k < 20; k++) rpc_queue_poll(w.queue, 1000000);
    }
    assert_int_equal(status, HD_FULL);
    assert_true(sent >= 4 && sent < 100);
    assert_true(rpc_stream_queued_bytes(c.stream) <= 4u << 20);
    assert_int_equal(c.room, 0);
    rpc_loop_call(w.loop, (void (*)(void *))(void (*)(void))rpc_stream_resume, w.held);
    POLL_UNTIL(&w, c.room == 1);
    rpc_stream_cancel(c.stream);
    POLL_UNTIL(&w, c.ends == 1);
    assert_int_equal(c.status, HD_CANCELLED);
    call_close(&c);
    free(bytes);
    world_close(&w);
}

static void a_server_that_closes_ends_its_streams(void **state) {
    world w;
    world_open_with(&w, NULL, NULL);
    call c;
    call_open(&w, &c, (rpc_stream_config){.method = "/hadal.Test/Silent"});
    rpc_stream_send(c.stream, &(rpc_part){"x", 1}, 1);
    rpc_stream_end_sending(c.stream);
    POLL_UNTIL(&w, w.half_closes == 1);
    rpc_server_close(w.server);
    w.server = NULL;
    assert_int_equal(w.silent_ends, 1);
    POLL_UNTIL(&w, c.ends == 1);
    assert_int_not_equal(c.status, HD_OK);
    call_close(&c);
    world_close(&w);
}

static void a_stream_closed_early_says_nothing_more(void **state) {
    world w;
    world_open_with(&w, NULL, NULL);
    for (int i = 0; i < 20; i++) {
        call c;
        call_open(&w, &c, (rpc_stream_config){.method = "/hadal.Test/Echo"});
        rpc_stream_send(c.stream, &(rpc_part){"x", 1}, 1);
        for (int k = 0; k < i; k++) rpc_queue_poll(w.queue, 100000);
        unsigned messages = c.messages;
        rpc_stream_close(c.stream);
        for (int k = 0; k < 10; k++) rpc_queue_poll(w.queue, 100000);
        assert_int_equal(c.messages, messages);
        assert_int_equal(c.ends, 0);
        free(c.last);
    }
    world_close(&w);
}

typedef struct posted {
    rpc_tag tag;
    unsigned count;
} posted;

static void on_posted(rpc_tag *tag, bool is_ok) {
    ((posted *)tag)->count++;
}

typedef struct timed {
    rpc_timer timer;
    unsigned *order, rank;
} timed;

static void on_timer(rpc_timer *timer) {
    timed *t = (timed *)timer;
    t->rank = ++*t->order;
}

static void posts_and_timers_run_on_the_polling_thread(void **state) {
    rpc_queue *queue;
    assert_int_equal(rpc_queue_open(&queue), HD_OK);
    posted p = {.tag.run = on_posted};
    rpc_queue_post(queue, &p.tag);
    assert_true(rpc_queue_poll(queue, PATIENCE_NS));
    assert_int_equal(p.count, 1);
    unsigned order = 0;
    timed late = {{.run = on_timer}, &order, 0}, soon = {{.run = on_timer}, &order, 0},
          never = {{.run = on_timer}, &order, 0};
    rpc_timer_set(queue, &late.timer, 30);
    rpc_timer_set(queue, &never.timer, 20);
    rpc_timer_set(queue, &soon.timer, 1000000);
    rpc_timer_set(queue, &soon.timer, 1);
    rpc_timer_cancel(queue, &never.timer);
    while (late.rank == 0) rpc_queue_poll(queue, PATIENCE_NS);
    assert_int_equal(soon.rank, 1);
    assert_int_equal(late.rank, 2);
    assert_int_equal(never.rank, 0);
    rpc_queue_close(queue);
}

static void addresses_that_are_none_are_refused_by_name(void **state) {
    const char *bad[] = {"", "localhost", ":1", "a:", "a:b", "a:70000", "unix:"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        rpc_channel *channel;
        hd_error error;
        assert_int_equal(rpc_channel_open(&(rpc_channel_config){.address = bad[i]}, &channel, &error), HD_INVALID);
        assert_non_null(strstr(error.text, bad[i]));
    }
}

/* -- TLS, with certificates made by openssl -- */

static char tls_directory[] = "/tmp/hadal-rpc-tls-XXXXXX";

static const char *tls_path(const char *name) {
    static char paths[4][128];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, 128, "%s/%s", tls_directory, name);
    return path;
}

static int make_certificates(void **state) {
    if (mkdtemp(tls_directory) == NULL) return -1;
    char command[2048];
    snprintf(command, sizeof(command),
             "cd %s && for i in ca other; do openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes "
             "-days 2 "
             "-subj /CN=$i -keyout $i.key -out $i.pem; done 2>/dev/null && "
             "openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=node -keyout node.key -out "
             "node.csr 2>/dev/null && "
             "printf 'subjectAltName=DNS:hadal.test' >ext && "
             "openssl x509 -req -in node.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out "
             "node.pem 2>/dev/null",
             tls_directory);
    return system(command);
}

static int remove_certificates(void **state) {
    char command[64];
    snprintf(command, sizeof(command), "rm -r %s", tls_directory);
    return system(command);
}

static void peers_with_certificates_of_one_authority_speak(void **state) {
    rpc_tls *tls;
    hd_error error;
    assert_int_equal(rpc_tls_open(tls_path("node.pem"), tls_path("node.key"), tls_path("ca.pem"), &tls, &error), HD_OK);
    world w;
    world_open_with(&w, tls, tls);
    uint64_t number;
    assert_int_equal(ping(&w, 1, 5000, "/hadal.Test/Ping", &number, &error), HD_OK);
    world_close(&w);
    rpc_tls_close(tls);
}

static void a_peer_of_another_authority_is_refused(void **state) {
    rpc_tls *server, *stranger, *nameless;
    hd_error error;
    assert_int_equal(rpc_tls_open(tls_path("node.pem"), tls_path("node.key"), tls_path("ca.pem"), &server, &error),
                     HD_OK);
    assert_int_equal(rpc_tls_open(tls_path("other.pem"), tls_path("other.key"), tls_path("ca.pem"), &stranger, &error),
                     HD_OK);
    assert_int_equal(rpc_tls_open(NULL, NULL, tls_path("other.pem"), &nameless, &error), HD_OK);
    const rpc_tls *clients[] = {stranger, nameless, NULL};
    for (int i = 0; i < 3; i++) {
        world w;
        world_open_with(&w, server, clients[i]);
        uint64_t number;
        assert_int_not_equal(ping(&w, 1, 3000, "/hadal.Test/Ping", &number, &error), HD_OK);
        world_close(&w);
    }
    rpc_tls_close(server);
    rpc_tls_close(stranger);
    rpc_tls_close(nameless);
}

static void certificate_files_that_do_not_fit_are_named(void **state) {
    rpc_tls *tls;
    hd_error error;
    assert_int_equal(rpc_tls_open("a.pem", NULL, NULL, &tls, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "--tls-key"));
    assert_int_equal(rpc_tls_open(NULL, NULL, "/nowhere/ca.pem", &tls, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "/nowhere/ca.pem"));
    assert_int_equal(rpc_tls_open(NULL, NULL, tls_path("ext"), &tls, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "PEM"));
}

int main(void) {
    hd_log_set_level(HD_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_unary_call_is_answered),
        cmocka_unit_test(a_refusal_keeps_its_status_and_its_sentence),
        cmocka_unit_test(a_deadline_ends_a_call_that_gets_no_answer),
        cmocka_unit_test(nobody_there_is_a_lost_peer),
        cmocka_unit_test(messages_come_back_in_order_and_whole),
        cmocka_unit_test(lent_memory_comes_back_once),
        cmocka_unit_test(a_receiver_that_does_not_read_stops_its_sender),
        cmocka_unit_test(a_server_that_closes_ends_its_streams),
        cmocka_unit_test(a_stream_closed_early_says_nothing_more),
        cmocka_unit_test(posts_and_timers_run_on_the_polling_thread),
        cmocka_unit_test(addresses_that_are_none_are_refused_by_name),
        cmocka_unit_test(peers_with_certificates_of_one_authority_speak),
        cmocka_unit_test(a_peer_of_another_authority_is_refused),
        cmocka_unit_test(certificate_files_that_do_not_fit_are_named),
    };
    return cmocka_run_group_tests(tests, make_certificates, remove_certificates);
}
