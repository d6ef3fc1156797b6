/* transport_test.c - the same promises for every transport: order, content, bounds, loss. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/log.h"
#include "proto/transport.h"

#define PATIENCE_NS 20000000000ull

/* An end of links on a thread of its own: echoes what it gets, its parts unchanged, kind + 1. */
typedef struct echo {
    transport *transport;
    pthread_t thread;
    _Atomic bool is_stopping, is_held;
    transport_link *links[8];
    unsigned link_count;
    _Atomic unsigned lost;
    transport_send sends[64];
    unsigned next_send;
    unsigned char *copies[64];
    rpc_server *server;
    hd_status refuse;
} echo;

typedef struct world {
    const char *kind;
    inproc_hub *hub;
    transport *client;
    echo echo;
    char address[RPC_ADDRESS_BYTES];
} world;

static void echo_frame(void *context, transport_link *link, const frame *f) {
    echo *e = context;
    while (e->is_held) {}
    unsigned slot = e->next_send++ % 64;
    while (e->sends[slot].is_out) e->transport->ops->poll(e->transport, 1000000);
    frame answer = *f;
    answer.kind++;
    size_t bytes = 0, at = 0;
    for (unsigned i = 0; i < f->part_count; i++) bytes += f->parts[i].count;
    e->copies[slot] = realloc(e->copies[slot], bytes + 1);
    for (unsigned i = 0; i < f->part_count; i++) {
        memcpy(e->copies[slot] + at, f->parts[i].bytes, f->parts[i].count);
        answer.parts[i].bytes = e->copies[slot] + at;
        at += f->parts[i].count;
    }
    assert_int_equal(link->owner->ops->send(link, &answer, &e->sends[slot]), HD_OK);
}

static void echo_lost(void *context, transport_link *link, hd_status status, const char *reason) {
    echo *e = context;
    for (unsigned i = 0; i < e->link_count; i++) {
        if (e->links[i] == link) e->links[i] = e->links[--e->link_count];
    }
    link->owner->ops->disconnect(link);
    e->lost++;
}

static hd_status echo_accept(void *listener, transport_link *link, transport_handlers *handlers, void **context) {
    echo *e = listener;
    if (e->refuse != HD_OK) return e->refuse;
    *handlers = (transport_handlers){.on_frame = echo_frame, .on_lost = echo_lost};
    *context = e;
    e->links[e->link_count++] = link;
    return HD_OK;
}

static void *echo_main(void *context) {
    echo *e = context;
    while (!e->is_stopping) e->transport->ops->poll(e->transport, PATIENCE_NS);
    while (e->link_count > 0) e->transport->ops->disconnect(e->links[--e->link_count]);
    return NULL;
}

static void world_open(world *w, const char *kind) {
    *w = (world){.kind = kind};
    echo *e = &w->echo;
    if (strcmp(kind, "grpc") == 0) {
        assert_int_equal(transport_grpc_open(NULL, &w->client), HD_OK);
        assert_int_equal(transport_grpc_open(NULL, &e->transport), HD_OK);
        rpc_method methods[2];
        assert_int_equal(transport_grpc_listen(e->transport, "step", echo_accept, e, &methods[0]), HD_OK);
        assert_int_equal(transport_grpc_listen(e->transport, "pages", echo_accept, e, &methods[1]), HD_OK);
        rpc_server_config config = {.listen_address = "127.0.0.1:0", .methods = methods, .method_count = 2};
        hd_error error;
        if (rpc_server_open(&config, &e->server, &error) != HD_OK) fail_msg("%s", error.text);
        snprintf(w->address, sizeof(w->address), "%s", rpc_server_address(e->server));
    } else {
        assert_int_equal(inproc_hub_open(&w->hub), HD_OK);
        assert_int_equal(transport_inproc_open(w->hub, 1u << 20, &w->client), HD_OK);
        assert_int_equal(transport_inproc_open(w->hub, 1u << 20, &e->transport), HD_OK);
        snprintf(w->address, sizeof(w->address), "node-1");
        assert_int_equal(transport_inproc_listen(e->transport, w->address, "step", echo_accept, e), HD_OK);
        assert_int_equal(transport_inproc_listen(e->transport, w->address, "pages", echo_accept, e), HD_OK);
    }
    assert_int_equal(pthread_create(&e->thread, NULL, echo_main, e), 0);
}

static void echo_stop(world *w) {
    echo *e = &w->echo;
    if (e->transport == NULL) return;
    e->is_stopping = true;
    e->transport->ops->wake(e->transport);
    pthread_join(e->thread, NULL);
    rpc_server_close(e->server);
    e->transport->ops->close(e->transport);
    e->transport = NULL;
    for (int i = 0; i < 64; i++) free(e->copies[i]);
}

static void world_close(world *w) {
    w->client->ops->close(w->client);
    echo_stop(w);
    inproc_hub_close(w->hub);
}

typedef struct client {
    world *world;
    transport_link *link;
    unsigned frames, lost, room;
    uint64_t last_tag;
    uint16_t last_kind;
    bool is_wrong;
    hd_status status;
    char reason[256];
} client;

static void on_frame(void *context, transport_link *link, const frame *f) {
    client *c = context;
    c->frames++;
    c->is_wrong |= f->tag != c->last_tag + 1;
    c->last_tag = f->tag;
    c->last_kind = f->kind;
    for (unsigned i = 0; i < f->part_count; i++) {
        const unsigned char *bytes = f->parts[i].bytes;
        c->is_wrong |= (uintptr_t)bytes % FRAME_ALIGN != 0;
        for (size_t k = 0; k < f->parts[i].count; k += 13) c->is_wrong |= bytes[k] != (unsigned char)(k + f->tag);
    }
}

static void on_lost(void *context, transport_link *link, hd_status status, const char *reason) {
    client *c = context;
    c->lost++;
    c->status = status;
    snprintf(c->reason, sizeof(c->reason), "%s", reason);
}

static void on_room(void *context, transport_link *link) {
    ((client *)context)->room++;
}

static void client_connect(world *w, client *c, const char *channel) {
    *c = (client){.world = w};
    transport_handlers handlers = {.on_frame = on_frame, .on_lost = on_lost, .on_room = on_room};
    hd_error error;
    if (w->client->ops->connect(w->client, w->address, channel, &handlers, c, &c->link, &error) != HD_OK)
        fail_msg("%s", error.text);
}

#define POLL_UNTIL(w, condition)                                                                                       \
    do {                                                                                                               \
        uint64_t until = hd_now_ns() + PATIENCE_NS;                                                                    \
        while (!(condition) && hd_now_ns() < until) (w)->client->ops->poll((w)->client, 100000000);                    \
        assert_true(condition);                                                                                        \
    } while (0)

static unsigned char *pattern(size_t count, uint64_t tag) {
    unsigned char *bytes = malloc(count + 1);
    for (size_t k = 0; k < count; k++) bytes[k] = (unsigned char)(k + tag);
    return bytes;
}

static void frames_come_back_in_order_and_whole(void **state) {
    world w;
    world_open(&w, *state);
    client c;
    client_connect(&w, &c, "step");
    size_t sizes[] = {0, 1, 64, 1000, 65536, 200000};
    for (uint64_t tag = 1; tag <= 60; tag++) {
        size_t count = sizes[tag % 6];
        unsigned char *bytes = pattern(count, tag);
        frame f = {.kind = 4, .tag = tag, .part_count = 2, .parts = {{bytes, count}, {bytes, count / 2}}};
        transport_send send = {.done = NULL};
        assert_int_equal(w.client->ops->send(c.link, &f, &send), HD_OK);
        POLL_UNTIL(&w, c.frames == tag && !send.is_out);
        free(bytes);
    }
    assert_false(c.is_wrong);
    assert_int_equal(c.last_kind, 5);
    w.client->ops->disconnect(c.link);
    world_close(&w);
}

static void past_the_bound_it_is_full_and_room_is_told(void **state) {
    world w;
    world_open(&w, *state);
    client c;
    client_connect(&w, &c, "step");
    w.echo.is_held = true;
    enum { SENDS = 400, BYTES = 300000 };
    static transport_send sends[SENDS];
    memset(sends, 0, sizeof(sends));
    unsigned char *bytes = calloc(1, BYTES);
    unsigned sent = 0;
    hd_status status = HD_OK;
    while (sent < SENDS && status == HD_OK) {
        frame f = {.kind = 4, .tag = sent + 1, .part_count = 1, .parts = {{bytes, BYTES}}};
        status = w.client->ops->send(c.link, &f, &sends[sent]);
        if (status == HD_OK) sent++;
    }
    assert_int_equal(status, HD_FULL);
    assert_true(sent >= 1);
    w.echo.is_held = false;
    POLL_UNTIL(&w, c.room >= 1 && c.frames == sent);
    assert_int_equal(c.last_tag, sent);
    w.client->ops->disconnect(c.link);
    while (sends[sent - 1].is_out) w.client->ops->poll(w.client, 1000000);
    world_close(&w);
    free(bytes);
}

static void a_peer_that_goes_is_lost(void **state) {
    world w;
    world_open(&w, *state);
    client c;
    client_connect(&w, &c, "step");
    transport_send send = {.done = NULL};
    assert_int_equal(w.client->ops->send(c.link, &(frame){.kind = 1, .tag = 1}, &send), HD_OK);
    POLL_UNTIL(&w, c.frames == 1);
    echo_stop(&w);
    POLL_UNTIL(&w, c.lost == 1);
    assert_int_equal(c.status, HD_PEER_LOST);
    assert_int_equal(w.client->ops->send(c.link, &(frame){.kind = 1, .tag = 2}, &send), HD_PEER_LOST);
    w.client->ops->disconnect(c.link);
    world_close(&w);
}

static void who_leaves_is_missed_by_its_peer(void **state) {
    world w;
    world_open(&w, *state);
    client step, pages;
    client_connect(&w, &step, "step");
    client_connect(&w, &pages, "pages");
    transport_send sends[2] = {{.done = NULL}, {.done = NULL}};
    assert_int_equal(w.client->ops->send(step.link, &(frame){.tag = 1}, &sends[0]), HD_OK);
    assert_int_equal(w.client->ops->send(pages.link, &(frame){.tag = 1}, &sends[1]), HD_OK);
    POLL_UNTIL(&w, step.frames == 1 && pages.frames == 1);
    w.client->ops->disconnect(step.link);
    POLL_UNTIL(&w, w.echo.lost == 1);
    w.client->ops->disconnect(pages.link);
    POLL_UNTIL(&w, w.echo.lost == 2);
    world_close(&w);
}

static void nobody_there_is_lost(void **state) {
    world w;
    world_open(&w, *state);
    snprintf(w.address, sizeof(w.address), "127.0.0.1:1");
    client c;
    client_connect(&w, &c, "step");
    POLL_UNTIL(&w, c.lost == 1);
    assert_int_equal(c.status, HD_PEER_LOST);
    w.client->ops->disconnect(c.link);
    world_close(&w);
}

static void a_link_that_is_refused_says_why(void **state) {
    world w;
    world_open(&w, *state);
    w.echo.refuse = HD_STALE;
    client c;
    client_connect(&w, &c, "step");
    POLL_UNTIL(&w, c.lost == 1);
    assert_int_equal(c.status, HD_STALE);
    w.client->ops->disconnect(c.link);
    world_close(&w);
}

#define BOTH(test) cmocka_unit_test_prestate(test, (void *)"inproc"), cmocka_unit_test_prestate(test, (void *)"grpc")

int main(void) {
    hd_log_set_level(HD_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        BOTH(frames_come_back_in_order_and_whole),
        BOTH(past_the_bound_it_is_full_and_room_is_told),
        BOTH(a_peer_that_goes_is_lost),
        BOTH(who_leaves_is_missed_by_its_peer),
        BOTH(nobody_there_is_lost),
        BOTH(a_link_that_is_refused_says_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
