/* router.c - requests on their way through workers. */
#include "coordinator/router.h"

#include <assert.h>
#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "coordinator/router_state.h"

#define PATIENCE_MS 30000u
#define TICK_MS 250u
#define FAILURES_MAX 20u /* workers that one request may lose before it is given up */
#define STEP_FAILURES 2u /* failures of the step itself, which may be the request's fault */

static void on_worker_event(worker_request *r, const worker_event *event);

/* -- a request's life -- */

static void routed_free(routed *q) {
    for (uint32_t i = 0; q->answers != NULL && i < q->request.choices; i++) free((void *)q->answers[i].token_ids);
    free(q->answers);
    free(q);
}

static void leave_link(routed *q) {
    if (q->link == NULL) return;
    q->link->running--;
    q->link = NULL;
}

/* The client's request is its own again with the last event, and this one is gone. */
static void end(routed *q, const worker_event *event) {
    router *r = q->router;
    worker_request *client = q->client;
    leave_link(q);
    *(q->previous != NULL ? &q->previous->next : &r->requests) = q->next;
    if (q->next != NULL) q->next->previous = q->previous;
    routed_free(q);
    client->worker = NULL;
    client->on_event(client, event);
    atomic_fetch_sub(&r->open, 1);
}

static void fail(routed *q, hd_status status, const char *message) {
    end(q, &(worker_event){.kind = WORKER_FAILED, .last = true, .status = status, .message = message});
}

/* True: that was the last choice, and the request is gone. */
static bool end_choice(routed *q, uint32_t choice, worker_finish finish, uint32_t stop_id) {
    worker_event event = {.kind = WORKER_FINISHED, .choice = choice, .finish = finish, .stop_id = stop_id};
    q->answers[choice].has_ended = true;
    event.last = ++q->ended == q->request.choices;
    if (event.last) end(q, &event);
    else q->client->on_event(q->client, &event);
    return event.last;
}

/* Between two workers: choices that need none any more. True: the request is gone. */
static bool end_finished(routed *q) {
    for (uint32_t i = 0; i < q->request.choices; i++) {
        worker_answer *a = &q->answers[i];
        if (a->has_ended) continue;
        if (routed_is_cancelled(q, i)) {
            if (end_choice(q, i, WORKER_FINISH_CANCELLED, 0)) return true;
        } else if (a->token_count > 0 && a->token_count == q->request.max_tokens) {
            /* Its end was on the way from the worker that was lost. */
            if (end_choice(q, i, WORKER_FINISH_LENGTH, 0)) return true;
        }
    }
    return false;
}

static void wait_for_worker(routed *q) {
    leave_link(q);
    q->is_moving = false;
    if (q->waiting_since_ns == 0) q->waiting_since_ns = router_now_ns(q->router);
}

/* False: nobody takes it now. */
static bool give(routed *q) {
    router *r = q->router;
    for (;;) {
        worker_link *link = router_choose(r, q);
        if (link == NULL) return false;
        bool has_said = false;
        for (uint32_t i = 0; i < q->request.choices; i++)
            has_said |= q->answers[i].token_count > 0 || q->answers[i].has_ended;
        q->request.answers = has_said ? q->answers : NULL;
        if (has_said) q->request.sampling.prompt_logprobs = -1; /* they all came before the first token */
        q->request.epoch++;
        q->prompt_done = 0;
        hd_error error;
        worker_rpc *rpc = worker_remote_rpc(link->remote);
        hd_status status = rpc->ops->submit(rpc, &q->request, &error);
        if (status == HD_OK) {
            q->link = link;
            link->running++;
            q->waiting_since_ns = 0;
            router_remember(r, q, link);
            hd_log(HD_LOG_INFO, "request_given", "sequence=%016" PRIx64 " node=%s epoch=%" PRIu64 " trace_id=%s",
                   q->request.sequence, link->node.id, q->request.epoch, q->request.trace_id);
            return true;
        }
        link->is_full = true; /* until its next report */
    }
}

static void start_or_wait(routed *q) {
    if (end_finished(q)) return;
    if (!give(q)) wait_for_worker(q);
}

/* The worker is lost to this request: another one goes on from what has been said. */
static void take_over(routed *q, hd_status cause, const char *message) {
    worker_link *link = q->link;
    bool is_own_fault = cause == HD_IO || cause == HD_CORRUPT || cause == HD_NO_MEMORY;
    if (++q->failures > (is_own_fault ? STEP_FAILURES : FAILURES_MAX)) {
        fail(q, cause, message);
        return;
    }
    if (!q->is_moving) {
        hd_log(HD_LOG_WARN, "takeover", "sequence=%016" PRIx64 " from=%s cause=%s epoch=%" PRIu64 " trace_id=%s",
               q->request.sequence, link->node.id, hd_status_name(cause), q->request.epoch, q->request.trace_id);
        q->avoid = link->name;
        hd_counter_add(q->router->takeovers, 1);
    }
    leave_link(q);
    q->is_moving = false;
    start_or_wait(q);
}

/* -- events of workers -- */

static void on_failed(routed *q, const worker_event *event) {
    switch (event->status) {
    case HD_INVALID:
    case HD_UNSUPPORTED: fail(q, event->status, event->message); return;
    case HD_FULL:
        q->link->is_full = true;
        leave_link(q);
        if (end_finished(q) || give(q)) return;
        /* What has been begun waits; a new one is told, so that its client can go elsewhere. */
        if (q->has_started) wait_for_worker(q);
        else fail(q, HD_FULL, event->message);
        return;
    case HD_CANCELLED:
        /* It is being drained, and its announcement is on the way: not this request's failure, and no use to ask again
         * at once. */
        q->link->is_full = true;
        leave_link(q);
        q->is_moving = false;
        start_or_wait(q);
        return;
    default: take_over(q, event->status, event->message); return;
    }
}

static void on_token(routed *q, const worker_event *event) {
    worker_answer *a = &q->answers[event->choice];
    if (a->has_ended) return;
    bool is_next =
        event->position == q->request.prompt_count + a->token_count && a->token_count < q->request.max_tokens;
    if (!is_next) {
        /* Never handed on: whoever says it is out of step, and is asked no more. */
        hd_log(HD_LOG_ERROR, "token_out_of_order", "sequence=%016" PRIx64 " from=%s position=%" PRIu64,
               q->request.sequence, q->link->node.id, event->position);
        worker_rpc *rpc = worker_remote_rpc(q->link->remote);
        q->is_moving = true;
        rpc->ops->cancel(rpc, q->request.id, UINT32_MAX);
        return;
    }
    ((uint32_t *)a->token_ids)[a->token_count++] = event->token_id;
    q->client->on_event(q->client, event);
}

static void on_finished(routed *q, const worker_event *event) {
    bool is_last_there = event->last,
         is_wanted = event->finish != WORKER_FINISH_CANCELLED || routed_is_cancelled(q, event->choice);
    if (is_wanted && !q->answers[event->choice].has_ended &&
        end_choice(q, event->choice, event->finish, event->stop_id))
        return;
    /* Its worker is done with it, and it is not: moved, or cut short by a worker that ends. */
    if (is_last_there) take_over(q, HD_CANCELLED, "the worker has ended");
}

/* Another worker may have other defaults, or other attention nodes: what queries see has to stay what it was. */
static void keep_selection(routed *q, const char *selection) {
    if (selection == NULL || selection[0] == '\0' || strlen(selection) >= sizeof(q->selection)) return;
    memcpy(q->selection, selection, strlen(selection) + 1);
    q->request.selection = q->selection;
}

static void on_worker_event(worker_request *r, const worker_event *event) {
    routed *q = (routed *)r;
    switch (event->kind) {
    case WORKER_STARTED:
        q->prompt_done = event->cached_tokens;
        if (!q->has_started) {
            q->has_started = true;
            keep_selection(q, event->selection);
            q->client->on_event(q->client, event);
        }
        break;
    case WORKER_PROGRESS:
        q->prompt_done = event->prompt_done;
        q->client->on_event(q->client, event);
        break;
    case WORKER_PROMPT_LOGPROBS: q->client->on_event(q->client, event); break;
    case WORKER_TOKEN: on_token(q, event); break;
    case WORKER_FINISHED: on_finished(q, event); break;
    case WORKER_FAILED: on_failed(q, event); break;
    }
}

/* -- from the coordinator, on any thread -- */

static void on_start(rpc_tag *tag, bool is_ok) {
    routed *q = (routed *)((char *)tag - offsetof(routed, start));
    router *r = q->router;
    q->next = r->requests;
    if (q->next != NULL) q->next->previous = q;
    r->requests = q;
    /* Names of one request: one a choice. The highest bit is the workers' own. */
    q->request.sequence = (r->sequence_base + r->next_sequence) & ~(1ull << 63);
    q->request.id = q->request.sequence;
    r->next_sequence += WORKER_CHOICES_MAX;
    start_or_wait(q);
}

static hd_status submit(worker_rpc *self, worker_request *client, hd_error *error) {
    route_model *model = (route_model *)self;
    router *r = model->router;
    if (atomic_fetch_add(&r->open, 1) >= ROUTER_REQUESTS_MAX) {
        atomic_fetch_sub(&r->open, 1);
        return hd_error_set(error, HD_FULL, "this coordinator routes %u requests, and more it may not",
                            ROUTER_REQUESTS_MAX);
    }
    routed *q = calloc(1, sizeof(*q));
    if (q != NULL) q->answers = calloc(client->choices, sizeof(*q->answers));
    bool is_whole = q != NULL && q->answers != NULL;
    if (is_whole) q->request = *client;
    for (uint32_t i = 0; is_whole && i < client->choices; i++) {
        /* Touched as far as tokens come. */
        q->answers[i].token_ids = calloc(client->max_tokens + 1, sizeof(uint32_t));
        is_whole = q->answers[i].token_ids != NULL;
    }
    if (!is_whole) {
        if (q != NULL) routed_free(q);
        atomic_fetch_sub(&r->open, 1);
        return hd_error_set(error, HD_NO_MEMORY, "no memory for a request");
    }
    q->client = client;
    q->router = r;
    q->model = model;
    q->request.on_event = on_worker_event;
    q->request.epoch = 0;
    q->begun_ns = router_now_ns(r);
    q->start.run = on_start;
    client->worker = q;
    rpc_queue_post(r->queue, &q->start);
    return HD_OK;
}

typedef struct cancel_order {
    rpc_tag tag;
    router *router;
    uint64_t id; /* the client's */
    uint32_t choice;
} cancel_order;

static void cancel_routed(routed *q, uint32_t choice) {
    if (choice == UINT32_MAX) q->is_cancelled = true;
    else q->cancelled[choice / 64] |= 1ull << choice % 64;
    if (q->link == NULL) {
        end_finished(q);
        return;
    }
    worker_rpc *rpc = worker_remote_rpc(q->link->remote);
    rpc->ops->cancel(rpc, q->request.id, choice);
}

static void on_cancel(rpc_tag *tag, bool is_ok) {
    cancel_order *order = (cancel_order *)tag;
    routed *q = order->router->requests;
    while (q != NULL && q->client->id != order->id) q = q->next;
    if (q != NULL) cancel_routed(q, order->choice);
    free(order);
}

static void cancel(worker_rpc *self, uint64_t id, uint32_t choice) {
    if (choice != UINT32_MAX && choice >= WORKER_CHOICES_MAX) return;
    cancel_order *order = malloc(sizeof(*order));
    if (order == NULL) return; /* it ends by itself, later */
    *order = (cancel_order){{on_cancel}, ((route_model *)self)->router, id, choice};
    rpc_queue_post(order->router->queue, &order->tag);
}

static void info(worker_rpc *self, worker_info *out) {
    *out = ((route_model *)self)->served.info;
}

static void load(worker_rpc *self, worker_load *out) {
    route_model *model = (route_model *)self;
    pthread_mutex_lock(&model->lock);
    *out = model->load;
    pthread_mutex_unlock(&model->lock);
}

static void reset_on_loop(void *context) {
    route_model *model = context;
    for (worker_link *link = model->router->links; link != NULL; link = link->next) {
        if (link->model != model || !link->is_connected) continue;
        worker_rpc *rpc = worker_remote_rpc(link->remote);
        rpc->ops->cache_reset(rpc);
    }
}

static void cache_reset(worker_rpc *self) {
    rpc_loop_call(((route_model *)self)->router->config.loop, reset_on_loop, self);
}

const worker_rpc_ops router_rpc_ops = {
    .name = "router", .submit = submit, .cancel = cancel, .info = info, .load = load, .cache_reset = cache_reset};

/* -- on the clock -- */

void router_run_waiting(router *r) {
    uint64_t now = router_now_ns(r);
    for (routed *q = r->requests, *next; q != NULL; q = next) {
        next = q->next;
        if (q->link != NULL || end_finished(q) || give(q)) continue;
        bool has_worker = false;
        for (worker_link *link = r->links; link != NULL; link = link->next)
            has_worker |= link->model == q->model && router_link_takes(link);
        if (has_worker || now - q->waiting_since_ns < r->config.patience_ms * 1000000u) continue;
        fail(q, HD_PEER_LOST, "no worker serves this model now");
    }
}

void router_move_from(router *r, worker_link *link) {
    for (routed *q = r->requests; q != NULL; q = q->next) {
        if (q->link != link || q->is_moving) continue;
        if (router_choose(r, q) == NULL) continue;
        /* It ends there between two tokens, and its last event brings it to another. */
        q->is_moving = true;
        worker_rpc *rpc = worker_remote_rpc(link->remote);
        rpc->ops->cancel(rpc, q->request.id, UINT32_MAX);
    }
}

static void on_tick(rpc_timer *timer) {
    router *r = (router *)((char *)timer - offsetof(router, tick));
    for (worker_link *link = r->links; link != NULL; link = link->next) {
        link->is_full = false;
        if (link->is_connected && link->node.state == NODE_DRAINING) router_move_from(r, link);
    }
    router_run_waiting(r);
    router_ask_nodes(r);
    rpc_timer_set(r->queue, timer, TICK_MS);
}

/* -- open and close -- */

static void begin(void *context) {
    static const membership_handlers handlers = {.on_node = router_on_node, .on_gone = router_on_gone};
    router *r = context;
    r->config.membership->ops->follow(r->config.membership, &handlers, r);
    on_tick(&r->tick);
}

hd_status router_open(const router_config *config, router **out, hd_error *error) {
    if (sodium_init() < 0) return hd_error_set(error, HD_IO, "libsodium cannot be initialised");
    router *r = calloc(1, sizeof(*r));
    if (r == NULL) return hd_error_set(error, HD_NO_MEMORY, "no memory for the router");
    r->config = *config;
    if (r->config.patience_ms == 0) r->config.patience_ms = PATIENCE_MS;
    r->clock = config->clock != NULL ? *config->clock : hd_clock_system;
    r->queue = rpc_loop_queue(config->loop);
    r->tick.run = on_tick;
    if (config->metrics != NULL) {
        r->takeovers = hd_counter_register(config->metrics, "hadal:takeovers_total", "",
                                           "Requests that went on at another worker because theirs was lost.");
    }
    r->next_link = 1;
    /* Coordinators do not know each other: drawn, so that their names do not meet. */
    randombytes_buf(&r->sequence_base, sizeof(r->sequence_base));
    rpc_loop_call(config->loop, begin, r);
    *out = r;
    return HD_OK;
}

static void finish(void *context) {
    router *r = context;
    rpc_timer_cancel(r->queue, &r->tick);
    router_close_links(r);
    router_close_nodes(r);
}

void router_close(router *r) {
    if (r == NULL) return;
    assert(atomic_load(&r->open) == 0);
    for (route_model *model = r->models; model != NULL; model = model->next) {
        if (model->has_opener) pthread_join(model->opener, NULL); /* what it posted comes before finish */
    }
    rpc_loop_call(r->config.loop, finish, r);
    while (r->models != NULL) {
        route_model *model = r->models;
        r->models = model->next;
        text_model_close(model->text);
        hadal__description__free_unpacked(model->description, NULL);
        pthread_mutex_destroy(&model->lock);
        free(model);
    }
    free(r);
}
