/* synthetic_kv.c - a block's keys and values are one product of its random numbers with a head's matrix, added to what
 * their clusters have. */
#include "bench/synthetic_kv.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "bench/random.h"
#include "kernels/dtype.h"

enum { DIM_MAX = 256, KEY_CLUSTERS = 512, QUERY_CLUSTERS = 64, CALIBRATION = 256 };

typedef struct head {
    kernel_matrix mix;    /* bf16, [dim random numbers] to [keys, values] */
    float *centres;       /* [KEY_CLUSTERS, 2 * dim]: of keys, the mean left out, and of their values */
    float *mean;          /* [dim] */
    float *query_centres; /* [QUERY_CLUSTERS, dim] */
    float *query_mix;     /* [dim, dim] */
    float *query_mean;    /* [dim] */
    float query_length, query_scale;
} head;

typedef struct asked { /* a query head's */
    uint32_t cluster;
    float numbers[DIM_MAX], pull[DIM_MAX];
} asked;

struct synthetic_kv {
    const kernel_ops *kernels;
    uint32_t layers, kv_heads, group_size, dim;
    float chances[KEY_CLUSTERS]; /* that a key's cluster is this one or one before */
    head *heads;                 /* [layers * kv_heads] */
    asked *asked;                /* [layers * kv_heads * group_size] */
    bench_random random;
};

/* About normal, of variance 1: four uniform numbers of 16 bits. */
static float about_normal(bench_random *random) {
    uint64_t bits = bench_random_u64(random);
    uint32_t sum = (uint32_t)(bits & 0xffff) + (uint32_t)(bits >> 16 & 0xffff) + (uint32_t)(bits >> 32 & 0xffff) +
                   (uint32_t)(bits >> 48);
    return ((float)sum - 131070.0f) * (1.7320508f / 65536.0f);
}

static bench_random seeded(uint64_t a, uint64_t b) {
    bench_random random = {a * 0x9e3779b97f4a7c15u + 1};
    random.state = bench_random_u64(&random) + b;
    return random;
}

static float length_of(const float *x, uint32_t dim) {
    double sum = 0.0;
    for (uint32_t i = 0; i < dim; i++) sum += (double)x[i] * (double)x[i];
    return (float)sqrt(sum);
}

static float dot(const float *a, const float *b, uint32_t dim) {
    float sum = 0.0f;
    for (uint32_t i = 0; i < dim; i++) sum += a[i] * b[i];
    return sum;
}

/* Orthonormal rows, by Gram and Schmidt. */
static void draw_rotation(bench_random *random, uint32_t dim, float *rows) {
    for (uint32_t r = 0; r < dim; r++) {
        float *row = rows + (size_t)r * dim;
        for (uint32_t i = 0; i < dim; i++) row[i] = about_normal(random);
        for (uint32_t pass = 0; pass < 2; pass++) {
            for (uint32_t p = 0; p < r; p++) {
                const float *before = rows + (size_t)p * dim;
                float along = dot(row, before, dim);
                for (uint32_t i = 0; i < dim; i++) row[i] -= along * before[i];
            }
        }
        float length = length_of(row, dim);
        for (uint32_t i = 0; i < dim; i++) row[i] /= length;
    }
}

/* to = x m, m [dim, width] */
static void multiply(const float *x, const float *m, uint32_t dim, uint32_t width, float *to) {
    memset(to, 0, width * sizeof(*to));
    for (uint32_t i = 0; i < dim; i++)
        for (uint32_t j = 0; j < width; j++) to[j] += x[i] * m[(size_t)i * width + j];
}

/* Row i of a rotation, times the spectrum's i-th value. */
static void stretch(float *rows, uint32_t dim, float exponent) {
    for (uint32_t i = 0; i < dim; i++)
        for (uint32_t j = 0; j < dim; j++) rows[(size_t)i * dim + j] *= powf((float)(i + 1), exponent);
}

static void draw_unit(bench_random *random, uint32_t dim, float *x) {
    for (uint32_t i = 0; i < dim; i++) x[i] = about_normal(random);
    float length = length_of(x, dim);
    for (uint32_t i = 0; i < dim; i++) x[i] /= length;
}

/* ---- Heads ---- */

static uint32_t draw_cluster(const synthetic_kv *self, bench_random *random) {
    float chance = (float)bench_random_unit(random);
    uint32_t low = 0, high = KEY_CLUSTERS - 1;
    while (low < high) {
        uint32_t between = (low + high) / 2;
        if (self->chances[between] < chance) low = between + 1;
        else high = between;
    }
    return low;
}

/* A key as any, its head's mean left out. */
static void draw_centred(const synthetic_kv *self, const head *h, bench_random *random, float *key) {
    const float *centre = h->centres + (size_t)draw_cluster(self, random) * 2 * self->dim;
    memcpy(key, centre, self->dim * sizeof(*key));
    for (uint32_t i = 0; i < self->dim; i++) {
        float number = about_normal(random);
        for (uint32_t j = 0; j < self->dim; j++) key[j] += number * kernel_matrix_get(&h->mix, i, j);
    }
}

static void draw_keys(synthetic_kv *self, head *h, bench_random *random, float *turn, float *mixed, float *key) {
    uint32_t dim = self->dim;
    draw_rotation(random, dim, turn);
    stretch(turn, dim, -0.5f);
    for (size_t i = 0; i < (size_t)dim * dim; i++) mixed[i] = about_normal(random);
    double values = 0.0, keys = 0.0;
    for (uint32_t c = 0; c < KEY_CLUSTERS; c++) {
        float *centre = h->centres + (size_t)c * 2 * dim;
        float weight = c == 0 ? self->chances[0] : self->chances[c] - self->chances[c - 1];
        for (uint32_t i = 0; i < dim; i++) key[i] = about_normal(random);
        multiply(key, turn, dim, dim, centre);
        multiply(centre, mixed, dim, dim, centre + dim);
        for (uint32_t i = 0; i < dim; i++) {
            keys += (double)weight * (double)centre[i] * (double)centre[i];
            values += (double)weight * (double)centre[dim + i] * (double)centre[dim + i];
        }
    }
    for (uint32_t i = 0; i < dim; i++) { /* what a random number adds, in a row */
        float row[2 * DIM_MAX];
        for (uint32_t j = 0; j < dim; j++) row[j] = 0.6f * turn[(size_t)i * dim + j];
        multiply(row, mixed, dim, dim, row + dim);
        for (uint32_t j = 0; j < dim; j++) {
            keys += (double)row[j] * (double)row[j];
            values += (double)row[dim + j] * (double)row[dim + j];
        }
        memcpy(mixed + (size_t)(dim + i) * dim, row + dim, dim * sizeof(*row));
        memcpy(turn + (size_t)i * dim, row, dim * sizeof(*row));
    }
    float value_scale = (float)sqrt(0.5 * dim / values);
    for (uint32_t j = 0; j < 2 * dim; j++) {
        float column[DIM_MAX];
        for (uint32_t i = 0; i < dim; i++)
            column[i] = j < dim ? turn[(size_t)i * dim + j] : value_scale * mixed[(size_t)(dim + i) * dim + j - dim];
        kernel_matrix_pack(&h->mix, j, column, HD_F32, dim, 1);
    }
    for (uint32_t c = 0; c < KEY_CLUSTERS; c++)
        for (uint32_t i = 0; i < dim; i++) h->centres[((size_t)c * 2 + 1) * dim + i] *= value_scale;
    draw_unit(random, dim, h->mean);
    draw_unit(random, dim, h->query_mean); /* made a side, at right angles to the keys' mean */
    float along = dot(h->query_mean, h->mean, dim);
    for (uint32_t i = 0; i < dim; i++) h->query_mean[i] -= along * h->mean[i];
    float side = length_of(h->query_mean, dim);
    for (uint32_t i = 0; i < dim; i++)
        h->query_mean[i] = 1.5f * (-0.4f * h->mean[i] + sqrtf(1.0f - 0.16f) * h->query_mean[i] / side);
    for (uint32_t i = 0; i < dim; i++) h->mean[i] *= 2.5f * (float)sqrt(keys);
}

static void make_query(const synthetic_kv *self, const head *h, uint32_t cluster, const float *numbers,
                       const float *pull, float *query) {
    uint32_t dim = self->dim;
    float drawn[DIM_MAX];
    for (uint32_t i = 0; i < dim; i++) drawn[i] = h->query_centres[(size_t)cluster * dim + i] + 0.5f * numbers[i];
    multiply(drawn, h->query_mix, dim, dim, query);
    for (uint32_t i = 0; i < dim; i++)
        query[i] = h->query_scale * (query[i] / h->query_length + 0.25f * pull[i] + h->query_mean[i]);
}

static void draw_pull(const synthetic_kv *self, const head *h, bench_random *random, float *pull) {
    draw_centred(self, h, random, pull);
    float length = length_of(pull, self->dim);
    for (uint32_t i = 0; i < self->dim; i++) pull[i] /= length;
}

/* Scores over the square root of dim get a standard deviation of 2.5. */
static void draw_queries(synthetic_kv *self, head *h, bench_random *random, float *keys) {
    uint32_t dim = self->dim;
    float numbers[DIM_MAX], pull[DIM_MAX], query[DIM_MAX];
    draw_rotation(random, dim, h->query_mix);
    stretch(h->query_mix, dim, -0.3f);
    for (size_t i = 0; i < (size_t)QUERY_CLUSTERS * dim; i++) h->query_centres[i] = about_normal(random);
    double squares = 0.0, deviations = 0.0;
    for (uint32_t i = 0; i < dim; i++) squares += 1.25 * pow(i + 1, -0.6);
    h->query_length = (float)sqrt(squares);
    h->query_scale = 1.0f;
    for (uint32_t k = 0; k < CALIBRATION; k++) draw_centred(self, h, random, keys + (size_t)k * dim);
    for (uint32_t q = 0; q < QUERY_CLUSTERS; q++) {
        double sum = 0.0, square = 0.0;
        for (uint32_t i = 0; i < dim; i++) numbers[i] = about_normal(random);
        draw_pull(self, h, random, pull);
        make_query(self, h, q, numbers, pull, query);
        for (uint32_t k = 0; k < CALIBRATION; k++) {
            double score = (double)dot(query, keys + (size_t)k * dim, dim);
            sum += score;
            square += score * score;
        }
        deviations += sqrt(square / CALIBRATION - sum / CALIBRATION * (sum / CALIBRATION));
    }
    h->query_scale = (float)(2.5 * sqrt(dim) / (deviations / QUERY_CLUSTERS));
}

static hd_status head_open(synthetic_kv *self, head *h, uint64_t ordinal) {
    uint32_t dim = self->dim;
    size_t square = (size_t)dim * dim;
    bench_random random = seeded(1, ordinal);
    void *data = hd_alloc(kernel_matrix_bytes(HD_BF16, 2 * dim, dim), HD_CACHE_LINE);
    float *scratch = malloc((3 * square + (size_t)CALIBRATION * dim + DIM_MAX) * sizeof(float));
    h->centres = malloc((size_t)KEY_CLUSTERS * 2 * dim * sizeof(float));
    h->query_centres = malloc((size_t)QUERY_CLUSTERS * dim * sizeof(float));
    h->query_mix = malloc(square * sizeof(float));
    h->mean = malloc(dim * sizeof(float));
    h->query_mean = malloc(dim * sizeof(float));
    h->mix.data = data;
    bool is_whole = data != NULL && scratch != NULL && h->centres != NULL && h->query_centres != NULL &&
                    h->query_mix != NULL && h->mean != NULL && h->query_mean != NULL;
    if (is_whole) {
        kernel_matrix_init(&h->mix, HD_BF16, 2 * dim, dim, data, NULL);
        draw_keys(self, h, &random, scratch, scratch + square, scratch + 3 * square);
        draw_queries(self, h, &random, scratch + 3 * square);
    }
    free(scratch);
    return is_whole ? HD_OK : HD_NO_MEMORY;
}

static void asked_begin(synthetic_kv *self, uint32_t i) {
    asked *a = &self->asked[i];
    a->cluster = (uint32_t)bench_random_below(&self->random, QUERY_CLUSTERS);
    for (uint32_t k = 0; k < self->dim; k++) a->numbers[k] = about_normal(&self->random);
    draw_pull(self, &self->heads[i / self->group_size], &self->random, a->pull);
}

hd_status synthetic_kv_open(const kernel_ops *kernels, uint32_t layers, uint32_t kv_heads, uint32_t group_size,
                            uint32_t dim, synthetic_kv **out) {
    if (dim % KERNEL_K_ALIGN != 0 || dim > DIM_MAX) return HD_UNSUPPORTED;
    synthetic_kv *self = calloc(1, sizeof(*self));
    if (self == NULL) return HD_NO_MEMORY;
    *self = (synthetic_kv){.kernels = kernels,
                           .layers = layers,
                           .kv_heads = kv_heads,
                           .group_size = group_size,
                           .dim = dim,
                           .random = {7}};
    double sum = 0.0, all = 0.0;
    for (uint32_t c = 0; c < KEY_CLUSTERS; c++) all += pow(c + 1, -1.1);
    for (uint32_t c = 0; c < KEY_CLUSTERS; c++) self->chances[c] = (float)((sum += pow(c + 1, -1.1)) / all);
    self->heads = calloc((size_t)layers * kv_heads, sizeof(*self->heads));
    self->asked = calloc((size_t)layers * kv_heads * group_size, sizeof(*self->asked));
    hd_status status = self->heads != NULL && self->asked != NULL ? HD_OK : HD_NO_MEMORY;
    for (uint32_t i = 0; i < layers * kv_heads && status == HD_OK; i++) status = head_open(self, &self->heads[i], i);
    for (uint32_t i = 0; i < layers * kv_heads * group_size && status == HD_OK; i++) asked_begin(self, i);
    if (status == HD_OK) *out = self;
    else synthetic_kv_close(self);
    return status;
}

void synthetic_kv_close(synthetic_kv *self) {
    if (self == NULL) return;
    for (uint32_t i = 0; self->heads != NULL && i < self->layers * self->kv_heads; i++) {
        head *h = &self->heads[i];
        hd_free(h->mix.data);
        free(h->centres);
        free(h->query_centres);
        free(h->query_mix);
        free(h->mean);
        free(h->query_mean);
    }
    free(self->heads);
    free(self->asked);
    free(self);
}

/* ---- Tokens ---- */

void synthetic_kv_rows(const synthetic_kv *self, uint32_t layer, uint32_t head_index, uint64_t first, uint32_t count,
                       uint16_t *keys, uint16_t *values) {
    uint32_t dim = self->dim, ordinal = layer * self->kv_heads + head_index;
    const head *h = &self->heads[ordinal];
    uint64_t block = first / HD_BLOCK_TOKENS;
    bench_random random = seeded(ordinal + 2, block);
    size_t stride = kernel_input_stride(HD_BF16, dim);
    uint16_t *numbers = hd_alloc_zeroed(HD_BLOCK_TOKENS * stride * sizeof(*numbers), HD_CACHE_LINE);
    float *rows = hd_alloc(HD_BLOCK_TOKENS * 2 * (size_t)dim * sizeof(*rows), HD_CACHE_LINE);
    void *scratch = hd_alloc(self->kernels->scratch_bytes, HD_CACHE_LINE);
    for (uint32_t r = 0; rows != NULL && r < HD_BLOCK_TOKENS; r++) {
        float *row = rows + (size_t)r * 2 * dim;
        memcpy(row, h->centres + (size_t)draw_cluster(self, &random) * 2 * dim, 2 * dim * sizeof(*row));
        for (uint32_t i = 0; i < dim; i++) {
            row[i] += h->mean[i];
            row[dim + i] += 0.70710678f * about_normal(&random);
            if (numbers != NULL) numbers[r * stride + i] = hd_f32_to_bf16(about_normal(&random));
        }
    }
    if (numbers != NULL && rows != NULL && scratch != NULL) {
        kernel_matmul product = {.weights = &h->mix,
                                 .input = numbers,
                                 .input_stride = stride,
                                 .row_count = HD_BLOCK_TOKENS,
                                 .output = rows,
                                 .output_stride = 2 * dim,
                                 .epilogue = KERNEL_ADD,
                                 .scratch = scratch};
        self->kernels->matmul(&product, 0, kernel_matrix_panels(&h->mix));
    }
    for (uint32_t i = 0; rows != NULL && i < count; i++) {
        const float *row = rows + (first % HD_BLOCK_TOKENS + i) * 2 * dim;
        self->kernels->convert(row, HD_F32, keys + (size_t)i * dim, HD_BF16, dim);
        self->kernels->convert(row + dim, HD_F32, values + (size_t)i * dim, HD_BF16, dim);
    }
    hd_free(numbers);
    hd_free(rows);
    hd_free(scratch);
}

void synthetic_kv_query(const synthetic_kv *self, uint32_t layer, uint32_t head_index, uint64_t position,
                        uint16_t *query) {
    uint32_t ordinal = layer * self->kv_heads + head_index;
    const head *h = &self->heads[ordinal];
    bench_random random = seeded(ordinal + 2, ~position);
    float numbers[DIM_MAX], pull[DIM_MAX], drawn[DIM_MAX];
    uint32_t cluster = (uint32_t)bench_random_below(&random, QUERY_CLUSTERS);
    for (uint32_t i = 0; i < self->dim; i++) numbers[i] = about_normal(&random);
    const float *centre = h->centres + (size_t)draw_cluster(self, &random) * 2 * self->dim;
    float length = length_of(centre, self->dim);
    for (uint32_t i = 0; i < self->dim; i++) pull[i] = centre[i] / length;
    make_query(self, h, cluster, numbers, pull, drawn);
    for (uint32_t i = 0; i < self->dim; i++) query[i] = hd_f32_to_bf16(drawn[i]);
}

/* ---- Steps ---- */

/* Some queries move to another cluster, and lean towards another key; what is drawn beside it moves a little in all. */
void synthetic_kv_drift(synthetic_kv *self) {
    const float kept = (float)SYNTHETIC_KV_KEPT, moved = sqrtf(1.0f - kept * kept);
    for (uint32_t i = 0; i < self->layers * self->kv_heads * self->group_size; i++) {
        asked *a = &self->asked[i];
        float numbers[DIM_MAX];
        bool keeps = bench_random_unit(&self->random) < SYNTHETIC_KV_KEPT;
        memcpy(numbers, a->numbers, self->dim * sizeof(*numbers));
        if (!keeps) asked_begin(self, i);
        for (uint32_t k = 0; k < self->dim; k++)
            a->numbers[k] = kept * numbers[k] + moved * about_normal(&self->random);
    }
}

void synthetic_kv_asked(const synthetic_kv *self, uint32_t layer, uint32_t query_head, uint16_t *query) {
    uint32_t ordinal = layer * self->kv_heads + query_head / self->group_size;
    const asked *a = &self->asked[(size_t)layer * self->kv_heads * self->group_size + query_head];
    float drawn[DIM_MAX];
    make_query(self, &self->heads[ordinal], a->cluster, a->numbers, a->pull, drawn);
    for (uint32_t i = 0; i < self->dim; i++) query[i] = hd_f32_to_bf16(drawn[i]);
}
