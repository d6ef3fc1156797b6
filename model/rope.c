/* rope.c - inverse frequencies of rotary embeddings, in the arithmetic of Hugging Face's code.
 *
 * Angles are position times frequency, so at a position of a hundred thousand the last bit of a frequency is visible in
 * the cosine. Models are compared with that code, therefore each step below rounds to float where its tensors do, and
 * nowhere else: values that are Python numbers there are double here. The reciprocals are not tidied into divisions for
 * the same reason. */
#include <assert.h>
#include <math.h>

#include "model/config.h"

static float reciprocal(float value) {
    return 1.0f / value;
}

/* base ** (2 i / dim), the base rounded to float first. */
static float power_at(double base, uint32_t index, uint32_t dim) {
    float exponent = (float)(2 * index) / (float)dim;
    return (float)pow((double)(float)base, (double)exponent);
}

static void default_frequencies(double base, uint32_t dim, float *inverse_frequencies) {
    for (uint32_t i = 0; i < dim / 2; i++) inverse_frequencies[i] = reciprocal(power_at(base, i, dim));
}

static void linear_frequencies(const rope_config *rope, float *inverse_frequencies) {
    default_frequencies(rope->theta, rope->rotary_dim, inverse_frequencies);
    for (uint32_t i = 0; i < rope->rotary_dim / 2; i++) inverse_frequencies[i] /= (float)rope->factor;
}

/* NTK-aware: the base grows with the sequence, in float, because the length is a tensor there. */
static void dynamic_frequencies(const rope_config *rope, uint64_t sequence_tokens, float *inverse_frequencies) {
    double base = rope->theta, dim = rope->rotary_dim;
    if ((double)sequence_tokens > rope->original_max_position) {
        float scaled = (float)rope->factor * (float)sequence_tokens / (float)rope->original_max_position;
        float growth = scaled - (float)(rope->factor - 1.0);
        base = (float)base * (float)pow((double)growth, dim / (dim - 2.0));
    }
    default_frequencies(base, rope->rotary_dim, inverse_frequencies);
}

/* Long waves are stretched by factor, short ones stay, those between are blended. */
static void llama3_frequencies(const rope_config *rope, float *inverse_frequencies) {
    default_frequencies(rope->theta, rope->rotary_dim, inverse_frequencies);
    float factor = (float)rope->factor, length = (float)rope->original_max_position;
    float longest = (float)(rope->original_max_position / rope->low_freq_factor);
    float shortest = (float)(rope->original_max_position / rope->high_freq_factor);
    float low = (float)rope->low_freq_factor, range = (float)(rope->high_freq_factor - rope->low_freq_factor);
    for (uint32_t i = 0; i < rope->rotary_dim / 2; i++) {
        float frequency = inverse_frequencies[i];
        float wave = reciprocal(frequency) * (float)(2.0 * M_PI);
        if (wave > longest) {
            inverse_frequencies[i] = frequency / factor;
        } else if (wave >= shortest) {
            float smooth = (reciprocal(wave) * length - low) / range;
            inverse_frequencies[i] = (1.0f - smooth) * frequency / factor + smooth * frequency;
        }
    }
}

/* The (fractional) index of the pair that turns `rotations` times within the original length. */
static double yarn_correction(const rope_config *rope, double rotations) {
    double turns = rope->original_max_position / (rotations * 2.0 * M_PI);
    return rope->rotary_dim * log(turns) / (2.0 * log(rope->theta));
}

static void yarn_frequencies(const rope_config *rope, float *inverse_frequencies) {
    double low = yarn_correction(rope, rope->beta_fast), high = yarn_correction(rope, rope->beta_slow);
    if (rope->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0.0);
    high = fmin(high, (double)rope->rotary_dim - 1.0);
    if (low == high) high += 0.001;
    for (uint32_t i = 0; i < rope->rotary_dim / 2; i++) {
        float power = power_at(rope->theta, i, rope->rotary_dim);
        float extrapolated = reciprocal(power), interpolated = reciprocal((float)rope->factor * power);
        float ramp = ((float)i - (float)low) / (float)(high - low);
        float keep = 1.0f - fminf(fmaxf(ramp, 0.0f), 1.0f);
        inverse_frequencies[i] = interpolated * (1.0f - keep) + extrapolated * keep;
    }
}

static double yarn_mscale(double factor, double mscale) {
    return factor <= 1.0 ? 1.0 : 0.1 * mscale * log(factor) + 1.0;
}

static double yarn_attention_factor(const rope_config *rope) {
    if (rope->attention_factor != 0.0) return rope->attention_factor;
    if (rope->mscale == 0.0 || rope->mscale_all_dim == 0.0) return yarn_mscale(rope->factor, 1.0);
    return yarn_mscale(rope->factor, rope->mscale) / yarn_mscale(rope->factor, rope->mscale_all_dim);
}

void rope_frequencies(const rope_config *rope, uint64_t sequence_tokens, float *inverse_frequencies,
                      float *attention_factor) {
    assert(rope->rotary_dim >= 4 && rope->rotary_dim % 2 == 0);
    *attention_factor = 1.0f;
    switch (rope->kind) {
    case ROPE_NONE: default_frequencies(rope->theta, rope->rotary_dim, inverse_frequencies); break;
    case ROPE_LINEAR: linear_frequencies(rope, inverse_frequencies); break;
    case ROPE_DYNAMIC: dynamic_frequencies(rope, sequence_tokens, inverse_frequencies); break;
    case ROPE_LLAMA3: llama3_frequencies(rope, inverse_frequencies); break;
    case ROPE_YARN:
        yarn_frequencies(rope, inverse_frequencies);
        *attention_factor = (float)yarn_attention_factor(rope);
        break;
    }
}
