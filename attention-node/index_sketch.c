/* index_sketch.c - bits where they help most, and the tables that score them. */
#include "attention-node/index_sketch.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

/* Of a normal variable: the outermost level of a good uniform quantiser of so many bits, in standard deviations, and
 * the mean square error that it leaves of a variance of 1. */
static const float reach[5] = {0.0f, 0.80f, 1.49f, 2.05f, 2.51f};
static const float error_left[5] = {1.0f, 0.3634f, 0.1188f, 0.0374f, 0.0115f};

static void set_part(sketch_plan *plan, sketch_part *part, uint32_t coordinate, uint32_t bits, const float *variances) {
    float outer = reach[bits] * sqrtf(variances[coordinate]);
    part->coordinate = (uint16_t)coordinate;
    part->bits = (uint8_t)bits;
    part->least = -outer;
    part->step = 2.0f * outer / (float)((1u << bits) - 1u);
    plan->coarse_error[coordinate] = error_left[bits] * variances[coordinate];
}

static uint32_t nibble_bits(const sketch_part *parts) {
    uint32_t bits = 0;
    for (uint32_t p = 0; p < SKETCH_PARTS; p++) bits += parts[p].bits;
    return bits;
}

/* Nibbles fill up one bit at a time: each bit goes to the coordinate, in a nibble with room or new to one, from which
 * it takes the most error. */
static void share_bits(sketch_plan *plan, const float *variances, uint32_t dim) {
    uint8_t bits[SKETCH_DIM_MAX] = {0}, nibble_of[SKETCH_DIM_MAX] = {0}, used[SCAN_NIBBLES] = {0};
    for (uint32_t bit = 0; bit < SCAN_NIBBLES * 4; bit++) {
        int best = -1;
        uint32_t freest = 0;
        float best_gain = -1.0f;
        for (uint32_t n = 1; n < SCAN_NIBBLES; n++)
            if (used[n] < used[freest]) freest = n;
        for (uint32_t i = 0; i < dim; i++) {
            uint32_t nibble = bits[i] > 0 ? nibble_of[i] : freest;
            if (bits[i] == 4 || used[nibble] == 4) continue;
            float gain = variances[i] * (error_left[bits[i]] - error_left[bits[i] + 1]);
            if (gain > best_gain) {
                best_gain = gain;
                best = (int)i;
            }
        }
        if (best < 0) break;
        if (bits[best] == 0) nibble_of[best] = (uint8_t)freest;
        bits[best]++;
        used[nibble_of[best]]++;
    }
    for (uint32_t i = 0; i < dim; i++) {
        if (bits[i] == 0) continue;
        sketch_part *parts = plan->parts[nibble_of[i]];
        uint32_t p = 0;
        while (parts[p].bits != 0) p++;
        uint8_t shift = (uint8_t)nibble_bits(parts);
        set_part(plan, &parts[p], i, bits[i], variances);
        parts[p].shift = shift;
    }
}

void sketch_plan_make(sketch_plan *plan, const float *variances, uint32_t dim, uint32_t fine_count) {
    memset(plan, 0, sizeof(*plan));
    memcpy(plan->coarse_error, variances, dim * sizeof(*variances));
    memcpy(plan->fine_error, variances, dim * sizeof(*variances));
    share_bits(plan, variances, dim);
    bool is_taken[SKETCH_DIM_MAX] = {false};
    plan->fine_count = fine_count;
    for (uint32_t entry = 0; entry < fine_count; entry++) {
        uint32_t best = SKETCH_DIM_MAX;
        for (uint32_t i = 0; i < dim; i++)
            if (!is_taken[i] && (best == SKETCH_DIM_MAX || variances[i] > variances[best])) best = i;
        is_taken[best] = true;
        plan->fine_coordinates[entry] = (uint16_t)best;
        plan->fine_step[entry] = reach[4] * sqrtf(variances[best]) / 7.5f;
        plan->fine_error[best] = error_left[4] * variances[best];
    }
}

static uint32_t quantise(float value, float least, float step, uint32_t most) {
    if (!(step > 0.0f)) return 0;
    float code = (value - least) / step + 0.5f;
    return code <= 0.0f ? 0 : code >= (float)most ? most : (uint32_t)code;
}

void sketch_encode_coarse(const sketch_plan *plan, const float *residual, uint8_t code[SCAN_NIBBLES / 2]) {
    memset(code, 0, SCAN_NIBBLES / 2);
    for (uint32_t n = 0; n < SCAN_NIBBLES; n++) {
        uint32_t nibble = 0;
        for (uint32_t p = 0; p < SKETCH_PARTS; p++) {
            const sketch_part *part = &plan->parts[n][p];
            if (part->bits == 0) continue;
            nibble |= quantise(residual[part->coordinate], part->least, part->step, (1u << part->bits) - 1u)
                      << part->shift;
        }
        code[n / 2] |= (uint8_t)(nibble << n % 2 * 4);
    }
}

void sketch_encode_fine(const sketch_plan *plan, const float *residual, uint8_t *code) {
    for (uint32_t entry = 0; entry < plan->fine_count; entry += 2) {
        uint32_t pair[2];
        for (uint32_t i = 0; i < 2; i++) {
            float step = plan->fine_step[entry + i];
            pair[i] = quantise(residual[plan->fine_coordinates[entry + i]], -7.5f * step, step, 15);
        }
        code[entry / 2] = (uint8_t)(pair[0] | pair[1] << 4);
    }
}

/* What each nibble adds to a score: every bit doubles the levels that are known. Least and greatest of them are bounds
 * to within rounding, since a level is a sum of its bits. */
static void nibble_values(const sketch_part *parts, const float *z, float values[16], float *least, float *greatest) {
    uint32_t known = 1;
    float down = 0.0f, up = 0.0f;
    values[0] = 0.0f;
    for (uint32_t p = 0; p < SKETCH_PARTS && parts[p].bits > 0; p++)
        values[0] += z[parts[p].coordinate] * parts[p].least;
    for (uint32_t p = 0; p < SKETCH_PARTS && parts[p].bits > 0; p++) {
        float step = z[parts[p].coordinate] * parts[p].step;
        for (uint32_t bit = 0; bit < parts[p].bits; bit++, known *= 2, step *= 2.0f) {
            for (uint32_t level = 0; level < known; level++) values[known + level] = values[level] + step;
            down += step < 0.0f ? step : 0.0f;
            up += step > 0.0f ? step : 0.0f;
        }
    }
    for (; known < 16; known *= 2)
        for (uint32_t level = 0; level < known; level++) values[known + level] = values[level];
    *least = values[0] + down;
    *greatest = values[0] + up;
}

void sketch_coarse_ask(const sketch_plan *plan, const float *z, sketch_coarse_query *query) {
    float values[SCAN_NIBBLES][16], least[SCAN_NIBBLES], widest = 1e-30f;
    query->bias = 0.0f;
    for (uint32_t n = 0; n < SCAN_NIBBLES; n++) {
        float greatest;
        nibble_values(plan->parts[n], z, values[n], &least[n], &greatest);
        query->bias += least[n];
        widest = greatest - least[n] > widest ? greatest - least[n] : widest;
    }
    query->step = widest / 255.0f;
    float per_step = 255.0f / widest;
    for (uint32_t n = 0; n < SCAN_NIBBLES; n++) {
        uint8_t *table = &query->tables[scan_table(n) * 16];
        for (uint32_t level = 0; level < 16; level++)
            table[level] = (uint8_t)(int32_t)((values[n][level] - least[n]) * per_step + 0.5f);
    }
}

void sketch_fine_ask(const sketch_plan *plan, const float *z, sketch_fine_query *query) {
    float weights[SKETCH_DIM_MAX], largest = 1e-30f, sum = 0.0f;
    for (uint32_t entry = 0; entry < plan->fine_count; entry++) {
        weights[entry] = z[plan->fine_coordinates[entry]] * plan->fine_step[entry];
        largest = fabsf(weights[entry]) > largest ? fabsf(weights[entry]) : largest;
    }
    query->step = largest / 127.0f;
    memset(query->weights, 0, sizeof(query->weights));
    for (uint32_t entry = 0; entry < plan->fine_count; entry++) {
        int8_t weight = (int8_t)lrintf(weights[entry] / query->step);
        query->weights[entry % 2 * SCAN_ROW_BYTES + entry / 2] = weight;
        sum += (float)weight;
    }
    query->bias = -7.5f * query->step * sum;
}
