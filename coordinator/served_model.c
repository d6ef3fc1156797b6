/* served_model.c - see served_model.h. */
#include "coordinator/served_model.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

void served_model_init(served_model *model, worker_rpc *worker, const worker_info *info, const text_model *text,
                       const char *name, uint64_t created_s) {
    *model = (served_model){.worker = worker, .info = *info, .text = text, .created_s = created_s};
    model->limits = (request_limits){
        .model_name = name != NULL ? name : info->model_name,
        .vocabulary_size = info->vocabulary_size,
        .default_temperature = info->default_temperature,
        .default_top_p = info->default_top_p,
        .default_top_k = info->default_top_k,
        .default_min_p = info->default_min_p,
        .default_repetition_penalty = info->default_repetition_penalty,
    };
    snprintf(model->fingerprint, sizeof(model->fingerprint), "hadal-" HADAL_VERSION "-%s-%s-%s", info->kernels,
             info->weights_dtype, info->kv_dtype);
}

uint64_t served_model_context_max(const served_model *model) {
    worker_load load = {0};
    model->worker->ops->load(model->worker, &load);
    return load.context_max > 0 ? load.context_max : model->info.context_max;
}

hd_status model_set_add(model_set *set, const served_model *model) {
    uint32_t count = atomic_load_explicit(&set->count, memory_order_relaxed);
    if (count == SERVED_MODELS_MAX) return HD_FULL;
    set->models[count] = model;
    atomic_store_explicit(&set->count, count + 1, memory_order_release);
    return HD_OK;
}

const served_model *model_set_find(const model_set *set, const char *name, size_t name_bytes) {
    uint32_t count = atomic_load_explicit(&set->count, memory_order_acquire);
    for (uint32_t i = 0; i < count; i++) {
        const char *candidate = set->models[i]->limits.model_name;
        if (strlen(candidate) == name_bytes && memcmp(candidate, name, name_bytes) == 0) return set->models[i];
    }
    return NULL;
}

/* Behind the string that begins at `at` (on its quote), or the end. */
static size_t skip_string(const char *body, size_t bytes, size_t at) {
    for (at++; at < bytes && body[at] != '"'; at++) at += body[at] == '\\';
    return at < bytes ? at + 1 : bytes;
}

/* Finds "model": "NAME" in the outermost object by counting brackets, so that a large body is not parsed twice.
 * What is not well formed is not found, and refused by the parser later. */
static const char *find_name(const char *body, size_t bytes, size_t *name_bytes) {
    int depth = 0;
    for (size_t at = 0; at < bytes;) {
        char c = body[at];
        if (c != '"') {
            depth += (c == '{' || c == '[') - (c == '}' || c == ']');
            at++;
            continue;
        }
        size_t end = skip_string(body, bytes, at), next = end;
        bool is_key = depth == 1 && end - at == 7 && memcmp(body + at, "\"model\"", 7) == 0;
        while (is_key && next < bytes && isspace((unsigned char)body[next])) next++;
        if (is_key && next < bytes && body[next] == ':') {
            for (next++; next < bytes && isspace((unsigned char)body[next]); next++) {}
            if (next == bytes || body[next] != '"') return NULL;
            size_t value_end = skip_string(body, bytes, next);
            if (value_end < next + 2) return NULL;
            *name_bytes = value_end - next - 2;
            return body + next + 1;
        }
        at = end;
    }
    return NULL;
}

const served_model *model_set_of_body(const model_set *set, const char *body, size_t body_bytes) {
    uint32_t count = atomic_load_explicit(&set->count, memory_order_acquire);
    if (count <= 1) return count == 1 ? set->models[0] : NULL;
    size_t name_bytes;
    const char *name = find_name(body, body_bytes, &name_bytes);
    const served_model *model = name != NULL ? model_set_find(set, name, name_bytes) : NULL;
    return model != NULL ? model : set->models[0];
}
