/* rotation.c - averages, and trials. */
#include "worker/rotation.h"

#define TRIALS_FIRST 3u    /* of each way, before any is preferred */
#define TRIAL_INTERVAL 64u /* steps: what a trial costs is at most a part in so many */
#define NEWEST_SHARE 0.2
#define GAIN_LEAST 0.98 /* of the whole step's time: a cut that gains less is not worth its unrest */

void rotation_init(rotation *r, uint32_t batches_max, bool is_fixed) {
    *r = (rotation){.batches_max = batches_max < ROTATION_BATCHES_MAX ? batches_max : ROTATION_BATCHES_MAX,
                    .is_fixed = is_fixed};
}

static uint32_t class_of(uint32_t rows) {
    uint32_t class = 31u - (uint32_t)__builtin_clz(rows);
    return class < ROTATION_CLASSES ? class : ROTATION_CLASSES - 1;
}

uint32_t rotation_choose(rotation *r, uint32_t rows) {
    uint32_t most = rows < r->batches_max ? rows : r->batches_max;
    if (most <= 1 || r->is_fixed) return most < 1 ? 1 : most;
    uint32_t class = class_of(rows), best = 1, rarest = 1;
    for (uint32_t n = 1; n <= most; n++) {
        if (r->classes[class].steps[n] < TRIALS_FIRST) return n;
        if (r->classes[class].steps[n] < r->classes[class].steps[rarest]) rarest = n;
        double limit = best == 1 ? r->classes[class].ns[1] * GAIN_LEAST : r->classes[class].ns[best];
        if (n > 1 && r->classes[class].ns[n] < limit) best = n;
    }
    if (++r->classes[class].since_trial < TRIAL_INTERVAL) return best;
    r->classes[class].since_trial = 0;
    return rarest;
}

void rotation_learn(rotation *r, uint32_t rows, uint32_t batches, double step_ns) {
    if (r->is_fixed || r->batches_max <= 1) return;
    uint32_t class = class_of(rows);
    double *ns = &r->classes[class].ns[batches];
    if (r->classes[class].steps[batches]++ == 0) *ns = step_ns;
    else *ns += NEWEST_SHARE * (step_ns - *ns);
}
