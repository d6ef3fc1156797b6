/* sample_kernel.h - one row of logits to one token; a block a row (sample_arguments.h).
 *
 * Weights are exp((logit - max) / temperature), made anew in each pass, so the row is all that is read. Where top_k
 * and top_p cut is found by halving the range of floats and adding up what lies above, as on the CPU; of equal
 * weights the first ids stay. The draw adds up in the order of ids: each thread its own stretch, then the stretch
 * that the target falls into is walked through. */
#ifndef KERNELS_CUDA_SAMPLE_KERNEL_H
#define KERNELS_CUDA_SAMPLE_KERNEL_H

#include "kernels/cuda/reduce.h"
#include "kernels/cuda/sample_arguments.h"

/* The tokens that may be drawn: of larger weight than `least`, and of those of this weight the ids up to last_id. */
typedef struct sample_cut {
    float least;
    uint32_t last_id;
} sample_cut;

typedef struct sample_view {
    const float *logits;
    uint32_t count;
    float max, inverse_temperature;
    double *scratch; /* [SAMPLE_THREADS] */
} sample_view;

SIMT_FUNCTION float sample_weight(const sample_view *v, uint32_t id) {
    float x = simt_multiply(simt_add(v->logits[id], -v->max), v->inverse_temperature);
    return x >= -87.0f ? simt_exp(x) : 0.0f;
}

SIMT_FUNCTION bool sample_is_kept(sample_cut cut, float weight, uint32_t id) {
    return weight > cut.least || (weight == cut.least && weight > 0.0f && id <= cut.last_id);
}

/* How many kept tokens weigh at least so much, and what they weigh together. */
typedef struct sample_tally {
    uint32_t count;
    double mass;
} sample_tally;

SIMT_FUNCTION sample_tally sample_tally_above(const sample_view *v, sample_cut cut, float least) {
    uint32_t count = 0;
    double mass = 0.0;
    for (uint32_t id = simt_thread(); id < v->count; id += simt_thread_count()) {
        float weight = sample_weight(v, id);
        if (weight >= least && sample_is_kept(cut, weight, id)) {
            count++;
            mass += (double)weight;
        }
    }
    sample_tally t;
    t.count = reduce_sum_u32(count, (uint32_t *)v->scratch);
    t.mass = reduce_sum_double(mass, v->scratch);
    return t;
}

SIMT_FUNCTION bool sample_is_enough(sample_tally t, sample_tally need) {
    return t.count >= need.count && t.mass >= need.mass;
}

/* A thread's stretch of ids. */
SIMT_FUNCTION void sample_stretch(const sample_view *v, uint32_t *first, uint32_t *end) {
    uint32_t each = (v->count + simt_thread_count() - 1) / simt_thread_count();
    *first = simt_thread() * each < v->count ? simt_thread() * each : v->count;
    *end = v->count - *first < each ? v->count : *first + each;
}

/* Puts the sum of the values of all earlier threads into scratch[thread], and of all into the last place + 1. */
SIMT_FUNCTION void sample_sum_earlier(double value, double *scratch) {
    simt_sync();
    scratch[simt_thread()] = value;
    simt_sync();
    if (simt_thread() == 0) {
        double sum = 0.0;
        for (uint32_t i = 0; i < simt_thread_count(); i++) {
            double own = scratch[i];
            scratch[i] = sum;
            sum += own;
        }
        scratch[simt_thread_count()] = sum;
    }
    simt_sync();
}

/* The id of the `number`-th kept token of this weight, from 1. There are so many. */
SIMT_FUNCTION uint32_t sample_nth_equal(const sample_view *v, sample_cut cut, float weight, uint32_t number) {
    uint32_t first, end, own = 0;
    sample_stretch(v, &first, &end);
    for (uint32_t id = first; id < end; id++)
        own += sample_weight(v, id) == weight && sample_is_kept(cut, weight, id) ? 1u : 0u;
    sample_sum_earlier((double)own, v->scratch);
    uint32_t before = (uint32_t)v->scratch[simt_thread()];
    uint32_t *answer = (uint32_t *)(v->scratch + simt_thread_count() + 1);
    simt_sync();
    if (before < number && number <= before + own) {
        for (uint32_t id = first; id < end; id++) {
            if (sample_weight(v, id) == weight && sample_is_kept(cut, weight, id) && ++before == number) *answer = id;
        }
    }
    simt_sync();
    uint32_t result = *answer;
    simt_sync();
    return result;
}

/* The fewest likeliest of the kept that are enough. */
SIMT_FUNCTION sample_cut sample_keep_fewest(const sample_view *v, sample_cut cut, sample_tally need) {
    uint32_t low = 1, high = 0x3f800001u; /* bits of floats, which are in the order of the floats: (0, 1] */
    sample_tally at_high;
    at_high.count = 0;
    at_high.mass = 0.0;
    if (!sample_is_enough(sample_tally_above(v, cut, simt_bits_to_float(low)), need)) return cut;
    SIMT_KEEP_LOOP
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        sample_tally at_middle = sample_tally_above(v, cut, simt_bits_to_float(middle));
        if (sample_is_enough(at_middle, need)) {
            low = middle;
        } else {
            high = middle;
            at_high = at_middle;
        }
    }
    sample_cut result;
    result.least = simt_bits_to_float(low);
    uint32_t equals = sample_tally_above(v, cut, result.least).count - at_high.count, wanted = 1;
    if (need.count > at_high.count) wanted = need.count - at_high.count;
    while (wanted < equals && at_high.mass + (double)wanted * (double)result.least < need.mass) wanted++;
    result.last_id = sample_nth_equal(v, cut, result.least, wanted);
    return result;
}

SIMT_FUNCTION void sample_change_logits(const sample_arguments *a, const sample_row *row, float *logits) {
    for (uint32_t i = simt_thread(); i < row->change_count; i += simt_thread_count()) {
        const sample_change *change = &a->changes[row->first_change + i];
        float logit = logits[change->token_id];
        logit = simt_add(logit, change->bias);
        if (change->is_counted)
            logit = logit > 0.0f ? logit / row->repetition_penalty : simt_multiply(logit, row->repetition_penalty);
        if (change->answer_count > 0) {
            float less =
                simt_add(simt_multiply(row->frequency_penalty, (float)change->answer_count), row->presence_penalty);
            logit = simt_add(logit, -less);
        }
        logits[change->token_id] = change->is_forbidden ? -simt_infinity() : logit;
    }
    simt_sync();
}

SIMT_FUNCTION uint32_t sample_draw(const sample_view *v, sample_cut cut, double uniform, uint32_t likeliest) {
    uint32_t first, end;
    sample_stretch(v, &first, &end);
    double own = 0.0;
    for (uint32_t id = first; id < end; id++) {
        float weight = sample_weight(v, id);
        if (sample_is_kept(cut, weight, id)) own += (double)weight;
    }
    sample_sum_earlier(own, v->scratch);
    double before = v->scratch[simt_thread()], target = uniform * v->scratch[simt_thread_count()];
    double *found =
        v->scratch + simt_thread_count() + 1; /* the thread that the target falls to, and the last with any */
    bool is_target = own > 0.0 && before <= target && target < before + own;
    simt_sync();
    if (simt_thread() == 0) {
        found[0] = -1.0;
        found[1] = (double)likeliest;
    }
    simt_sync();
    if (is_target) {
        uint32_t chosen = likeliest;
        double sum = before;
        for (uint32_t id = first; id < end && sum <= target; id++) {
            float weight = sample_weight(v, id);
            if (sample_is_kept(cut, weight, id)) {
                chosen = id; /* the last one stays where rounding has put the target behind it */
                sum += (double)weight;
            }
        }
        found[0] = (double)chosen;
    }
    simt_sync();
    return (uint32_t)(found[0] >= 0.0 ? found[0] : found[1]);
}

/* Shared memory: SAMPLE_THREADS + 4 doubles. */
SIMT_FUNCTION void sample(const sample_arguments *a) {
    double *scratch = (double *)simt_shared();
    for (uint32_t r = simt_block(); r < a->row_count; r += simt_block_count()) {
        const sample_row *row = &a->rows[r];
        float *logits = a->logits + r * a->stride;
        sample_change_logits(a, row, logits);
        reduce_best best;
        best.value = -simt_infinity();
        best.index = UINT32_MAX;
        for (uint32_t id = simt_thread(); id < a->count; id += simt_thread_count()) {
            reduce_best other;
            other.value = logits[id];
            other.index = id;
            if (reduce_is_better(best, other)) best = other;
        }
        best = reduce_argmax(best, (reduce_best *)scratch);
        simt_sync();
        uint32_t chosen = best.index < a->count ? best.index : 0; /* of a row that is no numbers: the first */
        if (row->temperature >= SAMPLE_GREEDY_BELOW) {
            sample_view v;
            v.logits = logits;
            v.count = a->count;
            v.max = best.value;
            v.inverse_temperature = 1.0f / row->temperature;
            v.scratch = scratch;
            sample_cut cut;
            cut.least = 0.0f;
            cut.last_id = UINT32_MAX;
            sample_tally need;
            if (row->top_k > 0 && row->top_k < a->count) {
                need.count = row->top_k;
                need.mass = 0.0;
                cut = sample_keep_fewest(&v, cut, need);
            }
            if (row->top_p < 1.0f) {
                need.count = 1;
                need.mass = (double)row->top_p * sample_tally_above(&v, cut, 0.0f).mass;
                cut = sample_keep_fewest(&v, cut, need);
            }
            if (row->min_p > cut.least) { /* the likeliest has weight 1 */
                cut.least = row->min_p;
                cut.last_id = UINT32_MAX;
            }
            chosen = sample_draw(&v, cut, row->uniform, chosen);
        }
        if (simt_thread() == 0) a->token_ids[r] = chosen;
        simt_sync();
    }
}

#endif
