/* copy_window.h - how many bytes a copy keeps on their way, so that step frames on the same link do not wait behind it.
 *
 * LEDBAT's idea (RFC 6817): what a piece takes longer than the quickest of late waited in some queue; the window grows
 * while that is less than a target, and shrinks when it is more. So a copy takes what a link has left and keeps its
 * queue short. Between window_min, which a processor that is late for a while must not starve, and window_max.
 * No thread and no clock: times are given. A value. */
#ifndef ATTENTION_NODE_COPY_WINDOW_H
#define ATTENTION_NODE_COPY_WINDOW_H

#include <stdbool.h>
#include <stdint.h>

#define COPY_WINDOW_BASES 4u /* the quickest is looked for in so many spans of time */

typedef struct copy_window {
    uint64_t bytes, bytes_min, bytes_max; /* the window, and its bounds */
    uint64_t bytes_out;                   /* asked for and not come */
    uint64_t target_ns;
    uint64_t bases_ns[COPY_WINDOW_BASES]; /* the quickest of each span, the newest first */
    uint64_t span_began_ns;
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
