/* api_models.c - /v1/models and /v1/models/{id}: the models that are served. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "coordinator/api.h"

static void write_model(const served_model *model, text_buffer *out) {
    text_buffer_text(out, "{\"id\":");
    text_buffer_json_text(out, model->limits.model_name);
    text_buffer_format(
        out, ",\"object\":\"model\",\"created\":%" PRIu64 ",\"owned_by\":\"hadal\",\"max_model_len\":%" PRIu64 "}",
        model->created_s, served_model_context_max(model));
}

void api_serve_models(api_call *call) {
    text_buffer body;
    text_buffer_init(&body);
    text_buffer_text(&body, "{\"object\":\"list\",\"data\":[");
    const model_set *models = call->api->models;
    uint32_t count = atomic_load_explicit(&models->count, memory_order_acquire);
    for (uint32_t i = 0; i < count; i++) {
        if (i > 0) text_buffer_text(&body, ",");
        write_model(models->models[i], &body);
    }
    text_buffer_text(&body, "]}");
    api_call_json(call, 200, &body);
}

void api_serve_model(api_call *call) {
    /* A name may hold slashes: it is all that follows. */
    const char *name = http_exchange_path(call->exchange) + strlen("/v1/models/");
    const model_set *models = call->api->models;
    const served_model *model = model_set_find(models, name, strlen(name));
    if (model == NULL) {
        const served_model *first =
            atomic_load_explicit(&models->count, memory_order_acquire) > 0 ? models->models[0] : NULL;
        char quoted[128];
        api_error error;
        api_error_set(&error, 404, "invalid_request_error", "model_not_found",
                      "there is no model '%s' here; this server serves '%s'",
                      api_quote(name, strlen(name), quoted, sizeof(quoted)),
                      first != NULL ? first->limits.model_name : "none");
        snprintf(error.param, sizeof(error.param), "model");
        api_call_fail(call, &error);
        return;
    }
    text_buffer body;
    text_buffer_init(&body);
    write_model(model, &body);
    api_call_json(call, 200, &body);
}
