/* index_kmeans_test.c - clusters that are plainly there are found, and points go to their nearest centre. */
#include "attention-node/index_kmeans.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/dtype.h"

enum { DIM = 32, STRIDE = 48, POINTS = 5000, CENTRES = 20, SPOTS = 12 };

static uint16_t points[POINTS * STRIDE];
static float centres[CENTRES * DIM];

static float uniform(uint64_t *seed) {
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(*seed >> 40) * 0x1p-24f - 0.5f;
}

/* Clusters points around SPOTS spots that lie far apart; of holds where each point went. */
static void cluster(uint64_t seed, uint32_t *of) {
    float spots[SPOTS][DIM];
    uint64_t draw = 4;
    for (uint32_t i = 0; i < SPOTS * DIM; i++) spots[i / DIM][i % DIM] = 20.0f * uniform(&draw);
    for (uint32_t p = 0; p < POINTS; p++)
        for (uint32_t i = 0; i < STRIDE; i++)
            points[p * STRIDE + i] = hd_f32_to_bf16((i < DIM ? spots[p % SPOTS][i] : 99.0f) + uniform(&draw));
    kmeans k = {.points = points,
                .point_stride = STRIDE,
                .point_count = POINTS,
                .dim = DIM,
                .centre_count = CENTRES,
                .sample_count = 4500,
                .rounds = 5,
                .seed = seed,
                .centres = centres};
    assert_int_equal(kernel_ops_choose(NULL, &k.kernels, NULL), HD_OK);
    k.sums = malloc(sizeof(centres));
    k.bias = malloc(CENTRES * sizeof(float));
    k.counts = malloc(CENTRES * sizeof(uint32_t));
    k.inputs = hd_alloc(KMEANS_CHUNK * DIM * sizeof(uint16_t), 64);
    k.scores = hd_alloc(KMEANS_CHUNK * HD_ALIGN_UP(CENTRES, KERNEL_N_ALIGN) * sizeof(float), 64);
    k.scratch = hd_alloc(k.kernels->scratch_bytes, 64);
    void *packed = hd_alloc(kernel_matrix_bytes(HD_BF16, CENTRES, DIM), 64);
    kernel_matrix_init(&k.packed, HD_BF16, CENTRES, DIM, packed, NULL);
    kmeans_begin(&k);
    while (!kmeans_train(&k)) continue;
    kmeans_assign(&k, 0, POINTS, of);
    free(k.sums);
    free(k.bias);
    free(k.counts);
    hd_free(k.inputs);
    hd_free(k.scores);
    hd_free(k.scratch);
    hd_free(packed);
}

static float distance(uint32_t point, uint32_t centre) {
    float sum = 0.0f;
    for (uint32_t i = 0; i < DIM; i++) {
        float difference = hd_bf16_to_f32(points[point * STRIDE + i]) - centres[centre * DIM + i];
        sum += difference * difference;
    }
    return sum;
}

static void points_go_to_their_nearest_centre(void **state) {
    static uint32_t of[POINTS];
    cluster(1, of);
    for (uint32_t p = 0; p < POINTS; p += 7)
        for (uint32_t c = 0; c < CENTRES; c++)
            assert_true(distance(p, of[p]) <= distance(p, c) * 1.001f + 1.0f); /* bf16 centres may swap near ones */
}

static void clusters_that_are_there_are_found(void **state) {
    static uint32_t of[POINTS];
    cluster(1, of);
    uint32_t near = 0; /* within a spot, squared distances are about DIM / 6 at most; between spots, hundreds */
    for (uint32_t p = 0; p < POINTS; p++) near += distance(p, of[p]) < DIM / 3;
    assert_true(near > POINTS * 8 / 10);
}

static void the_seed_decides_and_nothing_else(void **state) {
    static uint32_t first[POINTS], second[POINTS], other[POINTS];
    cluster(1, first);
    cluster(1, second);
    cluster(2, other);
    assert_memory_equal(first, second, sizeof(first));
    assert_memory_not_equal(first, other, sizeof(first));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(points_go_to_their_nearest_centre),
        cmocka_unit_test(clusters_that_are_there_are_found),
        cmocka_unit_test(the_seed_decides_and_nothing_else),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
