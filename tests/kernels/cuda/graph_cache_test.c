/* Which graph serves a step: padded sizes, keys, and what gives way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/cuda/graph_cache.h"

static void padding_is_at_most_a_quarter_and_monotonic(void **state) {
    uint32_t before = 0, sizes = 0;
    assert_int_equal(graph_padded_rows(0), 0);
    for (uint32_t rows = 1; rows <= 4096; rows++) {
        uint32_t padded = graph_padded_rows(rows);
        assert_true(padded >= rows && padded >= before);
        assert_true(padded - rows <= rows / 4);
        assert_int_equal(graph_padded_rows(padded), padded);
        if (rows <= 8) assert_int_equal(padded, rows);
        sizes += padded != before;
        before = padded;
    }
    assert_int_equal(sizes, 8 + 4 * 9);
}

static kernel_device *device;
static kernel_queue *queue;

static int open_device(void **state) {
    assert_int_equal(kernel_device_emulated_open(&device), HD_OK);
    return device->ops->queue_open(device, &queue) == HD_OK ? 0 : 1;
}

static int close_device(void **state) {
    device->ops->queue_close(queue);
    device->ops->close(device);
    return 0;
}

static kernel_graph *record(void) {
    kernel_graph *graph;
    assert_int_equal(device->ops->record_begin(queue), HD_OK);
    assert_int_equal(device->ops->record_end(queue, &graph), HD_OK);
    return graph;
}

static void graphs_are_found_by_every_part_of_the_key(void **state) {
    graph_cache *cache;
    assert_int_equal(graph_cache_open(device->ops, 4, &cache), HD_OK);
    graph_key keys[] = {{8, 8, 0}, {10, 8, 0}, {8, 4, 0}, {8, 8, 1}};
    kernel_graph *graphs[4];
    for (int i = 0; i < 4; i++) assert_null(graph_cache_find(cache, keys[i]));
    for (int i = 0; i < 4; i++) graph_cache_put(cache, keys[i], graphs[i] = record());
    for (int i = 0; i < 4; i++) assert_ptr_equal(graph_cache_find(cache, keys[i]), graphs[i]);
    kernel_graph *newer = record();
    graph_cache_put(cache, keys[2], newer); /* the one before is closed */
    assert_ptr_equal(graph_cache_find(cache, keys[2]), newer);
    assert_ptr_equal(graph_cache_find(cache, keys[1]), graphs[1]);
    graph_cache_close(cache);
}

static void the_one_used_longest_ago_gives_way(void **state) {
    graph_cache *cache;
    assert_int_equal(graph_cache_open(device->ops, 3, &cache), HD_OK);
    for (uint32_t rows = 1; rows <= 3; rows++) graph_cache_put(cache, (graph_key){.rows = rows}, record());
    assert_non_null(graph_cache_find(cache, (graph_key){.rows = 1}));
    graph_cache_put(cache, (graph_key){.rows = 4}, record());
    assert_null(graph_cache_find(cache, (graph_key){.rows = 2}));
    assert_non_null(graph_cache_find(cache, (graph_key){.rows = 1}));
    assert_non_null(graph_cache_find(cache, (graph_key){.rows = 3}));
    assert_non_null(graph_cache_find(cache, (graph_key){.rows = 4}));
    graph_cache_close(cache);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(padding_is_at_most_a_quarter_and_monotonic),
        cmocka_unit_test(graphs_are_found_by_every_part_of_the_key),
        cmocka_unit_test(the_one_used_longest_ago_gives_way),
    };
    return cmocka_run_group_tests(tests, open_device, close_device);
}
