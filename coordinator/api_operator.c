/* api_operator.c - /operator/...: the cluster as this coordinator sees it, or its own process, and orders. */
#include "coordinator/api.h"
#include "coordinator/body_fields.h"
#include "coordinator/json_body.h"
#include "coordinator/process_view.h"

static bool has_cluster(api_call *call) {
    if (call->api->router != NULL) return true;
    api_error error;
    api_error_set(
        &error, 404, "invalid_request_error", "no_cluster",
        "this server is one process: there is nowhere to move its work; end it with SIGTERM, which lets it finish");
    api_call_fail(call, &error);
    return false;
}

void api_serve_nodes(api_call *call) {
    text_buffer body;
    text_buffer_init(&body);
    if (call->api->router != NULL) router_write_nodes(call->api->router, &body);
    else process_view_write_nodes(call->api, &body);
    api_call_json(call, 200, &body);
}

void api_serve_steps(api_call *call) {
    text_buffer body;
    text_buffer_init(&body);
    if (call->api->router != NULL) router_write_steps(call->api->router, &body);
    else process_view_write_steps(call->api, &body);
    api_call_json(call, 200, &body);
}

void api_serve_sequences(api_call *call) {
    text_buffer body;
    text_buffer_init(&body);
    if (call->api->router != NULL) router_write_sequences(call->api->router, &body);
    else process_view_write_sequences(call->api, &body);
    api_call_json(call, 200, &body);
}

/* The one field of an order's body; NULL: refused, and answered. The caller drops *root. */
static const char *read_name(api_call *call, const char *field, json_t **root) {
    size_t bytes;
    const char *body = http_exchange_body(call->exchange, &bytes), *name = NULL;
    api_error error;
    body_fields fields;
    *root = NULL;
    if (json_body_parse(body, bytes, root, &error) == HD_OK) {
        body_fields_init(&fields, *root, "", &error);
        if (!body_field_text(&fields, field, &name) && !fields.is_failed)
            body_fields_refuse(&fields, field, "missing_required_parameter", "must be given");
        if (!fields.is_failed) return name;
    }
    api_call_fail(call, &error);
    return NULL;
}

static void answer_order(api_call *call, hd_status status, const hd_error *cause) {
    text_buffer body;
    api_error error;
    if (status == HD_OK) {
        text_buffer_init(&body);
        text_buffer_text(&body, "{\"status\":\"ok\"}");
        api_call_json(call, 200, &body);
        return;
    }
    bool is_missing = status == HD_NOT_FOUND;
    api_error_set(&error, is_missing ? 404 : 502, is_missing ? "invalid_request_error" : "server_error",
                  is_missing ? "not_found" : "node_unreachable", "%s", cause->text);
    api_call_fail(call, &error);
}

static void serve_drain(api_call *call, bool is_draining) {
    json_t *root;
    if (!has_cluster(call)) return;
    const char *node = read_name(call, "node", &root);
    hd_error cause = {{0}};
    if (node != NULL) answer_order(call, router_drain(call->api->router, node, is_draining, &cause), &cause);
    json_decref(root);
}

void api_serve_drain(api_call *call) {
    serve_drain(call, true);
}

void api_serve_undrain(api_call *call) {
    serve_drain(call, false);
}

void api_serve_cancel(api_call *call) {
    json_t *root;
    api *a = call->api;
    const char *sequence = read_name(call, "sequence", &root);
    hd_error cause = {{0}};
    if (sequence != NULL) {
        hd_status status =
            a->router != NULL ? router_cancel(a->router, sequence, &cause) : process_view_cancel(a, sequence, &cause);
        answer_order(call, status, &cause);
    }
    json_decref(root);
}
