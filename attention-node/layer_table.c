/* layer_table.c - what a table must be, and how many bytes it keeps. */
#include "attention-node/layer_table.h"

#include <math.h>
#include <stddef.h>

#include "base/memory.h"
#include "kernels/ops.h"

/* Tables come from other processes too: with these, no product of counts and sizes below comes near 64 bits. */
#define HEADS_MAX (1u << 16)
#define DIM_MAX (1u << 20)
#define SECTOR_BYTES ((uint64_t)512)

static bool is_state(const attention_stream *stream) {
    return stream->tokens_per_record == ATTENTION_STATE_PER_SEQUENCE;
}

static hd_status check_stream(const attention_layer_table *table, uint32_t index, hd_error *error) {
    const attention_stream *s = &table->streams[index];
    if (s->heads == 0 || s->heads > HEADS_MAX)
        return hd_error_set(error, HD_INVALID, "stream %u: 'heads' must be at least 1 and at most %u", index,
                            HEADS_MAX);
    if (s->dim == 0 || s->dim > DIM_MAX)
        return hd_error_set(error, HD_INVALID, "stream %u: 'dim' must be at least 1 and at most %u", index, DIM_MAX);
    if ((unsigned)s->codec >= HD_DTYPE_COUNT) {
        return hd_error_set(error, HD_INVALID, "stream %u: %u is no number format", index, (unsigned)s->codec);
    }
    if (is_state(s)) {
        if (s->window == 0) return HD_OK;
        return hd_error_set(error, HD_INVALID, "stream %u: a state per sequence has no window", index);
    }
    if (HD_BLOCK_TOKENS % s->tokens_per_record != 0) {
        return hd_error_set(error, HD_INVALID, "stream %u: %u tokens per record do not divide a block of %u positions",
                            index, s->tokens_per_record, HD_BLOCK_TOKENS);
    }
    if (s->owner_layer >= table->layer_count) {
        return hd_error_set(error, HD_INVALID, "stream %u: its owner is layer %u of %u", index, s->owner_layer,
                            table->layer_count);
    }
    return HD_OK;
}

/* A layer may read a stream of an earlier layer, which has been written when its turn comes. */
static hd_status check_reference(const attention_layer_table *table, uint32_t layer, const char *field, uint32_t stream,
                                 hd_error *error) {
    if (stream >= table->stream_count) {
        return hd_error_set(error, HD_INVALID, "layer %u: '%s' is %u, but there are %u streams", layer, field, stream,
                            table->stream_count);
    }
    const attention_stream *s = &table->streams[stream];
    if (is_state(s)) {
        return hd_error_set(error, HD_INVALID, "layer %u: '%s' is stream %u, a state, which nobody can attend to",
                            layer, field, stream);
    }
    if (s->owner_layer > layer) {
        return hd_error_set(error, HD_INVALID, "layer %u: '%s' is stream %u, which layer %u writes only later", layer,
                            field, stream, s->owner_layer);
    }
    uint64_t window = table->layers[layer].window;
    if (s->window != 0 && window > s->window) {
        return hd_error_set(error, HD_INVALID, "layer %u: sees %llu positions, but stream %u keeps only %llu", layer,
                            (unsigned long long)window, stream, (unsigned long long)s->window);
    }
    return HD_OK;
}

static hd_status check_layer(const attention_layer_table *table, uint32_t index, hd_error *error) {
    const attention_layer *l = &table->layers[index];
    hd_status status = check_reference(table, index, "key_stream", l->key_stream, error);
    if (status == HD_OK) status = check_reference(table, index, "value_stream", l->value_stream, error);
    if (status != HD_OK) return status;

    const attention_stream *keys = &table->streams[l->key_stream], *values = &table->streams[l->value_stream];
    if (l->value_is_key_prefix != (l->key_stream == l->value_stream)) {
        return hd_error_set(error, HD_INVALID,
                            "layer %u: a value that is a prefix of the key, and only that, has the key's stream",
                            index);
    }
    if (keys->heads != values->heads || keys->tokens_per_record != values->tokens_per_record) {
        return hd_error_set(error, HD_INVALID, "layer %u: streams %u and %u differ in heads or in tokens per record",
                            index, l->key_stream, l->value_stream);
    }
    if (l->value_dim == 0 || (l->value_is_key_prefix ? l->value_dim > values->dim : l->value_dim != values->dim)) {
        return hd_error_set(error, HD_INVALID, "layer %u: 'value_dim' is %u, but records of stream %u have %u elements",
                            index, l->value_dim, l->value_stream, values->dim);
    }
    if (l->query_heads == 0 || l->query_heads > HEADS_MAX || l->query_heads % keys->heads != 0) {
        return hd_error_set(error, HD_INVALID, "layer %u: %u query heads are no multiple of %u KV heads, or over %u",
                            index, l->query_heads, keys->heads, HEADS_MAX);
    }
    if (!isfinite(l->scale) || !(l->soft_cap >= 0.0f) || !isfinite(l->soft_cap)) {
        return hd_error_set(error, HD_INVALID, "layer %u: 'scale' or 'soft_cap' is out of range", index);
    }
    return HD_OK;
}

hd_status attention_layer_table_check(const attention_layer_table *table, hd_error *error) {
    if (table->layer_count == 0) return hd_error_set(error, HD_INVALID, "a layer table without layers");
    for (uint32_t i = 0; i < table->stream_count; i++) {
        hd_status status = check_stream(table, i, error);
        if (status != HD_OK) return status;
    }
    for (uint32_t i = 0; i < table->layer_count; i++) {
        hd_status status = check_layer(table, i, error);
        if (status != HD_OK) return status;
    }
    return HD_OK;
}

uint64_t attention_stream_page_bytes(const attention_stream *stream) {
    if (is_state(stream)) return 0;
    uint64_t records = HD_BLOCK_TOKENS / stream->tokens_per_record;
    uint64_t record_bits = HD_ALIGN_UP((uint64_t)stream->dim, KERNEL_K_ALIGN) * hd_dtype_bits(stream->codec);
    if (stream->codec == HD_INT8) { /* whole sectors of a disk, whatever the number of exponents */
        uint64_t exponents =
            HD_ALIGN_UP((uint64_t)stream->dim, KERNEL_INT8_GROUP) / KERNEL_INT8_GROUP * sizeof(uint16_t);
        return HD_ALIGN_UP(records * (record_bits / 8 + exponents), SECTOR_BYTES);
    }
    return HD_ALIGN_UP(records * record_bits / 8, (uint64_t)HD_CACHE_LINE);
}

uint64_t attention_stream_state_bytes(const attention_stream *stream) {
    if (!is_state(stream)) return 0;
    uint64_t bits = (uint64_t)stream->heads * stream->dim * hd_dtype_bits(stream->codec);
    return HD_ALIGN_UP(HD_ALIGN_UP(bits, 8u) / 8, (uint64_t)HD_CACHE_LINE);
}

uint64_t attention_layer_table_state_bytes(const attention_layer_table *table) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < table->stream_count; i++) bytes += attention_stream_state_bytes(&table->streams[i]);
    return bytes;
}

uint64_t attention_layer_table_block_bytes(const attention_layer_table *table) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < table->stream_count; i++) {
        bytes += table->streams[i].heads * attention_stream_page_bytes(&table->streams[i]);
    }
    return bytes;
}

uint64_t attention_layer_table_bytes(const attention_layer_table *table, uint64_t tokens) {
    uint64_t bytes = attention_layer_table_state_bytes(table);
    if (tokens == 0) return bytes;
    uint64_t last_block = (tokens - 1) / HD_BLOCK_TOKENS;
    for (uint32_t i = 0; i < table->stream_count; i++) {
        const attention_stream *s = &table->streams[i];
        uint64_t first_block = s->window != 0 && tokens > s->window ? (tokens - s->window) / HD_BLOCK_TOKENS : 0;
        bytes += (last_block - first_block + 1) * s->heads * attention_stream_page_bytes(s);
    }
    return bytes;
}

uint32_t attention_layer_table_kv_heads(const attention_layer_table *table) {
    for (uint32_t i = 1; i < table->stream_count; i++) {
        if (table->streams[i].heads != table->streams[0].heads) return 0;
    }
    return table->streams[0].heads;
}

void attention_layer_table_cut(const attention_layer_table *table, uint32_t first, uint32_t count,
                               attention_stream *streams, attention_layer *layers, attention_layer_table *out) {
    for (uint32_t i = 0; i < table->stream_count; i++) {
        streams[i] = table->streams[i];
        streams[i].heads = count;
    }
    for (uint32_t i = 0; i < table->layer_count; i++) {
        const attention_layer *layer = &table->layers[i];
        uint32_t group_size = layer->query_heads / table->streams[layer->key_stream].heads;
        layers[i] = *layer;
        layers[i].query_heads = count * group_size;
        if (layer->sink_logits != NULL) layers[i].sink_logits = layer->sink_logits + first * group_size;
    }
    *out = (attention_layer_table){streams, table->stream_count, layers, table->layer_count};
}
