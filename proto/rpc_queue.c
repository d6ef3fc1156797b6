/* rpc_queue.c - completion queues, their timers, and the thread that polls one. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <grpc/support/log.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/threads.h"
#include "proto/rpc_internal.h"
#include "proto/rpc_timers.h"

#define WAIT_NS_MAX 1000000000ull

/* gRPC's own lines become ours. Its errors are mostly of connections, which streams report to their owners anyway. */
static void log_library(gpr_log_func_args *arguments) {
    char text[512];
    hd_log(arguments->severity == GPR_LOG_SEVERITY_ERROR ? HD_LOG_WARN : HD_LOG_DEBUG, "grpc", "text=%s",
           hd_log_quote(arguments->message, text, sizeof(text)));
}

static pthread_once_t library_once = PTHREAD_ONCE_INIT;

static void library_configure(void) {
    gpr_set_log_function(log_library);
}

void rpc_library_open(void) {
    pthread_once(&library_once, library_configure);
    grpc_init();
}

void rpc_library_close(void) {
    grpc_shutdown();
}

gpr_timespec rpc_deadline(uint64_t from_now_ns) {
    if (from_now_ns == UINT64_MAX) return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos((int64_t)from_now_ns, GPR_TIMESPAN));
}

hd_status rpc_queue_open(rpc_queue **out) {
    rpc_queue *q = calloc(1, sizeof(*q));
    if (q == NULL) return HD_NO_MEMORY;
    rpc_library_open();
    q->events = grpc_completion_queue_create_for_next(NULL);
    q->wake_channel = grpc_lame_client_channel_create("wake", GRPC_STATUS_UNAVAILABLE, "goes nowhere");
    q->wake_call = grpc_channel_create_call(q->wake_channel, NULL, GRPC_PROPAGATE_DEFAULTS, q->events,
                                            grpc_slice_from_static_string("/wake"), NULL,
                                            gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    *out = q;
    return HD_OK;
}

static grpc_completion_type run_event(rpc_queue *q, gpr_timespec deadline) {
    grpc_event event = grpc_completion_queue_next(q->events, deadline, NULL);
    if (event.type != GRPC_OP_COMPLETE) return event.type;
    rpc_tag *tag = event.tag;
    hd_taken_over(tag);
    tag->run(tag, event.success != 0);
    return event.type;
}

void rpc_queue_close(rpc_queue *q) {
    if (q == NULL) return;
    grpc_call_unref(q->wake_call);
    grpc_completion_queue_shutdown(q->events);
    while (run_event(q, gpr_inf_future(GPR_CLOCK_MONOTONIC)) != GRPC_QUEUE_SHUTDOWN) {}
    grpc_completion_queue_destroy(q->events);
    grpc_channel_destroy(q->wake_channel);
    free(q);
    rpc_library_close();
}

bool rpc_queue_poll(rpc_queue *q, uint64_t timeout_ns) {
    if (q->timers != NULL) {
        uint64_t now = hd_now_ns(), due = q->timers->due_ns;
        uint64_t wait = due > now ? due - now : 0;
        if (wait < timeout_ns) timeout_ns = wait;
    }
    bool has_event = run_event(q, rpc_deadline(timeout_ns)) == GRPC_OP_COMPLETE;
    bool has_timer = q->timers != NULL && rpc_timers_run(&q->timers);
    return has_event || has_timer;
}

void rpc_queue_post(rpc_queue *q, rpc_tag *tag) {
    hd_handed_over(tag);
    grpc_call_error error = grpc_call_start_batch(q->wake_call, NULL, 0, tag, NULL);
    assert(error == GRPC_CALL_OK);
    (void)error;
}

void rpc_timer_cancel(rpc_queue *q, rpc_timer *timer) {
    rpc_timers_cancel(&q->timers, timer);
}

void rpc_timer_set(rpc_queue *q, rpc_timer *timer, uint64_t delay_ms) {
    rpc_timers_set(&q->timers, timer, delay_ms);
}

/* -- a loop -- */

struct rpc_loop {
    rpc_queue *queue;
    pthread_t thread;
    rpc_tag stop;
    bool is_stopping; /* the loop thread's */
};

typedef struct loop_call {
    rpc_tag tag;
    void (*function)(void *context);
    void *context;
    pthread_mutex_t lock;
    pthread_cond_t done;
    bool is_done;
} loop_call;

static void *loop_main(void *context) {
    rpc_loop *loop = context;
    while (!loop->is_stopping) rpc_queue_poll(loop->queue, WAIT_NS_MAX);
    return NULL;
}

static void on_stop(rpc_tag *tag, bool is_ok) {
    rpc_loop *loop = (rpc_loop *)((char *)tag - offsetof(rpc_loop, stop));
    loop->is_stopping = true;
}

hd_status rpc_loop_open(const char *thread_name, rpc_loop **out) {
    rpc_loop *loop = calloc(1, sizeof(*loop));
    if (loop == NULL) return HD_NO_MEMORY;
    loop->stop.run = on_stop;
    hd_status status = rpc_queue_open(&loop->queue);
    if (status == HD_OK && pthread_create(&loop->thread, NULL, loop_main, loop) != 0) {
        rpc_queue_close(loop->queue);
        status = HD_NO_MEMORY;
    }
    if (status != HD_OK) {
        free(loop);
        return status;
    }
    loop->queue->has_loop = true;
    char name[16];
    strncpy(name, thread_name, sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    pthread_setname_np(loop->thread, name);
    *out = loop;
    return HD_OK;
}

void rpc_loop_close(rpc_loop *loop) {
    if (loop == NULL) return;
    rpc_queue_post(loop->queue, &loop->stop);
    pthread_join(loop->thread, NULL);
    rpc_queue_close(loop->queue);
    free(loop);
}

rpc_queue *rpc_loop_queue(rpc_loop *loop) {
    return loop->queue;
}

static void on_call(rpc_tag *tag, bool is_ok) {
    loop_call *call = (loop_call *)tag;
    call->function(call->context);
    pthread_mutex_lock(&call->lock);
    call->is_done = true;
    pthread_cond_signal(&call->done);
    pthread_mutex_unlock(&call->lock);
}

void rpc_loop_call(rpc_loop *loop, void (*function)(void *context), void *context) {
    if (pthread_equal(pthread_self(), loop->thread)) {
        function(context);
        return;
    }
    loop_call call = {.tag.run = on_call, .function = function, .context = context};
    pthread_mutex_init(&call.lock, NULL);
    pthread_cond_init(&call.done, NULL);
    rpc_queue_post(loop->queue, &call.tag);
    pthread_mutex_lock(&call.lock);
    while (!call.is_done) pthread_cond_wait(&call.done, &call.lock);
    pthread_mutex_unlock(&call.lock);
    pthread_cond_destroy(&call.done);
    pthread_mutex_destroy(&call.lock);
}
