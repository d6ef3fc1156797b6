/* rpc.c - rpc.h between simulated processes: the same contract as gRPC's, without gRPC.
 *
 * A stream has two ends, each with a direction of messages on their way. The head of a direction is delivered by an
 * event: it joins the queue of the other end, whose thread runs it when it polls. Ends, half-closes and the peer's
 * death are messages too, so they come behind what was sent before. Streams are never freed: a late event finds one
 * that is closed, and a use of one that was closed is an assertion. */
#include "tests/simulation/rpc_state.h"

#include <stdio.h>
#include <string.h>

#include "base/memory.h"

#define SEND_SLOTS 64u
#define SEND_BYTES (64u << 20)
#define CONNECT_NS (2 * MACHINE_S)  /* an attempt that nobody answers */
#define RETRY_NS (100 * MACHINE_MS) /* of a stream that waits for its peer */
/* Until an end takes a silent peer for dead: at most 4 s (a client's keep-alive), and each magnitude from 2 ms on as
 * likely as the others, because what goes wrong goes wrong while a request runs, and here that takes milliseconds. */
#define DEAD_NS_MIN (2 * MACHINE_MS)
#define DEAD_DOUBLINGS 11u
#define LOAN_ONE_IN 4u /* messages whose memory is copied later, and given back later still */
#define LOAN_NS_MAX 5000u
#define CLOSE_POLL_NS MACHINE_MS

static struct {
    rpc_server *servers;
    rpc_stream **streams; /* every one */
    size_t stream_count, stream_room;
    uint64_t messages;
} world;

uint64_t rpc_simulated_messages(void) {
    return world.messages;
}

/* ---- What is on its way ---- */

static void copy_parts(message *m) {
    if (m->is_copied) return;
    m->is_copied = true;
    m->bytes = must_have(hd_alloc(m->count + 1, HD_CACHE_LINE));
    size_t at = 0;
    for (size_t i = 0; i < m->part_count; i++) {
        if (m->parts[i].count > 0) memcpy(m->bytes + at, m->parts[i].bytes, m->parts[i].count);
        at += m->parts[i].count;
    }
}

typedef struct returned {
    rpc_stream *stream;
    rpc_loan *loan;
} returned;

static void on_return(void *context) {
    returned *r = context;
    if (!r->stream->process->is_dead) {
        r->loan->release(r->loan);
        rpc_queue_put(r->stream->queue, (entry){.kind = ENTRY_NOTHING}); /* who polls sees that it is back */
    }
    free(r);
}

static void on_copy(void *context) {
    message *m = context;
    if (!m->sender->process->is_dead) copy_parts(m);
}

/* The end at this side, behind everything that has arrived. */
static void end_here(rpc_stream *s, hd_status status, const char *text) {
    if (s->is_ending) return;
    s->is_ending = s->is_sending_over = true;
    entry e = {.kind = ENTRY_END, .stream = s, .status = status};
    snprintf(e.text, sizeof(e.text), "%s", text);
    rpc_queue_put(s->queue, e);
}

static void deliver_message(rpc_stream *from, message *m) {
    rpc_stream *to = from->peer;
    from->count--;
    from->bytes -= m->count;
    if (from->wants_room && from->count <= SEND_SLOTS / 2 && from->bytes <= from->bytes_max / 2) {
        from->wants_room = false;
        rpc_queue_put(from->queue, (entry){.kind = ENTRY_ROOM, .stream = from});
    }
    if (m->kind == MESSAGE_END) {
        end_here(to, to->is_server ? HD_CANCELLED : m->status, m->text);
        /* A server's stream that has been finished ends when that has arrived. */
        if (from->is_server && !from->is_ending && !from->process->is_dead) end_here(from, HD_OK, "");
        free(m);
        return;
    }
    if (to->is_ending) {
        free(m);
        return;
    }
    world.messages++;
    rpc_queue_put(to->queue, (entry){.kind = ENTRY_MESSAGE, .stream = to, .message = m});
}

static void on_arrival(void *context);

static void schedule_arrival(rpc_stream *from) {
    if (from->is_delivering || from->first == NULL || from->peer == NULL) return;
    from->is_delivering = true;
    uint64_t at = from->first->arrival_ns, cut = network_cut_until(from->process, from->peer->process);
    if (at < cut) at = cut;
    machine_at(at, on_arrival, from);
}

static void on_arrival(void *context) {
    rpc_stream *from = context;
    from->is_delivering = false;
    if (from->peer->process->is_dead || network_cut_until(from->process, from->peer->process) != 0) {
        if (!from->peer->process->is_dead) schedule_arrival(from);
        return;
    }
    message *m = from->first;
    if (m == NULL) return;
    if (m->kind == MESSAGE_DATA) copy_parts(m);
    from->first = m->next;
    if (from->first == NULL) from->last = NULL;
    deliver_message(from, m);
    schedule_arrival(from);
}

static message *send_message(rpc_stream *s, message_kind kind) {
    message *m = must_have(calloc(1, sizeof(*m)));
    m->kind = kind;
    m->sender = s;
    m->is_copied = true;
    m->arrival_ns = s->peer != NULL ? network_arrival(s->process, s->peer->process) : the_machine.now_ns;
    if (s->last != NULL && m->arrival_ns < s->last->arrival_ns) m->arrival_ns = s->last->arrival_ns;
    *(s->last != NULL ? &s->last->next : &s->first) = m;
    s->last = m;
    s->count++;
    schedule_arrival(s);
    return m;
}

/* The other end learns of it behind what is on its way. */
static void send_end(rpc_stream *s, hd_status status, const char *text) {
    message *m = send_message(s, MESSAGE_END);
    m->status = status;
    snprintf(m->text, sizeof(m->text), "%s", text);
}

/* ---- Clients ---- */

hd_status rpc_channel_open(const rpc_channel_config *config, rpc_channel **out, hd_error *error) {
    rpc_channel *c = must_have(calloc(1, sizeof(*c)));
    snprintf(c->address, sizeof(c->address), "%s", config->address);
    *out = c;
    return HD_OK;
}

void rpc_channel_close(rpc_channel *channel) {
    free(channel);
}

static rpc_stream *new_stream(rpc_queue *queue, const char *method, uint64_t send_bytes_max) {
    if (world.stream_count == world.stream_room) {
        world.stream_room = world.stream_room * 2 + 256;
        world.streams = must_have(realloc(world.streams, world.stream_room * sizeof(*world.streams)));
    }
    rpc_stream *s = must_have(calloc(1, sizeof(*s)));
    s->process = queue->process;
    s->queue = queue;
    s->method = method;
    s->bytes_max = send_bytes_max > 0 ? send_bytes_max : SEND_BYTES;
    s->opened_ns = the_machine.now_ns;
    world.streams[world.stream_count++] = s;
    return s;
}

static rpc_server *find_server(const char *address) {
    for (rpc_server *server = world.servers; server != NULL; server = server->next) {
        if (!server->process->is_dead && !server->is_closing && strcmp(server->address, address) == 0) return server;
    }
    return NULL;
}

static void accept_stream(rpc_stream *client, rpc_server *server) {
    const rpc_method *method = NULL;
    for (unsigned i = 0; i < server->method_count; i++) {
        if (strcmp(server->methods[i].path, client->method) == 0) method = &server->methods[i];
    }
    if (method == NULL) {
        end_here(client, HD_UNSUPPORTED, "no such method");
        return;
    }
    rpc_stream *s = new_stream(method->queue, method->path, method->send_bytes_max);
    s->is_server = true;
    s->server = server;
    s->peer = client;
    client->peer = s;
    server->open_streams++;
    rpc_queue_put(s->queue, (entry){.kind = ENTRY_OPEN, .stream = s, .method = method});
    schedule_arrival(client);
}

static process *process_at(const char *address) {
    process *found = NULL;
    for (rpc_server *server = world.servers; server != NULL; server = server->next) {
        if (strcmp(server->address, address) == 0 && (found == NULL || found->is_dead)) found = server->process;
    }
    return found;
}

static void on_connect(void *context) {
    rpc_stream *s = context;
    if (s->process->is_dead || s->is_closed || s->is_ending) return;
    process *there = process_at(s->address);
    uint64_t cut = there != NULL ? network_cut_until(s->process, there) : 0;
    if (cut != 0 && cut - s->opened_ns <= CONNECT_NS) {
        machine_at(cut + dice_below(&the_machine.dice, MACHINE_MS), on_connect, s);
        return;
    }
    rpc_server *server = cut == 0 ? find_server(s->address) : NULL;
    if (server != NULL) {
        accept_stream(s, server);
    } else if (s->waits_for_ready) {
        machine_at(the_machine.now_ns + RETRY_NS, on_connect, s);
    } else if (cut != 0 && the_machine.now_ns - s->opened_ns < CONNECT_NS) {
        machine_at(s->opened_ns + CONNECT_NS, on_connect, s);
    } else {
        end_here(s, HD_PEER_LOST, "failed to connect");
    }
}

static void on_deadline(void *context) {
    rpc_stream *s = context;
    if (s->process->is_dead || s->is_closed || s->is_ending) return;
    if (s->peer != NULL) send_end(s, HD_CANCELLED, "the deadline has passed");
    end_here(s, HD_TIMED_OUT, "the deadline has passed");
}

hd_status rpc_stream_open(rpc_channel *channel, rpc_queue *queue, const rpc_stream_config *config, rpc_stream **out) {
    rpc_stream *s = new_stream(queue, config->method, config->send_bytes_max);
    snprintf(s->address, sizeof(s->address), "%s", channel->address);
    s->handlers = config->handlers;
    s->context = config->context;
    s->waits_for_ready = config->wait_for_ready;
    assert(config->metadata_count == 0); /* nobody of those who are simulated sends any */
    process *there = process_at(s->address);
    machine_at(there != NULL ? network_arrival(s->process, there) : the_machine.now_ns + MACHINE_MS, on_connect, s);
    if (config->deadline_ms > 0) machine_at(the_machine.now_ns + config->deadline_ms * MACHINE_MS, on_deadline, s);
    *out = s;
    return HD_OK;
}

/* ---- Either side ---- */

void rpc_stream_close(rpc_stream *s) {
    if (s == NULL) return;
    assert(!s->is_closed);
    s->is_closed = true;
    s->is_sending_over = true;
    if (s->is_server) {
        s->server->open_streams--;
        machine_wake(s->server, true);
    }
    if (!s->has_ended && s->peer != NULL && !s->is_ending) send_end(s, HD_CANCELLED, "cancelled");
    s->is_ending = s->has_ended = true;
}

void rpc_stream_cancel(rpc_stream *s) {
    assert(!s->is_closed);
    if (s->is_ending) return;
    if (s->peer != NULL) send_end(s, HD_CANCELLED, "cancelled");
    end_here(s, HD_CANCELLED, "cancelled");
}

static hd_status check_room(rpc_stream *s, size_t bytes) {
    assert(!s->is_closed);
    if (s->is_sending_over) return HD_PEER_LOST;
    if (s->count < SEND_SLOTS && (s->count == 0 || s->bytes + bytes <= s->bytes_max)) return HD_OK;
    s->wants_room = true;
    return HD_FULL;
}

static hd_status send_parts(rpc_stream *s, const rpc_part *parts, size_t part_count, rpc_loan *loan) {
    size_t bytes = 0;
    machine_pass(PASS_AT_SEND);
    for (size_t i = 0; i < part_count; i++) bytes += parts[i].count;
    hd_status status = check_room(s, bytes);
    if (status != HD_OK) return status;
    message *m = send_message(s, MESSAGE_DATA);
    memcpy(m->parts, parts, part_count * sizeof(*parts));
    m->part_count = part_count;
    m->count = bytes;
    m->is_copied = false;
    s->bytes += bytes;
    uint64_t way_ns = m->arrival_ns - the_machine.now_ns;
    if (loan == NULL || way_ns == 0 || !dice_one_in(&the_machine.dice, LOAN_ONE_IN)) {
        copy_parts(m);
        if (loan != NULL) loan->release(loan);
    } else {
        returned *r = must_have(malloc(sizeof(*r)));
        *r = (returned){s, loan};
        /* Read some time before it arrives, given back some time after it has been read. */
        machine_at(the_machine.now_ns + dice_below(&the_machine.dice, way_ns), on_copy, m);
        machine_at(m->arrival_ns + dice_below(&the_machine.dice, LOAN_NS_MAX), on_return, r);
    }
    machine_pass(PASS_AT_SEND);
    return HD_OK;
}

hd_status rpc_stream_send(rpc_stream *s, const rpc_part *parts, size_t part_count) {
    return send_parts(s, parts, part_count, NULL);
}

hd_status rpc_stream_lend(rpc_stream *s, const rpc_part *parts, size_t part_count, rpc_loan *loan) {
    return send_parts(s, parts, part_count, loan);
}

void rpc_stream_end_sending(rpc_stream *s) {
    assert(!s->is_server && !s->is_closed);
    if (s->is_sending_over) return;
    send_message(s, MESSAGE_HALF_CLOSE);
    s->is_sending_over = true;
}

void rpc_stream_finish(rpc_stream *s, hd_status status, const char *text) {
    assert(s->is_server && !s->is_closed);
    if (s->is_sending_over) return;
    send_end(s, rpc_status_of_code(rpc_code_of_status(status)), text != NULL ? text : hd_status_text(status));
    s->is_sending_over = true;
}

static void on_refused_end(void *context, rpc_stream *s, const rpc_end *end) {
    rpc_stream_close(s);
}

void rpc_stream_refuse(rpc_stream *s, hd_status status, const char *text) {
    s->handlers = (rpc_handlers){.on_end = on_refused_end};
    rpc_stream_finish(s, status, text);
}

void rpc_stream_handle(rpc_stream *s, const rpc_handlers *handlers, void *context) {
    s->handlers = *handlers;
    s->context = context;
}

const char *rpc_stream_method(const rpc_stream *s) {
    return s->method;
}

const char *rpc_stream_peer(rpc_stream *s, char *buffer, size_t buffer_bytes) {
    snprintf(buffer, buffer_bytes, "%s", s->peer != NULL ? s->peer->process->name : "nobody");
    return buffer;
}

/* ---- Servers ---- */

hd_status rpc_server_open(const rpc_server_config *config, rpc_server **out, hd_error *error) {
    rpc_server *server = must_have(calloc(1, sizeof(*server)));
    snprintf(server->address, sizeof(server->address), "%s", config->listen_address);
    if (find_server(server->address) != NULL)
        return hd_error_set(error, HD_IO, "cannot listen on %s", config->listen_address);
    server->process = machine_current();
    memcpy(server->methods, config->methods, config->method_count * sizeof(rpc_method));
    server->method_count = config->method_count;
    server->next = world.servers;
    world.servers = server;
    *out = server;
    return HD_OK;
}

void rpc_server_close(rpc_server *server) {
    if (server == NULL) return;
    server->is_closing = true;
    for (size_t i = 0; i < world.stream_count; i++) {
        rpc_stream *s = world.streams[i];
        if (s->is_server && s->server == server && !s->is_closed) rpc_stream_cancel(s);
    }
    while (server->open_streams > 0) {
        for (unsigned i = 0; i < server->method_count; i++) {
            if (!server->methods[i].queue->has_loop) rpc_queue_poll(server->methods[i].queue, CLOSE_POLL_NS);
        }
        if (server->open_streams > 0) machine_wait(server, the_machine.now_ns + CLOSE_POLL_NS);
    }
}

const char *rpc_server_address(const rpc_server *server) {
    return server->address;
}

/* ---- Faults ---- */

static bool is_between(const rpc_stream *s, const process *a, const process *b) {
    if (s->peer == NULL || s->is_ending) return false;
    const process *p = s->process, *q = s->peer->process;
    return (p == a && (b == NULL || q == b)) || (q == a && (b == NULL || p == b));
}

void rpc_simulated_killed(process *p) {
    for (size_t i = 0; i < world.stream_count; i++) {
        rpc_stream *s = world.streams[i];
        if (s->process != p || s->peer == NULL || s->peer->process == p || s->peer->is_ending) continue;
        /* What the kernel had taken may still arrive, or not. */
        unsigned kept = (unsigned)dice_below(&the_machine.dice, s->count + 1);
        message **at = &s->first;
        s->last = NULL;
        for (unsigned k = 0; k < kept; k++) {
            s->last = *at;
            at = &(*at)->next;
        }
        *at = NULL;
        s->count = kept;
        send_end(s, HD_PEER_LOST, "the connection was reset");
    }
}

/* Keep-alive: no answer for so long. */
static void on_silence(void *context) {
    rpc_stream *s = context;
    bool is_frozen = s->process->frozen_until_ns > the_machine.now_ns;
    if (s->process->is_dead || is_frozen || s->is_ending || network_cut_until(s->process, s->peer->process) == 0)
        return;
    if (!s->peer->is_ending) send_end(s, HD_PEER_LOST, "the connection was reset"); /* heard when the cut is over */
    end_here(s, s->is_server ? HD_CANCELLED : HD_PEER_LOST, "keep-alive: no answer");
}

void rpc_simulated_cut(process *a, process *b) {
    for (size_t i = 0; i < world.stream_count; i++) {
        rpc_stream *s = world.streams[i];
        if (!is_between(s, a, b)) continue;
        uint64_t most = DEAD_NS_MIN << dice_below(&the_machine.dice, DEAD_DOUBLINGS + 1);
        machine_at(the_machine.now_ns + dice_between(&the_machine.dice, most / 2, most), on_silence, s);
    }
}
