/* copy_window.h - how many bytes a copy keeps on their way, so that step frames on the same link do not wait behind it.
 *
 * What is under way beyond rate x round trip of an idle link waits in some queue (BBR's idea, Cardwell et al. 2016). The
 * rate is the best of late that bytes came at, the round trip the quickest; the window holds a target's worth of that
 * rate more, so a link that has become free is noticed, and step frames wait no longer than the target. A processor
 * that is late for a while makes neither of the two worse, so its copy does not starve. Between window_min, with which
 * it begins, and window_max.
 * No thread and no clock: times are given. A value. */
#ifndef ATTENTION_NODE_COPY_WINDOW_H
#define ATTENTION_NODE_COPY_WINDOW_H

#include <stdbool.h>
#include <stdint.h>

#define COPY_WINDOW_SPANS 4u /* the quickest and the best are looked for in so many spans of time */

typedef struct copy_window {
    uint64_t bytes, bytes_min, bytes_max; /* the window, and its bounds */
    uint64_t bytes_out;                   /* asked for and not come */
    uint64_t target_ns;
    /* The newest first. */
    uint64_t trips_ns[COPY_WINDOW_SPANS];
    double rates[COPY_WINDOW_SPANS]; /* bytes a nanosecond */
    uint64_t span_began_ns;
    uint64_t slot_bytes, slot_began_ns; /* that the rate is being measured in */
} copy_window;

void copy_window_init(copy_window *window, uint64_t bytes_min, uint64_t bytes_max, uint64_t target_ns);
/* Whether so many bytes may be asked for now; one piece always may. */
bool copy_window_has_room(const copy_window *window, uint64_t bytes);
void copy_window_asked(copy_window *window, uint64_t bytes);
/* They have come, took_ns after they were asked for. */
void copy_window_came(copy_window *window, uint64_t bytes, uint64_t took_ns, uint64_t now_ns);
/* So many will not come. */
void copy_window_gave_up(copy_window *window, uint64_t bytes);

#endif
