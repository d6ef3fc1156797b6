/* index_kmeans.c - Lloyd's rounds over a sample, a piece at a time. */
#include "attention-node/index_kmeans.h"

#include <assert.h>
#include <string.h>

#include "kernels/dtype.h"

static uint64_t hash(uint64_t seed, uint64_t value) {
    uint64_t z = seed + 0x9e3779b97f4a7c15u * (value + 1);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* One point of each of `parts` equal parts of all points. */
static uint32_t pick(const kmeans *self, uint32_t part, uint32_t parts, uint64_t salt) {
    uint64_t first = (uint64_t)part * self->point_count / parts, end = (uint64_t)(part + 1) * self->point_count / parts;
    if (end <= first) return (uint32_t)first;
    return (uint32_t)(first + hash(self->seed ^ salt, part) % (end - first));
}

static void set_centre(kmeans *self, uint32_t centre, uint32_t point) {
    const uint16_t *from = self->points + (size_t)point * self->point_stride;
    float *to = self->centres + (size_t)centre * self->dim;
    for (uint32_t i = 0; i < self->dim; i++) to[i] = hd_bf16_to_f32(from[i]);
}

static void pack_centres(kmeans *self) {
    kernel_matrix_pack(&self->packed, 0, self->centres, HD_F32, self->dim, self->centre_count);
    for (uint32_t c = 0; c < self->centre_count; c++) {
        float square = 0.0f;
        for (uint32_t i = 0; i < self->dim; i++) {
            float value = hd_bf16_to_f32(hd_f32_to_bf16(self->centres[(size_t)c * self->dim + i]));
            square += value * value;
        }
        self->bias[c] = -0.5f * square;
    }
}

static void clear_sums(kmeans *self) {
    memset(self->sums, 0, (size_t)self->centre_count * self->dim * sizeof(*self->sums));
    memset(self->counts, 0, self->centre_count * sizeof(*self->counts));
}

void kmeans_begin(kmeans *self) {
    assert(self->dim % KERNEL_K_ALIGN == 0 && self->point_count >= 1);
    if (self->sample_count > self->point_count) self->sample_count = self->point_count;
    for (uint32_t c = 0; c < self->centre_count; c++) set_centre(self, c, pick(self, c, self->centre_count, 1));
    pack_centres(self);
    clear_sums(self);
    self->round = self->cursor = 0;
}

/* The nearest centres of the rows that lie in inputs. */
static void nearest(kmeans *self, uint32_t rows, uint32_t *centres) {
    kernel_matmul product = {.weights = &self->packed,
                             .input = self->inputs,
                             .input_stride = self->dim,
                             .row_count = rows,
                             .output = self->scores,
                             .output_stride = self->packed.n_padded,
                             .bias = self->bias,
                             .epilogue = KERNEL_STORE,
                             .scratch = self->scratch};
    self->kernels->matmul(&product, 0, kernel_matrix_panels(&self->packed));
    for (uint32_t r = 0; r < rows; r++)
        self->kernels->logits_summary(self->scores + (size_t)r * self->packed.n_padded, self->centre_count, &centres[r],
                                      NULL, NULL);
}

static void add_point(kmeans *self, uint32_t centre, const uint16_t *point) {
    float *sum = self->sums + (size_t)centre * self->dim;
    for (uint32_t i = 0; i < self->dim; i++) sum[i] += hd_bf16_to_f32(point[i]);
    self->counts[centre]++;
}

/* An empty centre starts again at a point, another one each round. */
static void move_centres(kmeans *self) {
    for (uint32_t c = 0; c < self->centre_count; c++) {
        if (self->counts[c] == 0) {
            set_centre(self, c, (uint32_t)(hash(self->seed, (uint64_t)self->round << 32 | c) % self->point_count));
            continue;
        }
        for (uint32_t i = 0; i < self->dim; i++)
            self->centres[(size_t)c * self->dim + i] = self->sums[(size_t)c * self->dim + i] / (float)self->counts[c];
    }
    pack_centres(self);
    clear_sums(self);
}

bool kmeans_train(kmeans *self) {
    uint32_t end = self->cursor + KMEANS_PIECE, centres[KMEANS_CHUNK];
    if (end > self->sample_count) end = self->sample_count;
    while (self->cursor < end) {
        uint32_t rows = end - self->cursor < KMEANS_CHUNK ? end - self->cursor : KMEANS_CHUNK;
        for (uint32_t r = 0; r < rows; r++)
            memcpy(self->inputs + (size_t)r * self->dim,
                   self->points + (size_t)pick(self, self->cursor + r, self->sample_count, 2) * self->point_stride,
                   self->dim * sizeof(*self->points));
        nearest(self, rows, centres);
        for (uint32_t r = 0; r < rows; r++) add_point(self, centres[r], self->inputs + (size_t)r * self->dim);
        self->cursor += rows;
    }
    if (self->cursor < self->sample_count) return false;
    move_centres(self);
    self->cursor = 0;
    return ++self->round >= self->rounds;
}

void kmeans_assign(kmeans *self, uint32_t first, uint32_t count, uint32_t *centres) {
    for (uint32_t at = 0; at < count; at += KMEANS_CHUNK) {
        uint32_t rows = count - at < KMEANS_CHUNK ? count - at : KMEANS_CHUNK;
        for (uint32_t r = 0; r < rows; r++)
            memcpy(self->inputs + (size_t)r * self->dim, self->points + (size_t)(first + at + r) * self->point_stride,
                   self->dim * sizeof(*self->points));
        nearest(self, rows, centres + at);
    }
}
