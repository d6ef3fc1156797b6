/* load.c - the schedule of the requests, and the reading of their streams. */
#include "bench/load.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench/http_client.h"
#include "bench/prompts.h"

#define SETUP_TIMEOUT_MS 10000
#define TURN_MS 100 /* between two looks at progress and time-outs */

typedef struct load load;

typedef struct load_slot { /* one request while it runs */
    http_call call;
    load *load;
    load_request *result;
    char *body;
    bool is_running, is_timed_out;
    char failure[200]; /* the beginning of an answer that is no stream */
} load_slot;

struct load {
    const load_config *config;
    load_result *result;
    http_client *client;
    prompts prompts;
    load_slot *slots;
    uint64_t *prompt_tokens, *output_tokens; /* what is asked for */
    char *model_json;                        /* the model's name as a JSON string */
    uint64_t sent, events;
    uint64_t start_ns;
};

static double elapsed_s(const load *l) {
    return (double)(hd_now_ns() - l->start_ns) * 1e-9;
}

static uint64_t spread_length(bench_random *random, uint64_t middle, double spread) {
    double low = (double)middle * (1 - spread), high = (double)middle * (1 + spread);
    uint64_t least = (uint64_t)ceil(low), most = (uint64_t)floor(high);
    if (least < 1) least = 1;
    return most <= least ? least : least + bench_random_below(random, most - least + 1);
}

/* The whole load is drawn before it starts, so it is the same however fast the server is. */
static void draw_schedule(load *l) {
    bench_random random = {l->config->seed};
    double due = 0;
    for (uint64_t i = 0; i < l->config->requests; i++) {
        if (i > 0 && l->config->rate > 0) due += bench_random_exponential(&random, l->config->rate);
        l->result->requests[i].due_s = due;
        l->prompt_tokens[i] = spread_length(&random, l->config->prompt_tokens, l->config->spread);
        l->output_tokens[i] = spread_length(&random, l->config->output_tokens, l->config->spread);
    }
}

static char *make_body(load *l, uint64_t index) {
    bench_random random = {l->config->seed ^ (0x5851f42d4c957f2du * (index + 1))};
    char *prompt = prompts_make(&l->prompts, &random, l->prompt_tokens[index]);
    char *body = NULL;
    /* min_tokens and ignore_eos make answers as long as asked for, so that runs compare. */
    int bytes =
        prompt == NULL
            ? -1
            : asprintf(&body,
                       "{\"model\":%s,%s%s%s,\"max_tokens\":%llu,\"min_tokens\":%llu,\"ignore_eos\":true,"
                       "\"temperature\":%g,\"seed\":%llu,\"stream\":true,\"stream_options\":{\"include_usage\":true}}",
                       l->model_json,
                       l->config->is_chat ? "\"messages\":[{\"role\":\"user\",\"content\":" : "\"prompt\":", prompt,
                       l->config->is_chat ? "}]" : "", (unsigned long long)l->output_tokens[index],
                       (unsigned long long)l->output_tokens[index], l->config->temperature,
                       (unsigned long long)(l->config->seed + index));
    free(prompt);
    return bytes < 0 ? NULL : body;
}

static bool has_text(const json_t *choice) {
    const json_t *delta = json_object_get(choice, "delta");
    const json_t *text = delta == NULL ? json_object_get(choice, "text") : json_object_get(delta, "content");
    if (json_string_length(text) == 0 && delta != NULL) text = json_object_get(delta, "reasoning_content");
    return json_string_length(text) > 0;
}

static void take_usage(load_request *request, const json_t *usage) {
    if (!json_is_object(usage)) return;
    request->prompt_tokens = (uint64_t)json_integer_value(json_object_get(usage, "prompt_tokens"));
    request->output_tokens = (uint64_t)json_integer_value(json_object_get(usage, "completion_tokens"));
    request->cached_tokens =
        (uint64_t)json_integer_value(json_object_get(json_object_get(usage, "prompt_tokens_details"), "cached_tokens"));
}

static void take_event(load_slot *slot, const json_t *event) {
    load *l = slot->load;
    load_request *request = slot->result;
    const json_t *problem = json_object_get(event, "error");
    if (problem != NULL) {
        const char *message = json_string_value(json_object_get(problem, "message"));
        snprintf(slot->failure, sizeof(slot->failure), "%s",
                 message != NULL ? message : "the stream ended with an error");
    }
    take_usage(request, json_object_get(event, "usage"));
    if (!has_text(json_array_get(json_object_get(event, "choices"), 0))) return;
    double now = elapsed_s(l);
    /* Without memory for one gap the figures lack one gap; the load goes on. */
    if (request->events > 0) (void)sample_add(&l->result->itl_ms, (now - request->last_s) * 1e3);
    else request->first_s = now;
    request->last_s = now;
    request->events++;
    l->events++;
}

static void on_line(http_call *call, const char *line, size_t bytes) {
    load_slot *slot = call->context;
    if (call->http_status != 200) {
        size_t used = strlen(slot->failure);
        snprintf(slot->failure + used, sizeof(slot->failure) - used, "%s", line);
        return;
    }
    if (strncmp(line, "data:", 5) != 0)
        return; /* a comment that keeps the connection alive, an event name, an empty line */
    line += 5 + strspn(line + 5, " ");
    if (strcmp(line, "[DONE]") == 0) return;
    json_error_t problem;
    json_t *event = json_loads(line, 0, &problem);
    if (event == NULL) snprintf(slot->failure, sizeof(slot->failure), "an event is not JSON: %s", problem.text);
    else take_event(slot, event);
    json_decref(event);
}

static void on_done(http_call *call, hd_status status) {
    load_slot *slot = call->context;
    load_result *result = slot->load->result;
    load_request *request = slot->result;
    request->end_s = elapsed_s(slot->load);
    slot->is_running = false;
    free(slot->body);
    slot->body = NULL;
    if (request->events == 0) request->first_s = request->last_s = request->end_s;
    if (request->output_tokens == 0)
        request->output_tokens = request->events; /* a server without usage in its stream */
    request->is_ok = status == HD_OK && call->http_status == 200 && slot->failure[0] == '\0';
    if (request->is_ok) {
        result->completed++;
        return;
    }
    result->failed++;
    if (result->first_failure[0] != '\0') return;
    if (slot->is_timed_out)
        snprintf(result->first_failure, sizeof(result->first_failure), "no end within --request-timeout");
    else if (status != HD_OK)
        snprintf(result->first_failure, sizeof(result->first_failure), "%s", hd_status_text(status));
    else
        snprintf(result->first_failure, sizeof(result->first_failure), "HTTP %d: %s", call->http_status, slot->failure);
}

static void start_request(load *l, uint64_t index) {
    load_slot *slot = &l->slots[index];
    slot->load = l;
    slot->result = &l->result->requests[index];
    slot->body = make_body(l, index);
    slot->result->start_s = elapsed_s(l);
    slot->call = (http_call){.path = l->config->is_chat ? "/v1/chat/completions" : "/v1/completions",
                             .body = slot->body,
                             .body_bytes = slot->body != NULL ? strlen(slot->body) : 0,
                             .on_line = on_line,
                             .on_done = on_done,
                             .context = slot};
    l->sent++;
    slot->is_running = true;
    hd_status status = slot->body != NULL ? http_client_start(l->client, &slot->call) : HD_NO_MEMORY;
    if (status != HD_OK) on_done(&slot->call, status);
}

static void cancel_late(load *l) {
    double bound_s = (double)l->config->timeout_ms * 1e-3, now = elapsed_s(l);
    for (uint64_t i = 0; i < l->sent; i++) {
        load_slot *slot = &l->slots[i];
        if (!slot->is_running || now - slot->result->start_s < bound_s) continue;
        slot->is_timed_out = true;
        http_client_cancel(&slot->call);
    }
}

static void report_progress(const load *l) {
    if (l->config->on_progress == NULL) return;
    const load_result *r = l->result;
    load_progress progress = {.requests = l->config->requests,
                              .sent = l->sent,
                              .completed = r->completed,
                              .failed = r->failed,
                              .output_events = l->events,
                              .elapsed_s = elapsed_s(l)};
    l->config->on_progress(l->config->context, &progress);
}

static hd_status drive(load *l) {
    const load_config *c = l->config;
    hd_status status = HD_OK;
    uint64_t next_look_ns = 0;
    l->start_ns = hd_now_ns();
    while (status == HD_OK && l->result->completed + l->result->failed < c->requests) {
        while (l->sent < c->requests && l->result->requests[l->sent].due_s <= elapsed_s(l) &&
               (c->concurrency == 0 || http_client_running(l->client) < c->concurrency))
            start_request(l, l->sent);
        if (hd_now_ns() >= next_look_ns) {
            next_look_ns = hd_now_ns() + TURN_MS * 1000000u;
            if (c->timeout_ms > 0) cancel_late(l);
            report_progress(l);
        }
        double wait_ms = TURN_MS;
        if (l->sent < c->requests)
            wait_ms = fmin(wait_ms, ceil((l->result->requests[l->sent].due_s - elapsed_s(l)) * 1e3));
        /* With the bound reached only an answer that ends lets the next request go. */
        if (c->concurrency > 0 && http_client_running(l->client) >= c->concurrency) wait_ms = TURN_MS;
        status = http_client_poll(l->client, (int)fmax(wait_ms, 0));
    }
    report_progress(l);
    for (uint64_t i = 0; i < l->sent; i++)
        l->result->duration_s = fmax(l->result->duration_s, l->result->requests[i].end_s);
    if (l->sent > 0) l->result->duration_s -= l->result->requests[0].start_s;
    return status;
}

static hd_status ask_model(load *l, hd_error *error) {
    if (l->config->model != NULL) {
        snprintf(l->result->model, sizeof(l->result->model), "%s", l->config->model);
        return HD_OK;
    }
    char *text = NULL;
    int http_status = 0;
    hd_status status = http_client_fetch(l->client, "/v1/models", NULL, SETUP_TIMEOUT_MS, &http_status, &text);
    if (status != HD_OK)
        return hd_error_set(error, status, "%s does not answer (%s); is the server running?", l->config->url,
                            http_client_cause(l->client, status));
    json_t *parsed = json_loads(text, 0, NULL);
    const char *id = json_string_value(json_object_get(json_array_get(json_object_get(parsed, "data"), 0), "id"));
    if (http_status != 200)
        status = hd_error_set(error, HD_INVALID, "%s/v1/models answers %d%s", l->config->url, http_status,
                              http_status == 401 ? "; give --api-key" : "");
    else if (id == NULL)
        status = hd_error_set(error, HD_INVALID, "%s/v1/models names no model; give --model-name", l->config->url);
    else snprintf(l->result->model, sizeof(l->result->model), "%s", id);
    json_decref(parsed);
    free(text);
    return status;
}

hd_status load_run(const load_config *config, load_result *result, hd_error *error) {
    *result = (load_result){.request_count = config->requests};
    load l = {.config = config, .result = result};
    sample_init(&result->itl_ms);
    result->requests = calloc(config->requests, sizeof(*result->requests));
    l.slots = calloc(config->requests, sizeof(*l.slots));
    l.prompt_tokens = calloc(config->requests, sizeof(*l.prompt_tokens));
    l.output_tokens = calloc(config->requests, sizeof(*l.output_tokens));
    hd_status status =
        result->requests != NULL && l.slots != NULL && l.prompt_tokens != NULL && l.output_tokens != NULL
            ? HD_OK
            : hd_error_set(error, HD_NO_MEMORY, "no memory for %llu requests", (unsigned long long)config->requests);
    if (status == HD_OK) status = http_client_open(config->url, config->api_key, &l.client, error);
    if (status == HD_OK) status = ask_model(&l, error);
    if (status == HD_OK) {
        json_t *name = json_string(result->model);
        l.model_json = json_dumps(name, JSON_ENCODE_ANY);
        json_decref(name);
        if (l.model_json == NULL) status = hd_error_set(error, HD_INVALID, "the model's name is not UTF-8");
    }
    if (status == HD_OK) {
        status =
            prompts_open(l.client, result->model, config->is_chat, config->seed, config->prefix_tokens, &l.prompts);
        if (status != HD_OK) hd_error_set(error, status, "%s/tokenize: %s", config->url, hd_status_text(status));
    }
    if (status == HD_OK) {
        result->has_ids = l.prompts.ids != NULL;
        draw_schedule(&l);
        status = drive(&l);
        if (status != HD_OK) hd_error_set(error, status, "waiting for answers: %s", hd_status_text(status));
    }
    http_client_close(l.client); /* before the slots: what still runs is cancelled into them */
    prompts_close(&l.prompts);
    free(l.model_json);
    free(l.slots);
    free(l.prompt_tokens);
    free(l.output_tokens);
    if (status != HD_OK) load_result_fini(result);
    return status;
}

void load_result_fini(load_result *result) {
    free(result->requests);
    result->requests = NULL;
    sample_fini(&result->itl_ms);
}
