/* schedule.c - shortest first, a share for the oldest, and time measured in operations.
 *
 * One number is learnt for prefill: nanoseconds per operation, from the steps themselves. A second, the time of a
 * step that only decodes, tells what a mixed step would have taken without its prefill. */
#include "worker/schedule.h"

#include <math.h>

#define NS_PER_MS 1e6
#define MIXED_STEP_NS (250 * NS_PER_MS) /* what a token of others may wait for, where prefill can be cut that small */
#define PREFILL_STEP_NS (2000 * NS_PER_MS) /* nobody decodes: what a newcomer and a cancellation wait for */
/* Of the time for prefill, for the oldest prompt while shorter ones go first: it takes four times as long at most. */
#define OLDEST_SHARE 0.25
#define FIRST_GUESS_OPERATIONS_PER_NS 200.0 /* of one thread, as with vdpbf16ps; the first step corrects it */
#define NEW_WEIGHT 0.3 /* of the newest step in what is learnt: a sixth of it is older than five steps */

void schedule_init(schedule *s, const model_config *model, unsigned thread_count) {
    double query_width = (double)model->query_heads * model->head_dim,
           key_width = (double)model->kv_heads * model->head_dim;
    *s = (schedule){.oldest_arrival = UINT64_MAX};
    for (uint32_t i = 0; i < model->layer_count; i++) {
        bool is_sparse = model->expert_count > 0 && model->is_sparse[i];
        double mlp_width =
            is_sparse ? (double)model->expert_intermediate_size * model->experts_per_token : model->intermediate_size;
        s->row_work += 2.0 * model->hidden_size * (2 * query_width + 2 * key_width + 3 * mlp_width);
        if (model->windows[i] == 0) s->depth_work += 4.0 * query_width;
        else s->row_work += 4.0 * query_width * (double)model->windows[i];
    }
    s->is_guess = true;
    s->ns_per_work = 1.0 / (FIRST_GUESS_OPERATIONS_PER_NS * thread_count);
}

static double work(const schedule *s, uint64_t done, double rows) {
    return rows * (s->row_work + s->depth_work * ((double)done + rows / 2));
}

/* Rows that ns pays for: a multiple of 16 unless they end the prompt or the step, and 0 when the least chunk is too
 * dear. */
static uint32_t affordable(const schedule *s, const schedule_prompt *prompt, uint32_t rows_max, double ns) {
    uint64_t done = prompt->done + prompt->rows, left = prompt->total - done;
    uint32_t most = left < rows_max ? (uint32_t)left : rows_max;
    /* rows * (row_work + depth_work * (done + rows / 2)) = ns / ns_per_work, solved for rows. */
    double b = s->row_work + s->depth_work * (double)done, a = s->depth_work / 2, c = fmax(ns, 0.0) / s->ns_per_work;
    double rows = a > 0 ? 2 * c / (b + sqrt(b * b + 4 * a * c)) : c / b;
    if (rows >= most) return most == left ? most : most >= SCHEDULE_ROWS_LEAST ? most / 16 * 16 : most;
    uint32_t whole = (uint32_t)rows / 16 * 16;
    return whole >= SCHEDULE_ROWS_LEAST ? whole : 0;
}

/* Gives the prompt what fits; returns the nanoseconds spent. */
static double give(const schedule *s, schedule_prompt *prompt, uint32_t *rows_left, double ns) {
    uint32_t rows = affordable(s, prompt, *rows_left, ns);
    double cost = work(s, prompt->done + prompt->rows, rows) * s->ns_per_work;
    prompt->rows += rows;
    *rows_left -= rows;
    return cost;
}

static uint64_t left_to_do(const schedule_prompt *prompt) {
    bool is_followed = prompt->followed_total > prompt->done && prompt->followed_total < prompt->total;
    return (is_followed ? prompt->followed_total : prompt->total) - prompt->done;
}

/* The prompt that comes after `previous` in the order of what is left to do, then of age; the first for NULL. */
static schedule_prompt *next_shortest(schedule_prompt *prompts, uint32_t count, const schedule_prompt *previous) {
    schedule_prompt *best = NULL;
    for (uint32_t i = 0; i < count; i++) {
        schedule_prompt *p = &prompts[i];
        uint64_t left = left_to_do(p);
        if (previous != NULL) {
            uint64_t previous_left = left_to_do(previous);
            if (left < previous_left || (left == previous_left && p->arrival <= previous->arrival)) continue;
        }
        if (best == NULL || left < left_to_do(best) || (left == left_to_do(best) && p->arrival < best->arrival))
            best = p;
    }
    return best;
}

void schedule_step(schedule *s, schedule_prompt *prompts, uint32_t count, uint32_t rows_max, bool is_decoding) {
    if (count == 0) {
        s->saved_ns = s->oldest_share = 0;
        return;
    }
    schedule_prompt *oldest = &prompts[0];
    for (uint32_t i = 0; i < count; i++) {
        prompts[i].rows = 0;
        if (prompts[i].arrival < oldest->arrival) oldest = &prompts[i];
    }
    if (rows_max == 0) return;
    if (oldest->arrival != s->oldest_arrival) {
        s->oldest_arrival = oldest->arrival;
        s->oldest_share = 0;
    }
    double step_ns = is_decoding ? fmax(MIXED_STEP_NS - s->decode_ns, s->decode_ns) : PREFILL_STEP_NS;
    uint32_t rows_left = rows_max;

    if (count > 1) { /* alone, the oldest is also the shortest */
        s->oldest_share += OLDEST_SHARE;
        uint32_t share = (uint32_t)(fmin(s->oldest_share, 1.0) * rows_max);
        if (share < SCHEDULE_ROWS_LEAST && share < rows_max) share = 0;
        double spent = give(s, oldest, &share, s->oldest_share * step_ns);
        if (oldest->rows > 0) s->oldest_share = 0; /* what a chunk leaves over is not saved */
        rows_left -= oldest->rows;
        step_ns = fmax(step_ns - spent, step_ns * (1 - OLDEST_SHARE));
    }
    double ns = s->saved_ns + step_ns;
    s->saved_ns = 0;
    for (schedule_prompt *p = NULL; rows_left > 0 && (p = next_shortest(prompts, count, p)) != NULL;) {
        if (p->done + p->rows == p->total) continue;
        uint32_t before = p->rows;
        ns -= give(s, p, &rows_left, ns);
        if (p->rows == 0) s->saved_ns = ns; /* its turn has come, and not its money: everybody saves for it */
        if (p->rows == before) break;
    }

    if (rows_left == rows_max && !is_decoding) {
        schedule_prompt *p = next_shortest(prompts, count, NULL);
        uint64_t left = p->total - p->done;
        uint32_t most = rows_max < SCHEDULE_ROWS_LEAST ? rows_max : SCHEDULE_ROWS_LEAST;
        p->rows = left < most ? (uint32_t)left : most;
        s->saved_ns = 0;
    }
}

static void learn(double *known, double seen, bool is_first) {
    *known = is_first ? seen : *known + NEW_WEIGHT * (seen - *known);
}

void schedule_learn(schedule *s, const schedule_prompt *prompts, uint32_t count, bool is_decoding, double step_ns) {
    double rows = 0, done_work = 0;
    for (uint32_t i = 0; i < count; i++) {
        rows += prompts[i].rows;
        done_work += work(s, prompts[i].done, prompts[i].rows);
    }
    if (rows == 0) {
        learn(&s->decode_ns, step_ns, s->decode_ns == 0);
        return;
    }
    /* A handful of rows costs what reading the weights costs, and tells nothing about a chunk. */
    if (rows < SCHEDULE_ROWS_LEAST) return;
    double prefill_ns = is_decoding ? fmax(step_ns - s->decode_ns, step_ns / 4) : step_ns;
    learn(&s->ns_per_work, prefill_ns / done_work, s->is_guess);
    s->is_guess = false;
}
