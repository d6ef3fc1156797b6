/* api_router.c - from a request's headers to its endpoint: path, method, key, and everything else that needs no body.
 * */
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "coordinator/api.h"

#define LARGE_BODY_BYTES (256u << 10) /* parsing and tokenising it takes some 100 ms: such bodies share the slow lane */

typedef enum {
    ACCESS_OPEN,
    ACCESS_KEY,
    ACCESS_ADMIN,
    ACCESS_OPERATOR
} api_access; /* OPERATOR: ADMIN, on the operators' port */

struct api_route {
    const char *path;
    const char *method; /* GET answers HEAD as well */
    bool is_prefix;     /* the path goes on */
    bool has_body;      /* JSON is sent; served by a request thread */
    api_access access;
    void (*serve)(api_call *call);
};

static const api_route routes[] = {
    {"/v1/chat/completions", "POST", false, true, ACCESS_KEY, api_serve_chat},
    {"/v1/completions", "POST", false, true, ACCESS_KEY, api_serve_completion},
    {"/v1/models", "GET", false, false, ACCESS_KEY, api_serve_models},
    {"/v1/models/", "GET", true, false, ACCESS_KEY, api_serve_model},
    {"/tokenize", "POST", false, true, ACCESS_KEY, api_serve_tokenize},
    {"/detokenize", "POST", false, true, ACCESS_KEY, api_serve_detokenize},
    {"/health", "GET", false, false, ACCESS_OPEN, api_serve_health},
    {"/ready", "GET", false, false, ACCESS_OPEN, api_serve_ready},
    {"/version", "GET", false, false, ACCESS_OPEN, api_serve_version},
    {"/metrics", "GET", false, false, ACCESS_KEY, api_serve_metrics},
    {"/reset_prefix_cache", "POST", false, false, ACCESS_ADMIN, api_serve_cache_reset},
    {"/operator/nodes", "GET", false, false, ACCESS_OPERATOR, api_serve_nodes},
    {"/operator/steps", "GET", false, false, ACCESS_OPERATOR, api_serve_steps},
    {"/operator/sequences", "GET", false, false, ACCESS_OPERATOR, api_serve_sequences},
    {"/operator/drain", "POST", false, true, ACCESS_OPERATOR, api_serve_drain},
    {"/operator/undrain", "POST", false, true, ACCESS_OPERATOR, api_serve_undrain},
    {"/operator/cancel", "POST", false, true, ACCESS_OPERATOR, api_serve_cancel},
};

/* Whether it is answered on a port of this view: what only says how the process is, on each. */
static bool is_in_view(const api_route *route, api_view view) {
    if (view == API_ALL || route->serve == api_serve_health || route->serve == api_serve_ready ||
        route->serve == api_serve_version || route->serve == api_serve_metrics)
        return true;
    return (route->access == ACCESS_OPERATOR) == (view == API_OPERATORS);
}

static const api_route *find_route(const char *path, api_view view) {
    for (size_t i = 0; i < sizeof(routes) / sizeof(routes[0]); i++) {
        const api_route *route = &routes[i];
        size_t length = strlen(route->path);
        if (strncmp(path, route->path, length) != 0) continue;
        if (!is_in_view(route, view)) continue;
        if (route->is_prefix ? path[length] != '\0' : path[length] == '\0') return route;
    }
    return NULL;
}

static bool is_method(const api_route *route, const char *method) {
    return strcmp(method, route->method) == 0 || (strcmp(method, "HEAD") == 0 && strcmp(route->method, "GET") == 0);
}

/* The client's id where it is one that a log line and a header can carry, else one of ours. */
static void choose_request_id(api_call *call) {
    const char *given = http_exchange_header(call->exchange, "X-Request-Id");
    size_t length = given != NULL ? strlen(given) : 0;
    bool is_plain = length > 0 && length < sizeof(call->request_id);
    for (size_t i = 0; is_plain && i < length; i++) {
        char c = given[i];
        is_plain =
            (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || strchr("-_.:", c) != NULL;
    }
    if (is_plain) {
        memcpy(call->request_id, given, length + 1);
        return;
    }
    unsigned char bytes[16];
    randombytes_buf(bytes, sizeof(bytes));
    sodium_bin2hex(call->request_id, sizeof(call->request_id), bytes, sizeof(bytes));
}

static void choose_trace_id(api_call *call) {
    unsigned char bytes[HD_TRACE_DIGITS / 2];
    if (hd_trace_parse(http_exchange_header(call->exchange, "traceparent"), call->trace_id)) return;
    randombytes_buf(bytes, sizeof(bytes));
    sodium_bin2hex(call->trace_id, sizeof(call->trace_id), bytes, sizeof(bytes));
}

static hd_status check_key(api_call *call, api_error *error) {
    const api *a = call->api;
    if (a->keys == NULL) {
        call->tenant.is_admin = true;
        return HD_OK;
    }
    if (call->route->access == ACCESS_OPEN) return HD_OK;
    const char *authorization = http_exchange_header(call->exchange, "Authorization");
    if (!api_keys_find(a->keys, authorization, &call->tenant)) {
        return api_error_set(error, 401, "invalid_request_error", "invalid_api_key",
                             authorization == NULL ? "no API key was given: send the header 'Authorization: Bearer KEY'"
                                                   : "the API key in the header 'Authorization' is not known here");
    }
    if (call->route->access >= ACCESS_ADMIN && !call->tenant.is_admin) {
        return api_error_set(error, 403, "invalid_request_error", "not_admin",
                             "this concerns all tenants and needs a key marked 'admin' in the keys file");
    }
    return HD_OK;
}

static hd_status check_content_type(const api_call *call, api_error *error) {
    if (!call->route->has_body) return HD_OK;
    const char *type = http_exchange_header(call->exchange, "Content-Type");
    /* Insisting on JSON's own type also keeps web pages from sending requests to a server on this machine: for it a
     * browser asks first, and gets no permission. */
    if (type != NULL && strncasecmp(type, "application/json", 16) == 0 &&
        (type[16] == '\0' || type[16] == ';' || type[16] == ' '))
        return HD_OK;
    api_error_set(error, 415, "invalid_request_error", "unsupported_media_type",
                  "the header 'Content-Type' must be application/json");
    snprintf(error->param, sizeof(error->param), "Content-Type");
    return HD_INVALID;
}

static hd_status check_headers(api_call *call, api_view view, api_error *error) {
    const char *path = http_exchange_path(call->exchange), *method = http_exchange_method(call->exchange);
    char quoted[160];
    call->route = find_route(path, view);
    if (call->route == NULL) {
        return api_error_set(error, 404, "invalid_request_error", "unknown_url", "there is nothing at %s",
                             api_quote(path, strlen(path), quoted, sizeof(quoted)));
    }
    if (!is_method(call->route, method)) {
        api_error_set(error, 405, "invalid_request_error", "method_not_allowed", "%s takes %s, not %s",
                      call->route->path, call->route->method, api_quote(method, strlen(method), quoted, 32));
        error->allow = strcmp(call->route->method, "GET") == 0 ? "GET, HEAD" : call->route->method;
        return HD_INVALID;
    }
    hd_status status = check_key(call, error);
    if (status == HD_OK) status = check_content_type(call, error);
    if (status == HD_OK && call->route->has_body && atomic_load(&call->api->is_ending))
        status = api_error_ending(call->api, error);
    return status;
}

static bool on_headers(void *context, http_exchange *exchange) {
    api_call *call = calloc(1, sizeof(*call));
    if (call == NULL) {
        http_exchange_respond(exchange, 503, "", NULL, 0);
        return false;
    }
    const api_port *port = context;
    call->api = port->api;
    call->exchange = exchange;
    call->arrived_ns = api_now_ns(call->api);
    http_exchange_set_context(exchange, call, free);
    choose_request_id(call);
    choose_trace_id(call);
    api_error error;
    if (check_headers(call, port->view, &error) == HD_OK) return true;
    api_call_fail(call, &error);
    return false;
}

static void on_refuse(void *context, http_exchange *exchange, http_refusal refusal) {
    api *a = ((api_port *)context)->api;
    api_error error;
    if (refusal == HTTP_BODY_TOO_LARGE) {
        api_error_set(&error, 413, "invalid_request_error", "body_too_large",
                      "the body is larger than %zu bytes, the most this server takes", a->body_bytes_max);
    } else {
        api_error_full(a, &error, "the bodies of other requests fill the memory that is set aside for them");
    }
    api_call_fail(http_exchange_context(exchange), &error);
}

static void run_call(work_item *item) {
    api_call *call = (api_call *)item;
    call->route->serve(call);
    http_exchange_release(call->exchange);
}

static void on_request(void *context, http_exchange *exchange) {
    api_call *call = http_exchange_context(exchange);
    if (!call->route->has_body) {
        call->route->serve(call);
        return;
    }
    size_t body_bytes;
    http_exchange_body(exchange, &body_bytes);
    call->work.run = run_call;
    http_exchange_retain(exchange);
    if (work_pool_submit(call->api->request_pool, body_bytes > LARGE_BODY_BYTES, &call->work) == HD_OK) return;
    api_error error;
    api_error_full(call->api, &error, "too many requests wait to be read");
    api_call_fail(call, &error);
    http_exchange_release(exchange);
}

static void on_answer(void *context, unsigned status) {
    api *a = ((api_port *)context)->api;
    serving_metrics_count_answer(&a->metrics, status);
}

void api_router_callbacks(api_port *port, http_callbacks *callbacks) {
    *callbacks = (http_callbacks){.on_headers = on_headers,
                                  .on_refuse = on_refuse,
                                  .on_request = on_request,
                                  .on_answer = on_answer,
                                  .context = port};
}
