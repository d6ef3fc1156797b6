/* index_points.h - a segment's keys as points of the space of its queries, and clusters of them: what a kind that
 * learns begins with.
 *
 *   index_points_lay_out --fit--> has a space --project every grain--> has points --kmeans_train, kmeans_assign-->
 *   has clusters
 * Points are bf16 coordinates (index_space.h) in the order of the keys, or in one that the caller names.
 * Threads: a builder's; the memory is its workspace. */
#ifndef ATTENTION_NODE_INDEX_POINTS_H
#define ATTENTION_NODE_INDEX_POINTS_H

#include "attention-node/index_kind.h"
#include "attention-node/index_kmeans.h"
#include "attention-node/index_space.h"

enum {
    INDEX_POINTS_SAMPLE = 4096,  /* keys that moments are taken of */
    INDEX_POINTS_TRAIN_DIM = 32, /* coordinates that clusters are made by */
};

typedef struct index_points {
    index_space space;
    kmeans clustering;
    kernel_matrix projection;
    float *bias;      /* [dim] of the projection */
    uint16_t *points; /* bf16 [count, stride]; 0 from dim on */
    size_t stride;
    float *projected; /* [KMEANS_CHUNK, dim] */
    uint16_t *rows;   /* INDEX_GRAIN keys of the source's */
    uint16_t *sample;
    float *dense; /* scratch of index_space_fit */
} index_points;

/* Takes the arrays from the carve (without memory: only counts). dim <= key_dim coordinates are kept. */
void index_points_lay_out(index_points *self, const index_params *params, uint32_t count, uint32_t dim,
                          uint32_t cluster_count, index_carve *carve);
/* The space, from keys spread evenly over the segment and the sampled queries; and the seed of the clusters. */
void index_points_fit(index_points *self, const index_building *building);
/* The points of keys [first, first + INDEX_GRAIN): key i becomes point places[i], or i where places is NULL. */
void index_points_project(index_points *self, const index_building *building, uint32_t first, const uint32_t *places);

/* The clusters of keys [first, first + count) but the sinks among them. */
void index_points_assign(index_points *self, const index_building *building, uint32_t first, uint32_t count,
                         uint32_t *clusters);

/* Sinks are in no cluster, and take no part in making one: the first key of the segment that does. */
static inline uint32_t index_points_first(const index_building *building) {
    return building->segment->first == 0 ? building->params->sinks : 0;
}

/* Keys spread evenly over the segment: how many, at most INDEX_POINTS_SAMPLE, and the i-th of them. */
static inline uint32_t index_points_sample_count(const index_building *building) {
    uint32_t count = building->segment->count - index_points_first(building);
    return count < INDEX_POINTS_SAMPLE ? count : INDEX_POINTS_SAMPLE;
}

static inline uint32_t index_points_sample(const index_building *building, uint32_t i) {
    uint32_t first = index_points_first(building), count = building->segment->count - first;
    return first + (uint32_t)((uint64_t)i * count / index_points_sample_count(building));
}

static inline const uint16_t *index_points_at(const index_points *self, uint32_t point) {
    return self->points + point * self->stride;
}

static inline void index_points_load(const index_points *self, uint32_t point, float *x) { /* [dim] */
    const uint16_t *from = index_points_at(self, point);
    for (uint32_t i = 0; i < self->space.dim; i++) x[i] = hd_bf16_to_f32(from[i]);
}

#endif
