/* index_sketch.h - a key in a few bytes: what its coordinates add to those of its cluster's centre, coarsely.
 *
 * Two codes a key. The coarse one has 64 bits, shared out to coordinates by variance (each bit goes where it takes
 * the most error away), packed as 16 nibbles so that a score is 16 look-ups (kernels/scan.h, nibble_scores). The fine
 * one has 4 bits for each of the most important coordinates, and its score is a product of small integers
 * (nibble_dots). Both are of residuals divided by their cluster's spread, whose variances are thus alike for all.
 * Threads: pure functions on the caller's memory. */
#ifndef ATTENTION_NODE_INDEX_SKETCH_H
#define ATTENTION_NODE_INDEX_SKETCH_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/scan.h"

enum {
    SKETCH_DIM_MAX = 64, /* coordinates that sketches see */
    SKETCH_PARTS = 4,    /* coordinates that share a nibble, at most */
};

typedef struct sketch_part {
    uint16_t coordinate;
    uint8_t bits, shift; /* of the nibble; bits 0: none */
    float step, least;   /* a code c means the value least + step * c */
} sketch_part;

typedef struct sketch_plan {
    sketch_part parts[SCAN_NIBBLES][SKETCH_PARTS];
    uint32_t fine_count; /* coordinates with a fine code, even; in this order: */
    uint16_t fine_coordinates[SKETCH_DIM_MAX];
    float fine_step[SKETCH_DIM_MAX];    /* code c of entry i means fine_step[i] * (c - 7.5) */
    float coarse_error[SKETCH_DIM_MAX]; /* mean squares that the codes leave, by coordinate */
    float fine_error[SKETCH_DIM_MAX];
} sketch_plan;

/* variances of the residuals by coordinate. */
void sketch_plan_make(sketch_plan *plan, const float *variances, uint32_t dim, uint32_t fine_count);

void sketch_encode_coarse(const sketch_plan *plan, const float *residual, uint8_t code[SCAN_NIBBLES / 2]);
void sketch_encode_fine(const sketch_plan *plan, const float *residual, uint8_t *code); /* fine_count / 2 bytes */

/* What a query's coordinates make of them: a residual's score is about bias + step * (its code's sum). */
typedef struct sketch_coarse_query {
    uint8_t tables[SCAN_NIBBLES * 16]; /* in the order of nibble_scores */
    float bias, step;
} sketch_coarse_query;
typedef struct sketch_fine_query {
    int8_t weights[2 * SCAN_ROW_BYTES]; /* as nibble_dots takes them */
    float bias, step;
} sketch_fine_query;
void sketch_coarse_ask(const sketch_plan *plan, const float *z, sketch_coarse_query *query);
void sketch_fine_ask(const sketch_plan *plan, const float *z, sketch_fine_query *query);

#endif
