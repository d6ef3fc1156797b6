/* sampler.c - penalties in place; then a maximum, or weights that are cut and drawn from.
 *
 * Weights are exp((logit - max) / temperature). First the tokens that a cut can possibly keep are gathered, by a
 * bound that is cheap to find; of a steep distribution those are few. What top_k, top_p and min_p leave out of them
 * becomes zero: where the cut lies is found by halving the range of floats and adding up what lies above. Nothing is
 * sorted, so a flat distribution costs little more than a steep one. The draw adds up weights in order of ids, block
 * by block, and walks through the block that it falls into. */
#include "worker/sampler.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/memory.h"

#define GREEDY_BELOW 1e-6f
#define LANES 4          /* of a vector: what every machine of the baseline has */
#define SUMS 4           /* vectors in flight */
#define BLOCK 1024u      /* weights that are added up in fp32 */
#define GROUP 128u       /* logits whose maximum is taken together to find a bound */
#define BOUNDARY_MAX 64u /* tokens at a cut that are put in order */

/* Tokens that may be drawn, in order of ids. */
typedef struct draw_set {
    float *weights;
    const uint32_t *ids; /* NULL: a token's id is its index */
    uint32_t count;
} draw_set;

typedef struct scratch {
    float *weights;      /* [vocabulary_size] */
    uint32_t *ids;       /* [vocabulary_size] */
    float *group_max;    /* [groups of the vocabulary] */
    double *block_sums;  /* [blocks of the vocabulary] */
    float *model_logits; /* [vocabulary_size]: the row as it was, where logprobs and changes are both asked for */
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
        t->weights = hd_alloc(vocabulary_size * sizeof(float), HD_CACHE_LINE);
        t->ids = hd_alloc(vocabulary_size * sizeof(uint32_t), HD_CACHE_LINE);
        t->group_max = hd_alloc((vocabulary_size / GROUP + 1) * sizeof(float), HD_CACHE_LINE);
        t->block_sums = hd_alloc((vocabulary_size / BLOCK + 1) * sizeof(double), HD_CACHE_LINE);
        t->model_logits = hd_alloc(vocabulary_size * sizeof(float), HD_CACHE_LINE);
        bool is_complete = t->weights != NULL && t->ids != NULL && t->group_max != NULL && t->block_sums != NULL &&
                           t->model_logits != NULL;
        if (!is_complete) status = HD_NO_MEMORY;
    }
    if (status == HD_OK) *out = s;
    else sampler_close(s);
    return status;
}

void sampler_close(sampler *s) {
    if (s == NULL) return;
    for (unsigned i = 0; i < s->thread_count; i++) {
        hd_free(s->threads[i].weights);
        hd_free(s->threads[i].ids);
        hd_free(s->threads[i].group_max);
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

static uint32_t block_length(uint32_t count, uint32_t block) {
    return count - block * BLOCK < BLOCK ? count - block * BLOCK : BLOCK;
}

static void fill_weights(heat h, const float *logits, uint32_t count, float *weights) {
    uint32_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        lanes x;
        memcpy(&x, logits + i, sizeof(x));
        x = exp_lanes((x - h.max) * h.inverse_temperature);
        memcpy(weights + i, &x, sizeof(x));
    }
    for (; i < count; i++) {
        lanes x = {(logits[i] - h.max) * h.inverse_temperature};
        weights[i] = exp_lanes(x)[0];
    }
}

/* How many weights, and their sum. */
typedef struct tally {
    double mass;
    uint32_t count;
} tally;

/* Of count <= BLOCK weights those that are at least `least`. The order of the sum depends on nothing else. */
static tally tally_block(const float *weights, uint32_t count, float least) {
    lanes sums[SUMS] = {0};
    int_lanes counts = {0};
    uint32_t i = 0;
    for (; i + LANES * SUMS <= count; i += LANES * SUMS) {
        for (uint32_t k = 0; k < SUMS; k++) {
            lanes x;
            memcpy(&x, weights + i + k * LANES, sizeof(x));
            int_lanes is_above = x >= least;
            sums[k] += (lanes)((int_lanes)x & is_above);
            counts -= is_above; /* true is -1 */
        }
    }
    lanes sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    tally t = {0};
    for (int lane = 0; lane < LANES; lane++) {
        t.mass += sum[lane];
        t.count += (uint32_t)counts[lane];
    }
    for (; i < count; i++) {
        if (weights[i] < least) continue;
        t.mass += weights[i];
        t.count++;
    }
    return t;
}

static tally tally_above(const float *weights, uint32_t count, float least) {
    tally all = {0};
    for (uint32_t block = 0; block * BLOCK < count; block++) {
        tally t = tally_block(weights + block * BLOCK, block_length(count, block), least);
        all.mass += t.mass;
        all.count += t.count;
    }
    return all;
}

/* What a cut has to leave: so many tokens, and so much mass. */
static bool is_enough(tally t, tally need) {
    return t.count >= need.count && t.mass >= need.mass;
}

static tally with_one_more(tally t, float weight) {
    return (tally){.mass = t.mass + weight, .count = t.count + 1};
}

/* What is below `least` becomes zero, and what is equal to it behind last_id. */
static void cut_below(float *weights, uint32_t count, float least, uint32_t last_id) {
    for (uint32_t i = 0; i < count; i++) weights[i] = weights[i] >= least ? weights[i] : 0.0f;
    for (uint32_t i = last_id < count ? last_id + 1 : count; i < count; i++) {
        weights[i] = weights[i] == least ? 0.0f : weights[i];
    }
}

/* The cut lies among the tokens of this one weight. */
static void cut_equals(float *weights, uint32_t count, float weight, tally above, tally need) {
    for (uint32_t i = 0; i < count; i++) {
        if (weights[i] != weight) continue;
        above = with_one_more(above, weight);
        if (!is_enough(above, need)) continue;
        cut_below(weights, count, weight, i);
        return;
    }
    cut_below(weights, count, weight, count); /* where this sum is rounded below that of the passes: all of them stay */
}

/* The cut lies among at most BOUNDARY_MAX tokens with weights in [low, high). */
static void cut_boundary(float *weights, uint32_t count, float low, float high, tally above, tally need) {
    uint32_t ids[BOUNDARY_MAX], found = 0; /* in the order of likelihood */
    for (uint32_t i = 0; i < count; i++) {
        /* One branch that is hardly ever taken, where && would make two. */
        if (!((weights[i] >= low) & (weights[i] < high))) continue;
        uint32_t place = found++;
        for (; place > 0 && weights[i] > weights[ids[place - 1]]; place--) ids[place] = ids[place - 1];
        ids[place] = i;
    }
    uint32_t last = 0;
    while (last + 1 < found && !is_enough(above = with_one_more(above, weights[ids[last]]), need)) last++;
    cut_below(weights, count, weights[ids[last]], ids[last]);
}

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* The fewest likeliest that are enough keep their weights; of equals those with lower ids. */
static void keep_fewest(float *weights, uint32_t count, tally need) {
    uint32_t low = 1, high = 0x3f800001u; /* bits of floats, which are in the order of the floats: (0, 1] */
    tally at_low = tally_above(weights, count, float_of(low)), at_high = {0};
    if (!is_enough(at_low, need)) return;
    while (high - low > 1 && at_low.count - at_high.count > BOUNDARY_MAX) {
        uint32_t middle = low + (high - low) / 2;
        tally at_middle = tally_above(weights, count, float_of(middle));
        if (is_enough(at_middle, need)) {
            low = middle;
            at_low = at_middle;
        } else {
            high = middle;
            at_high = at_middle;
        }
    }
    if (high - low == 1) cut_equals(weights, count, float_of(low), at_high, need);
    else cut_boundary(weights, count, float_of(low), float_of(high), at_high, need);
}

/* Those of the values, of one a token, that are at least `least`. The values may be the scratch's weights
 * themselves. */
static draw_set gather(scratch *t, const float *values, uint32_t count, float least) {
    uint32_t found = 0;
    for (uint32_t i = 0; i < count; i++) { /* without a branch, which would be guessed wrong half of the time */
        float value = values[i];
        t->weights[found] = value;
        t->ids[found] = i;
        found += value >= least;
    }
    return (draw_set){.weights = t->weights, .ids = t->ids, .count = found};
}

static float max_of_group(const float *logits) {
    lanes max = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    for (uint32_t i = 0; i < GROUP; i += LANES) {
        lanes x;
        memcpy(&x, logits + i, sizeof(x));
        int_lanes is_larger = x > max;
        max = (lanes)(((int_lanes)x & is_larger) | ((int_lanes)max & ~is_larger));
    }
    float largest = max[0];
    for (int lane = 1; lane < LANES; lane++) largest = max[lane] > largest ? max[lane] : largest;
    return largest;
}

/* A logit that at least top_k logits reach: of the maxima of groups, top_k do. -inf where there are too few groups. */
static float top_k_bound(scratch *t, heat h, const float *logits, uint32_t count, uint32_t top_k) {
    uint32_t groups = count / GROUP;
    if (top_k > groups) return -INFINITY;
    for (uint32_t group = 0; group < groups; group++) {
        t->group_max[group] = max_of_group(logits + group * GROUP);
    }
    fill_weights(h, t->group_max, groups, t->weights);
    keep_fewest(t->weights, groups, (tally){.count = top_k});
    float bound = h.max;
    for (uint32_t group = 0; group < groups; group++) {
        if (t->weights[group] > 0.0f && t->group_max[group] < bound) bound = t->group_max[group];
    }
    return bound;
}

/* Weights of all tokens that can be drawn, cut by top_k, top_p and min_p. */
static draw_set make_draw_set(scratch *t, const worker_sampling *sampling, heat h, const float *logits,
                              uint32_t count) {
    draw_set set = {.weights = t->weights, .count = count};
    double mass = 1.0;
    if (sampling->top_k > 0 && sampling->top_k < count) {
        set = gather(t, logits, count, top_k_bound(t, h, logits, count, sampling->top_k));
        fill_weights(h, set.weights, set.count, set.weights);
        keep_fewest(set.weights, set.count, (tally){.count = sampling->top_k});
        mass = tally_above(set.weights, set.count, 0.0f).mass;
    } else {
        fill_weights(h, logits, count, t->weights);
        float least = sampling->min_p;
        if (sampling->top_p < 1.0f) {
            mass = tally_above(t->weights, count, 0.0f).mass;
            /* All tokens with less than this together cannot make up what top_p leaves out. */
            double spare = (1.0 - (double)sampling->top_p) * mass / count;
            least = fmaxf(least, (float)(spare / 2));
        }
        if (least > 0.0f) set = gather(t, t->weights, count, least);
    }
    if (sampling->top_p < 1.0f) {
        keep_fewest(set.weights, set.count, (tally){.count = 1, .mass = (double)sampling->top_p * mass});
    }
    /* The likeliest has weight 1. */
    if (sampling->min_p > 0.0f) cut_below(set.weights, set.count, sampling->min_p, set.count);
    return set;
}

static uint32_t draw_from(draw_set set, double *block_sums, double uniform, uint32_t likeliest) {
    if (set.count == 0) return likeliest;
    uint32_t block = 0, last_block = (set.count - 1) / BLOCK;
    double total = 0.0, before = 0.0;
    for (uint32_t i = 0; i <= last_block; i++) {
        block_sums[i] = tally_block(set.weights + i * BLOCK, block_length(set.count, i), 0.0f).mass;
        total += block_sums[i];
    }
    double target = uniform * total;
    while (block < last_block && before + block_sums[block] <= target) before += block_sums[block++];
    uint32_t chosen = likeliest; /* of a row that is no numbers */
    for (uint32_t i = block * BLOCK; i < block * BLOCK + block_length(set.count, block); i++) {
        if (set.weights[i] == 0.0f) continue;
        chosen = set.ids != NULL ? set.ids[i] : i; /* the last one stays where rounding has put the target behind it */
        before += set.weights[i];
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

bool sampler_is_finite(const float *logits, uint32_t count) {
    const int_lanes exponent = {0x7f800000, 0x7f800000, 0x7f800000, 0x7f800000}; /* all ones: infinity or NaN */
    int_lanes found[SUMS] = {0};
    uint32_t i = 0;
    for (; i + LANES * SUMS <= count; i += LANES * SUMS) {
        for (uint32_t k = 0; k < SUMS; k++) {
            int_lanes bits;
            memcpy(&bits, logits + i + k * LANES, sizeof(bits));
            found[k] |= (bits & exponent) == exponent;
        }
    }
    int_lanes any = found[0] | found[1] | found[2] | found[3];
    bool is_finite = true;
    for (int lane = 0; lane < LANES; lane++) is_finite = is_finite && any[lane] == 0;
    for (; i < count; i++) is_finite = is_finite && isfinite(logits[i]);
    return is_finite;
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
        draw_set set = make_draw_set(t, sampling, h, row->logits, s->vocabulary_size);
        double uniform = sampler_uniform(sampling->seed, row->choice, row->position);
        row->token_id = draw_from(set, t->block_sums, uniform, likeliest);
    }
    if (sampling->logprobs >= 0)
        sampler_logprobs(s, model_logits, row->token_id, (uint32_t)sampling->logprobs, row->logprobs);
}
