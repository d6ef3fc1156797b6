/* api.c - answering a call, and the figures that refusals carry. */
#include "coordinator/api.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"

#define RETRY_AFTER_MAX_S 60u

uint64_t api_now_ns(const api *a) {
    return a->clock.monotonic_ns(a->clock.context);
}

uint64_t api_wall_s(const api *a) {
    return a->clock.wall_ns(a->clock.context) / 1000000000u;
}

void api_call_text(api_call *call, unsigned status, const char *content_type, char *text, size_t text_bytes) {
    http_exchange_set_header(call->exchange, "X-Request-Id", call->request_id);
    /* So that connections end while the server does. */
    if (atomic_load_explicit(&call->api->is_ending, memory_order_relaxed))
        http_exchange_set_header(call->exchange, "Connection", "close");
    http_exchange_respond(call->exchange, status, content_type, text, text_bytes);
}

void api_call_json(api_call *call, unsigned status, text_buffer *body) {
    size_t bytes = 0;
    char *text = text_buffer_take(body, &bytes);
    text_buffer_fini(body);
    if (text == NULL) status = 503;
    api_call_text(call, status, "application/json", text, text != NULL ? bytes : 0);
}

void api_call_fail(api_call *call, const api_error *error) {
    char number[16];
    if (error->retry_after_s > 0) {
        snprintf(number, sizeof(number), "%u", error->retry_after_s);
        http_exchange_set_header(call->exchange, "Retry-After", number);
    }
    if (error->allow != NULL) http_exchange_set_header(call->exchange, "Allow", error->allow);
    if (error->status == 401) http_exchange_set_header(call->exchange, "WWW-Authenticate", "Bearer");
    /* The message may quote the request, which is never logged. */
    char path[192];
    hd_log(error->status >= 500 ? HD_LOG_WARN : HD_LOG_INFO, "request_refused",
           "request_id=%s path=%s status=%u code=%s param=%s", call->request_id,
           hd_log_quote(http_exchange_path(call->exchange), path, sizeof(path)), error->status,
           error->code != NULL ? error->code : "none", error->param[0] != '\0' ? "given" : "none");
    text_buffer body;
    text_buffer_init(&body);
    api_error_write(error, &body);
    api_call_json(call, error->status, &body);
}

bool api_call_choose_model(api_call *call) {
    size_t body_bytes;
    const char *body = http_exchange_body(call->exchange, &body_bytes);
    call->model = model_set_of_body(call->api->models, body, body_bytes);
    if (call->model != NULL) return true;
    api_error error;
    api_error_set(&error, 503, "service_unavailable", "no_model",
                  "no worker has joined yet, so no model is served; try again");
    error.retry_after_s = 5;
    api_call_fail(call, &error);
    return false;
}

unsigned api_retry_after_s(const api *a) {
    uint64_t gap_s = atomic_load_explicit(&a->mean_gap_ns, memory_order_relaxed) / 1000000000u + 1;
    return gap_s > RETRY_AFTER_MAX_S ? RETRY_AFTER_MAX_S : (unsigned)gap_s;
}

/* A moving mean over some eight ends. Two threads that end at once may lose one of two updates: it is an estimate. */
void api_count_end(api *a) {
    uint64_t now_ns = api_now_ns(a);
    uint64_t last_ns = atomic_exchange_explicit(&a->last_end_ns, now_ns, memory_order_relaxed);
    if (last_ns == 0 || now_ns < last_ns) return;
    uint64_t mean_ns = atomic_load_explicit(&a->mean_gap_ns, memory_order_relaxed);
    atomic_store_explicit(&a->mean_gap_ns, mean_ns - mean_ns / 8 + (now_ns - last_ns) / 8, memory_order_relaxed);
}

hd_status api_error_ending(const api *a, api_error *error) {
    api_error_set(error, 503, "service_unavailable", "ending",
                  "the server is ending and takes no more requests; try again, or another server");
    error->retry_after_s = 5;
    return HD_INVALID;
}

hd_status api_error_full(const api *a, api_error *error, const char *what) {
    api_error_set(error, 429, "rate_limit_error", "queue_full", "%s; try again later", what);
    error->retry_after_s = api_retry_after_s(a);
    return HD_FULL;
}
