/* membership.c - a list of records and of members; each member hears of changes in order, some time later. */
#include "tests/simulation/membership.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "tests/simulation/network.h"

#define LEASE_NS (MEMBERSHIP_LEASE_S * MACHINE_S)
#define LOOK_NS (500 * MACHINE_MS) /* between two keep-alives */
#define RECORDS_MAX 32u
#define HEARD_MAX 512u /* changes on their way to one member */

typedef struct record {
    bool is_used;
    membership_node node;
    process *owner;
} record;

typedef struct change {
    bool is_gone;
    membership_node node;
} change;

typedef struct member {
    membership base; /* first */
    struct member *next;
    process *process;
    rpc_queue *queue;
    membership_handlers handlers;
    void *context;
    bool is_following, is_closed, is_announced, has_lease, is_delivering, is_posted;
    membership_node node; /* announced */
    uint64_t renewed_ns;
    change heard[HEARD_MAX]; /* a ring */
    unsigned first, count, arrived;
    rpc_tag tag;
} member;

static struct {
    process *etcd;
    record records[RECORDS_MAX];
    member *members;
    bool is_looking;
} registry;

process *membership_simulated_etcd(void) {
    if (registry.etcd == NULL) registry.etcd = machine_process("etcd");
    return registry.etcd;
}

/* ---- Changes ---- */

static void on_heard(rpc_tag *tag, bool is_ok) {
    member *m = (member *)((char *)tag - offsetof(member, tag));
    m->is_posted = false;
    while (m->arrived > 0 && !m->is_closed) {
        change c = m->heard[m->first];
        m->first = (m->first + 1) % HEARD_MAX;
        m->arrived--; /* the handler may let others go first, who add changes */
        m->count--;
        if (!c.is_gone && m->handlers.on_node != NULL) m->handlers.on_node(m->context, &c.node);
        if (c.is_gone && m->handlers.on_gone != NULL) m->handlers.on_gone(m->context, c.node.id);
    }
}

static void on_arrival(void *context);

static void schedule(member *m) {
    if (m->is_delivering || m->arrived == m->count) return;
    m->is_delivering = true;
    uint64_t at = network_arrival(registry.etcd, m->process), cut = network_cut_until(registry.etcd, m->process);
    machine_at(at < cut ? cut : at, on_arrival, m);
}

static void on_arrival(void *context) {
    member *m = context;
    m->is_delivering = false;
    if (m->process->is_dead || m->is_closed) return;
    if (network_cut_until(registry.etcd, m->process) == 0) {
        m->arrived++;
        if (!m->is_posted) rpc_queue_post(m->queue, &m->tag);
        m->is_posted = true;
    }
    schedule(m);
}

static void tell(member *m, const membership_node *node, bool is_gone) {
    if (!m->is_following || m->is_closed || m->process->is_dead) return;
    assert(m->count < HEARD_MAX);
    m->heard[(m->first + m->count++) % HEARD_MAX] = (change){is_gone, *node};
    schedule(m);
}

static void tell_all(const membership_node *node, bool is_gone) {
    for (member *m = registry.members; m != NULL; m = m->next) tell(m, node, is_gone);
}

static record *find(const char *id) {
    for (unsigned i = 0; i < RECORDS_MAX; i++) {
        if (registry.records[i].is_used && strcmp(registry.records[i].node.id, id) == 0) return &registry.records[i];
    }
    return NULL;
}

static void put_record(member *m) {
    record *r = find(m->node.id);
    for (unsigned i = 0; i < RECORDS_MAX && r == NULL; i++) {
        if (!registry.records[i].is_used) r = &registry.records[i];
    }
    assert(r != NULL);
    *r = (record){true, m->node, m->process};
    m->has_lease = true;
    tell_all(&m->node, false);
}

static void remove_record(member *m) {
    record *r = find(m->node.id);
    m->has_lease = false;
    if (r == NULL || r->owner != m->process) return;
    r->is_used = false;
    machine_tell("etcd: %s is gone", m->node.id);
    tell_all(&m->node, true);
}

/* ---- Leases ---- */

static bool is_away(const member *m) {
    return m->process->is_dead || m->process->frozen_until_ns > the_machine.now_ns ||
           network_cut_until(registry.etcd, m->process) != 0;
}

static void on_look(void *context) {
    for (member *m = registry.members; m != NULL; m = m->next) {
        if (!m->is_announced || m->is_closed) continue;
        if (!is_away(m)) {
            m->renewed_ns = the_machine.now_ns;
            if (!m->has_lease) put_record(m);
        } else if (m->has_lease && the_machine.now_ns - m->renewed_ns >= LEASE_NS) {
            remove_record(m);
        }
    }
    machine_at(the_machine.now_ns + LOOK_NS, on_look, NULL);
}

void membership_simulated_expire(void) {
    for (member *m = registry.members; m != NULL; m = m->next) {
        if (m->has_lease && !m->is_closed) remove_record(m);
    }
}

/* ---- The interface ---- */

static hd_status follow(membership *self, const membership_handlers *handlers, void *context) {
    member *m = (member *)self;
    m->handlers = *handlers;
    m->context = context;
    m->is_following = true;
    for (unsigned i = 0; i < RECORDS_MAX; i++) {
        if (registry.records[i].is_used) tell(m, &registry.records[i].node, false);
    }
    return HD_OK;
}

static hd_status announce(membership *self, const membership_node *node) {
    member *m = (member *)self;
    m->node = *node;
    m->is_announced = true;
    m->renewed_ns = the_machine.now_ns;
    if (!is_away(m)) put_record(m);
    else m->has_lease = false; /* when it can be reached */
    return HD_OK;
}

static void close_member(membership *self) {
    member *m = (member *)self;
    if (m->has_lease) remove_record(m);
    m->is_closed = true;
}

static const membership_ops ops = {.name = "simulated", .close = close_member, .follow = follow, .announce = announce};

membership *membership_simulated_open(rpc_queue *queue) {
    member *m = calloc(1, sizeof(*m));
    assert(m != NULL);
    m->base.ops = &ops;
    m->process = machine_current();
    m->queue = queue;
    m->tag.run = on_heard;
    m->next = registry.members;
    registry.members = m;
    if (!registry.is_looking) machine_at(the_machine.now_ns, on_look, NULL);
    registry.is_looking = true;
    return &m->base;
}
