/* api_tokenize.c - /tokenize and /detokenize. */
#include <inttypes.h>
#include <stdlib.h>

#include "coordinator/api.h"
#include "coordinator/prompt.h"

static hd_status write_tokens(const served_model *model, const prompt *p, bool wants_texts, text_buffer *out) {
    text_buffer_format(out, "{\"count\":%zu,\"max_model_len\":%" PRIu64 ",\"tokens\":[", p->id_count,
                       served_model_context_max(model));
    for (size_t i = 0; i < p->id_count; i++) text_buffer_format(out, i > 0 ? ",%u" : "%u", p->ids[i]);
    text_buffer_text(out, "],\"token_strs\":");
    if (!wants_texts) text_buffer_text(out, "null");
    for (size_t i = 0; wants_texts && i < p->id_count; i++) {
        char *text;
        unsigned char *bytes;
        size_t byte_count;
        hd_status status = text_token(model->text, p->ids[i], &text, &bytes, &byte_count);
        if (status != HD_OK) return status;
        text_buffer_text(out, i > 0 ? "," : "[");
        text_buffer_json_text(out, text);
        free(text);
        free(bytes);
    }
    text_buffer_text(out, wants_texts ? (p->id_count > 0 ? "]}" : "[]}") : "}");
    return HD_OK;
}

void api_serve_tokenize(api_call *call) {
    if (!api_call_choose_model(call)) return;
    const served_model *model = call->model;
    request r;
    request_init(&r, REQUEST_COMPLETION, &model->limits);
    api_error error;
    size_t body_bytes;
    const char *body = http_exchange_body(call->exchange, &body_bytes);
    bool wants_texts = false;
    hd_status status = request_parse_tokenize(&r, &model->limits, body, body_bytes, &wants_texts, &error);
    http_exchange_drop_body(call->exchange);
    prompt *prompts = NULL;
    if (status == HD_OK) status = prompts_build(model->text, &r, &prompts, &error);
    text_buffer out;
    text_buffer_init(&out);
    if (status == HD_OK && write_tokens(model, &prompts[0], wants_texts, &out) != HD_OK) {
        status = api_error_set(&error, 500, "server_error", NULL, "a token cannot be spelled");
    }
    if (status == HD_OK) {
        api_call_json(call, 200, &out);
    } else {
        text_buffer_fini(&out);
        api_call_fail(call, &error);
    }
    prompts_free(prompts, r.prompt_count);
    request_fini(&r);
}

void api_serve_detokenize(api_call *call) {
    if (!api_call_choose_model(call)) return;
    const served_model *model = call->model;
    size_t body_bytes, id_count = 0, text_bytes = 0;
    const char *body = http_exchange_body(call->exchange, &body_bytes);
    uint32_t *ids = NULL;
    api_error error;
    hd_status status = request_parse_detokenize(&model->limits, body, body_bytes, &ids, &id_count, &error);
    http_exchange_drop_body(call->exchange);
    char *text = NULL;
    hd_error cause;
    if (status == HD_OK && text_decode(model->text, ids, id_count, false, &text, &text_bytes, &cause) != HD_OK) {
        status = api_error_invalid(&error, "tokens", NULL, "'tokens' cannot be decoded: %s", cause.text);
    }
    free(ids);
    if (status != HD_OK) {
        api_call_fail(call, &error);
        return;
    }
    text_buffer out;
    text_buffer_init(&out);
    text_buffer_text(&out, "{\"prompt\":");
    text_buffer_json(&out, text, text_bytes);
    text_buffer_text(&out, "}");
    free(text);
    api_call_json(call, 200, &out);
}
