/* copy_window.c - best rates and quickest round trips, each kept for a few spans. */
#include "attention-node/copy_window.h"

#define SPAN_NS 1000000000ull
#define SLOT_NS 10000000ull /* many pieces, so that one that was late and its followers count together */

void copy_window_init(copy_window *window, uint64_t bytes_min, uint64_t bytes_max, uint64_t target_ns) {
    *window = (copy_window){.bytes = bytes_min, .bytes_min = bytes_min, .bytes_max = bytes_max, .target_ns = target_ns};
    for (uint32_t i = 0; i < COPY_WINDOW_SPANS; i++) window->trips_ns[i] = UINT64_MAX;
}

bool copy_window_has_room(const copy_window *window, uint64_t bytes) {
    return window->bytes_out == 0 || window->bytes_out + bytes <= window->bytes;
}

void copy_window_asked(copy_window *window, uint64_t bytes) {
    window->bytes_out += bytes;
}

static void begin_span(copy_window *window, uint64_t now_ns) {
    for (uint32_t i = COPY_WINDOW_SPANS - 1; i > 0; i--) {
        window->trips_ns[i] = window->trips_ns[i - 1];
        window->rates[i] = window->rates[i - 1];
    }
    window->trips_ns[0] = UINT64_MAX;
    window->rates[0] = 0;
    window->span_began_ns = now_ns;
}

static void end_slot(copy_window *window, uint64_t now_ns) {
    double rate = (double)window->slot_bytes / (double)(now_ns - window->slot_began_ns);
    if (rate > window->rates[0]) window->rates[0] = rate;
    window->slot_bytes = 0;
    window->slot_began_ns = now_ns;
}

void copy_window_came(copy_window *window, uint64_t bytes, uint64_t took_ns, uint64_t now_ns) {
    window->bytes_out = window->bytes_out > bytes ? window->bytes_out - bytes : 0;
    /* A copy that begins, or goes on after a pause: what came before this moment says nothing of how quickly. */
    if (now_ns - window->slot_began_ns > SPAN_NS) {
        window->slot_began_ns = now_ns - took_ns;
        window->slot_bytes = 0;
    }
    if (now_ns - window->span_began_ns >= SPAN_NS) begin_span(window, now_ns);
    if (took_ns < window->trips_ns[0]) window->trips_ns[0] = took_ns;
    window->slot_bytes += bytes;
    if (now_ns - window->slot_began_ns >= SLOT_NS) end_slot(window, now_ns);
    uint64_t trip = took_ns;
    double rate = 0;
    for (uint32_t i = 0; i < COPY_WINDOW_SPANS; i++) {
        if (window->trips_ns[i] < trip) trip = window->trips_ns[i];
        if (window->rates[i] > rate) rate = window->rates[i];
    }
    double next = rate * (double)(trip + window->target_ns);
    if (next < (double)window->bytes_min) next = (double)window->bytes_min;
    if (next > (double)window->bytes_max) next = (double)window->bytes_max;
    window->bytes = (uint64_t)next;
}

void copy_window_gave_up(copy_window *window, uint64_t bytes) {
    window->bytes_out = window->bytes_out > bytes ? window->bytes_out - bytes : 0;
}
