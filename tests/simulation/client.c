/* client.c - see client.h. */
#include "tests/simulation/client.h"

#include <inttypes.h>

#define LOOK_NS (10 * MACHINE_MS)
#define AGAIN_NS (100 * MACHINE_MS)
#define REFUSALS_MAX 2000u

static void on_token(client *c, const worker_event *event) {
    const catalog_answer *answer = &c->entry->answers[event->choice];
    uint32_t at = c->counts[event->choice]++;
    if (event->position != c->entry->prompt_count + at) {
        machine_fail("request %u choice %u: token %u came for position %" PRIu64, c->number, event->choice, at,
                     event->position);
    } else if (at >= answer->count || answer->tokens[at] != event->token_id) {
        machine_fail("request %u choice %u: token %u is %u, and a single process says %d", c->number, event->choice, at,
                     event->token_id, at < answer->count ? (int)answer->tokens[at] : -1);
    }
}

static void on_finished(client *c, const worker_event *event) {
    const catalog_answer *answer = &c->entry->answers[event->choice];
    if (c->finished[event->choice]) machine_fail("request %u choice %u ended twice", c->number, event->choice);
    c->finished[event->choice] = true;
    if (event->finish == WORKER_FINISH_CANCELLED) {
        if (!c->has_hung_up) machine_fail("request %u was cancelled by nobody", c->number);
        return;
    }
    if (event->finish != answer->finish || c->counts[event->choice] != answer->count ||
        event->stop_id != answer->stop_id)
        machine_fail("request %u choice %u ended after %u tokens, and a single process says %u", c->number,
                     event->choice, c->counts[event->choice], answer->count);
}

static void on_event(worker_request *r, const worker_event *event) {
    client *c = (client *)r;
    if (c->has_ended) machine_fail("request %u: an event behind the last one", c->number);
    if (event->kind == WORKER_STARTED) c->has_started = true;
    if (event->kind == WORKER_TOKEN) on_token(c, event);
    if (event->kind == WORKER_FINISHED) on_finished(c, event);
    if (event->kind == WORKER_FAILED) {
        c->is_refused = event->status == HD_FULL && !c->has_started;
        if (!c->is_refused)
            machine_fail("request %u failed: %s (%s)", c->number, event->message, hd_status_name(event->status));
    }
    if (!event->last) return;
    for (uint32_t i = 0; i < c->entry->choices; i++) {
        if (!c->finished[i] && !c->is_refused) machine_fail("request %u ended without its choice %u", c->number, i);
    }
    c->has_ended = true;
    machine_wake(c, true);
}

static void sleep_ns(uint64_t time_ns) {
    machine_wait(&time_ns, the_machine.now_ns + time_ns);
}

static void await_end(client *c, worker_rpc *rpc) {
    uint64_t until = c->hang_up_ns > 0 ? the_machine.now_ns + c->hang_up_ns : MACHINE_NEVER;
    while (!c->has_ended) {
        if (machine_wait(c, until) || c->has_ended) continue;
        machine_tell("request %u hangs up", c->number);
        c->has_hung_up = true;
        until = MACHINE_NEVER;
        rpc->ops->cancel(rpc, c->request.id, c->hang_up_choice);
    }
}

static void *client_main(void *context) {
    client *c = context;
    role *r = c->coordinator;
    while (atomic_load(&r->models.count) == 0) sleep_ns(LOOK_NS);
    worker_rpc *rpc = r->models.models[0]->worker;
    do {
        hd_error error = {.text = ""};
        c->is_refused = c->has_ended = c->has_started = false;
        c->request = catalog_request(c->entry);
        c->request.id = c->number + 1;
        c->request.on_event = on_event;
        c->is_accepted = true;
        machine_tell("request %u: %" PRIu64 " tokens, %u choices of %" PRIu64, c->number, c->entry->prompt_count,
                     c->entry->choices, c->entry->max_tokens);
        hd_status status = rpc->ops->submit(rpc, &c->request, &error);
        if (status == HD_OK) await_end(c, rpc);
        else machine_fail("request %u is not taken: %s", c->number, error.text);
        if (c->is_refused && !c->has_hung_up) {
            c->has_ended = false;
            if (++c->refusals > REFUSALS_MAX) machine_fail("request %u is refused for ever", c->number);
            sleep_ns(AGAIN_NS);
        }
    } while (c->is_refused && !c->has_hung_up);
    machine_tell("request %u has ended", c->number);
    return NULL;
}

void client_start(client *c, unsigned number, const catalog_entry *entry, role *coordinator) {
    uint64_t hang_up_ns = c->hang_up_ns;
    uint32_t hang_up_choice = c->hang_up_choice;
    *c = (client){.number = number,
                  .entry = entry,
                  .coordinator = coordinator,
                  .hang_up_ns = hang_up_ns,
                  .hang_up_choice = hang_up_choice};
    machine_spawn(coordinator->process, client_main, c);
}
