/* layer_table.c - a model of grouped-query attention as streams: each layer owns a key stream and a value stream. */
#include <math.h>
#include <stdlib.h>

#include "worker/worker.h"

hd_status worker_layer_table(const model_config *model, hd_dtype kv_dtype, attention_layer_table *table) {
    attention_stream *streams = calloc(2 * (size_t)model->layer_count, sizeof(*streams));
    attention_layer *layers = calloc(model->layer_count, sizeof(*layers));
    if (streams == NULL || layers == NULL) {
        free(streams);
        free(layers);
        return HD_NO_MEMORY;
    }
    for (uint32_t i = 0; i < model->layer_count; i++) {
        attention_stream stream = {.owner_layer = i,
                                   .heads = model->kv_heads,
                                   .dim = model->head_dim,
                                   .codec = kv_dtype,
                                   .tokens_per_record = 1,
                                   .window = model->windows[i]};
        streams[2 * i] = streams[2 * i + 1] = stream;
        layers[i] = (attention_layer){.key_stream = 2 * i,
                                      .value_stream = 2 * i + 1,
                                      .value_dim = model->head_dim,
                                      .query_heads = model->query_heads,
                                      .scale = (float)(1.0 / sqrt(model->head_dim)),
                                      .window = model->windows[i]};
    }
    *table = (attention_layer_table){.streams = streams,
                                     .stream_count = 2 * model->layer_count,
                                     .layers = layers,
                                     .layer_count = model->layer_count};
    return HD_OK;
}
