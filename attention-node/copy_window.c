/* copy_window.c - grows by what has come times how far the delay is from its target. */
#include "attention-node/copy_window.h"

#define SPAN_NS 5000000000ull

void copy_window_init(copy_window *window, uint64_t bytes_min, uint64_t bytes_max, uint64_t target_ns) {
    *window = (copy_window){.bytes = bytes_min, .bytes_min = bytes_min, .bytes_max = bytes_max, .target_ns = target_ns};
    for (uint32_t i = 0; i < COPY_WINDOW_BASES; i++) window->bases_ns[i] = UINT64_MAX;
}

bool copy_window_has_room(const copy_window *window, uint64_t bytes) {
    return window->bytes_out == 0 || window->bytes_out + bytes <= window->bytes;
}

void copy_window_asked(copy_window *window, uint64_t bytes) {
    window->bytes_out += bytes;
}

/* The quickest of the last spans: a route that has become slower is believed after as many. */
static uint64_t base_of(copy_window *window, uint64_t took_ns, uint64_t now_ns) {
    if (now_ns - window->span_began_ns >= SPAN_NS) {
        for (uint32_t i = COPY_WINDOW_BASES - 1; i > 0; i--) window->bases_ns[i] = window->bases_ns[i - 1];
        window->bases_ns[0] = UINT64_MAX;
        window->span_began_ns = now_ns;
    }
    if (took_ns < window->bases_ns[0]) window->bases_ns[0] = took_ns;
    uint64_t base = took_ns;
    for (uint32_t i = 0; i < COPY_WINDOW_BASES; i++) {
        if (window->bases_ns[i] < base) base = window->bases_ns[i];
    }
    return base;
}

void copy_window_came(copy_window *window, uint64_t bytes, uint64_t took_ns, uint64_t now_ns) {
    window->bytes_out = window->bytes_out > bytes ? window->bytes_out - bytes : 0;
    uint64_t waited_ns = took_ns - base_of(window, took_ns, now_ns);
    if (waited_ns > 2 * window->target_ns) waited_ns = 2 * window->target_ns;
    /* In [-1, 1] of the bytes that have come: at most doubled, or halved, in a round trip. */
    double off = 1.0 - (double)waited_ns / (double)window->target_ns;
    double next = (double)window->bytes + off * (double)bytes * 0.5;
    if (next < (double)window->bytes_min) next = (double)window->bytes_min;
    if (next > (double)window->bytes_max) next = (double)window->bytes_max;
    window->bytes = (uint64_t)next;
}

void copy_window_gave_up(copy_window *window, uint64_t bytes) {
    window->bytes_out = window->bytes_out > bytes ? window->bytes_out - bytes : 0;
}
