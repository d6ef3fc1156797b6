/* service_engine.c - the engine of a service: opened for the first worker's model, shared by those that fit. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "attention-node/engine.h"
#include "attention-node/engine_blocks.h"
#include "attention-node/service_state.h"
#include "base/log.h"
#include "base/memory.h"

/* ---- Who owns what ---- */

void service_disown(service_link *link, uint64_t name) {
    for (uint32_t i = 0; i < link->owned_count; i++) {
        if (link->owned[i].name != name) continue;
        link->owned[i] = link->owned[--link->owned_count];
        return;
    }
}

service_link *service_owner(const attention_service *s, uint64_t name) {
    for (service_link *link = s->links; link != NULL; link = link->next) {
        for (uint32_t i = 0; i < link->owned_count; i++) {
            if (link->owned[i].name == name) return link;
        }
    }
    return NULL;
}

void service_own(service_link *link, uint64_t name, uint64_t epoch) {
    for (service_link *other = link->service->links; other != NULL; other = other->next) service_disown(other, name);
    /* The engine has as many sequences at most as there is room for. */
    if (link->owned_count < link->owned_max) link->owned[link->owned_count++] = (service_owned){name, epoch};
}

void service_close_owned(service_link *link) {
    attention *engine = link->service->engine;
    for (uint32_t i = 0; i < link->owned_count; i++) {
        const service_owned *owned = &link->owned[i];
        hd_status status = engine->ops->sequence_close(engine, owned->name, owned->epoch, true, true);
        hd_log(HD_LOG_INFO, "orphan_closed", "sequence=%016" PRIx64 " status=%s", owned->name, hd_status_name(status));
    }
    link->owned_count = 0;
}

void service_publish(attention_service *s) {
    uint32_t orders = atomic_load(&s->drain_orders); /* before what is here is looked at */
    bool is_draining = atomic_load(&s->is_draining);
    attention_service_state state = {.has_engine = s->engine != NULL};
    if (s->mover != NULL) {
        page_mover_stats pages;
        page_mover_stats_read(s->mover, &pages);
        state.pulls = pages.pulls;
        state.pages_in = pages.bytes_in;
        state.pages_out = pages.bytes_out;
    }
    if (s->engine != NULL) {
        s->engine->ops->stats(s->engine, &state.stats);
        state.head_first = s->hello.head_first;
        state.head_count = s->hello.head_count;
        snprintf(state.model, sizeof(state.model), "%s", s->model);
    }
    for (const service_link *link = s->links; link != NULL; link = link->next) state.links += !link->is_ended;
    uint64_t held = state.stats.sequences + state.stats.blocks_sequences + state.stats.blocks_reserved;
    state.is_drained = is_draining && held == 0 && state.pulls == 0;
    pthread_mutex_lock(&s->lock);
    s->published = state;
    s->published_orders = orders;
    pthread_mutex_unlock(&s->lock);
}

/* ---- The engine ---- */

void service_engine_close(attention_service *s) {
    if (s->mover != NULL) page_mover_unserve(s->mover);
    if (s->engine != NULL) s->engine->ops->close(s->engine);
    s->engine = NULL;
    hd_free(s->streams);
    hd_free(s->layers);
    hd_free(s->sinks);
    s->streams = NULL;
    s->layers = NULL;
    s->sinks = NULL;
}

/* Nobody is linked with a view, and no sequence is here. */
static bool is_idle(const attention_service *s) {
    attention_stats stats;
    s->engine->ops->stats(s->engine, &stats);
    for (const service_link *link = s->links; link != NULL; link = link->next) {
        if (link->view != NULL) return false;
    }
    return stats.sequences == 0;
}

static hd_status read_table(attention_service *s, const wire_hello *hello, const frame *f, hd_error *error) {
    enum { COUNT_MAX = 1u << 16 };
    if (hello->stream_count == 0 || hello->stream_count > COUNT_MAX || hello->layer_count == 0 ||
        hello->layer_count > COUNT_MAX || hello->sink_count > COUNT_MAX * 64u)
        return hd_error_set(error, HD_CORRUPT, "a layer table of %u streams and %u layers", hello->stream_count,
                            hello->layer_count);
    s->streams = hd_alloc(hello->stream_count * sizeof(*s->streams), HD_CACHE_LINE);
    s->layers = hd_alloc(hello->layer_count * sizeof(*s->layers), HD_CACHE_LINE);
    s->sinks = hd_alloc((hello->sink_count + 1u) * sizeof(float), HD_CACHE_LINE);
    if (s->streams == NULL || s->layers == NULL || s->sinks == NULL)
        return hd_error_set(error, HD_NO_MEMORY, "no memory for the layer table");
    return wire_table_decode(hello, f, s->streams, s->layers, s->sinks, &s->table, error);
}

static void serve_pages(attention_service *s) {
    if (s->mover == NULL) return;
    wire_pages_hello own = {.version_min = PAGES_WIRE_VERSION_MIN,
                            .version_max = PAGES_WIRE_VERSION,
                            .kv_dtype = s->hello.kv_dtype,
                            .head_first = s->hello.head_first,
                            .head_count = s->hello.head_count,
                            .unit_count = engine_unit_count(s->engine),
                            .block_bytes = engine_units_bytes(s->engine)};
    memcpy(own.fingerprint, s->hello.fingerprint, sizeof(own.fingerprint));
    snprintf(own.kernels, sizeof(own.kernels), "%s", s->config.kernels->name);
    page_mover_serve(s->mover, s->engine, &own);
}

static hd_status open_engine(attention_service *s, const wire_hello *hello, const frame *f, hd_error *error) {
    hd_status status = read_table(s, hello, f, error);
    if (status == HD_OK) {
        engine_config config = {.layers = s->table,
                                .kv_dtype = (hd_dtype)hello->kv_dtype,
                                .hot_bytes = s->config.hot_bytes,
                                .warm_bytes = s->config.warm_bytes,
                                .cold_directory = s->config.cold_directory,
                                .cold_bytes = s->config.cold_bytes,
                                .cold_patience_ms = s->config.cold_patience_ms,
                                .index_bytes = s->config.index_bytes,
                                .index_builders = hd_pool_thread_count(s->config.pool),
                                .head_first = hello->head_first,
                                .step_rows_max = hello->rows_max,
                                .sequences_max = hello->sequences_max,
                                .views_max = s->config.links_max,
                                .kernels = s->config.kernels,
                                .pool = s->config.pool};
        memcpy(config.fingerprint, hello->fingerprint, sizeof(config.fingerprint));
        memcpy(config.key, s->config.key, sizeof(config.key));
        if (s->config.index_is_optional && engine_index_bytes(&config, "retrieval", 1, false) >= config.index_bytes) {
            config.hot_bytes += config.index_bytes;
            config.index_bytes = 0;
        }
        status = engine_open(&config, &s->engine, error);
    }
    if (status != HD_OK) {
        service_engine_close(s);
        char quoted[sizeof(error->text) + 64];
        hd_log(HD_LOG_ERROR, "attention_engine_refused", "status=%s reason=%s", hd_status_name(status),
               hd_log_quote(error->text, quoted, sizeof(quoted)));
        return status;
    }
    s->hello = *hello;
    s->kv_dtype = (hd_dtype)hello->kv_dtype;
    wire_text(f, 4, s->model, sizeof(s->model));
    serve_pages(s);
    char quoted[160];
    hd_log(HD_LOG_INFO, "attention_engine_open", "model=%s heads=%u-%u kv=%s rows_max=%u sequences_max=%u",
           hd_log_quote(s->model, quoted, sizeof(quoted)), hello->head_first, hello->head_first + hello->head_count,
           hd_dtype_name(s->kv_dtype), hello->rows_max, hello->sequences_max);
    return HD_OK;
}

static hd_status check_same(const attention_service *s, const wire_hello *hello, const frame *f, hd_error *error) {
    const wire_hello *ours = &s->hello;
    char model[128];
    wire_text(f, 4, model, sizeof(model));
    if (memcmp(hello->fingerprint, ours->fingerprint, sizeof(ours->fingerprint)) != 0 ||
        hello->stream_count != ours->stream_count || hello->layer_count != ours->layer_count)
        return hd_error_set(error, HD_INVALID, "this attention node keeps '%s', not '%s'", s->model, model);
    if (hello->kv_dtype != ours->kv_dtype) {
        return hd_error_set(error, HD_INVALID, "this attention node keeps keys and values as %s",
                            hd_dtype_name((hd_dtype)ours->kv_dtype));
    }
    if (hello->head_first != ours->head_first || hello->head_count != ours->head_count) {
        return hd_error_set(error, HD_INVALID, "this attention node keeps KV heads %u to %u of '%s', not %u to %u",
                            ours->head_first, ours->head_first + ours->head_count, s->model, hello->head_first,
                            hello->head_first + hello->head_count);
    }
    if (hello->rows_max <= ours->rows_max && hello->sequences_max <= ours->sequences_max) return HD_OK;
    return hd_error_set(error, HD_INVALID,
                        "this attention node takes steps of %u rows of %u sequences, not %u of %u; give its workers "
                        "the same --max-batch-tokens",
                        ours->rows_max, ours->sequences_max, hello->rows_max, hello->sequences_max);
}

/* Memory for the link's steps: rows, tokens, and the tensors that are not used where they arrived. */
static hd_status take_memory(service_link *link, hd_error *error) {
    const attention_service *s = link->service;
    uint64_t rows = link->rows_max, line = HD_CACHE_LINE, keys = 0, output = 0, out = 0, sums = 0;
    for (uint32_t i = 0; i < s->table.layer_count; i++) {
        wire_shape shape = wire_shape_of(&s->table, i, s->kv_dtype);
        uint64_t widest = shape.key_dim > shape.value_dim ? shape.key_dim : shape.value_dim;
        uint64_t key_bytes = rows * shape.heads * widest * shape.element_bytes;
        uint64_t query_rows = rows * shape.heads * shape.group_size;
        uint64_t width = HD_ALIGN_UP((uint64_t)shape.heads * shape.group_size * shape.value_dim, 32u);
        if (key_bytes > keys) keys = key_bytes;
        if (rows * width * shape.element_bytes > output) output = rows * width * shape.element_bytes;
        if (query_rows * shape.value_dim * sizeof(float) > out) out = query_rows * shape.value_dim * sizeof(float);
        if (query_rows * sizeof(float) > sums) sums = query_rows * sizeof(float);
    }
    keys = HD_ALIGN_UP(keys, line);
    output = HD_ALIGN_UP(output, line);
    out = HD_ALIGN_UP(out, line);
    sums = HD_ALIGN_UP(sums, line);
    uint64_t row_bytes = HD_ALIGN_UP(link->sequences_max * sizeof(attention_rows), line);
    uint64_t token_bytes = HD_ALIGN_UP(rows * sizeof(uint32_t), line);
    uint64_t lost = HD_ALIGN_UP(link->sequences_max * sizeof(uint32_t), line);
    unsigned char *next = hd_alloc(
        row_bytes + token_bytes + 2 * keys + SERVICE_ANSWERS * (output + out + 2 * sums + lost), HD_CACHE_LINE);
    link->owned_max = s->hello.sequences_max;
    link->owned = hd_alloc(link->owned_max * sizeof(*link->owned), HD_CACHE_LINE);
    link->memory = next;
    if (next == NULL || link->owned == NULL)
        return hd_error_set(error, HD_NO_MEMORY, "the attention node has no memory for another worker's steps");
    link->rows = (attention_rows *)next;
    link->token_ids = (uint32_t *)(next += row_bytes);
    link->keys = next += token_bytes;
    link->values = next += keys;
    next += keys;
    for (uint32_t i = 0; i < SERVICE_ANSWERS; i++) {
        service_answer *a = &link->answers[i];
        a->output = next;
        a->partial.out = (float *)(next += output);
        a->partial.max = (float *)(next += out);
        a->partial.sum = (float *)(next += sums);
        a->lost = (uint32_t *)(next += sums);
        next += lost;
    }
    return HD_OK;
}

hd_status service_hello(service_link *link, const frame *f, hd_error *error) {
    attention_service *s = link->service;
    if (link->view != NULL || f->part_count != 5 || !wire_part(f, 0, sizeof(wire_hello), 1))
        return hd_error_set(error, HD_CORRUPT, "a HELLO that has not its parts, or a second one");
    wire_hello hello;
    memcpy(&hello, f->parts[0].bytes, sizeof(hello));
    if (hello.version_min > ATTENTION_WIRE_VERSION || hello.version_max < ATTENTION_WIRE_VERSION_MIN) {
        return hd_error_set(error, HD_UNSUPPORTED,
                            "the worker speaks versions %u to %u, this attention node %u to %u: upgrade the older one",
                            hello.version_min, hello.version_max, ATTENTION_WIRE_VERSION_MIN, ATTENTION_WIRE_VERSION);
    }
    if (hello.kv_dtype >= HD_DTYPE_COUNT || hello.rows_max == 0 || hello.rows_max > 1u << 20 ||
        hello.sequences_max == 0 || hello.sequences_max > 1u << 20)
        return hd_error_set(error, HD_INVALID, "steps of %u rows of %u sequences", hello.rows_max, hello.sequences_max);
    hd_status status = HD_OK;
    if (s->config.has_kv_dtype && hello.kv_dtype != (uint32_t)s->config.kv_dtype) {
        return hd_error_set(error, HD_INVALID,
                            "this attention node was started with --kv-dtype %s, the worker keeps keys and values as "
                            "%s: give both the same",
                            hd_dtype_name(s->config.kv_dtype), hd_dtype_name((hd_dtype)hello.kv_dtype));
    }
    if (s->engine != NULL) {
        status = check_same(s, &hello, f, error);
        if (status != HD_OK && is_idle(s)) {
            service_engine_close(s);
            status = HD_OK;
        }
    }
    if (status == HD_OK && s->engine == NULL) status = open_engine(s, &hello, f, error);
    if (status != HD_OK) return status;
    link->rows_max = hello.rows_max;
    link->sequences_max = hello.sequences_max;
    status = engine_attach(s->engine, &link->view);
    if (status == HD_FULL) {
        return hd_error_set(error, status, "%u workers are linked to this attention node already", s->config.links_max);
    }
    return take_memory(link, error);
}
