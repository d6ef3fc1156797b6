/* golden_nodes_test.c - the forward pass over attention nodes behind gRPC has the bits of the one over an engine in its
 * own process: by heads, by positions and by both, with prompts staged in the worker and without, and in turns, on
 * every architecture. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "attention-node/attention_service.h"
#include "attention-node/node_set.h"
#include "tests/worker/golden_model.h"
#include "tests/worker/rig.h"

#define NODES_MAX 4u

static const rig_options options = {
    .dtype = HD_BF16, .threads = 2, .hot_bytes = 64 << 20, .rows_max = 320, .sequences_max = 2};

typedef struct {
    hd_pool *pool;
    transport *transport;
    attention_service *service;
    rpc_server *server;
} server;

typedef struct {
    server servers[NODES_MAX];
    uint32_t count;
    transport *wire;
    node_set *set;
} nodes;

static void must(hd_status status, const hd_error *error) {
    if (status != HD_OK) fail_msg("%s: %s", hd_status_name(status), error->text);
}

static void server_open(server *s, const kernel_ops *kernels) {
    hd_error error = {.text = ""};
    assert_int_equal(hd_pool_open(1, &s->pool), HD_OK);
    attention_service_config config = {
        .hot_bytes = 48 << 20, .links_max = 2, .orphan_ms = 1000, .kernels = kernels, .pool = s->pool};
    assert_int_equal(attention_service_open(&config, &s->service), HD_OK);
    assert_int_equal(transport_grpc_open(NULL, &s->transport), HD_OK);
    rpc_method method;
    assert_int_equal(transport_grpc_listen(s->transport, "step", attention_service_accept, s->service, &method), HD_OK);
    rpc_server_config serving = {.listen_address = "127.0.0.1:0", .methods = &method, .method_count = 1};
    must(rpc_server_open(&serving, &s->server, &error), &error);
    assert_int_equal(attention_service_start(s->service, s->transport), HD_OK);
}

static void nodes_open(nodes *n, const rig *r, uint32_t lanes, uint32_t count, bool is_staged) {
    *n = (nodes){.count = count};
    hd_error error = {.text = ""};
    assert_int_equal(transport_grpc_open(NULL, &n->wire), HD_OK);
    node_set_config config = {.sharded = {.layers = r->layers,
                                          .kv_dtype = options.dtype,
                                          .step_rows_max = options.rows_max,
                                          .sequences_max = options.sequences_max,
                                          .range_min = 1024,
                                          .replicas = 1,
                                          .kernels = r->kernels,
                                          .pool = r->pool},
                              .lanes = lanes,
                              .stage_bytes = is_staged ? lanes * (48ull << 20) : 0,
                              .transport = n->wire,
                              .model_name = "golden",
                              .answer_ms = 20000,
                              .link_ms = 5000};
    memcpy(config.fingerprint, r->weights->fingerprint, sizeof(config.fingerprint));
    must(node_set_open(&config, &n->set, &error), &error);
    for (uint32_t i = 0; i < count; i++) {
        server_open(&n->servers[i], r->kernels);
        const char *address = rpc_server_address(n->servers[i].server);
        assert_int_equal(node_set_put(n->set, address, address, false), HD_OK);
    }
    must(node_set_wait(n->set, 10000, &error), &error);
}

static void nodes_close(nodes *n) {
    node_set_close(n->set);
    n->wire->ops->close(n->wire);
    for (uint32_t i = 0; i < n->count; i++) {
        server *s = &n->servers[i];
        attention_service_close(s->service);
        rpc_server_close(s->server);
        s->transport->ops->close(s->transport);
        hd_pool_close(s->pool);
    }
}

/* Rows of two sequences with the same tokens, in one step or in two that take turns. */
static void run_both(forward *const *forwards, const golden_model *m, const rope_table *rope, const uint32_t *first,
                     uint32_t count, const float *expected) {
    forward_span spans[2];
    forward_batch batches[2];
    for (uint32_t i = 0; i < 2; i++) {
        spans[i] = (forward_span){.rows = {.sequence = 1 + i,
                                           .epoch = 1,
                                           .first_position = first[i],
                                           .count = count,
                                           .token_ids = m->token_ids + first[i]},
                                  .need = FORWARD_LAST_LOGITS,
                                  .rope = rope};
        batches[i] = (forward_batch){.forward = forwards[i], .spans = &spans[i], .span_count = 1};
    }
    forward_run(batches, 2);
    for (uint32_t i = 0; i < 2; i++) {
        must(batches[i].status, &batches[i].error);
        assert_int_equal(forward_logits_rows(forwards[i]), 1);
        const float *wanted = expected + (size_t)(first[i] + count - 1) * m->vocabulary;
        if (memcmp(forward_logits(forwards[i], 0, 1), wanted, m->vocabulary * sizeof(float)) != 0)
            fail_msg("%s: other bits at position %u in turns", m->name, first[i] + count - 1);
    }
}

static void compare_in_turns(const rig *r, const golden_model *m, const float *expected) {
    hd_error error = {.text = ""};
    attention *a = r->attention;
    rig other = *r;
    must(a->ops->attach(a, 64, &other.attention, &error), &error);
    forward *forwards[2] = {rig_forward(r, 64, 1), rig_forward(&other, 64, 1)};
    rope_table *rope = malloc(rope_table_bytes(&r->model->rope));
    assert_non_null(rope);
    rope_table_init(rope, &r->model->rope, m->rope_length);
    for (uint32_t i = 0; i < 2; i++) {
        uint64_t cached;
        attention_sequence_params params = {.sequence = 1 + i, .epoch = 1, .tokens_max = m->token_count};
        must(a->ops->sequence_open(a, &params, &cached, &error), &error);
    }
    run_both(forwards, m, rope, (uint32_t[2]){0, 0}, 61, expected);
    forward_span ahead = {
        .rows = {.sequence = 1, .epoch = 1, .first_position = 61, .count = 40, .token_ids = m->token_ids + 61},
        .rope = rope};
    bool has_begun;
    must(forward_step(forwards[1], &ahead, 1, &has_begun, &error), &error);
    for (uint32_t i = 0; i < 10; i++) run_both(forwards, m, rope, (uint32_t[2]){101 + i, 61 + i}, 1, expected);
    for (uint32_t i = 0; i < 2; i++) {
        forward_close(forwards[i]);
        assert_int_equal(a->ops->sequence_close(a, 1 + i, 1, false, false), HD_OK);
    }
    other.attention->ops->close(other.attention);
    free(rope);
}

/* In chunks that end nowhere in particular; the engine's own in others. */
static void compare(const rig *r, const golden_model *m, const float *expected, uint32_t lanes, uint32_t count,
                    bool is_staged) {
    nodes n;
    nodes_open(&n, r, lanes, count, is_staged);
    rig over_nodes = *r;
    over_nodes.attention = node_set_attention(n.set);
    float *got = rig_logits(&over_nodes, m->token_ids, m->token_count, 211, m->rope_length);
    for (uint32_t row = 0; row < m->token_count; row++) {
        if (memcmp(got + (size_t)row * m->vocabulary, expected + (size_t)row * m->vocabulary,
                   m->vocabulary * sizeof(float)) != 0)
            fail_msg("%s: other bits at position %u over %u nodes in %u lanes%s", m->name, row, count, lanes,
                     is_staged ? ", staged" : "");
    }
    free(got);
    if (!is_staged) compare_in_turns(&over_nodes, m, expected);
    nodes_close(&n);
}

static void logits_over_nodes_have_the_bits_of_one_process(void **state) {
    static const char *const names[] = {"llama", "mistral", "qwen2", "qwen2-window", "qwen3", "qwen3-moe", "mixtral"};
    static const uint32_t splits[][2] = {{1, 1}, {1, 2}, {2, 2}, {1, 4}, {2, 4}};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        golden_model m;
        rig r;
        golden_model_open(&m, names[i]);
        rig_open(&r, m.directory, &options);
        float *expected = rig_logits(&r, m.token_ids, m.token_count, 320, m.rope_length);
        for (size_t k = 0; k < sizeof(splits) / sizeof(splits[0]); k++) {
            if (r.model->kv_heads % splits[k][0] != 0) continue;
            for (int staged = 0; staged < 2; staged++)
                compare(&r, &m, expected, splits[k][0], splits[k][1], staged == 1);
        }
        print_message("%-14s %u tokens, %u KV heads: the same bits\n", m.name, m.token_count, r.model->kv_heads);
        free(expected);
        rig_close(&r);
        golden_model_close(&m);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(logits_over_nodes_have_the_bits_of_one_process)};
    return cmocka_run_group_tests_name("golden_nodes", tests, NULL, NULL);
}
