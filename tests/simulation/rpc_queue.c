/* rpc_queue.c - queues of rpc.h in a simulated process: entries in order, timers by time, and loops that poll. */
#include "tests/simulation/rpc_state.h"

#include <stddef.h>

#include "base/memory.h"
#include "proto/rpc_timers.h"

/* ---- Queues ---- */

void rpc_queue_put(rpc_queue *q, entry given) {
    if (q->is_closed || q->process->is_dead) return;
    entry *e = must_have(malloc(sizeof(*e)));
    *e = given;
    e->next = NULL;
    *(q->last != NULL ? &q->last->next : &q->first) = e;
    q->last = e;
    machine_wake(q, true);
}

hd_status rpc_queue_open(rpc_queue **out) {
    rpc_queue *q = must_have(calloc(1, sizeof(*q)));
    q->process = machine_current();
    *out = q;
    return HD_OK;
}

static void run_end(rpc_stream *s, hd_status status, const char *text) {
    if (s->has_ended) return;
    s->has_ended = s->is_sending_over = true;
    if (s->is_closed || s->handlers.on_end == NULL) return;
    rpc_end end = {status, rpc_code_of_status(status), text};
    s->handlers.on_end(s->context, s, &end);
}

static void run_message(rpc_stream *s, message *m) {
    rpc_message given = {m->bytes, m->count};
    if (!s->is_closed && !s->has_ended && s->handlers.on_message != NULL) s->handlers.on_message(s->context, s, &given);
    hd_free(m->bytes);
    free(m);
}

static void run_entry(entry *e) {
    rpc_stream *s = e->stream;
    switch (e->kind) {
    case ENTRY_TAG: e->tag->run(e->tag, true); break;
    case ENTRY_OPEN: e->method->on_open(e->method->context, s); break;
    case ENTRY_MESSAGE:
        if (e->message->kind == MESSAGE_DATA) run_message(s, e->message);
        else if (!s->is_closed && !s->has_ended && !s->is_sending_over && s->handlers.on_half_close != NULL)
            s->handlers.on_half_close(s->context, s);
        break;
    case ENTRY_ROOM:
        if (!s->is_closed && !s->has_ended && s->handlers.on_room != NULL) s->handlers.on_room(s->context, s);
        break;
    case ENTRY_END: run_end(s, e->status, e->text); break;
    case ENTRY_NOTHING: break;
    }
}

static bool run_next(rpc_queue *q) {
    entry *e = q->first;
    if (e == NULL) return false;
    q->first = e->next;
    if (q->first == NULL) q->last = NULL;
    run_entry(e);
    free(e);
    return true;
}

bool rpc_queue_poll(rpc_queue *q, uint64_t timeout_ns) {
    machine_pass(PASS_AT_POLL);
    uint64_t until = timeout_ns > MACHINE_NEVER - the_machine.now_ns ? MACHINE_NEVER : the_machine.now_ns + timeout_ns;
    if (q->timers != NULL && q->timers->due_ns < until) until = q->timers->due_ns;
    if (q->first == NULL && until > the_machine.now_ns) machine_wait(q, until);
    bool has_event = run_next(q);
    bool has_timer = rpc_timers_run(&q->timers);
    return has_event || has_timer;
}

void rpc_queue_close(rpc_queue *q) {
    if (q == NULL) return;
    while (run_next(q)) {}
    q->is_closed = true;
}

void rpc_queue_post(rpc_queue *q, rpc_tag *tag) {
    rpc_queue_put(q, (entry){.kind = ENTRY_TAG, .tag = tag});
    machine_pass(PASS_AT_SEND);
}

void rpc_timer_cancel(rpc_queue *q, rpc_timer *timer) {
    rpc_timers_cancel(&q->timers, timer);
}

void rpc_timer_set(rpc_queue *q, rpc_timer *timer, uint64_t delay_ms) {
    rpc_timers_set(&q->timers, timer, delay_ms);
}

/* ---- Loops ---- */

struct rpc_loop {
    rpc_queue *queue;
    unsigned long task;
    rpc_tag stop;
    bool is_stopping;
};

typedef struct loop_call {
    rpc_tag tag;
    void (*function)(void *context);
    void *context;
    bool is_done;
} loop_call;

static void *loop_main(void *context) {
    rpc_loop *loop = context;
    while (!loop->is_stopping) rpc_queue_poll(loop->queue, MACHINE_S);
    return NULL;
}

static void on_stop(rpc_tag *tag, bool is_ok) {
    rpc_loop *loop = (rpc_loop *)((char *)tag - offsetof(rpc_loop, stop));
    loop->is_stopping = true;
}

hd_status rpc_loop_open(const char *thread_name, rpc_loop **out) {
    rpc_loop *loop = must_have(calloc(1, sizeof(*loop)));
    loop->stop.run = on_stop;
    rpc_queue_open(&loop->queue);
    loop->queue->has_loop = true;
    loop->task = machine_spawn(machine_current(), loop_main, loop);
    *out = loop;
    return HD_OK;
}

void rpc_loop_close(rpc_loop *loop) {
    if (loop == NULL) return;
    rpc_queue_post(loop->queue, &loop->stop);
    while (!machine_task_has_ended(loop->task)) machine_wait((const void *)loop->task, MACHINE_NEVER);
    rpc_queue_close(loop->queue);
    free(loop);
}

rpc_queue *rpc_loop_queue(rpc_loop *loop) {
    return loop->queue;
}

static void on_call(rpc_tag *tag, bool is_ok) {
    loop_call *call = (loop_call *)tag;
    call->function(call->context);
    call->is_done = true;
    machine_wake(call, true);
}

void rpc_loop_call(rpc_loop *loop, void (*function)(void *context), void *context) {
    if (machine_task() == loop->task) {
        function(context);
        return;
    }
    loop_call call = {.tag.run = on_call, .function = function, .context = context};
    rpc_queue_post(loop->queue, &call.tag);
    while (!call.is_done) machine_wait(&call, MACHINE_NEVER);
}

/* ---- Certificates: none here ---- */

hd_status rpc_tls_open(const char *cert_path, const char *key_path, const char *ca_path, rpc_tls **out,
                       hd_error *error) {
    return hd_error_set(error, HD_UNSUPPORTED, "there are no certificates in a simulation");
}

void rpc_tls_close(rpc_tls *tls) {}
