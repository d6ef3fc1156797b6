/* fuzz_http_body.c - the bodies that clients send: chat, completion, tokenize and detokenize.
 *
 * The first byte says which parser gets the rest, a letter so that the corpus can be read. Whatever the bytes, the
 * outcome is a request within its bounds, or a refusal with a status and a sentence that is UTF-8. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const request_limits limits = {.model_name = "fuzz",
                                      .vocabulary_size = 1000,
                                      .default_temperature = 1.0f,
                                      .default_top_p = 1.0f,
                                      .default_top_k = 0,
                                      .default_repetition_penalty = 1.0f};

static void check_refusal(const api_error *error) {
    assert(error->status == 400 || error->status == 404 || error->status == 503);
    size_t bytes = strlen(error->message);
    assert(bytes > 0);
    for (size_t i = 0, character; i < bytes; i += character) {
        character = utf8_character_bytes(error->message + i, bytes - i);
        assert(character > 0);
    }
    text_buffer out;
    text_buffer_init(&out);
    api_error_write(error, &out);
    json_t *written = json_loads(out.bytes, 0, NULL);
    assert(written != NULL);
    json_decref(written);
    text_buffer_fini(&out);
}

static void check_request(const request *r) {
    assert(r->choices >= 1 && r->choices <= REQUEST_CHOICES_MAX);
    assert(r->prompt_count >= 1 && (uint64_t)r->prompt_count * r->choices <= REQUEST_TOTAL_CHOICES_MAX);
    assert(r->stop_count <= REQUEST_STOPS_MAX);
    assert(r->sampling.temperature >= 0.0f && r->sampling.temperature <= 2.0f);
    assert(r->sampling.top_p > 0.0f && r->sampling.top_p <= 1.0f);
    assert(r->sampling.repetition_penalty > 0.0f);
    assert(r->logprobs >= -1 && r->logprobs <= (int32_t)WORKER_LOGPROBS_MAX);
    for (uint32_t i = 0; i < r->sampling.stop_id_count; i++) assert(r->sampling.stop_ids[i] < limits.vocabulary_size);
    for (uint32_t i = 0; i < r->sampling.logit_bias_count; i++)
        assert(r->sampling.logit_bias[i].token_id < limits.vocabulary_size);
    assert((r->context != NULL) == (r->kind == REQUEST_CHAT));
    if (r->context == NULL) return;
    /* What the template is given must be JSON again. */
    char *context = json_dumps(r->context, JSON_COMPACT);
    assert(context != NULL);
    free(context);
    assert(json_array_size(json_object_get(r->context, "messages")) > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    const char *body = (const char *)data + 1;
    size_t body_bytes = size - 1;
    request r;
    request_init(&r, data[0] == 'c' ? REQUEST_CHAT : REQUEST_COMPLETION, &limits);
    api_error error;
    hd_status status;
    uint32_t *ids = NULL;
    size_t id_count = 0;
    bool wants_texts = false;
    switch (data[0]) {
    case 'c': status = request_parse_chat(&r, &limits, body, body_bytes, &error); break;
    case 't': status = request_parse_tokenize(&r, &limits, body, body_bytes, &wants_texts, &error); break;
    case 'd': status = request_parse_detokenize(&limits, body, body_bytes, &ids, &id_count, &error); break;
    default: status = request_parse_completion(&r, &limits, body, body_bytes, &error); break;
    }
    if (status != HD_OK) check_refusal(&error);
    else if (data[0] == 'd') free(ids);
    else check_request(&r);
    request_fini(&r);
    return 0;
}
