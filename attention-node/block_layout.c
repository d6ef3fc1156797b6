/* block_layout.c - units in the order in which the layers of a forward pass read them. */
#include "attention-node/block_layout.h"

#include <assert.h>

/* At most: streams of one unit share its pages. */
static uint64_t units_max_of(const attention_layer_table *table) {
    uint64_t count = 0;
    for (uint32_t i = 0; i < table->stream_count; i++) count += table->streams[i].heads;
    return count;
}

static uint64_t larger(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

uint64_t block_layout_unit_bytes_max(const attention_layer_table *table) {
    uint64_t most = 0;
    for (uint32_t i = 0; i < table->stream_count; i++)
        most = larger(most, attention_stream_page_bytes(&table->streams[i]));
    for (uint32_t i = 0; i < table->layer_count; i++) {
        const attention_layer *l = &table->layers[i];
        uint64_t bytes = attention_stream_page_bytes(&table->streams[l->key_stream]);
        if (l->value_stream != l->key_stream) bytes += attention_stream_page_bytes(&table->streams[l->value_stream]);
        most = larger(most, bytes);
    }
    return most;
}

uint64_t block_layout_table_bytes(const attention_layer_table *table) {
    return HD_ALIGN_UP(table->stream_count * sizeof(stream_place), (uint64_t)HD_CACHE_LINE) +
           HD_ALIGN_UP(units_max_of(table) * sizeof(unit_place), (uint64_t)HD_CACHE_LINE);
}

static bool is_placed(const stream_place *place) {
    return place->unit_bytes != 0;
}

/* Whether a unit of two streams is keys and values as kernels know them; gives their shape. */
static bool is_plain(const attention_stream *keys, const attention_stream *values, kernel_page_shape *shape) {
    *shape = (kernel_page_shape){keys->codec, keys->dim, values->dim};
    bool has_codec =
        keys->codec == values->codec && (keys->codec == HD_F32 || keys->codec == HD_BF16 || keys->codec == HD_INT8);
    bool has_dims = keys->dim % KERNEL_N_ALIGN == 0 && values->dim % KERNEL_N_ALIGN == 0;
    if (keys->codec == HD_INT8)
        has_dims = has_dims && keys->dim <= KERNEL_INT8_DIM_MAX && values->dim <= KERNEL_INT8_DIM_MAX;
    return has_codec && has_dims && keys->tokens_per_record == 1 && values->tokens_per_record == 1 &&
           kernel_page_key_bytes(shape) <= attention_stream_page_bytes(keys) &&
           kernel_page_value_bytes(shape) <= attention_stream_page_bytes(values);
}

/* One unit of up to two streams with the same heads. */
static void place_unit(block_layout *layout, stream_place *places, unit_place *units,
                       const attention_layer_table *table, const uint32_t *streams, uint32_t stream_count) {
    uint64_t unit_bytes = 0;
    for (uint32_t i = 0; i < stream_count; i++) unit_bytes += attention_stream_page_bytes(&table->streams[streams[i]]);
    uint64_t page_offset = 0;
    for (uint32_t i = 0; i < stream_count; i++) {
        const attention_stream *s = &table->streams[streams[i]];
        places[streams[i]] = (stream_place){.unit_offset = layout->block_bytes,
                                            .unit_bytes = unit_bytes,
                                            .page_offset = page_offset,
                                            .page_bytes = attention_stream_page_bytes(s),
                                            .first_page = layout->page_count,
                                            .first_unit = layout->unit_count,
                                            .heads = s->heads};
        page_offset += places[streams[i]].page_bytes;
        layout->page_count += s->heads;
    }
    unit_place unit = {.bytes = unit_bytes};
    if (stream_count == 2 && is_plain(&table->streams[streams[0]], &table->streams[streams[1]], &unit.shape)) {
        unit.value_offset = places[streams[1]].page_offset;
        unit.row_bytes = (uint32_t)kernel_token_row_bytes(&unit.shape);
    }
    for (uint32_t head = 0; head < table->streams[streams[0]].heads; head++) {
        unit.offset = layout->block_bytes;
        units[layout->unit_count++] = unit;
        layout->block_bytes += unit_bytes;
    }
}

void block_layout_init(block_layout *layout, const attention_layer_table *table, hd_arena *arena) {
    stream_place *places = hd_arena_take(arena, table->stream_count * sizeof(*places));
    unit_place *units = hd_arena_take(arena, units_max_of(table) * sizeof(*units));
    assert(places != NULL && units != NULL);
    *layout = (block_layout){.streams = places, .units = units, .stream_count = table->stream_count};
    for (uint32_t i = 0; i < table->stream_count; i++) places[i] = (stream_place){0};
    for (uint32_t i = 0; i < table->layer_count; i++) {
        uint32_t pair[2] = {table->layers[i].key_stream, table->layers[i].value_stream};
        if (pair[0] != pair[1] && !is_placed(&places[pair[0]]) && !is_placed(&places[pair[1]])) {
            place_unit(layout, places, units, table, pair, 2);
        }
    }
    for (uint32_t i = 0; i < table->stream_count; i++) {
        bool has_pages = attention_stream_page_bytes(&table->streams[i]) != 0;
        if (has_pages && !is_placed(&places[i])) place_unit(layout, places, units, table, &i, 1);
    }
}
