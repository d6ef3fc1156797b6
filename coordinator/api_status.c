/* api_status.c - /health, /ready, /version, /metrics and /reset_prefix_cache. */
#include <stdlib.h>

#include "coordinator/api.h"

static void answer_status(api_call *call, unsigned status, const char *word) {
    text_buffer body;
    text_buffer_init(&body);
    text_buffer_format(&body, "{\"status\":\"%s\"}", word);
    api_call_json(call, status, &body);
}

/* Alive, also while ending: a liveness probe must not kill a server that finishes its requests. */
void api_serve_health(api_call *call) {
    answer_status(call, 200, "ok");
}

void api_serve_ready(api_call *call) {
    bool is_ending = atomic_load(&call->api->is_ending);
    bool has_model = atomic_load(&call->api->models->count) > 0;
    answer_status(call, is_ending || !has_model ? 503 : 200, is_ending ? "ending" : has_model ? "ready" : "no model");
}

void api_serve_version(api_call *call) {
    text_buffer body;
    text_buffer_init(&body);
    text_buffer_text(&body, "{\"version\":\"" HADAL_VERSION "\",\"fingerprint\":");
    const model_set *models = call->api->models;
    bool has_model = atomic_load_explicit(&models->count, memory_order_acquire) > 0;
    text_buffer_json_text(&body, has_model ? models->models[0]->fingerprint : "hadal-" HADAL_VERSION);
    text_buffer_text(&body, "}");
    api_call_json(call, 200, &body);
}

void api_serve_metrics(api_call *call) {
    char *text = NULL;
    size_t bytes = 0;
    api_error error;
    if (call->api->registry != NULL && hd_metrics_render(call->api->registry, &text, &bytes) != HD_OK) {
        api_error_no_memory(&error);
        api_call_fail(call, &error);
        return;
    }
    if (call->api->router != NULL) {
        text_buffer all;
        text_buffer_init(&all);
        text_buffer_append(&all, text, bytes);
        free(text);
        router_write_metrics(call->api->router, &all);
        text = text_buffer_take(&all, &bytes);
        text_buffer_fini(&all);
    }
    api_call_text(call, text != NULL || bytes == 0 ? 200 : 503, "text/plain; version=0.0.4; charset=utf-8", text,
                  bytes);
}

void api_serve_cache_reset(api_call *call) {
    const model_set *models = call->api->models;
    uint32_t count = atomic_load_explicit(&models->count, memory_order_acquire);
    for (uint32_t i = 0; i < count; i++) models->models[i]->worker->ops->cache_reset(models->models[i]->worker);
    answer_status(call, 200, "ok");
}
