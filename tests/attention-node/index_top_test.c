/* index_top_test.c - the best of a stream, against sorting all of it. */
#include "attention-node/index_top.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/ops.h"

static uint64_t next_random(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

static int descending(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x > y ? 1 : x < y ? -1 : 0;
}

static void items_compare_as_scores_and_then_the_earlier_token(void **state) {
    const float scores[] = {-1e30f, -2.5f, -0.0f, 1e-30f, 3.0f, 1e30f};
    for (size_t i = 0; i < sizeof(scores) / sizeof(scores[0]); i++) {
        uint64_t item = index_item(scores[i], 77);
        assert_int_equal(index_item_token(item), 77);
        assert_true(index_item_score(item) == scores[i]);
        if (i > 0) assert_true(item > index_item(scores[i - 1], 0));
    }
    assert_true(index_item(1.0f, 3) > index_item(1.0f, 4));
    assert_true(index_item(-0.0f, 3) == index_item(0.0f, 3));
}

static void the_best_of_a_stream_are_those_that_sorting_gives(void **state) {
    enum { COUNT = 3000 };
    static uint64_t all[COUNT], room[2 * COUNT + 64];
    const uint32_t sizes[] = {1, 2, 100, 999, COUNT, COUNT + 5};
    uint64_t seed = 11;
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        index_top top;
        index_top_init(&top, room, sizes[s] < COUNT ? sizes[s] : COUNT);
        /* few different scores, so that ties matter; once in ascending order, which keeps the least moving */
        for (uint32_t i = 0; i < COUNT; i++) {
            float score = s % 2 == 0 ? (float)(next_random(&seed) % 50) - 25.0f : (float)i / 3.0f;
            all[i] = index_item(score, i);
            index_top_add(&top, all[i]);
        }
        index_top_shrink(&top);
        qsort(all, COUNT, sizeof(all[0]), descending);
        qsort(top.items, top.count, sizeof(all[0]), descending);
        assert_int_equal(top.count, sizes[s] < COUNT ? sizes[s] : COUNT);
        assert_memory_equal(top.items, all, top.count * sizeof(all[0]));
    }
}

static void selection_moves_the_largest_to_the_front(void **state) {
    uint64_t seed = 5, items[257], sorted[257];
    for (uint32_t round = 0; round < 2000; round++) {
        uint32_t count = 1 + (uint32_t)(next_random(&seed) % 257),
                 wanted = (uint32_t)(next_random(&seed) % (count + 1));
        uint32_t order = (uint32_t)(next_random(&seed) % 3);
        for (uint32_t i = 0; i < count; i++) {
            uint64_t high = order == 0 ? next_random(&seed) : order == 1 ? i : count - i;
            items[i] = high << 32 | i;
        }
        memcpy(sorted, items, sizeof(items));
        qsort(sorted, count, sizeof(sorted[0]), descending);
        index_items_select(items, count, wanted);
        qsort(items, wanted, sizeof(items[0]), descending);
        assert_memory_equal(items, sorted, wanted * sizeof(items[0]));
        qsort(items, count, sizeof(items[0]), descending);
        assert_memory_equal(items, sorted, count * sizeof(items[0])); /* none was lost */
    }
}

static void tokens_come_out_ascending_and_once(void **state) {
    enum { COUNT = 5000 };
    static uint32_t tokens[COUNT], other[COUNT], expected[COUNT];
    const uint32_t counts[] = {0, 1, 2, 31, 33, COUNT};
    uint64_t seed = 3;
    for (size_t c = 0; c < sizeof(counts) / sizeof(counts[0]); c++) {
        for (uint32_t i = 0; i < counts[c]; i++)
            expected[i] = tokens[i] = (uint32_t)next_random(&seed) % (i % 2 == 0 ? 40 : UINT32_MAX);
        qsort(expected, counts[c], sizeof(expected[0]), ascending);
        uint32_t kept = index_tokens_sort(tokens, other, counts[c]), at = 0;
        for (uint32_t i = 0; i < counts[c]; i++) {
            if (i > 0 && expected[i] == expected[i - 1]) continue;
            assert_true(at < kept);
            assert_int_equal(tokens[at++], expected[i]);
        }
        assert_int_equal(at, kept);
    }
}

/* Of a limit: how many reach it, and whether it is the largest or leaves at most slack more. */
static void a_cut_leaves_what_is_wanted_and_little_more(void **state) {
    enum { COUNT = 20000 };
    const kernel_scan *scan = kernel_ops_portable()->scan;
    float *scores = malloc(COUNT * sizeof(*scores)), *sample = malloc(index_cut_sample(COUNT) * sizeof(*sample));
    uint64_t z = 1;
    for (uint32_t shape = 0; shape < 3; shape++) {
        for (uint32_t i = 0; i < COUNT; i++) {
            z = z * 6364136223846793005u + 1442695040888963407u;
            float random = (float)(z >> 40) * 0x1p-24f;
            /* evenly spread; in runs, so that what is sampled tells nothing; many alike and many nowhere */
            scores[i] = shape == 0      ? random
                        : shape == 1    ? (float)(i / 200 % 7) + random
                        : random < 0.5f ? -INFINITY
                                        : 1.0f;
        }
        for (uint32_t wanted = 1; wanted < COUNT; wanted = wanted * 3 + 1) {
            for (uint32_t slack = 0; slack <= wanted / 16; slack += wanted / 16 + 1) {
                float limit = index_cut(scan, scores, COUNT, wanted, slack, sample);
                uint32_t reached = scan->count_from(scores, COUNT, limit);
                float above = nextafterf(limit, INFINITY);
                assert_true(reached >= wanted);
                assert_true(reached <= wanted + slack || scan->count_from(scores, COUNT, above) < wanted);
            }
        }
    }
    free(scores);
    free(sample);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cut_leaves_what_is_wanted_and_little_more),
        cmocka_unit_test(items_compare_as_scores_and_then_the_earlier_token),
        cmocka_unit_test(the_best_of_a_stream_are_those_that_sorting_gives),
        cmocka_unit_test(selection_moves_the_largest_to_the_front),
        cmocka_unit_test(tokens_come_out_ascending_and_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
