/* toy.c - keys, values and queries from hashes, and attention in four loops. */
#include "tests/attention-node/toy.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

enum { QUERY, KEY, VALUE };

uint64_t toy_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint32_t toy_below(uint64_t *state, uint32_t bound) {
    return (uint32_t)(toy_random(state) % bound);
}

static uint64_t mix(uint64_t a, uint64_t b) {
    uint64_t state = a ^ (b * 0xd6e8feb86659fd93u);
    return toy_random(&state);
}

/* About normal, variance 1, rounded to what the engine is given. */
static float element(const toy *t, uint64_t hash, uint64_t position, int kind, uint32_t layer, uint32_t head,
                     uint32_t i) {
    uint64_t state = mix(mix(hash, (uint64_t)kind * 64 + layer), (uint64_t)head << 32 | i);
    float sum = 0.0f;
    uint64_t bits = toy_random(&state);
    for (int part = 0; part < 4; part++) sum += (float)(bits >> (16 * part) & 0xffff) / 65536.0f;
    float value = (sum - 2.0f) * 1.7320508f;
    if (i == 0 && (kind == QUERY || (kind == KEY && position < TOY_SINKS))) value += t->sink_pull;
    return t->shape.dtype != HD_F32 ? hd_bf16_to_f32(hd_f32_to_bf16(value)) : value;
}

/* A query, or a key or a value as pages give it back. */
static void read_row(const toy *t, uint64_t hash, uint64_t position, int kind, uint32_t layer, uint32_t head,
                     uint32_t dim, float *row) {
    uint16_t halves[512];
    kernel_page_shape shape = {.dtype = t->shape.dtype, .key_dim = dim, .value_dim = dim};
    for (uint32_t i = 0; i < dim; i++) row[i] = element(t, hash, position, kind, layer, head, i);
    if (kind == QUERY || t->shape.dtype != HD_INT8) return;
    for (uint32_t i = 0; i < dim; i++) halves[i] = hd_f32_to_bf16(row[i]);
    kernel_page_round_rows(&shape, halves, dim, 1, dim, halves);
    for (uint32_t i = 0; i < dim; i++) row[i] = hd_bf16_to_f32(halves[i]);
}

static void put(const toy *t, void *data, size_t index, float value) {
    if (t->shape.dtype != HD_F32) ((uint16_t *)data)[index] = hd_f32_to_bf16(value);
    else ((float *)data)[index] = value;
}

static float get(const toy *t, const void *data, size_t index) {
    return t->shape.dtype != HD_F32 ? hd_bf16_to_f32(((const uint16_t *)data)[index]) : ((const float *)data)[index];
}

/* ---- The model ---- */

void toy_init(toy *t, const toy_shape *shape) {
    memset(t, 0, sizeof(*t));
    t->shape = *shape;
    uint32_t query_heads = shape->kv_heads * shape->group_size;
    t->sinks = calloc(query_heads, sizeof(float));
    for (uint32_t i = 0; i < query_heads; i++) t->sinks[i] = (float)i - 1.0f;
    for (uint32_t i = 0; i < shape->layer_count; i++) {
        t->streams[2 * i] = (attention_stream){i, shape->kv_heads, shape->key_dim, shape->dtype, 1, 0};
        t->streams[2 * i + 1] = (attention_stream){i, shape->kv_heads, shape->value_dim, shape->dtype, 1, 0};
        t->layers[i] = (attention_layer){.key_stream = 2 * i,
                                         .value_stream = 2 * i + 1,
                                         .value_dim = shape->value_dim,
                                         .query_heads = query_heads,
                                         .scale = 1.0f / sqrtf((float)shape->key_dim),
                                         .soft_cap = shape->soft_cap,
                                         .window = shape->windows[i],
                                         .sink_logits = shape->has_sinks ? t->sinks : NULL};
    }
    t->config = (engine_config){.layers = {t->streams, 2 * shape->layer_count, t->layers, shape->layer_count},
                                .kv_dtype = shape->dtype,
                                .hot_bytes = 8u << 20,
                                .step_rows_max = 1024,
                                .sequences_max = 64,
                                .kernels = kernel_ops_portable()};
    memset(t->config.key, 7, sizeof(t->config.key));
}

void toy_open(toy *t, unsigned threads) {
    assert_int_equal(hd_pool_open(threads, &t->pool), HD_OK);
    t->config.pool = t->pool;
    hd_error error = {.text = ""};
    hd_status status = engine_open(&t->config, &t->attention, &error);
    if (status != HD_OK) print_error("%s\n", error.text);
    assert_int_equal(status, HD_OK);
}

void toy_open_blocks(toy *t, unsigned threads, uint32_t blocks) {
    assert_int_equal(hd_pool_open(threads, &t->pool), HD_OK);
    t->config.pool = t->pool;
    for (t->config.hot_bytes = 1u << 20;; t->config.hot_bytes += 8192) {
        if (engine_open(&t->config, &t->attention, NULL) != HD_OK) continue;
        attention_stats stats;
        t->attention->ops->stats(t->attention, &stats);
        if (stats.blocks_total >= blocks) return;
        t->attention->ops->close(t->attention);
    }
}

void toy_close(toy *t) {
    if (t->attention != NULL) t->attention->ops->close(t->attention);
    hd_pool_close(t->pool);
    t->attention = NULL;
    t->pool = NULL;
}

void toy_fini(toy *t) {
    toy_close(t);
    free(t->sinks);
    t->sinks = NULL;
}

size_t toy_row_floats(const toy *t) {
    return (size_t)t->shape.kv_heads * t->shape.group_size * t->shape.value_dim;
}

/* ---- Sequences ---- */

void toy_sequence_init(toy_sequence *s, uint64_t name, unsigned char salt, uint64_t tokens_max) {
    *s = (toy_sequence){.name = name, .epoch = 1, .salt = salt, .tokens_max = tokens_max};
    s->tokens = calloc(tokens_max, sizeof(*s->tokens));
    s->hashes = calloc(tokens_max, sizeof(*s->hashes));
}

void toy_sequence_fini(toy_sequence *s) {
    free(s->tokens);
    free(s->hashes);
    *s = (toy_sequence){0};
}

void toy_sequence_push(toy_sequence *s, uint32_t token) {
    assert_true(s->length < s->tokens_max);
    uint64_t before = s->length > 0 ? s->hashes[s->length - 1] : mix(s->salt, 1);
    s->hashes[s->length] = mix(before, token);
    s->tokens[s->length++] = token;
}

void toy_sequence_push_text(toy_sequence *s, uint64_t seed, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) toy_sequence_push(s, (uint32_t)(mix(seed, i) % 1000));
}

hd_status toy_sequence_open(toy *t, toy_sequence *s, uint64_t reuse_max, uint64_t *cached, hd_error *error) {
    attention_sequence_params params = {.sequence = s->name,
                                        .epoch = s->epoch,
                                        .token_ids = s->tokens,
                                        .token_count = s->length,
                                        .tokens_max = s->tokens_max,
                                        .reuse_max = reuse_max,
                                        .prompt_count = s->prompt_count,
                                        .selection = s->selection};
    params.salt[0] = s->salt;
    return t->attention->ops->sequence_open(t->attention, &params, cached, error);
}

/* ---- Steps ---- */

typedef struct {
    void *queries, *keys, *values, *output;
    size_t query_pad, output_stride;
} step_tensors;

static void fill_row(const toy *t, const step_tensors *x, uint32_t layer, uint64_t hash, uint64_t position,
                     uint64_t row, uint64_t row_count) {
    const toy_shape *shape = &t->shape;
    for (uint32_t head = 0; head < shape->kv_heads; head++) {
        for (uint32_t g = 0; g < shape->group_size; g++) {
            size_t at = ((head * row_count + row) * shape->group_size + g) * x->query_pad;
            for (uint32_t i = 0; i < shape->key_dim; i++) {
                put(t, x->queries, at + i, element(t, hash, position, QUERY, layer, head * shape->group_size + g, i));
            }
        }
        for (uint32_t i = 0; i < shape->key_dim; i++) {
            put(t, x->keys, (row * shape->kv_heads + head) * shape->key_dim + i,
                element(t, hash, position, KEY, layer, head, i));
        }
        for (uint32_t i = 0; i < shape->value_dim; i++) {
            put(t, x->values, (row * shape->kv_heads + head) * shape->value_dim + i,
                element(t, hash, position, VALUE, layer, head, i));
        }
    }
}

static attention_tensor tensor_of(const toy *t, void *data) {
    return (attention_tensor){.data = data, .dtype = kernel_row_dtype(t->shape.dtype)};
}

static void run_layer(toy *t, const toy_rows *rows, uint32_t rows_count, uint64_t row_count, uint32_t layer,
                      const step_tensors *x, float *outputs) {
    uint64_t row = 0;
    for (uint32_t i = 0; i < rows_count; i++) {
        for (uint64_t k = 0; k < rows[i].count; k++, row++) {
            uint64_t position = rows[i].first + k;
            fill_row(t, x, layer, rows[i].sequence->hashes[position], position, row, row_count);
        }
    }
    size_t element_bytes = hd_dtype_bits(kernel_row_dtype(t->shape.dtype)) / 8;
    memset(x->output, 0xa5, row_count * x->output_stride * element_bytes);
    attention_layer_call call = {.layer = layer,
                                 .queries = tensor_of(t, x->queries),
                                 .keys = tensor_of(t, x->keys),
                                 .values = tensor_of(t, x->values),
                                 .output = tensor_of(t, x->output),
                                 .output_stride = x->output_stride};
    assert_int_equal(t->attention->ops->submit(t->attention, &call), HD_OK);
    assert_int_equal(t->attention->ops->wait(t->attention, layer), HD_OK);
    for (uint64_t r = 0; r < row_count; r++) {
        for (size_t i = 0; i < toy_row_floats(t) && outputs != NULL; i++) {
            outputs[r * toy_row_floats(t) + i] = get(t, x->output, r * x->output_stride + i);
        }
        for (size_t i = toy_row_floats(t) * element_bytes; i < x->output_stride * element_bytes; i++) {
            assert_int_equal(((unsigned char *)x->output)[r * x->output_stride * element_bytes + i],
                             0xa5); /* not ours to write */
        }
    }
}

hd_status toy_step(toy *t, const toy_rows *rows, uint32_t rows_count, float *outputs, hd_error *error) {
    attention_rows spans[64];
    assert_true(rows_count <= 64);
    uint64_t row_count = 0;
    for (uint32_t i = 0; i < rows_count; i++) {
        const toy_sequence *s = rows[i].sequence;
        assert_true(rows[i].first + rows[i].count <= s->length);
        spans[i] = (attention_rows){
            s->name, s->epoch, rows[i].first, (uint32_t)rows[i].count, s->tokens + rows[i].first, false, 0};
        row_count += rows[i].count;
    }
    hd_status status = t->attention->ops->step_begin(t->attention, spans, rows_count, error);
    if (status != HD_OK) return status;

    const toy_shape *shape = &t->shape;
    size_t element_bytes = hd_dtype_bits(kernel_row_dtype(shape->dtype)) / 8;
    step_tensors x = {.query_pad = HD_ALIGN_UP(shape->key_dim, 32u),
                      .output_stride = HD_ALIGN_UP(toy_row_floats(t), 32u) + 32};
    x.queries = hd_alloc_zeroed(row_count * shape->kv_heads * shape->group_size * x.query_pad * element_bytes, 64);
    x.keys = hd_alloc(row_count * shape->kv_heads * shape->key_dim * element_bytes, 64);
    x.values = hd_alloc(row_count * shape->kv_heads * shape->value_dim * element_bytes, 64);
    x.output = hd_alloc(row_count * x.output_stride * element_bytes, 64);
    for (uint32_t layer = 0; layer < shape->layer_count; layer++) {
        run_layer(t, rows, rows_count, row_count, layer, &x,
                  outputs != NULL ? outputs + layer * row_count * toy_row_floats(t) : NULL);
    }
    hd_free(x.queries);
    hd_free(x.keys);
    hd_free(x.values);
    hd_free(x.output);
    return t->attention->ops->step_end(t->attention);
}

void toy_run(toy *t, toy_sequence *s, uint64_t first, uint64_t count, uint64_t chunk, float *outputs) {
    size_t row_floats = toy_row_floats(t);
    float *chunk_outputs = calloc(t->shape.layer_count * chunk * row_floats, sizeof(float));
    hd_error error = {.text = ""};
    for (uint64_t done = 0; done < count; done += chunk) {
        uint64_t rows = count - done < chunk ? count - done : chunk;
        hd_status status = toy_step(t, &(toy_rows){s, first + done, rows}, 1, chunk_outputs, &error);
        if (status != HD_OK) print_error("%s\n", error.text);
        assert_int_equal(status, HD_OK);
        for (uint32_t layer = 0; layer < t->shape.layer_count && outputs != NULL; layer++) {
            memcpy(outputs + (layer * count + done) * row_floats, chunk_outputs + layer * rows * row_floats,
                   rows * row_floats * sizeof(float));
        }
    }
    free(chunk_outputs);
}

/* ---- What is right ---- */

static double score_of(const toy *t, const float *query, const float *key, uint32_t layer) {
    double score = 0.0;
    for (uint32_t i = 0; i < t->shape.key_dim; i++) score += (double)query[i] * key[i];
    score *= t->layers[layer].scale;
    return t->shape.soft_cap > 0.0f ? t->shape.soft_cap * tanh(score / t->shape.soft_cap) : score;
}

static bool is_hidden(const toy_sequence *s, uint64_t position, uint64_t token) {
    return s->selection != NULL && position >= s->prompt_count && token >= s->sinks && token + s->recent <= position;
}

static void expect_head(const toy *t, const toy_sequence *s, uint32_t layer, uint64_t position, uint32_t query_head,
                        float *output) {
    uint32_t head = query_head / t->shape.group_size, dim = t->shape.value_dim;
    uint64_t window = t->shape.windows[layer], first = window != 0 && position + 1 > window ? position + 1 - window : 0;
    float query[512], key[512], value[512];
    double *scores = calloc(position + 1, sizeof(double)), max = t->shape.has_sinks ? t->sinks[query_head] : -INFINITY,
           sum = 0.0;
    double result[512] = {0};
    read_row(t, s->hashes[position], position, QUERY, layer, query_head, t->shape.key_dim, query);
    for (uint64_t p = first; p <= position; p++) {
        read_row(t, s->hashes[p], p, KEY, layer, head, t->shape.key_dim, key);
        scores[p] = is_hidden(s, position, p) ? -INFINITY : score_of(t, query, key, layer);
        max = fmax(max, scores[p]);
    }
    if (t->shape.has_sinks) sum = exp(t->sinks[query_head] - max);
    for (uint64_t p = first; p <= position; p++) {
        double weight = exp(scores[p] - max);
        sum += weight;
        read_row(t, s->hashes[p], p, VALUE, layer, head, dim, value);
        for (uint32_t i = 0; i < dim; i++) result[i] += weight * value[i];
    }
    for (uint32_t i = 0; i < dim; i++) output[i] = (float)(result[i] / sum);
    free(scores);
}

void toy_expect(const toy *t, const toy_sequence *s, uint32_t layer, uint64_t position, float *output) {
    for (uint32_t h = 0; h < t->shape.kv_heads * t->shape.group_size; h++) {
        expect_head(t, s, layer, position, h, output + h * t->shape.value_dim);
    }
}

void toy_check_row(toy *t, toy_sequence *s, uint64_t position) {
    size_t row_floats = toy_row_floats(t);
    float *outputs = calloc(t->shape.layer_count * row_floats, sizeof(float)),
          *expected = calloc(row_floats, sizeof(float));
    toy_run(t, s, position, 1, 1, outputs);
    /* bf16 rounds the weights of values and the output, each to 8 bits. */
    float tolerance = t->shape.dtype != HD_F32 ? 2e-2f : 2e-5f;
    for (uint32_t layer = 0; layer < t->shape.layer_count; layer++) {
        toy_expect(t, s, layer, position, expected);
        for (size_t i = 0; i < row_floats; i++) {
            float difference = fabsf(outputs[layer * row_floats + i] - expected[i]);
            if (difference <= tolerance) continue;
            print_error("sequence %llu, position %llu, layer %u, element %zu: %g, not %g\n",
                        (unsigned long long)s->name, (unsigned long long)position, layer, i,
                        (double)outputs[layer * row_floats + i], (double)expected[i]);
            assert_true(difference <= tolerance);
        }
    }
    free(outputs);
    free(expected);
}
