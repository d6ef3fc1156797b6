/* sampler.c - penalties in place, then one of three ways to draw.
 *
 * Greedy needs a maximum. With nothing to cut off, weights are summed block by block in index order, the block that
 * the draw falls into is found and walked: two passes, no list. Otherwise the few tokens that can stay are gathered
 * first: for top_p, a token whose p is below (1 - top_p) / vocabulary can never be needed, since all such tokens
 * together hold less than 1 - top_p. What was gathered is cut by selection around pivots, so that a flat
 * distribution costs linear time too, and never sorted. */
#include "worker/sampler.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/memory.h"

#define GREEDY_BELOW 1e-6f
#define LANES 4     /* of a vector: what every machine of the baseline has */
#define SUMS 4      /* vectors in flight */
#define BLOCK 1024u /* logits summed together in the walk over everything */

typedef struct candidate {
    float logit, weight; /* weight = exp((logit - max) / temperature) */
    uint32_t token_id;
} candidate;

typedef struct scratch {
    candidate *candidates; /* [vocabulary_size] */
    double *block_sums;    /* [blocks of the vocabulary] */
    float *model_logits;   /* [vocabulary_size]: the row as it was, where logprobs and changes are both asked for */
} scratch;

struct sampler {
    uint32_t vocabulary_size;
    unsigned thread_count;
    const kernel_ops *kernels;
    scratch threads[];
};

/* What turns a logit into a weight. */
typedef struct heat {
    float max, inverse_temperature;
} heat;

hd_status sampler_open(uint32_t vocabulary_size, unsigned thread_count, const kernel_ops *kernels, sampler **out) {
    sampler *s = hd_alloc_zeroed(sizeof(*s) + thread_count * sizeof(s->threads[0]), HD_CACHE_LINE);
    if (s == NULL) return HD_NO_MEMORY;
    s->vocabulary_size = vocabulary_size;
    s->thread_count = thread_count;
    s->kernels = kernels;
    hd_status status = HD_OK;
    for (unsigned i = 0; i < thread_count; i++) {
        scratch *t = &s->threads[i];
        t->candidates = hd_alloc(vocabulary_size * sizeof(candidate), HD_CACHE_LINE);
        t->block_sums = hd_alloc((vocabulary_size / BLOCK + 1) * sizeof(double), HD_CACHE_LINE);
        t->model_logits = hd_alloc(vocabulary_size * sizeof(float), HD_CACHE_LINE);
        if (t->candidates == NULL || t->block_sums == NULL || t->model_logits == NULL) status = HD_NO_MEMORY;
    }
    if (status == HD_OK) *out = s;
    else sampler_close(s);
    return status;
}

void sampler_close(sampler *s) {
    if (s == NULL) return;
    for (unsigned i = 0; i < s->thread_count; i++) {
        hd_free(s->threads[i].candidates);
        hd_free(s->threads[i].block_sums);
        hd_free(s->threads[i].model_logits);
    }
    hd_free(s);
}

bool sampler_has_penalties(const worker_sampling *sampling) {
    return sampling->repetition_penalty != 1.0f || sampling->presence_penalty != 0.0f ||
           sampling->frequency_penalty != 0.0f;
}

/* Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): a keyed mix of a counter, so
 * that any draw can be made again, anywhere, without a state. */
static void philox(uint64_t key, uint64_t counter, uint32_t words[4]) {
    uint32_t key_low = (uint32_t)key, key_high = (uint32_t)(key >> 32);
    uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32), c2 = 0, c3 = 0;
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ key_low;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ key_high;
        c1 = (uint32_t)b;
        c3 = (uint32_t)a;
        key_low += 0x9E3779B9u;
        key_high += 0xBB67AE85u;
    }
    words[0] = c0;
    words[1] = c1;
    words[2] = c2;
    words[3] = c3;
}

double sampler_uniform(uint64_t seed, uint32_t choice, uint64_t position) {
    uint32_t words[4];
    philox(seed + choice, position, words);
    uint64_t bits = (uint64_t)words[0] << 32 | words[1];
    return (double)(bits >> 11) * 0x1p-53;
}

typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t int_lanes __attribute__((vector_size(LANES * sizeof(int32_t))));

/* exp to 2 ulp for x <= 0, and exactly 0 below -87 (and for NaN). Plain arithmetic in a fixed order: the same bits
 * on every machine. */
static inline lanes exp_lanes(lanes x) {
    int_lanes is_normal = x >= -87.0f;
    lanes bounded = (lanes)((int_lanes)x & is_normal);
    lanes n = bounded * 1.44269504088896341f + 12582912.0f - 12582912.0f; /* adding 1.5 * 2^23 rounds to an integer */
    lanes r = bounded - n * 0.693359375f + n * 2.12194440e-4f;            /* ln 2 in two parts */
    lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int_lanes exponent = (__builtin_convertvector(n, int_lanes) + 127) << 23;
    return (lanes)((int_lanes)(p * (lanes)exponent) & is_normal);
}

static float weight_of(heat h, float logit) {
    lanes x = {(logit - h.max) * h.inverse_temperature};
    return exp_lanes(x)[0];
}

/* The sum of count <= BLOCK weights, in an order that depends on nothing. */
static double sum_block(heat h, const float *logits, uint32_t count) {
    lanes sums[SUMS] = {0};
    uint32_t i = 0;
    for (; i + LANES * SUMS <= count; i += LANES * SUMS) {
        for (uint32_t k = 0; k < SUMS; k++) {
            lanes x;
            memcpy(&x, logits + i + k * LANES, sizeof(x));
            sums[k] += exp_lanes((x - h.max) * h.inverse_temperature);
        }
    }
    lanes sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    double total = 0.0;
    for (int lane = 0; lane < LANES; lane++) total += sum[lane];
    for (; i < count; i++) total += weight_of(h, logits[i]);
    return total;
}

static uint32_t block_length(uint32_t vocabulary_size, uint32_t block) {
    uint32_t left = vocabulary_size - block * BLOCK;
    return left < BLOCK ? left : BLOCK;
}

/* The sum of all weights; each block's stays in block_sums. */
static double sum_all(const sampler *s, scratch *t, heat h, const float *logits) {
    double total = 0.0;
    for (uint32_t block = 0; block * BLOCK < s->vocabulary_size; block++) {
        t->block_sums[block] = sum_block(h, logits + block * BLOCK, block_length(s->vocabulary_size, block));
        total += t->block_sums[block];
    }
    return total;
}

static uint32_t draw_from_all(const sampler *s, scratch *t, heat h, const float *logits, double uniform,
                              uint32_t likeliest) {
    double target = uniform * sum_all(s, t, h, logits), before = 0.0;
    uint32_t block = 0, last_block = (s->vocabulary_size - 1) / BLOCK;
    while (block < last_block && before + t->block_sums[block] <= target) before += t->block_sums[block++];
    uint32_t chosen =
        likeliest; /* where rounding leaves the target behind the block's last weight and no weight came */
    for (uint32_t i = block * BLOCK; i < block * BLOCK + block_length(s->vocabulary_size, block); i++) {
        float weight = weight_of(h, logits[i]);
        if (weight == 0.0f) continue;
        chosen = i;
        before += weight;
        if (before > target) break;
    }
    return chosen;
}

static bool is_likelier(candidate a, candidate b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token_id < b.token_id);
}

static void swap(candidate *a, candidate *b) {
    candidate kept = *a;
    *a = *b;
    *b = kept;
}

/* Splits [first, end): returns where a pivot came to lie, with likelier ones before it and the others after. */
static uint32_t partition(candidate *c, uint32_t first, uint32_t end) {
    uint32_t middle = first + (end - first) / 2, last = end - 1;
    if (is_likelier(c[middle], c[first])) swap(&c[middle], &c[first]);
    if (is_likelier(c[last], c[first])) swap(&c[last], &c[first]);
    if (is_likelier(c[last], c[middle])) swap(&c[last], &c[middle]);
    swap(&c[middle], &c[last]); /* the median of three is the pivot */
    uint32_t place = first;
    for (uint32_t i = first; i < last; i++) {
        if (is_likelier(c[i], c[last])) swap(&c[i], &c[place++]);
    }
    swap(&c[place], &c[last]);
    return place;
}

/* Moves the `keep` likeliest of count to the front. */
static void select_count(candidate *c, uint32_t count, uint32_t keep) {
    uint32_t first = 0, end = count;
    while (end - first > 1 && first < keep) {
        uint32_t pivot = partition(c, first, end);
        if (pivot >= keep) end = pivot;
        else first = pivot + 1;
    }
}

/* Moves the fewest likeliest whose weights reach mass to the front, and returns how many they are: at least one. */
static uint32_t select_mass(candidate *c, uint32_t count, double mass) {
    uint32_t first = 0, end = count;
    double before = 0.0; /* of [0, first) */
    while (end - first > 1) {
        uint32_t pivot = partition(c, first, end);
        double part = 0.0;
        for (uint32_t i = first; i < pivot; i++) part += c[i].weight;
        if (before + part >= mass) {
            end = pivot;
            if (end == first) break;
        } else {
            before += part + c[pivot].weight;
            first = pivot + 1;
            if (before >= mass) break;
        }
    }
    /* One is left: it is needed unless what lies before it is enough. */
    if (end - first == 1 && (before < mass || first == 0)) first = end;
    return first > 0 ? first : 1;
}

static uint32_t gather_above(const sampler *s, scratch *t, const float *logits, float least) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < s->vocabulary_size; i++) {
        if (logits[i] >= least) t->candidates[count++] = (candidate){.logit = logits[i], .token_id = i};
    }
    return count;
}

/* The top_k likeliest: a buffer of twice as many is cut back whenever it is full, and then only larger logits enter. */
static uint32_t gather_top(const sampler *s, scratch *t, const float *logits, uint32_t top_k) {
    candidate *c = t->candidates;
    uint32_t capacity = top_k < s->vocabulary_size / 2 ? 2 * top_k : s->vocabulary_size;
    if (capacity < 64) capacity = s->vocabulary_size < 64 ? s->vocabulary_size : 64;
    uint32_t count = 0;
    float least = -INFINITY;
    for (uint32_t i = 0; i < s->vocabulary_size; i++) {
        if (!(logits[i] >= least)) continue;
        c[count++] = (candidate){.logit = logits[i], .token_id = i};
        if (count < capacity || i + 1 == s->vocabulary_size) continue;
        select_count(c, count, top_k);
        count = top_k;
        least = c[0].logit;
        for (uint32_t k = 1; k < top_k; k++) least = fminf(least, c[k].logit);
    }
    if (count <= top_k) return count;
    select_count(c, count, top_k);
    return top_k;
}

static double weigh(candidate *c, uint32_t count, heat h) {
    double total = 0.0;
    for (uint32_t i = 0; i < count; i++) {
        c[i].weight = weight_of(h, c[i].logit);
        total += c[i].weight;
    }
    return total;
}

static uint32_t draw_from_candidates(const sampler *s, scratch *t, const worker_sampling *sampling, heat h,
                                     const float *logits, double uniform, uint32_t likeliest) {
    candidate *c = t->candidates;
    float temperature = 1.0f / h.inverse_temperature;
    uint32_t count;
    double total;
    if (sampling->top_k > 0 && sampling->top_k < s->vocabulary_size) {
        count = gather_top(s, t, logits, sampling->top_k);
        total = weigh(c, count, h);
    } else if (sampling->top_p < 1.0f) {
        total = sum_all(s, t, h, logits);
        double least = (1.0 - (double)sampling->top_p) * total / s->vocabulary_size;
        /* Half of it, so that no rounding of the logarithm leaves one out that is needed. */
        count = gather_above(s, t, logits, h.max + temperature * (float)log(0.5 * least));
        weigh(c, count, h);
    } else {
        count = gather_above(s, t, logits, h.max + temperature * (logf(sampling->min_p) - 0.5f));
        total = weigh(c, count, h);
    }
    if (count == 0) return likeliest;
    if (sampling->top_p < 1.0f) count = select_mass(c, count, (double)sampling->top_p * total);

    double kept = 0.0; /* the likeliest has weight 1 */
    for (uint32_t i = 0; i < count; i++) {
        if (c[i].weight < sampling->min_p) c[i].weight = 0.0f;
        kept += c[i].weight;
    }
    double target = uniform * kept, before = 0.0;
    uint32_t chosen = likeliest;
    for (uint32_t i = 0; i < count; i++) {
        if (c[i].weight == 0.0f) continue;
        chosen = c[i].token_id;
        before += c[i].weight;
        if (before > target) break;
    }
    return chosen;
}

void sampler_logprobs(sampler *s, const float *logits, uint32_t token_id, uint32_t count, worker_logprob *logprobs) {
    float log_sum_exp;
    s->kernels->logits_summary(logits, s->vocabulary_size, NULL, NULL, &log_sum_exp);
    logprobs[0] = (worker_logprob){.token_id = token_id, .logprob = logits[token_id] - log_sum_exp};
    worker_logprob *top = logprobs + 1; /* holds logits until the end */
    uint32_t found = 0;
    for (uint32_t i = 0; count > 0 && i < s->vocabulary_size; i++) {
        if (found == count && !(logits[i] > top[count - 1].logprob)) continue;
        uint32_t place = found < count ? found++ : count - 1;
        for (; place > 0 && logits[i] > top[place - 1].logprob; place--) top[place] = top[place - 1];
        top[place] = (worker_logprob){.token_id = i, .logprob = logits[i]};
    }
    for (uint32_t i = 0; i < found; i++) top[i].logprob -= log_sum_exp;
}

/* Bias, penalties and tokens that may not come yet. */
static void change_logits(const sampler *s, const sampler_row *row) {
    const worker_sampling *sampling = row->sampling;
    float *logits = row->logits;
    for (uint32_t i = 0; i < sampling->logit_bias_count; i++)
        logits[sampling->logit_bias[i].token_id] += sampling->logit_bias[i].bias;
    for (uint32_t i = 0; row->counts != NULL && i < row->counts->entry_count; i++) {
        const token_count *entry = &row->counts->entries[i];
        float logit = logits[entry->token_id];
        logit = logit > 0.0f ? logit / sampling->repetition_penalty : logit * sampling->repetition_penalty;
        if (entry->answer_count > 0) {
            logit -= sampling->frequency_penalty * (float)entry->answer_count + sampling->presence_penalty;
        }
        logits[entry->token_id] = logit;
    }
    if (row->may_end) return;
    for (uint32_t i = 0; i < row->end_id_count; i++) {
        if (row->end_ids[i] < s->vocabulary_size) logits[row->end_ids[i]] = -INFINITY;
    }
    for (uint32_t i = 0; i < sampling->stop_id_count; i++) {
        if (sampling->stop_ids[i] < s->vocabulary_size) logits[sampling->stop_ids[i]] = -INFINITY;
    }
}

void sampler_draw(sampler *s, unsigned thread, sampler_row *row) {
    assert(thread < s->thread_count);
    const worker_sampling *sampling = row->sampling;
    scratch *t = &s->threads[thread];
    const float *model_logits = row->logits;
    bool is_changed = sampling->logit_bias_count > 0 || row->counts != NULL || !row->may_end;
    if (is_changed) {
        if (sampling->logprobs >= 0) {
            memcpy(t->model_logits, row->logits, s->vocabulary_size * sizeof(float));
            model_logits = t->model_logits;
        }
        change_logits(s, row);
    }

    uint32_t likeliest;
    heat h;
    s->kernels->logits_summary(row->logits, s->vocabulary_size, &likeliest, &h.max, NULL);
    if (sampling->temperature < GREEDY_BELOW) {
        row->token_id = likeliest;
    } else {
        h.inverse_temperature = 1.0f / sampling->temperature;
        double uniform = sampler_uniform(sampling->seed, row->choice, row->position);
        bool is_cut = (sampling->top_k > 0 && sampling->top_k < s->vocabulary_size) || sampling->top_p < 1.0f ||
                      sampling->min_p > 0.0f;
        row->token_id = is_cut ? draw_from_candidates(s, t, sampling, h, row->logits, uniform, likeliest)
                               : draw_from_all(s, t, h, row->logits, uniform, likeliest);
    }
    if (sampling->logprobs >= 0)
        sampler_logprobs(s, model_logits, row->token_id, (uint32_t)sampling->logprobs, row->logprobs);
}
