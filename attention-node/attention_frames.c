/* attention_frames.c - layouts, lengths, and the layer table across the wire. */
#include "attention-node/attention_frames.h"

#include <string.h>

wire_step wire_step_of(const attention_rows *rows, uint32_t span_count) {
    wire_step step = {.span_count = span_count};
    for (uint32_t i = 0; i < span_count; i++) {
        step.row_count += rows[i].count;
        step.kept_count += wire_row_kept(&rows[i]);
        if (rows[i].is_replica) continue;
        step.has_queries = true;
        if (rows[i].end_position != 0) step.range_count += rows[i].count;
        else step.whole_count += rows[i].count;
    }
    return step;
}

wire_shape wire_shape_of(const attention_layer_table *table, uint32_t layer, hd_dtype kv_dtype) {
    const attention_layer *l = &table->layers[layer];
    const attention_stream *keys = &table->streams[l->key_stream];
    return (wire_shape){.heads = keys->heads,
                        .group_size = l->query_heads / keys->heads,
                        .key_dim = keys->dim,
                        .key_pad = (keys->dim + 31) / 32 * 32,
                        .value_dim = l->value_dim,
                        .element_bytes = (uint32_t)hd_dtype_bits(kernel_row_dtype(kv_dtype)) / 8};
}

void wire_table_encode(const attention_layer_table *table, wire_stream *streams, wire_layer *layers, float *sinks,
                       uint32_t *sink_count) {
    *sink_count = 0;
    for (uint32_t i = 0; i < table->stream_count; i++) {
        const attention_stream *s = &table->streams[i];
        streams[i] = (wire_stream){.owner_layer = s->owner_layer,
                                   .heads = s->heads,
                                   .dim = s->dim,
                                   .codec = (uint32_t)s->codec,
                                   .tokens_per_record = s->tokens_per_record,
                                   .window = s->window};
    }
    for (uint32_t i = 0; i < table->layer_count; i++) {
        const attention_layer *l = &table->layers[i];
        layers[i] = (wire_layer){.key_stream = l->key_stream,
                                 .value_stream = l->value_stream,
                                 .value_is_key_prefix = l->value_is_key_prefix,
                                 .value_dim = l->value_dim,
                                 .query_heads = l->query_heads,
                                 .has_sinks = l->sink_logits != NULL,
                                 .scale = l->scale,
                                 .soft_cap = l->soft_cap,
                                 .window = l->window};
        if (l->sink_logits == NULL) continue;
        if (sinks != NULL) memcpy(sinks + *sink_count, l->sink_logits, l->query_heads * sizeof(float));
        *sink_count += l->query_heads;
    }
}

hd_status wire_table_decode(const wire_hello *hello, const frame *f, attention_stream *streams, attention_layer *layers,
                            float *sinks, attention_layer_table *out, hd_error *error) {
    if (!wire_part(f, 1, sizeof(wire_stream), hello->stream_count) ||
        !wire_part(f, 2, sizeof(wire_layer), hello->layer_count) ||
        !wire_part(f, 3, sizeof(float), hello->sink_count)) {
        return hd_error_set(error, HD_CORRUPT, "a HELLO whose layer table has not the lengths that it says");
    }
    const wire_stream *s = f->parts[1].bytes;
    const wire_layer *l = f->parts[2].bytes;
    memcpy(sinks, f->parts[3].bytes, hello->sink_count * sizeof(float));
    for (uint32_t i = 0; i < hello->stream_count; i++) {
        if (s[i].codec >= HD_DTYPE_COUNT)
            return hd_error_set(error, HD_UNSUPPORTED, "stream %u has a type that this version does not know", i);
        streams[i] = (attention_stream){s[i].owner_layer,       s[i].heads, s[i].dim, (hd_dtype)s[i].codec,
                                        s[i].tokens_per_record, s[i].window};
    }
    uint64_t sink = 0;
    for (uint32_t i = 0; i < hello->layer_count; i++) {
        if (l[i].has_sinks != 0 && sink + l[i].query_heads > hello->sink_count)
            return hd_error_set(error, HD_CORRUPT, "a HELLO with too few sink logits");
        layers[i] = (attention_layer){.key_stream = l[i].key_stream,
                                      .value_stream = l[i].value_stream,
                                      .value_is_key_prefix = l[i].value_is_key_prefix != 0,
                                      .value_dim = l[i].value_dim,
                                      .query_heads = l[i].query_heads,
                                      .scale = l[i].scale,
                                      .soft_cap = l[i].soft_cap,
                                      .window = l[i].window,
                                      .sink_logits = l[i].has_sinks != 0 ? sinks + sink : NULL};
        if (l[i].has_sinks != 0) sink += l[i].query_heads;
    }
    *out = (attention_layer_table){streams, hello->stream_count, layers, hello->layer_count};
    return attention_layer_table_check(out, error);
}

bool wire_part(const frame *f, uint32_t part, size_t item_bytes, uint64_t item_count) {
    return part < f->part_count && f->parts[part].count % item_bytes == 0 &&
           f->parts[part].count / item_bytes == item_count;
}

void wire_text(const frame *f, uint32_t part, char *text, size_t text_bytes) {
    size_t count = part < f->part_count ? f->parts[part].count : 0;
    if (count >= text_bytes) count = text_bytes - 1;
    if (count > 0) memcpy(text, f->parts[part].bytes, count);
    text[count] = '\0';
}
