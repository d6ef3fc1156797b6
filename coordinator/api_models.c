/* api_models.c - /v1/models and /v1/models/{id}: the one model that is served. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "coordinator/api.h"

static void write_model(const api *a, text_buffer *out) {
    text_buffer_text(out, "{\"id\":");
    text_buffer_json_text(out, a->limits.model_name);
    text_buffer_format(out, ",\"object\":\"model\",\"created\":%" PRIu64 ",\"owned_by\":\"hadal\",\"max_model_len\":%" PRIu64 "}",
                       a->created_s, a->info.context_max);
}

void api_serve_models(api_call *call) {
    text_buffer body;
    text_buffer_init(&body);
    text_buffer_text(&body, "{\"object\":\"list\",\"data\":[");
    write_model(call->api, &body);
    text_buffer_text(&body, "]}");
    api_call_json(call, 200, &body);
}

void api_serve_model(api_call *call) {
    /* A name may hold slashes: it is all that follows. */
    const char *name = http_exchange_path(call->exchange) + strlen("/v1/models/");
    if (strcmp(name, call->api->limits.model_name) != 0) {
        char quoted[128];
        api_error error;
        api_error_set(&error, 404, "invalid_request_error", "model_not_found", "there is no model '%s' here; this server serves '%s'",
                      api_quote(name, strlen(name), quoted, sizeof(quoted)), call->api->limits.model_name);
        snprintf(error.param, sizeof(error.param), "model");
        api_call_fail(call, &error);
        return;
    }
    text_buffer body;
    text_buffer_init(&body);
    write_model(call->api, &body);
    api_call_json(call, 200, &body);
}
