/* answers_test.c - what clients get when all goes well, over HTTP, from a worker whose words are known. */
#include "tests/coordinator/served.h"

#include "tests/coordinator/cmocka_all.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHAT(members) "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]" members "}"

static json_t *parse(const char *text) {
    json_error_t failure;
    json_t *value = json_loads(text, JSON_REJECT_DUPLICATES, &failure);
    if (value == NULL) print_error("%s\nin: %s\n", failure.text, text);
    assert_non_null(value);
    return value;
}

/* A path like "choices/0/message/content". */
static json_t *at(json_t *value, const char *path) {
    char copy[128];
    snprintf(copy, sizeof(copy), "%s", path);
    char *rest = NULL;
    for (char *part = strtok_r(copy, "/", &rest); part != NULL; part = strtok_r(NULL, "/", &rest)) {
        value = json_is_array(value) ? json_array_get(value, (size_t)atoi(part)) : json_object_get(value, part);
    }
    return value;
}

static void assert_text_at(json_t *value, const char *path, const char *expected) {
    const char *text = json_string_value(at(value, path));
    if (text == NULL) print_error("no string at %s\n", path);
    assert_non_null(text);
    assert_string_equal(text, expected);
}

static void assert_integer_at(json_t *value, const char *path, json_int_t expected) {
    assert_true(json_is_integer(at(value, path)));
    assert_int_equal(json_integer_value(at(value, path)), expected);
}

static json_t *post(const served *s, const char *path, const char *body) {
    raw_answer answer = served_post(s, path, body);
    if (answer.status != 200) print_error("%s\n", answer.body);
    assert_int_equal(answer.status, 200);
    json_t *value = parse(answer.body);
    raw_answer_fini(&answer);
    return value;
}

/* The events of a stream, [DONE] apart; checks the frame. */
static json_t *post_stream(const served *s, const char *path, const char *body) {
    raw_answer answer = served_post(s, path, body);
    char type[64];
    assert_int_equal(answer.status, 200);
    assert_false(answer.is_cut);
    assert_string_equal(raw_header(&answer, "Content-Type", type, sizeof(type)), "text/event-stream; charset=utf-8");
    json_t *events = json_array();
    bool is_done = false;
    for (char *event = answer.body; *event != '\0';) {
        char *end = strstr(event, "\n\n");
        assert_non_null(end);
        *end = '\0';
        assert_false(is_done);
        if (event[0] != ':') {
            assert_memory_equal(event, "data: ", 6);
            if (strcmp(event, "data: [DONE]") == 0) is_done = true;
            else json_array_append_new(events, parse(event + 6));
        }
        event = end + 2;
    }
    assert_true(is_done);
    raw_answer_fini(&answer);
    return events;
}

/* The text of a choice, put together from its chunks; "delta/content" or "text". */
static char *streamed_text(json_t *events, json_int_t choice_index, const char *path) {
    char *text = calloc(1, 65536);
    size_t i;
    json_t *event;
    json_array_foreach(events, i, event) {
        json_t *choice = at(event, "choices/0");
        if (choice == NULL || json_integer_value(at(choice, "index")) != choice_index) continue;
        const char *piece = json_string_value(at(choice, path));
        if (piece != NULL) strcat(text, piece);
    }
    return text;
}

static void a_chat_is_answered_whole(void **state) {
    served s;
    served_init(&s, "Hello, caf\xc3\xa9!");
    s.script.cached_tokens = 3;
    served_open(&s);
    json_t *answer = post(&s, "/v1/chat/completions", CHAT(", \"model\": \"script\""));
    assert_text_at(answer, "object", "chat.completion");
    assert_memory_equal(json_string_value(at(answer, "id")), "chatcmpl-", 9);
    assert_text_at(answer, "model", "script");
    assert_text_at(answer, "system_fingerprint", "hadal-" HADAL_VERSION "-fake-bf16-bf16");
    assert_true(json_integer_value(at(answer, "created")) > 1600000000);
    assert_int_equal(json_array_size(at(answer, "choices")), 1);
    assert_integer_at(answer, "choices/0/index", 0);
    assert_text_at(answer, "choices/0/message/role", "assistant");
    assert_text_at(answer, "choices/0/message/content", "Hello, caf\xc3\xa9!");
    assert_text_at(answer, "choices/0/finish_reason", "stop");
    assert_true(json_is_null(at(answer, "choices/0/stop_reason")));
    assert_true(json_is_null(at(answer, "choices/0/logprobs")));
    assert_integer_at(answer, "usage/prompt_tokens", 6);      /* bos, user, H, i, end, assistant */
    assert_integer_at(answer, "usage/completion_tokens", 14); /* and the end of text */
    assert_integer_at(answer, "usage/total_tokens", 20);
    assert_integer_at(answer, "usage/prompt_tokens_details/cached_tokens", 3);
    assert_text_at(answer, "hadal/selection", "full");
    json_decref(answer);
    served_close(&s);
}

static void a_chat_is_streamed(void **state) {
    served s;
    served_init(&s, "Hello, caf\xc3\xa9!");
    s.script.token_delay_us = 2000; /* so that there is more than one chunk */
    served_open(&s);
    json_t *events = post_stream(&s, "/v1/chat/completions", CHAT(", \"stream\": true"));
    size_t count = json_array_size(events);
    assert_true(count > 2);
    assert_text_at(events, "0/object", "chat.completion.chunk");
    assert_text_at(events, "0/choices/0/delta/role", "assistant");
    assert_null(at(events, "1/choices/0/delta/role"));
    assert_null(at(events, "0/usage"));
    for (size_t i = 0; i < count; i++) {
        json_t *event = json_array_get(events, i);
        assert_string_equal(json_string_value(at(event, "id")), json_string_value(at(events, "0/id")));
        if (i + 1 < count) assert_true(json_is_null(at(event, "choices/0/finish_reason")));
        else assert_text_at(event, "choices/0/finish_reason", "stop");
        assert_int_equal(at(event, "hadal/selection") != NULL, i + 1 == count);
    }
    char *text = streamed_text(events, 0, "delta/content");
    assert_string_equal(text, "Hello, caf\xc3\xa9!");
    free(text);
    json_decref(events);
    served_close(&s);
}

static void usage_comes_last_when_asked_for(void **state) {
    served s;
    served_init(&s, "abc");
    served_open(&s);
    json_t *events = post_stream(
        &s, "/v1/completions", "{\"prompt\": \"xy\", \"stream\": true, \"stream_options\": {\"include_usage\": true}}");
    size_t count = json_array_size(events);
    assert_true(json_is_null(at(events, "0/usage")));
    json_t *last = json_array_get(events, count - 1);
    assert_int_equal(json_array_size(at(last, "choices")), 0);
    assert_integer_at(last, "usage/prompt_tokens", 3);
    assert_integer_at(last, "usage/completion_tokens", 4);
    char *text = streamed_text(events, 0, "text");
    assert_string_equal(text, "abc");
    free(text);
    json_decref(events);
    served_close(&s);
}

static void an_empty_answer_is_an_answer(void **state) {
    served s;
    served_init(&s, "");
    served_open(&s);
    json_t *answer = post(&s, "/v1/completions", "{\"prompt\": \"xy\"}");
    assert_text_at(answer, "choices/0/text", "");
    json_decref(answer);
    json_t *events = post_stream(&s, "/v1/chat/completions", CHAT(", \"stream\": true"));
    assert_int_equal(json_array_size(events), 1);
    assert_text_at(events, "0/choices/0/delta/content", "");
    json_decref(events);
    served_close(&s);
}

static void several_choices_of_several_prompts_keep_their_places(void **state) {
    served s;
    served_init(&s, "say ");
    s.script.token_delay_us = 200;
    served_open(&s);
    const char *body = "{\"prompt\": [\"a\", \"b\"], \"n\": 3, \"stream\": %s}";
    char request[128];
    snprintf(request, sizeof(request), body, "false");
    json_t *answer = post(&s, "/v1/completions", request);
    assert_int_equal(json_array_size(at(answer, "choices")), 6);
    for (int i = 0; i < 6; i++) {
        char path[32], expected[16];
        snprintf(path, sizeof(path), "choices/%d/text", i);
        snprintf(expected, sizeof(expected), "say %d", i % 3);
        assert_text_at(answer, path, expected);
        snprintf(path, sizeof(path), "choices/%d/index", i);
        assert_integer_at(answer, path, i);
    }
    assert_integer_at(answer, "usage/prompt_tokens", 4);
    assert_integer_at(answer, "usage/completion_tokens", 36);
    json_decref(answer);

    snprintf(request, sizeof(request), body, "true");
    json_t *events = post_stream(&s, "/v1/completions", request);
    for (int i = 0; i < 6; i++) {
        char expected[16];
        snprintf(expected, sizeof(expected), "say %d", i % 3);
        char *text = streamed_text(events, i, "text");
        assert_string_equal(text, expected);
        free(text);
    }
    json_decref(events);
    served_close(&s);
}

static void more_prompts_than_the_worker_takes_at_once_are_all_answered(void **state) {
    served s;
    served_init(&s, "ok");
    s.script.requests_max = 2;
    served_open(&s);
    json_t *answer = post(&s, "/v1/completions", "{\"prompt\": [\"a\", \"b\", \"c\", \"d\", \"e\", \"f\", \"g\"]}");
    assert_int_equal(json_array_size(at(answer, "choices")), 7);
    assert_text_at(answer, "choices/6/text", "ok");
    json_decref(answer);
    served_close(&s);
}

static void a_stop_string_is_never_shown(void **state) {
    served s;
    served_init(&s, "one STO two STOP three");
    s.script.token_delay_us = 300;
    served_open(&s);
    json_t *events = post_stream(&s, "/v1/chat/completions", CHAT(", \"stream\": true, \"stop\": [\"STOP\", \"zzz\"]"));
    char *text = streamed_text(events, 0, "delta/content");
    assert_string_equal(text, "one STO two ");
    free(text);
    json_t *last = json_array_get(events, json_array_size(events) - 1);
    assert_text_at(last, "choices/0/finish_reason", "stop");
    assert_text_at(last, "choices/0/stop_reason", "STOP");
    json_decref(events);

    json_t *answer =
        post(&s, "/v1/completions", "{\"prompt\": \"x\", \"stop\": \"STOP\", \"include_stop_str_in_output\": true}");
    assert_text_at(answer, "choices/0/text", "one STO two STOP");
    assert_integer_at(answer, "usage/completion_tokens", 16);
    json_decref(answer);
    served_wait_running(&s, 0); /* the worker was told */
    served_close(&s);
}

static void a_stop_token_ends_the_answer(void **state) {
    served s;
    served_init(&s, "abc#def");
    served_open(&s);
    json_t *answer = post(&s, "/v1/completions", "{\"prompt\": \"x\", \"stop_token_ids\": [35]}");
    assert_text_at(answer, "choices/0/text", "abc");
    assert_text_at(answer, "choices/0/finish_reason", "stop");
    assert_integer_at(answer, "choices/0/stop_reason", 35);
    json_decref(answer);
    served_close(&s);
}

static void max_tokens_ends_the_answer(void **state) {
    served s;
    served_init(&s, "abcdef");
    s.script.is_endless = true;
    s.script.context_max = 100;
    s.config.default_max_tokens = 7;
    served_open(&s);
    json_t *answer = post(&s, "/v1/completions", "{\"prompt\": \"x\", \"max_tokens\": 3}");
    assert_text_at(answer, "choices/0/text", "abc");
    assert_text_at(answer, "choices/0/finish_reason", "length");
    assert_integer_at(answer, "usage/completion_tokens", 3);
    json_decref(answer);
    answer = post(&s, "/v1/completions", "{\"prompt\": \"x\"}");
    assert_text_at(answer, "choices/0/text", "abcdefa");
    json_decref(answer);
    /* The default is bounded by what remains of the context. */
    char body[256];
    snprintf(body, sizeof(body), "{\"prompt\": \"%095d\"}", 0);
    answer = post(&s, "/v1/completions", body);
    assert_text_at(answer, "choices/0/text", "abcd");
    json_decref(answer);
    served_close(&s);
}

static void the_prompt_is_echoed_with_its_log_probabilities(void **state) {
    served s;
    served_init(&s, "de");
    served_open(&s);
    json_t *answer = post(&s, "/v1/completions", "{\"prompt\": \"abc\", \"echo\": true, \"logprobs\": 2}");
    assert_text_at(answer, "choices/0/text", "abcde");
    json_t *logprobs = at(answer, "choices/0/logprobs");
    assert_int_equal(json_array_size(at(logprobs, "tokens")), 6);
    assert_text_at(logprobs, "tokens/0", "<|bos|>");
    assert_text_at(logprobs, "tokens/5", "e");
    assert_true(json_is_null(at(logprobs, "token_logprobs/0")));
    assert_true(json_is_null(at(logprobs, "top_logprobs/0")));
    assert_true(json_real_value(at(logprobs, "token_logprobs/1")) == (double)-0.97f ||
                json_real_value(at(logprobs, "token_logprobs/1")) < -0.96);
    assert_int_equal(json_object_size(at(logprobs, "top_logprobs/5")), 3); /* two likeliest and the token itself */
    assert_integer_at(logprobs, "text_offset/0", 0);
    assert_integer_at(logprobs, "text_offset/1", 0);
    assert_integer_at(logprobs, "text_offset/5", 4);
    json_decref(answer);

    /* The prompt alone: no token is generated. */
    answer = post(&s, "/v1/completions", "{\"prompt\": \"abc\", \"echo\": true, \"logprobs\": 0, \"max_tokens\": 0}");
    assert_text_at(answer, "choices/0/text", "abc");
    assert_text_at(answer, "choices/0/finish_reason", "length");
    assert_integer_at(answer, "usage/completion_tokens", 0);
    assert_int_equal(json_array_size(at(answer, "choices/0/logprobs/tokens")), 4);
    assert_int_equal(json_object_size(at(answer, "choices/0/logprobs/top_logprobs/1")), 1);
    json_decref(answer);

    json_t *events =
        post_stream(&s, "/v1/completions", "{\"prompt\": \"abc\", \"echo\": true, \"logprobs\": 1, \"stream\": true}");
    char *text = streamed_text(events, 0, "text");
    assert_string_equal(text, "abcde");
    free(text);
    json_decref(events);
    served_close(&s);
}

static void a_chats_log_probabilities_have_bytes_and_alternatives(void **state) {
    served s;
    served_init(&s, "a\xc3\xa9");
    served_open(&s);
    json_t *answer = post(&s, "/v1/chat/completions", CHAT(", \"logprobs\": true, \"top_logprobs\": 2"));
    json_t *content = at(answer, "choices/0/logprobs/content");
    assert_int_equal(json_array_size(content), 3);
    assert_text_at(content, "0/token", "a");
    assert_integer_at(content, "0/bytes/0", 'a');
    assert_int_equal(json_array_size(at(content, "0/top_logprobs")), 2);
    assert_integer_at(content, "1/bytes/0", 0xc3);
    json_decref(answer);

    answer = post(&s, "/v1/chat/completions",
                  CHAT(", \"logprobs\": true, \"return_tokens_as_token_ids\": true, \"stop\": \"\xc3\xa9\""));
    content = at(answer, "choices/0/logprobs/content");
    assert_int_equal(json_array_size(content), 1); /* what belongs to the stop string is not shown here either */
    assert_text_at(content, "0/token", "token_id:97");
    assert_int_equal(json_array_size(at(content, "0/top_logprobs")), 0);
    json_decref(answer);
    served_close(&s);
}

static void prompt_logprobs_and_token_ids_are_given_on_demand(void **state) {
    served s;
    served_init(&s, "d");
    served_open(&s);
    json_t *answer =
        post(&s, "/v1/completions", "{\"prompt\": \"abc\", \"prompt_logprobs\": 1, \"return_token_ids\": true}");
    json_t *logprobs = at(answer, "choices/0/prompt_logprobs");
    assert_int_equal(json_array_size(logprobs), 4);
    assert_true(json_is_null(at(logprobs, "0")));
    assert_text_at(logprobs, "1/97/decoded_token", "a");
    assert_true(json_is_null(at(logprobs, "1/97/rank")));
    assert_integer_at(logprobs, "1/0/rank", 1);
    assert_int_equal(json_array_size(at(answer, "choices/0/prompt_token_ids")), 4);
    assert_integer_at(answer, "choices/0/prompt_token_ids/0", 256);
    assert_int_equal(json_array_size(at(answer, "choices/0/token_ids")), 1);
    assert_integer_at(answer, "choices/0/token_ids/0", 'd');
    json_decref(answer);
    served_close(&s);
}

static void a_continued_message_can_be_echoed(void **state) {
    served s;
    served_init(&s, " a time");
    served_open(&s);
    json_t *answer = post(&s, "/v1/chat/completions",
                          "{\"messages\": [{\"role\": \"assistant\", \"content\": \"Once upon\"}], "
                          "\"continue_final_message\": true, \"echo\": true}");
    assert_text_at(answer, "choices/0/message/content", "Once upon a time");
    json_decref(answer);
    served_close(&s);
}

static void sampling_reaches_the_worker(void **state) {
    served s;
    served_init(&s, "x");
    served_open(&s);
    fake_seen seen;
    json_decref(post(&s, "/v1/completions",
                     "{\"prompt\": \"x\", \"seed\": 7, \"logit_bias\": {\"9\": 2}, \"temperature\": 0, "
                     "\"hadal\": {\"selection\": \"full\", \"no_cache\": true}}"));
    fake_worker_seen(s.worker, &seen);
    assert_int_equal(seen.sampling.seed, 7);
    assert_int_equal(seen.bias.token_id, 9);
    assert_true(seen.sampling.temperature == 0 && seen.sampling.top_p == 0.5f && seen.sampling.top_k == 40);
    assert_true(seen.sampling.min_p == 0.125f && seen.sampling.repetition_penalty == 1.25f);
    assert_string_equal(seen.selection, "full");
    assert_true(seen.no_cache);
    assert_int_equal(seen.max_tokens, 4096 - 2);
    /* Without a seed each request draws its own. */
    uint64_t seeds[2];
    for (int i = 0; i < 2; i++) {
        json_decref(post(&s, "/v1/completions", "{\"prompt\": \"x\"}"));
        fake_worker_seen(s.worker, &seen);
        seeds[i] = seen.sampling.seed;
    }
    assert_true(seeds[0] != seeds[1]);
    /* A request's own salt parts the cache. */
    unsigned char plain[16];
    memcpy(plain, seen.salt, sizeof(plain));
    json_decref(post(&s, "/v1/completions", "{\"prompt\": \"x\", \"cache_salt\": \"mine\"}"));
    fake_worker_seen(s.worker, &seen);
    assert_memory_not_equal(seen.salt, plain, sizeof(plain));
    served_close(&s);
}

static void tokens_and_text_are_exchanged(void **state) {
    served s;
    served_init(&s, "x");
    served_open(&s);
    json_t *answer = post(&s, "/tokenize", "{\"prompt\": \"h\xc3\xa9\", \"return_token_strs\": true}");
    assert_integer_at(answer, "count", 4);
    assert_integer_at(answer, "max_model_len", 4096);
    assert_integer_at(answer, "tokens/0", 256);
    assert_integer_at(answer, "tokens/3", 0xa9);
    assert_text_at(answer, "token_strs/1", "h");
    json_decref(answer);
    answer = post(&s, "/tokenize", "{\"prompt\": \"\", \"add_special_tokens\": false}");
    assert_integer_at(answer, "count", 0);
    json_decref(answer);
    answer = post(&s, "/tokenize", CHAT(""));
    assert_integer_at(answer, "count", 6);
    json_decref(answer);
    answer = post(&s, "/detokenize", "{\"tokens\": [256, 104, 195, 169]}");
    assert_text_at(answer, "prompt", "<|bos|>h\xc3\xa9");
    json_decref(answer);
    served_close(&s);
}

static void the_served_model_is_listed(void **state) {
    served s;
    served_init(&s, "x");
    s.config.model_name = "org/script-1";
    served_open(&s);
    raw_answer answer = served_get(&s, "/v1/models");
    json_t *models = parse(answer.body);
    assert_text_at(models, "data/0/id", "org/script-1");
    assert_integer_at(models, "data/0/max_model_len", 4096);
    json_decref(models);
    raw_answer_fini(&answer);
    answer = served_get(&s, "/v1/models/org%2Fscript-1");
    assert_int_equal(answer.status, 200);
    raw_answer_fini(&answer);
    answer = served_get(&s, "/v1/models/other");
    assert_int_equal(answer.status, 404);
    raw_answer_fini(&answer);
    served_close(&s);
}

static void status_endpoints_answer(void **state) {
    served s;
    served_init(&s, "abc");
    served_open(&s);
    const char *paths[] = {"/health", "/ready", "/version"};
    for (int i = 0; i < 3; i++) {
        raw_answer answer = served_get(&s, paths[i]);
        assert_int_equal(answer.status, 200);
        json_decref(parse(answer.body));
        raw_answer_fini(&answer);
    }
    raw_answer reset = served_post(&s, "/reset_prefix_cache", "");
    assert_int_equal(reset.status, 200);
    assert_int_equal(fake_worker_cache_resets(s.worker), 1);
    raw_answer_fini(&reset);
    served_close(&s);
}

static void metrics_count_what_clients_saw(void **state) {
    served s;
    served_init(&s, "abc");
    served_open(&s);
    json_decref(post(&s, "/v1/completions", "{\"prompt\": \"xyz\", \"max_tokens\": 50}"));
    json_decref(post(&s, "/v1/completions", "{\"prompt\": \"xyz\", \"max_tokens\": 2}"));
    raw_answer refused = served_post(&s, "/v1/completions", "{}");
    raw_answer_fini(&refused);
    assert_true(served_metric(&s, "hadal:request_success_total{finished_reason=\"stop\"}") == 1);
    assert_true(served_metric(&s, "hadal:request_success_total{finished_reason=\"length\"}") == 1);
    assert_true(served_metric(&s, "hadal:request_prompt_tokens_sum") == 8);
    assert_true(served_metric(&s, "hadal:request_generation_tokens_sum") == 6);
    assert_true(served_metric(&s, "hadal:request_params_max_tokens_sum") == 52);
    assert_true(served_metric(&s, "hadal:request_params_n_count") == 2);
    assert_true(served_metric(&s, "hadal:inter_token_latency_seconds_count") == 3);
    assert_true(served_metric(&s, "hadal:http_responses_total{code=\"4xx\"}") == 1);
    const char *once[] = {"time_to_first_token_seconds",  "e2e_request_latency_seconds",
                          "request_queue_time_seconds",   "request_inference_time_seconds",
                          "request_prefill_time_seconds", "request_decode_time_seconds"};
    for (size_t i = 0; i < sizeof(once) / sizeof(once[0]); i++) {
        char name[96];
        snprintf(name, sizeof(name), "hadal:%s_count", once[i]);
        if (served_metric(&s, name) != 2) print_error("%s\n", name);
        assert_true(served_metric(&s, name) == 2);
    }
    raw_answer answer = served_get(&s, "/metrics");
    char type[64];
    assert_string_equal(raw_header(&answer, "Content-Type", type, sizeof(type)),
                        "text/plain; version=0.0.4; charset=utf-8");
    assert_non_null(strstr(answer.body, "hadal:time_to_first_token_seconds_bucket{le=\"7680\"} 2"));
    assert_non_null(strstr(answer.body, "hadal:cache_config_info{kv_dtype=\"bf16\",selection=\"full\""));
    raw_answer_fini(&answer);
    served_close(&s);
}

static void one_connection_carries_many_requests(void **state) {
    served s;
    served_init(&s, "abc");
    served_open(&s);
    int fd = raw_connect(s.address);
    for (int i = 0; i < 20; i++) {
        if (i % 4 == 3) raw_get(fd, "/health", "");
        else
            raw_post(fd, "/v1/completions", "",
                     i % 2 == 0 ? "{\"prompt\": \"x\"}" : "{\"prompt\": \"x\", \"stream\": true}");
        raw_answer answer = raw_receive(fd);
        assert_int_equal(answer.status, 200);
        assert_false(answer.is_cut);
        raw_answer_fini(&answer);
    }
    raw_hang_up(fd);
    served_close(&s);
}

static void request_ids_go_in_and_come_out(void **state) {
    served s;
    served_init(&s, "abc");
    served_open(&s);
    char value[256];
    raw_answer answer = served_post_with(&s, "/v1/completions", "X-Request-Id: my-id.7:a_b\r\n", "{\"prompt\": \"x\"}");
    assert_string_equal(raw_header(&answer, "X-Request-Id", value, sizeof(value)), "my-id.7:a_b");
    assert_non_null(strstr(answer.body, "\"id\":\"cmpl-my-id.7:a_b\""));
    raw_answer_fini(&answer);
    answer = served_post_with(&s, "/v1/completions", "X-Request-Id: bad \"id\"\r\n",
                              "{\"prompt\": \"x\", \"stream\": true}");
    assert_int_equal(strlen(raw_header(&answer, "X-Request-Id", value, sizeof(value))), 32);
    raw_answer_fini(&answer);
    served_close(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_chat_is_answered_whole),
        cmocka_unit_test(a_chat_is_streamed),
        cmocka_unit_test(usage_comes_last_when_asked_for),
        cmocka_unit_test(an_empty_answer_is_an_answer),
        cmocka_unit_test(several_choices_of_several_prompts_keep_their_places),
        cmocka_unit_test(more_prompts_than_the_worker_takes_at_once_are_all_answered),
        cmocka_unit_test(a_stop_string_is_never_shown),
        cmocka_unit_test(a_stop_token_ends_the_answer),
        cmocka_unit_test(max_tokens_ends_the_answer),
        cmocka_unit_test(the_prompt_is_echoed_with_its_log_probabilities),
        cmocka_unit_test(a_chats_log_probabilities_have_bytes_and_alternatives),
        cmocka_unit_test(prompt_logprobs_and_token_ids_are_given_on_demand),
        cmocka_unit_test(a_continued_message_can_be_echoed),
        cmocka_unit_test(sampling_reaches_the_worker),
        cmocka_unit_test(tokens_and_text_are_exchanged),
        cmocka_unit_test(the_served_model_is_listed),
        cmocka_unit_test(status_endpoints_answer),
        cmocka_unit_test(metrics_count_what_clients_saw),
        cmocka_unit_test(one_connection_carries_many_requests),
        cmocka_unit_test(request_ids_go_in_and_come_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
