/* sharded_late.c - a node that is late while others have the same rows is not waited for.
 *
 * What is asked of several nodes takes as long as the slowest of them. Late is who has not answered when twice the time
 * of the slowest answer so far, and late_ms more, have passed, so a step that is long for everybody makes nobody late.
 * Every row that a late node was asked about has to have another node that has answered, or was not asked: so of nodes
 * with the same rows, the last one is never given up here. One that was to keep rows and answer nothing costs no more
 * than that wait; with one that was to answer, the step is run again by the others. */
#include <inttypes.h>

#include "attention-node/sharded_state.h"
#include "base/clock.h"
#include "base/log.h"

#define SLICE_NS 2000000ull
#define NS_PER_MS ((uint64_t)1000000)

typedef struct {
    bool is_awaited[PLACEMENT_NODES_MAX]; /* asked, elsewhere, and not answered yet */
    uint32_t count;
    uint64_t slowest_ns; /* of those that have answered */
} awaited;

static bool is_asked(const shard_node *node) {
    return (node->is_pending || node->is_submitted) && !node->is_lost && node->attention->ops->is_answered != NULL;
}

/* One look at each, which also takes in what has come for the others. */
static void look(const sharded *s, awaited *a, uint64_t until_ns) {
    a->count = 0;
    for (uint32_t i = 0; i < s->node_count; i++) {
        if (!a->is_awaited[i]) continue;
        attention *node = s->nodes[i].attention;
        a->is_awaited[i] = !node->ops->is_answered(node, until_ns);
        a->count += a->is_awaited[i];
        if (!a->is_awaited[i]) a->slowest_ns = hd_now_ns() - s->step.asked_ns;
    }
}

static bool has_other(const sharded *s, const awaited *a, const placement_row *place, uint32_t node) {
    for (uint32_t k = 0; k < place->node_count; k++) {
        uint32_t other = place->nodes[k];
        const shard_node *n = &s->home->nodes[other]; /* who is a stage is known there alone */
        if (other != node && !n->is_lost && !n->is_stage && !a->is_awaited[other]) return true;
    }
    return false;
}

static bool is_covered(const sharded *s, const awaited *a, uint32_t index) {
    const shard_node *node = &s->nodes[index];
    for (uint32_t i = 0; i < node->span_count; i++) {
        if (!has_other(s, a, node->spans[i].place, index)) return false;
    }
    return true;
}

static void give_up(const sharded *s, uint32_t index) {
    attention *node = s->nodes[index].attention;
    s->home->nodes[index].is_late = true;
    char name[160];
    hd_log(HD_LOG_WARN, "attention_node_late", "node=%s ms=%" PRIu64,
           hd_log_quote(s->home->nodes[index].name, name, sizeof(name)), (hd_now_ns() - s->step.asked_ns) / NS_PER_MS);
    node->ops->give_up(node, "it is late, and others have the same");
}

void sharded_give_up_late(sharded *s) {
    awaited a = {.slowest_ns = 0};
    if (s->config.replicas < 2 || s->config.late_ms == 0) return;
    for (uint32_t i = 0; i < s->node_count; i++) {
        a.is_awaited[i] = s->nodes[i].attention != NULL && is_asked(&s->nodes[i]);
        a.count += a.is_awaited[i];
    }
    bool has_covered = a.count > 0;
    while (a.count > 0 && has_covered) {
        look(s, &a, hd_now_ns() + SLICE_NS);
        bool is_late = hd_now_ns() - s->step.asked_ns > 2 * a.slowest_ns + s->config.late_ms * NS_PER_MS;
        has_covered = !is_late;
        for (uint32_t i = 0; i < s->node_count && is_late; i++) {
            if (!a.is_awaited[i] || !is_covered(s, &a, i)) continue;
            give_up(s, i);
            a.is_awaited[i] = false;
            a.count--;
        }
    }
}
