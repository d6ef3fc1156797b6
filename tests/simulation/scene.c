/* scene.c - see scene.h. */
#include "tests/simulation/scene.h"

#include <inttypes.h>
#include <string.h>

#include "tests/simulation/client.h"
#include "tests/simulation/membership.h"
#include "tests/simulation/monitor.h"
#include "tests/simulation/network.h"
#include "worker/worker.h"

enum { COORDINATORS_MAX = 2, WORKERS_MAX = 3, NODES_MAX = 4, CLIENTS_MAX = 8, FAULTS_MAX = 5, LIVES_MAX = 8 };

#define PATIENCE_NS (400 * MACHINE_S) /* for all requests, faults included */
#define END_NS (100 * MACHINE_S)      /* for every process to end */
#define ORPHAN_MS 3000u
#define ANSWER_MS 2000u

const cluster_shape scene_widest = {.batch_tokens = 128,
                                    .running_max = 6,
                                    .requests_max = 16,
                                    .node_bytes = 16u << 20,
                                    .range_tokens = 1024,
                                    .orphan_ms = ORPHAN_MS,
                                    .answer_ms = ANSWER_MS,
                                    .lanes = 1,
                                    .replicas = 1};

/* A place in the cluster, which one process after the other has. */
typedef struct seat {
    role_kind kind;
    unsigned number;
    role lives[LIVES_MAX]; /* the last one is the process that is there, or was */
    unsigned count;
} seat;

static struct {
    dice dice;
    cluster_shape shape;
    seat seats[COORDINATORS_MAX + WORKERS_MAX + NODES_MAX];
    unsigned seat_count;
    client clients[CLIENTS_MAX];
    unsigned client_count;
    uint64_t begin_ns, span_ns;
    unsigned faults_left; /* faults that have not been undone */
    bool is_checked;
    scene_counts *counts;
} s;

/* ---- Seats ---- */

static role *role_of(seat *place) {
    return &place->lives[place->count - 1];
}

static bool is_there(seat *place) {
    role *r = role_of(place);
    return !r->process->is_dead && !r->has_ended && !r->is_stopping;
}

static void sit(seat *place) {
    role_start(&place->lives[place->count++], place->kind, place->number, &s.shape);
}

static seat *any_seat(role_kind kind) {
    unsigned count = 0;
    seat *chosen = NULL;
    for (unsigned i = 0; i < s.seat_count; i++) {
        if (s.seats[i].kind == kind && dice_one_in(&s.dice, ++count)) chosen = &s.seats[i];
    }
    return chosen;
}

static void add_seats(role_kind kind, unsigned count) {
    for (unsigned i = 0; i < count; i++) s.seats[s.seat_count++] = (seat){.kind = kind, .number = i + 1};
}

/* ---- Faults ---- */

static void undone(void) {
    s.faults_left--;
}

static void come_back(void *context) {
    seat *place = context;
    role *r = role_of(place);
    if (!r->process->is_dead && !r->has_ended) { /* still draining */
        machine_at(the_machine.now_ns + MACHINE_S / 10, come_back, place);
        return;
    }
    if (place->count < LIVES_MAX) sit(place);
    if (place->kind == ROLE_COORDINATOR) {
        /* Clients that were cut off ask again. */
        for (unsigned i = 0; i < s.client_count; i++) {
            client *c = &s.clients[i];
            if (c->coordinator == r && !c->has_ended) client_start(c, c->number, c->entry, role_of(place));
        }
    }
    undone();
}

static uint64_t soon(void) { /* milliseconds to seconds, each magnitude as likely as the others */
    return dice_between(&s.dice, 1, 10) * MACHINE_MS << dice_below(&s.dice, 10);
}

static void kill_seat(seat *place) {
    s.counts->kills++;
    role_kill(role_of(place));
    machine_at(the_machine.now_ns + soon(), come_back, place);
}

static void end_seat(seat *place) {
    s.counts->drains++;
    role_stop(role_of(place));
    machine_at(the_machine.now_ns + soon(), come_back, place);
}

static void undrain(void *context) {
    role_drain(role_of(context), false);
    undone();
}

static void drain_seat(seat *place) {
    s.counts->drains++;
    role_drain(role_of(place), true);
    machine_at(the_machine.now_ns + soon(), undrain, place);
}

static void over(void *context) {
    undone();
}

static void cut(process *a, process *b) {
    s.counts->cuts++;
    uint64_t until = the_machine.now_ns + 2 * soon();
    machine_tell("cut %s from %s for %.3f s", a->name, b->name, (double)(until - the_machine.now_ns) / 1e9);
    network_cut(a, b, until);
    machine_at(until, over, NULL);
}

static void freeze(process *p) {
    s.counts->freezes++;
    uint64_t until = the_machine.now_ns + 2 * soon();
    machine_tell("freeze %s for %.3f s", p->name, (double)(until - the_machine.now_ns) / 1e9);
    p->frozen_until_ns = until;
    network_cut(p, NULL, until);
    machine_at(until, over, NULL);
}

static void slow(process *p) {
    uint64_t until = the_machine.now_ns + soon();
    machine_tell("slow %s for %.3f s", p->name, (double)(until - the_machine.now_ns) / 1e9);
    network_slow(p, dice_between(&s.dice, 2, 40), until);
    machine_at(until, over, NULL);
}

static void strike(void *context) {
    seat *front = any_seat(ROLE_COORDINATOR), *middle = any_seat(ROLE_WORKER), *back = any_seat(ROLE_NODE);
    seat *any = dice_one_in(&s.dice, 4) ? front : dice_one_in(&s.dice, 2) ? middle : back;
    process *registry = membership_simulated_etcd();
    seat *other = dice_one_in(&s.dice, 2) ? middle : back;
    uint64_t kind = dice_below(&s.dice, 16);
    bool is_whole = is_there(any) && is_there(middle) && is_there(back) && is_there(front);
    if (!is_whole) { /* one at a time at each place */
        undone();
        return;
    }
    switch (kind) {
    case 0:
    case 1: kill_seat(middle); break;
    case 2:
    case 3: kill_seat(back); break;
    case 4: kill_seat(any); break;
    case 5: end_seat(other); break;
    case 6:
    case 7: cut(role_of(front)->process, role_of(middle)->process); break;
    case 8: cut(role_of(middle)->process, role_of(back)->process); break;
    case 9: cut(registry, role_of(any)->process); break;
    case 10: freeze(role_of(any)->process); break;
    case 11: slow(role_of(any)->process); break;
    case 12: drain_seat(middle); break;
    case 13:
    case 14: drain_seat(back); break;
    default:
        machine_tell("every lease expires");
        membership_simulated_expire();
        undone();
        break;
    }
}

/* ---- The play ---- */

static void begin_client(void *context) {
    client *c = context;
    seat *place = any_seat(ROLE_COORDINATOR);
    if (!is_there(place)) {
        machine_at(the_machine.now_ns + MACHINE_S / 10, begin_client, c);
        return;
    }
    client_start(c, (unsigned)(c - s.clients), c->entry, role_of(place));
}

static void plan(void) {
    dice *d = &s.dice;
    s.shape = scene_widest;
    s.shape.lanes = (uint32_t)dice_between(d, 1, 2);
    s.shape.replicas = dice_one_in(d, 3) ? 2 : 1;
    s.shape.late_ms = dice_one_in(d, 2) ? 0 : (uint64_t)5 << dice_below(d, 9);
    add_seats(ROLE_COORDINATOR, dice_one_in(d, 4) ? 2 : 1);
    add_seats(ROLE_WORKER, (unsigned)dice_between(d, 1, WORKERS_MAX));
    add_seats(ROLE_NODE, (unsigned)dice_between(d, s.shape.lanes, NODES_MAX));
    s.shape.micro_batches = (uint32_t)dice_between(d, 0, 3);
    if (dice_one_in(d, 4)) s.shape.node_bytes = 9u << 20;
    if (dice_one_in(d, 3)) s.shape.stage_bytes = 6u << 20;
    network_init(d);
    for (unsigned i = 0; i < s.seat_count; i++) sit(&s.seats[i]);

    s.begin_ns = the_machine.now_ns + 200 * MACHINE_MS;
    s.span_ns = dice_between(d, 10, 20) * MACHINE_MS << dice_below(d, 6);
    s.client_count = (unsigned)dice_between(d, 2, CLIENTS_MAX);
    for (unsigned i = 0; i < s.client_count; i++) {
        client *c = &s.clients[i];
        c->number = i;
        c->entry = catalog_get((unsigned)dice_below(d, dice_one_in(d, 8) ? CATALOG_ENTRIES : CATALOG_ENTRIES * 7 / 8));
        if (dice_one_in(d, 8)) {
            c->hang_up_ns = dice_below(d, s.span_ns) + 1;
            c->hang_up_choice = dice_one_in(d, 2) ? UINT32_MAX : (uint32_t)dice_below(d, c->entry->choices);
        }
        machine_at(s.begin_ns + dice_below(d, s.span_ns), begin_client, c);
    }
    s.faults_left = (unsigned)dice_below(d, FAULTS_MAX + 1);
    for (unsigned i = 0; i < s.faults_left; i++)
        machine_at(s.begin_ns + dice_below(d, s.span_ns + 50 * MACHINE_MS), strike, NULL);
}

static bool has_played(void *context) {
    if (s.faults_left > 0) return false;
    for (unsigned i = 0; i < s.client_count; i++) {
        if (!s.clients[i].has_ended) return false;
    }
    for (unsigned i = 0; i < s.seat_count; i++) {
        if (!role_of(&s.seats[i])->is_up) return false;
    }
    return true;
}

static bool never(void *context) {
    return false;
}

/* ---- What is left ---- */

static void check_node(role *r) {
    attention_service_state state;
    attention_service_state_read(r->service, &state);
    const attention_stats *stats = &state.stats;
    if (stats->sequences > 0 || stats->blocks_sequences > 0 || stats->blocks_reserved > 0)
        machine_fail("%s has %" PRIu64 " sequences, %" PRIu64 " blocks in use and %" PRIu64
                     " promised when all requests have ended",
                     r->process->name, stats->sequences, stats->blocks_sequences, stats->blocks_reserved);
}

static void check_worker(role *r) {
    worker_load load;
    worker_rpc *rpc = worker_rpc_of(r->worker);
    rpc->ops->load(rpc, &load);
    if (load.running > 0 || load.waiting > 0 || worker_service_requests(r->sessions) > 0)
        machine_fail("%s has %u requests running and %u waiting when all have ended", r->process->name, load.running,
                     load.waiting);
}

static void *check_main(void *context) {
    for (unsigned i = 0; i < s.seat_count; i++) {
        role *r = role_of(&s.seats[i]);
        if (!r->is_up) machine_fail("%s is not up", r->process->name);
        else if (r->kind == ROLE_NODE) check_node(r);
        else if (r->kind == ROLE_WORKER) check_worker(r);
    }
    s.is_checked = true;
    return NULL;
}

static bool is_checked(void *context) {
    return s.is_checked;
}

static bool has_ended(void *context) {
    for (unsigned i = 0; i < s.seat_count; i++) {
        if (!role_of(&s.seats[i])->has_ended) return false;
    }
    return true;
}

static void stop_kind(role_kind kind) {
    for (unsigned i = 0; i < s.seat_count; i++) {
        if (s.seats[i].kind == kind) role_stop(role_of(&s.seats[i]));
    }
}

static void stop_workers(void *context) {
    stop_kind(ROLE_WORKER);
}

static void stop_nodes(void *context) {
    stop_kind(ROLE_NODE);
}

static void name_open_requests(void) {
    for (unsigned i = 0; i < s.client_count; i++) {
        const client *c = &s.clients[i];
        if (!c->has_ended)
            machine_fail("request %u has not ended: %s", c->number, c->is_accepted ? "accepted" : "not accepted");
    }
    for (unsigned i = 0; i < s.seat_count; i++) {
        if (!role_of(&s.seats[i])->is_up) machine_fail("%s does not come up", role_of(&s.seats[i])->process->name);
    }
    machine_fail("a fault has not ended");
}

static void count_up(scene_counts *counts, uint64_t begin_ns) {
    monitor_counts seen = monitor_read();
    counts->requests = s.client_count;
    for (unsigned i = 0; i < s.client_count; i++) {
        for (unsigned k = 0; k < CATALOG_CHOICES_MAX; k++) counts->tokens += s.clients[i].counts[k];
    }
    counts->messages = rpc_simulated_messages();
    counts->steps = seen.steps;
    counts->refused = seen.refused;
    counts->simulated_ns = the_machine.now_ns - begin_ns;
}

void scene_run(uint64_t seed, bool is_verbose, scene_counts *counts) {
    machine_init(seed, is_verbose);
    memset(&s, 0, sizeof(s));
    s.dice.state = dice_mix(~seed);
    s.counts = counts;
    uint64_t begin_ns = the_machine.now_ns;
    membership_simulated_etcd();
    plan();
    if (machine_run(has_played, NULL, the_machine.now_ns + PATIENCE_NS)) {
        machine_tell("all requests have ended");
        machine_run(never, NULL, the_machine.now_ns + (ORPHAN_MS + 1000) * MACHINE_MS);
        machine_spawn(machine_process("checker"), check_main, NULL);
        machine_run(is_checked, NULL, MACHINE_NEVER);
        stop_kind(ROLE_COORDINATOR);
        machine_at(the_machine.now_ns + dice_below(&s.dice, MACHINE_S), stop_workers, NULL);
        machine_at(the_machine.now_ns + dice_below(&s.dice, MACHINE_S), stop_nodes, NULL);
        if (!machine_run(has_ended, NULL, the_machine.now_ns + END_NS)) machine_fail("a process does not end");
    } else {
        name_open_requests();
    }
    count_up(counts, begin_ns);
}
