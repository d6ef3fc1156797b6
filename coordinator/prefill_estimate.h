/* prefill_estimate.h - how long a prefill will still take, from how it went so far.
 *
 * A chunk costs a time per token (the matrix products) and a time per token and earlier token (attention), so
 * time(position) = a * position + b * position^2 / 2. Both are fitted by least squares over the chunks seen, older
 * chunks counting less as the load on the machine changes; a straight line would promise a million tokens in a third of
 * their time. Threads: a value; one at a time. */
#ifndef COORDINATOR_PREFILL_ESTIMATE_H
#define COORDINATOR_PREFILL_ESTIMATE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct prefill_estimate {
    double xx, xy, yy, xt, yt; /* sums over chunks; x: tokens, y: tokens x mean position, t: seconds */
    double last_position, last_s;
    bool is_started;
} prefill_estimate;

/* position: tokens done, cached ones included; the first call only marks the beginning. */
void prefill_estimate_add(prefill_estimate *estimate, uint64_t position, uint64_t now_ns);
/* Seconds from the last position to prompt_count; negative while nothing is known. */
double prefill_estimate_remaining_s(const prefill_estimate *estimate, uint64_t prompt_count);

#endif
