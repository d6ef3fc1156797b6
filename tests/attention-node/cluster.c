/* cluster.c - opens both sides, and runs every step twice. */
#include "tests/attention-node/cluster.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint32_t cluster_add_node(cluster *c, uint32_t lane, uint64_t node_bytes) {
    uint32_t heads = c->many.shape.kv_heads / c->shape.lanes, index = 0;
    engine_config config = c->many.config;
    attention_layer_table_cut(&c->many.config.layers, lane * heads, heads, c->streams, c->layers, &config.layers);
    config.hot_bytes = node_bytes;
    config.step_rows_max *= SHARDED_NODE_FACTOR;
    config.sequences_max *= SHARDED_NODE_FACTOR;
    config.views_max = 1;
    config.pool = c->many.pool;
    attention *engine = NULL;
    hd_error error = {.text = ""};
    hd_status status = engine_open(&config, &engine, &error);
    char name[32];
    snprintf(name, sizeof(name), "node-%u", lane);
    sharded_node node = {.name = name, .attention = engine, .heads = {lane * heads, heads}};
    if (status == HD_OK) status = sharded_add(c->many.attention, &node, &index, &error);
    if (status != HD_OK) print_error("%s\n", error.text);
    assert_int_equal(status, HD_OK);
    c->nodes[index] = engine;
    return index;
}

static attention *open_sharded(const cluster *c) {
    sharded_config config = {.layers = c->many.config.layers,
                             .kv_dtype = c->many.config.kv_dtype,
                             .step_rows_max = c->many.config.step_rows_max,
                             .sequences_max = c->many.config.sequences_max,
                             .range_min = c->shape.range_min,
                             .replicas = c->shape.replicas,
                             .kernels = c->many.config.kernels,
                             .pool = c->many.pool};
    attention *out = NULL;
    hd_error error = {.text = ""};
    if (sharded_open(&config, &out, &error) != HD_OK) fail_msg("%s", error.text);
    return out;
}

void cluster_attach_second(cluster *c, cluster *other) {
    other->many.attention = open_sharded(c);
    uint32_t heads = c->many.shape.kv_heads / c->shape.lanes, index;
    for (uint32_t i = 0; i < c->shape.nodes; i++) {
        sharded_node node = {.name = "second", .heads = {i % c->shape.lanes * heads, heads}};
        assert_int_equal(engine_attach(c->nodes[i], &node.attention), HD_OK);
        assert_int_equal(sharded_add(other->many.attention, &node, &index, NULL), HD_OK);
    }
}

void cluster_open(cluster *c, const toy_shape *shape, const cluster_shape *how) {
    *c = (cluster){.shape = *how};
    toy_init(&c->one, shape);
    toy_init(&c->many, shape);
    c->one.config.hot_bytes = (uint64_t)64 << 20;
    assert_int_equal(kernel_ops_choose(NULL, &c->one.config.kernels, NULL), HD_OK);
    c->many.config.kernels = c->one.config.kernels;
    toy_open(&c->one, 2);
    assert_int_equal(hd_pool_open(2, &c->many.pool), HD_OK);
    c->many.attention = open_sharded(c);
    for (uint32_t i = 0; i < how->nodes; i++) cluster_add_node(c, i % how->lanes, how->node_bytes);
}

void cluster_close(cluster *c) {
    toy_fini(&c->one);
    toy_fini(&c->many);
}

uint64_t cluster_sequence_open(cluster *c, toy_sequence *s, uint64_t reuse_max) {
    uint64_t one = 0, many = 0;
    hd_error error = {.text = ""};
    hd_status status = toy_sequence_open(&c->one, s, reuse_max, &one, &error);
    if (status == HD_OK) status = toy_sequence_open(&c->many, s, reuse_max, &many, &error);
    if (status != HD_OK) print_error("%s\n", error.text);
    assert_int_equal(status, HD_OK);
    return one < many ? one : many;
}

void cluster_sequence_close(cluster *c, toy_sequence *s, bool keep) {
    assert_int_equal(c->one.attention->ops->sequence_close(c->one.attention, s->name, s->epoch, keep, false), HD_OK);
    assert_int_equal(c->many.attention->ops->sequence_close(c->many.attention, s->name, s->epoch, keep, false), HD_OK);
}

void cluster_step(cluster *c, const toy_rows *rows, uint32_t rows_count) {
    uint64_t row_count = 0;
    for (uint32_t i = 0; i < rows_count; i++) row_count += rows[i].count;
    size_t floats = c->one.shape.layer_count * row_count * toy_row_floats(&c->one);
    float *one = calloc(floats, sizeof(float)), *many = calloc(floats, sizeof(float));
    hd_error error = {.text = ""};
    hd_status status = toy_step(&c->one, rows, rows_count, one, &error);
    if (status == HD_OK) status = toy_step(&c->many, rows, rows_count, many, &error);
    if (status != HD_OK) print_error("%s\n", error.text);
    assert_int_equal(status, HD_OK);
    assert_memory_equal(one, many, floats * sizeof(float));
    free(one);
    free(many);
}

void cluster_run(cluster *c, toy_sequence *s, uint64_t first, uint64_t count, uint64_t chunk) {
    for (uint64_t done = 0; done < count; done += chunk) {
        uint64_t rows = count - done < chunk ? count - done : chunk;
        cluster_step(c, &(toy_rows){s, first + done, rows}, 1);
    }
}
