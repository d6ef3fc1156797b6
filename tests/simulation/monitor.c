/* monitor.c - a table of (node, name) and the newest epoch that was let in. */
#include "tests/simulation/monitor.h"

#include <assert.h>
#include <inttypes.h>

#include "attention-node/engine.h"
#include "tests/simulation/machine.h"

#define NAMES_MAX 4096u

hd_status __real_engine_attach(attention *engine, attention **view);
hd_status __wrap_engine_attach(attention *engine, attention **view);

typedef struct owned {
    const process *node;
    uint64_t name, epoch; /* epoch 0: nobody's */
} owned;

static struct {
    const attention_ops *real;
    attention_ops watching;
    owned names[NAMES_MAX];
    unsigned count;
    monitor_counts counts;
} watched;

monitor_counts monitor_read(void) {
    return watched.counts;
}

static owned *find(uint64_t name) {
    for (unsigned i = 0; i < watched.count; i++) {
        if (watched.names[i].node == machine_current() && watched.names[i].name == name) return &watched.names[i];
    }
    assert(watched.count < NAMES_MAX);
    watched.names[watched.count] = (owned){machine_current(), name, 0};
    return &watched.names[watched.count++];
}

static hd_status look(uint64_t name, uint64_t epoch, hd_status status, const char *what) {
    owned *o = find(name);
    if (epoch < o->epoch && status == HD_STALE) watched.counts.refused++;
    if (status != HD_OK) return status;
    if (epoch < o->epoch)
        machine_fail("node %s took a %s of epoch %" PRIu64 " for sequence %016" PRIx64 ", which has epoch %" PRIu64,
                     machine_current()->name, what, epoch, name, o->epoch);
    else o->epoch = epoch;
    return status;
}

static hd_status on_open(attention *self, const attention_sequence_params *params, uint64_t *cached_tokens,
                         hd_error *error) {
    hd_status status = watched.real->sequence_open(self, params, cached_tokens, error);
    machine_tell("  open %016" PRIx64 " epoch %" PRIu64 ": %s, %" PRIu64 " of %" PRIu64 " tokens", params->sequence,
                 params->epoch, hd_status_name(status), status == HD_OK ? *cached_tokens : 0, params->token_count);
    return look(params->sequence, params->epoch, status, "open");
}

static hd_status on_fork(attention *self, uint64_t source, uint64_t length, uint64_t sequence, uint64_t epoch,
                         uint64_t tokens_max, hd_error *error) {
    hd_status status = watched.real->fork(self, source, length, sequence, epoch, tokens_max, error);
    machine_tell("  fork %016" PRIx64 " epoch %" PRIu64 " at %" PRIu64 ": %s", sequence, epoch, length,
                 hd_status_name(status));
    return look(sequence, epoch, status, "fork");
}

static hd_status on_truncate(attention *self, uint64_t sequence, uint64_t epoch, uint64_t length) {
    return look(sequence, epoch, watched.real->truncate(self, sequence, epoch, length), "cut");
}

static hd_status on_close(attention *self, uint64_t sequence, uint64_t epoch, bool keep, bool early) {
    hd_status status = look(sequence, epoch, watched.real->sequence_close(self, sequence, epoch, keep, early), "close");
    machine_tell("  close %016" PRIx64 " epoch %" PRIu64 ": %s", sequence, epoch, hd_status_name(status));
    if (status == HD_OK) find(sequence)->epoch = 0;
    return status;
}

/* Whoever owns all of them is told of no other owner, and of no gap: what the placement names has what it says. */
static void check_refusal(const attention_rows *rows, uint32_t count, hd_status status, const hd_error *error) {
    if (status != HD_STALE && status != HD_INVALID) return;
    for (uint32_t i = 0; i < count; i++) {
        if (rows[i].epoch < find(rows[i].sequence)->epoch) return;
    }
    machine_fail("node %s refused a step of the owner: %s", machine_current()->name, error != NULL ? error->text : "");
}

static hd_status on_begin(attention *self, const attention_rows *rows, uint32_t count, hd_error *error) {
    hd_status status = watched.real->step_begin(self, rows, count, error);
    for (uint32_t i = 0; i < count; i++) {
        machine_tell("  step %016" PRIx64 " epoch %" PRIu64 ": %u%s from %" PRIu64 ", %s", rows[i].sequence,
                     rows[i].epoch, rows[i].count, rows[i].is_replica ? " kept" : "", rows[i].first_position,
                     hd_status_name(status));
        look(rows[i].sequence, rows[i].epoch, status, "step");
    }
    check_refusal(rows, count, status, error);
    watched.counts.steps++;
    return status;
}

hd_status __wrap_engine_attach(attention *engine, attention **view) {
    hd_status status = __real_engine_attach(engine, view);
    if (status != HD_OK) return status;
    watched.real = (*view)->ops;
    watched.watching = *watched.real;
    watched.watching.sequence_open = on_open;
    watched.watching.fork = on_fork;
    watched.watching.truncate = on_truncate;
    watched.watching.sequence_close = on_close;
    watched.watching.step_begin = on_begin;
    (*view)->ops = &watched.watching;
    return HD_OK;
}
