/* merge_tree_test.c - the order of merges, with a merge that keeps a record of it instead of adding. */
#include "attention-node/merge_tree.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>

static uint64_t mix(uint64_t a, uint64_t b) {
    uint64_t z = a * 0x9e3779b97f4a7c15u ^ (b + 0xbf58476d1ce4e5b9u);
    z = (z ^ z >> 31) * 0x94d049bb133111ebu;
    return z ^ z >> 29;
}

static uint64_t read_record(const kernel_partial *partial) {
    uint64_t record;
    memcpy(&record, partial->out, sizeof(record));
    return record;
}

static void write_record(const kernel_partial *partial, uint64_t record) {
    memcpy(partial->out, &record, sizeof(record));
}

/* Neither associative nor commutative: the result names the whole tree. */
static void record_merge(const kernel_partial *into, const kernel_partial *from, uint32_t row_count,
                         uint32_t value_dim) {
    assert_true(into->out != from->out);
    write_record(into, mix(read_record(into), read_record(from)));
}

static const kernel_ops recorder = {.name = "recorder", .merge = record_merge};

/* The canonical tree by its definition: the node over [index << level, (index + 1) << level), 0 for empty. */
static uint64_t canonical(const bool *is_there, uint64_t count, uint32_t level, uint64_t index) {
    if (index << level >= count) return 0;
    if (level == 0) return is_there[index] ? index + 1 : 0;
    uint64_t left = canonical(is_there, count, level - 1, index * 2),
             right = canonical(is_there, count, level - 1, index * 2 + 1);
    if (left == 0 || right == 0) return left + right;
    return mix(left, right);
}

typedef struct {
    float memory[MERGE_TREE_ROOTS_MAX][2];
} slots;

static kernel_partial slot_at(slots *s, uint32_t i) {
    return (kernel_partial){.out = s->memory[i], .out_stride = 2};
}

static uint64_t merge_leaves(const bool *is_there, uint64_t first, uint64_t end, uint32_t *partials_used) {
    slots s;
    merge_tree tree;
    merge_tree_init(&tree, &recorder, 1, 2);
    *partials_used = 0;
    for (uint64_t g = first; g < end; g++) {
        if (!is_there[g]) continue;
        uint32_t i = merge_tree_begin(&tree, 0, g);
        if (i + 1 > *partials_used) *partials_used = i + 1;
        kernel_partial partial = slot_at(&s, i);
        write_record(&partial, g + 1);
        merge_tree_push(&tree, &partial);
    }
    kernel_partial result;
    if (!merge_tree_collapse(&tree, &result)) return 0;
    assert_ptr_equal(result.out, s.memory[0]);
    return read_record(&result);
}

static void any_set_of_groups_gives_the_canonical_tree(void **state) {
    srand(1);
    for (int round = 0; round < 3000; round++) {
        bool is_there[200] = {false};
        uint64_t count = 1 + (uint64_t)rand() % 200;
        int density = rand() % 10;
        for (uint64_t g = 0; g < count; g++) is_there[g] = rand() % 10 <= density;
        uint32_t used;
        assert_int_equal(merge_leaves(is_there, 0, count, &used), canonical(is_there, count, 8, 0));
    }
}

static void consecutive_groups_need_few_partials(void **state) {
    static bool is_there[5000];
    for (uint64_t g = 0; g < 5000; g++) is_there[g] = true;
    for (uint64_t first = 0; first < 40; first++) {
        for (uint64_t count = 1; count < 4000; count = count * 3 / 2 + 1) {
            uint32_t used;
            merge_leaves(is_there, first, first + count, &used);
            assert_true(used <= merge_tree_partials_max(count));
        }
    }
    assert_true(merge_tree_partials_max(1024) <= 13); /* a million tokens */
}

/* Whoever computes the aligned parts of a context apart and pushes their results gets what one who has it all gets. */
static void subtrees_computed_apart_give_the_same_tree(void **state) {
    srand(2);
    for (int round = 0; round < 2000; round++) {
        bool is_there[300] = {false};
        uint64_t first = (uint64_t)rand() % 50, end = first + 1 + (uint64_t)rand() % 250;
        for (uint64_t g = first; g < end; g++) is_there[g] = rand() % 20 != 0;
        float memory[300][2];
        merge_tree tree;
        merge_tree_init(&tree, &recorder, 1, 2);
        for (uint64_t g = first; g < end;) {
            uint32_t level = (uint32_t)rand() % 7;
            while (g > first && g % ((uint64_t)1 << level) != 0) level--;
            uint64_t index = g >> level, part_end = (index + 1) << level;
            uint32_t used;
            uint64_t record = merge_leaves(is_there, g, part_end < end ? part_end : end, &used);
            g = part_end;
            if (record == 0) continue;
            merge_tree_begin(&tree, level, index);
            kernel_partial partial = {.out = memory[index << level < first ? first : index << level], .out_stride = 2};
            write_record(&partial, record);
            merge_tree_push(&tree, &partial);
        }
        kernel_partial result;
        uint64_t expected = canonical(is_there, end, 9, 0);
        assert_int_equal(merge_tree_collapse(&tree, &result), expected != 0);
        if (expected != 0) assert_int_equal(read_record(&result), expected);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_set_of_groups_gives_the_canonical_tree),
        cmocka_unit_test(consecutive_groups_need_few_partials),
        cmocka_unit_test(subtrees_computed_apart_give_the_same_tree),
    };
    return cmocka_run_group_tests_name("merge_tree", tests, NULL, NULL);
}
