/* prefill_estimate.c - see prefill_estimate.h. */
#include "coordinator/prefill_estimate.h"

#define KEPT_PER_CHUNK 0.95

void prefill_estimate_add(prefill_estimate *estimate, uint64_t position, uint64_t now_ns) {
    double now_s = (double)now_ns * 1e-9, end = (double)position;
    if (estimate->is_started && end > estimate->last_position) {
        double x = end - estimate->last_position, y = x * (end + estimate->last_position) * 0.5,
               t = now_s - estimate->last_s;
        estimate->xx = KEPT_PER_CHUNK * estimate->xx + x * x;
        estimate->xy = KEPT_PER_CHUNK * estimate->xy + x * y;
        estimate->yy = KEPT_PER_CHUNK * estimate->yy + y * y;
        estimate->xt = KEPT_PER_CHUNK * estimate->xt + x * t;
        estimate->yt = KEPT_PER_CHUNK * estimate->yt + y * t;
    }
    estimate->is_started = true;
    estimate->last_position = end;
    estimate->last_s = now_s;
}

double prefill_estimate_remaining_s(const prefill_estimate *estimate, uint64_t prompt_count) {
    if (estimate->xx <= 0.0) return -1.0;
    double x = (double)prompt_count - estimate->last_position;
    if (x <= 0.0) return 0.0;
    double y = x * ((double)prompt_count + estimate->last_position) * 0.5;
    double determinant = estimate->xx * estimate->yy - estimate->xy * estimate->xy;
    double a = 0.0, b = 0.0;
    /* Chunks that all look alike (one chunk, or noise larger than the slope) say nothing of b. */
    if (determinant > 1e-9 * estimate->xx * estimate->yy) {
        a = (estimate->xt * estimate->yy - estimate->yt * estimate->xy) / determinant;
        b = (estimate->yt * estimate->xx - estimate->xt * estimate->xy) / determinant;
    }
    if (a <= 0.0 && b > 0.0) {
        a = 0.0;
        b = estimate->yt / estimate->yy;
    } else if (b <= 0.0) {
        b = 0.0;
        a = estimate->xt / estimate->xx;
    }
    return a * x + b * y;
}
