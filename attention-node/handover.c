/* handover.c - the owner's side, as a table of states in code. */
#include "attention-node/handover.h"

#include <assert.h>

void handover_begin(handover *h, const handover_limits *limits, uint64_t now_ns) {
    *h = (handover){.limits = *limits,
                    .state = HANDOVER_COPYING,
                    .next_ns = now_ns,
                    .progress_ns = now_ns,
                    .switch_after_ns = now_ns};
}

/* Not before the receiver has had the time of one question to link itself to the source. */
static bool is_near(const handover *h, uint64_t length, uint64_t now_ns) {
    if (h->answers == 0 || now_ns < h->switch_after_ns) return false;
    uint64_t lag = length > h->tokens ? length - h->tokens : 0;
    if (lag <= h->limits.lag_tokens) return true;
    double come = (double)(h->tokens - h->first_tokens), took_ns = (double)(now_ns - h->first_ns);
    return h->tokens > h->first_tokens && (double)lag * took_ns <= come * (double)h->limits.lag_ns;
}

handover_action handover_next(handover *h, uint64_t length, uint64_t now_ns) {
    switch (h->state) {
    case HANDOVER_IDLE: return HANDOVER_WAIT;
    case HANDOVER_ADOPTING: return HANDOVER_ADOPT;
    case HANDOVER_ENDING: return HANDOVER_END;
    case HANDOVER_COPYING:
    case HANDOVER_SWITCHING: break;
    }
    /* Nothing has been said to the last question, which nobody who keeps to the interface lets happen. */
    assert(h->state == HANDOVER_COPYING);
    if (now_ns < h->next_ns) return HANDOVER_WAIT;
    if (is_near(h, length, now_ns)) {
        h->state = HANDOVER_SWITCHING;
        h->switches++;
        return HANDOVER_SWITCH;
    }
    h->next_ns = now_ns + h->limits.poll_ns;
    return HANDOVER_ASK;
}

void handover_answered(handover *h, hd_status status, uint64_t tokens, uint64_t now_ns) {
    bool was_switching = h->state == HANDOVER_SWITCHING;
    if (h->state != HANDOVER_COPYING && !was_switching) return; /* cancelled meanwhile */
    if (status == HD_OK && was_switching) {
        h->state = HANDOVER_ADOPTING;
        return;
    }
    if (status != HD_PENDING && status != HD_OK) {
        handover_cancel(h, status);
        return;
    }
    h->state = HANDOVER_COPYING;
    h->answers++;
    if (was_switching) h->switch_after_ns = now_ns + h->limits.pause_ns;
    if (tokens > h->tokens) h->progress_ns = now_ns;
    if (h->first_tokens == 0 || tokens < h->first_tokens) {
        h->first_tokens = tokens;
        h->first_ns = now_ns;
    }
    h->tokens = tokens;
    if (now_ns - h->progress_ns > h->limits.stall_ns) handover_cancel(h, HD_TIMED_OUT);
}

void handover_waited(handover *h, uint64_t now_ns) {
    h->progress_ns = now_ns;
}

void handover_cancel(handover *h, hd_status why) {
    if (h->state != HANDOVER_COPYING && h->state != HANDOVER_SWITCHING) return;
    h->state = HANDOVER_ENDING;
    h->why = why;
}

void handover_adopted(handover *h) {
    assert(h->state == HANDOVER_ADOPTING);
    h->state = HANDOVER_IDLE;
}

void handover_ended(handover *h) {
    assert(h->state == HANDOVER_ENDING);
    h->state = HANDOVER_IDLE;
}
