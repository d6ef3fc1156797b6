/* api_generate.c - /v1/chat/completions and /v1/completions: from the body to a generation. */
#include "coordinator/api.h"
#include "coordinator/generation.h"

typedef hd_status parse_function(request *r, const request_limits *limits, const char *body, size_t body_bytes,
                                 api_error *error);

static void serve(api_call *call, request_kind kind, parse_function *parse) {
    if (!api_call_choose_model(call)) return;
    const served_model *model = call->model;
    api_error error;
    request r;
    request_init(&r, kind, &model->limits);
    size_t body_bytes;
    const char *body = http_exchange_body(call->exchange, &body_bytes);
    hd_status status = parse(&r, &model->limits, body, body_bytes, &error);
    http_exchange_drop_body(call->exchange);
    prompt *prompts = NULL;
    if (status == HD_OK) status = prompts_build(model->text, &r, &prompts, &error);
    if (status == HD_OK) status = prompts_check(prompts, &r, model->limits.vocabulary_size, &error);
    request_drop_body(&r);
    if (status == HD_OK) {
        generation_start(call, &r, prompts);
        return;
    }
    prompts_free(prompts, r.prompt_count);
    request_fini(&r);
    api_call_fail(call, &error);
}

void api_serve_chat(api_call *call) {
    serve(call, REQUEST_CHAT, request_parse_chat);
}

void api_serve_completion(api_call *call) {
    serve(call, REQUEST_COMPLETION, request_parse_completion);
}
