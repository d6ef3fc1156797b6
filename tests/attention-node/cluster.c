/* cluster.c - opens both sides, and runs every step twice. */
#include "tests/attention-node/cluster.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uint32_t heads_of(const cluster *c) {
    return c->many.shape.kv_heads / c->shape.lanes;
}

static void must(hd_status status, const hd_error *error) {
    if (status != HD_OK) print_error("%s\n", error->text);
    assert_int_equal(status, HD_OK);
}

/* The layer table of a lane, in the cluster's arrays. */
static attention_layer_table lane_table(cluster *c, uint32_t lane) {
    attention_layer_table table;
    attention_layer_table_cut(&c->many.config.layers, lane * heads_of(c), heads_of(c), c->streams, c->layers, &table);
    return table;
}

static attention *open_engine(cluster *c, uint32_t lane, uint64_t node_bytes) {
    engine_config config = c->many.config;
    config.layers = lane_table(c, lane);
    config.hot_bytes = node_bytes;
    config.step_rows_max *= SHARDED_NODE_FACTOR;
    config.sequences_max *= SHARDED_NODE_FACTOR;
    config.views_max = 1;
    config.pool = c->many.pool;
    attention *engine = NULL;
    hd_error error = {.text = ""};
    must(engine_open(&config, &engine, &error), &error);
    return engine;
}

/* ---- Wires ---- */

void cluster_start_server(cluster *c, uint32_t index, uint64_t node_bytes) {
    cluster_server *s = &c->servers[index];
    hd_error error = {.text = ""};
    assert_int_equal(hd_pool_open(1, &s->pool), HD_OK);
    bool is_inproc = c->shape.wire == CLUSTER_INPROC;
    assert_int_equal(
        is_inproc ? transport_inproc_open(c->hub, 64u << 20, &s->pages) : transport_grpc_open(NULL, &s->pages), HD_OK);
    attention_service_config config = {.hot_bytes = node_bytes,
                                       .warm_bytes = c->tiers.warm_bytes,
                                       .cold_bytes = c->tiers.cold_bytes,
                                       .cold_patience_ms = 60000, /* the machine may be busy with something else */
                                       .index_bytes = c->tiers.index_bytes,
                                       .links_max = 3,
                                       .orphan_ms = c->shape.orphan_ms > 0 ? c->shape.orphan_ms : 60000,
                                       .kernels = c->many.config.kernels,
                                       .pool = s->pool,
                                       .pages = s->pages};
    if (c->tiers.cold_bytes > 0) {
        snprintf(s->cold_directory, sizeof(s->cold_directory), "/tmp/hadal-cold-XXXXXX");
        assert_non_null(mkdtemp(s->cold_directory));
        config.cold_directory = s->cold_directory;
    }
    assert_int_equal(attention_service_open(&config, &s->service), HD_OK);
    if (is_inproc) {
        snprintf(s->address, sizeof(s->address), "node-%u", index);
        assert_int_equal(transport_inproc_open(c->hub, 64u << 20, &s->transport), HD_OK);
        assert_int_equal(
            transport_inproc_listen(s->transport, s->address, "step", attention_service_accept, s->service), HD_OK);
        assert_int_equal(
            transport_inproc_listen(s->pages, s->address, "pages", attention_service_accept_pages, s->service), HD_OK);
    } else {
        rpc_method methods[2];
        assert_int_equal(transport_grpc_open(NULL, &s->transport), HD_OK);
        assert_int_equal(transport_grpc_listen(s->transport, "step", attention_service_accept, s->service, &methods[0]),
                         HD_OK);
        assert_int_equal(
            transport_grpc_listen(s->pages, "pages", attention_service_accept_pages, s->service, &methods[1]), HD_OK);
        rpc_server_config serving = {.listen_address = "127.0.0.1:0", .methods = methods, .method_count = 2};
        must(rpc_server_open(&serving, &s->server, &error), &error);
        snprintf(s->address, sizeof(s->address), "%s", rpc_server_address(s->server));
    }
    assert_int_equal(attention_service_start(s->service, s->transport), HD_OK);
}

static void remove_directory(const char *directory) {
    static const char *const names[] = {"key", "index", "pages"};
    for (int i = 0; i < 3; i++) {
        char path[128];
        snprintf(path, sizeof(path), "%s/%s", directory, names[i]);
        unlink(path);
    }
    rmdir(directory);
}

void cluster_flip_cold(const cluster *c, uint32_t index) {
    char path[128];
    snprintf(path, sizeof(path), "%s/pages", c->servers[index].cold_directory);
    int file = open(path, O_RDWR);
    assert_true(file >= 0);
    off_t bytes = lseek(file, 0, SEEK_END);
    for (off_t at = 100; at < bytes; at += 4096) {
        unsigned char byte;
        assert_int_equal(pread(file, &byte, 1, at), 1);
        byte ^= 4;
        assert_int_equal(pwrite(file, &byte, 1, at), 1);
    }
    close(file);
}

void cluster_kill_server(cluster *c, uint32_t index) {
    cluster_server *s = &c->servers[index];
    if (s->service == NULL) return;
    attention_service_close(s->service);
    rpc_server_close(s->server);
    s->transport->ops->close(s->transport);
    s->pages->ops->close(s->pages);
    hd_pool_close(s->pool);
    if (s->cold_directory[0] != '\0') remove_directory(s->cold_directory);
    *s = (cluster_server){.service = NULL};
}

static attention *open_remote(cluster *c, uint32_t lane, uint32_t index) {
    if (c->wire == NULL) {
        hd_status status = c->shape.wire == CLUSTER_INPROC ? transport_inproc_open(c->hub, 64u << 20, &c->wire)
                                                           : transport_grpc_open(NULL, &c->wire);
        assert_int_equal(status, HD_OK);
    }
    remote_config config = {.transport = c->wire,
                            .address = c->servers[index].address,
                            .model_name = "toy",
                            .layers = lane_table(c, lane),
                            .heads = {lane * heads_of(c), heads_of(c)},
                            .kv_dtype = c->many.config.kv_dtype,
                            .step_rows_max = c->many.config.step_rows_max * SHARDED_NODE_FACTOR,
                            .sequences_max = c->many.config.sequences_max * SHARDED_NODE_FACTOR,
                            .answer_ms = 20000,
                            .kernels = c->many.config.kernels->name};
    attention *out = NULL;
    hd_error error = {.text = ""};
    must(remote_open(&config, &out, &error), &error);
    return out;
}

void cluster_set_draining(cluster *c, uint32_t index, bool is_draining) {
    attention_service_set_draining(c->servers[index].service, is_draining);
    sharded_set_draining(c->many.attention, index, is_draining);
    sharded_set_leaving(c->many.attention, index, is_draining);
}

static uint32_t add_to(attention *sharded, const cluster *c, uint32_t lane, uint32_t server,
                       attention *node_attention) {
    char name[32];
    uint32_t index = 0;
    snprintf(name, sizeof(name), "node of lane %u", lane);
    const char *address = c->servers[server].address;
    sharded_node node = {.name = name,
                         .address = address[0] != '\0' ? address : NULL,
                         .attention = node_attention,
                         .heads = {lane * heads_of(c), heads_of(c)}};
    hd_error error = {.text = ""};
    must(sharded_add(sharded, &node, &index, &error), &error);
    return index;
}

uint32_t cluster_add_node(cluster *c, uint32_t lane, uint64_t node_bytes) {
    uint32_t index = c->node_count++;
    if (c->shape.wire == CLUSTER_ENGINES) {
        c->nodes[index] = open_engine(c, lane, node_bytes);
    } else {
        cluster_start_server(c, index, node_bytes);
        c->nodes[index] = open_remote(c, lane, index);
    }
    assert_int_equal(add_to(c->many.attention, c, lane, index, c->nodes[index]), index);
    return index;
}

static attention *open_sharded(const cluster *c) {
    sharded_config config = {.layers = c->many.config.layers,
                             .kv_dtype = c->many.config.kv_dtype,
                             .step_rows_max = c->many.config.step_rows_max,
                             .sequences_max = c->many.config.sequences_max,
                             .range_min = c->shape.range_min,
                             .replicas = c->shape.replicas,
                             .late_ms = c->tiers.late_ms,
                             .kernels = c->many.config.kernels,
                             .pool = c->many.pool};
    attention *out = NULL;
    hd_error error = {.text = ""};
    if (sharded_open(&config, &out, &error) != HD_OK) fail_msg("%s", error.text);
    return out;
}

void cluster_attach_second(cluster *c, cluster *other) {
    other->many.attention = open_sharded(c);
    other->wire = NULL;
    for (uint32_t i = 0; i < c->shape.nodes; i++) {
        attention *node = NULL;
        if (c->shape.wire == CLUSTER_ENGINES) assert_int_equal(engine_attach(c->nodes[i], &node), HD_OK);
        else node = open_remote(other, i % c->shape.lanes, i);
        add_to(other->many.attention, c, i % c->shape.lanes, i, node);
    }
}

void cluster_detach_second(cluster *other) {
    other->many.attention->ops->close(other->many.attention);
    if (other->wire != NULL) other->wire->ops->close(other->wire);
}

void cluster_open(cluster *c, const toy_shape *shape, const cluster_shape *how) {
    cluster_open_with(c, shape, how, &(cluster_tiers){0});
}

void cluster_open_with(cluster *c, const toy_shape *shape, const cluster_shape *how, const cluster_tiers *tiers) {
    *c = (cluster){.shape = *how, .tiers = *tiers};
    toy_init(&c->one, shape);
    toy_init(&c->many, shape);
    if (tiers->rows_max > 0) c->many.config.step_rows_max = tiers->rows_max;
    if (tiers->sequences_max > 0) c->many.config.sequences_max = tiers->sequences_max;
    c->one.config.hot_bytes = (uint64_t)64 << 20;
    c->one.config.index_bytes = tiers->index_bytes;
    c->one.config.index_builders = 1;
    assert_int_equal(kernel_ops_choose(NULL, &c->one.config.kernels, NULL), HD_OK);
    c->many.config.kernels = c->one.config.kernels;
    toy_open(&c->one, 2);
    assert_int_equal(hd_pool_open(2, &c->many.pool), HD_OK);
    c->many.attention = open_sharded(c);
    if (how->wire == CLUSTER_INPROC) assert_int_equal(inproc_hub_open(&c->hub), HD_OK);
    for (uint32_t i = 0; i < how->nodes; i++) cluster_add_node(c, i % how->lanes, how->node_bytes);
    for (uint32_t lane = 0; lane < how->lanes && tiers->stage_bytes > 0; lane++) {
        uint32_t index;
        c->stages[lane] = open_engine(c, lane, tiers->stage_bytes);
        sharded_node stage = {.name = "this process",
                              .attention = c->stages[lane],
                              .heads = {lane * heads_of(c), heads_of(c)},
                              .is_stage = true};
        hd_error error = {.text = ""};
        must(sharded_add(c->many.attention, &stage, &index, &error), &error);
    }
}

void cluster_close(cluster *c) {
    toy_fini(&c->one);
    c->many.attention->ops->close(c->many.attention);
    c->many.attention = NULL;
    for (uint32_t i = 0; i < CLUSTER_NODES_MAX; i++) cluster_kill_server(c, i);
    if (c->wire != NULL) c->wire->ops->close(c->wire);
    inproc_hub_close(c->hub);
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
