/* network.c - delays and cuts. */
#include "tests/simulation/network.h"

#define PROCESSES_MAX 64u
#define SPIKE_ONE_IN 60u /* messages that take much longer */
#define SPIKE_NS_MAX (8 * MACHINE_MS)

static struct {
    uint64_t least_ns, jitter_ns;
    uint64_t cut_until[PROCESSES_MAX][PROCESSES_MAX]; /* with the lower index first; [p][p]: from everybody */
    uint64_t slow_until[PROCESSES_MAX], slow_factor[PROCESSES_MAX];
} net;

void network_init(dice *scene) {
    net.least_ns = 5000 << dice_below(scene, 10);
    net.jitter_ns = 1 + dice_below(scene, 2 * net.least_ns);
}

static uint64_t *cut_between(const process *a, const process *b) {
    return a->index < b->index ? &net.cut_until[a->index][b->index] : &net.cut_until[b->index][a->index];
}

void network_cut(process *a, process *b, uint64_t until_ns) {
    uint64_t *cut = cut_between(a, b != NULL ? b : a);
    if (*cut < until_ns) *cut = until_ns;
    rpc_simulated_cut(a, b);
}

void network_slow(process *p, uint64_t factor, uint64_t until_ns) {
    net.slow_factor[p->index] = factor;
    net.slow_until[p->index] = until_ns;
}

uint64_t network_arrival(const process *from, const process *to) {
    dice *d = &the_machine.dice;
    uint64_t delay = from == to ? 1000 : net.least_ns + dice_below(d, net.jitter_ns);
    if (dice_one_in(d, SPIKE_ONE_IN)) delay += dice_below(d, SPIKE_NS_MAX);
    if (net.slow_until[from->index] > the_machine.now_ns) delay *= net.slow_factor[from->index];
    return the_machine.now_ns + delay;
}

uint64_t network_cut_until(const process *a, const process *b) {
    if (a == b) return 0;
    uint64_t until = *cut_between(a, b);
    if (net.cut_until[a->index][a->index] > until) until = net.cut_until[a->index][a->index];
    if (net.cut_until[b->index][b->index] > until) until = net.cut_until[b->index][b->index];
    return until > the_machine.now_ns ? until : 0;
}
