/* scripted_worker.c - a list of requests under a lock, and the service in front of it. */
#include "tests/coordinator/scripted_worker.h"

#include <stdio.h>
#include <string.h>

#include "tests/coordinator/cmocka_all.h"

#define CONTEXT_MAX 8192u

/* -- the table, on the service's thread; the lock is never held while an event goes out -- */

static hd_status submit(worker_rpc *self, worker_request *request, hd_error *error) {
    scripted_worker *w = (scripted_worker *)self;
    pthread_mutex_lock(&w->lock);
    hd_status status = w->answer;
    if (status == HD_OK && w->running == SCRIPTED_REQUESTS) status = HD_FULL;
    w->submitted++;
    if (status == HD_OK) {
        w->last = (scripted_seen){.sequence = request->sequence,
                                  .epoch = request->epoch,
                                  .prompt_count = request->prompt_count,
                                  .has_answers = request->answers != NULL};
        if (request->selection != NULL)
            snprintf(w->last.selection, sizeof(w->last.selection), "%s", request->selection);
        if (request->answers != NULL) {
            w->last.answered = request->answers[0].token_count;
            for (uint64_t i = 0; i < w->last.answered && i < SCRIPTED_TOKENS; i++)
                w->last.first_choice[i] = request->answers[0].token_ids[i];
        }
        w->said[w->running] = w->last.answered;
        w->requests[w->running++] = request;
    }
    pthread_mutex_unlock(&w->lock);
    return status == HD_OK ? HD_OK : hd_error_set(error, status, "%s says no", w->id);
}

/* The request is forgotten before its last event, for it is gone after it. */
static worker_request *take_at(scripted_worker *w, uint32_t at) {
    worker_request *request = w->requests[at];
    w->running--;
    for (uint32_t i = at; i < w->running; i++) {
        w->requests[i] = w->requests[i + 1];
        w->said[i] = w->said[i + 1];
    }
    return request;
}

static void end_choices(worker_request *request, worker_finish finish) {
    uint32_t choices = request->choices;
    for (uint32_t i = 0; i < choices; i++)
        request->on_event(
            request, &(worker_event){.kind = WORKER_FINISHED, .choice = i, .finish = finish, .last = i + 1 == choices});
}

static void cancel(worker_rpc *self, uint64_t id, uint32_t choice) {
    scripted_worker *w = (scripted_worker *)self;
    worker_request *request = NULL;
    pthread_mutex_lock(&w->lock);
    for (uint32_t i = 0; choice == UINT32_MAX && i < w->running && request == NULL; i++)
        if (w->requests[i]->id == id) request = take_at(w, i);
    w->cancelled += request != NULL;
    pthread_mutex_unlock(&w->lock);
    if (request != NULL) end_choices(request, WORKER_FINISH_CANCELLED);
}

static void info(worker_rpc *self, worker_info *out) {
    static const uint32_t eos = 257;
    *out = (worker_info){.model_name = "scripted",
                         .kernels = "portable",
                         .weights_dtype = "bf16",
                         .kv_dtype = "bf16",
                         .selection = "full",
                         .vocabulary_size = 512,
                         .context_max = CONTEXT_MAX,
                         .eos_ids = &eos,
                         .eos_id_count = 1};
}

static void load(worker_rpc *self, worker_load *out) {
    scripted_worker *w = (scripted_worker *)self;
    pthread_mutex_lock(&w->lock);
    *out = w->load;
    pthread_mutex_unlock(&w->lock);
}

static void cache_reset(worker_rpc *self) {
    (void)self;
}

/* -- the test's thread -- */

void scripted_open(scripted_worker *w, const char *id, rpc_loop *loop, const worker_load *first) {
    static const worker_rpc_ops ops = {
        .name = "scripted", .submit = submit, .cancel = cancel, .info = info, .load = load, .cache_reset = cache_reset};
    static const unsigned char fingerprint[WORKER_FINGERPRINT_BYTES] = "the same weights";
    *w = (scripted_worker){.rpc.ops = &ops, .id = id, .loop = loop, .load = *first};
    pthread_mutex_init(&w->lock, NULL);
    worker_service_config config = {.worker = &w->rpc,
                                    .loop = loop,
                                    .node_id = id,
                                    .model_directory = "tests/coordinator/model",
                                    .fingerprint = fingerprint};
    hd_error error;
    assert_int_equal(worker_service_open(&config, &w->service, &error), HD_OK);
    rpc_method methods[WORKER_SERVICE_METHODS];
    worker_service_methods(w->service, methods);
    rpc_server_config server = {
        .listen_address = "127.0.0.1:0", .methods = methods, .method_count = WORKER_SERVICE_METHODS};
    assert_int_equal(rpc_server_open(&server, &w->server, &error), HD_OK);
}

void scripted_kill(scripted_worker *w) {
    rpc_server_close(w->server);
    w->server = NULL;
}

void scripted_close(scripted_worker *w) {
    worker_service_close(w->service);
    pthread_mutex_destroy(&w->lock);
}

membership_node scripted_node(const scripted_worker *w, membership_state state) {
    membership_node node = {.role = "worker",
                            .model = "scripted",
                            .kernels = "portable",
                            .weights_dtype = "bf16",
                            .kv_dtype = "bf16",
                            .version_min = MEMBERSHIP_VERSION_MIN,
                            .version_max = MEMBERSHIP_VERSION_MAX,
                            .state = state};
    snprintf(node.id, sizeof(node.id), "%s", w->id);
    snprintf(node.address, sizeof(node.address), "%s", rpc_server_address(w->server));
    return node;
}

uint32_t scripted_running(scripted_worker *w) {
    pthread_mutex_lock(&w->lock);
    uint32_t running = w->running;
    pthread_mutex_unlock(&w->lock);
    return running;
}

uint32_t scripted_submitted(scripted_worker *w) {
    pthread_mutex_lock(&w->lock);
    uint32_t submitted = w->submitted;
    pthread_mutex_unlock(&w->lock);
    return submitted;
}

scripted_seen scripted_last(scripted_worker *w) {
    pthread_mutex_lock(&w->lock);
    scripted_seen last = w->last;
    pthread_mutex_unlock(&w->lock);
    return last;
}

void scripted_set_answer(scripted_worker *w, hd_status answer) {
    pthread_mutex_lock(&w->lock);
    w->answer = answer;
    pthread_mutex_unlock(&w->lock);
}

void scripted_say_ahead(scripted_worker *w, uint32_t token_id, uint64_t ahead) {
    pthread_mutex_lock(&w->lock);
    assert_true(w->running > 0);
    worker_request *request = w->requests[w->running - 1];
    uint64_t at = w->said[w->running - 1]++;
    pthread_mutex_unlock(&w->lock);
    request->on_event(
        request,
        &(worker_event){.kind = WORKER_TOKEN, .token_id = token_id, .position = request->prompt_count + at + ahead});
}

void scripted_start(scripted_worker *w, const char *selection) {
    pthread_mutex_lock(&w->lock);
    worker_request *request = w->requests[w->running - 1];
    pthread_mutex_unlock(&w->lock);
    request->on_event(request, &(worker_event){.kind = WORKER_STARTED, .selection = selection});
}

void scripted_say(scripted_worker *w, uint32_t token_id) {
    scripted_say_ahead(w, token_id, 0);
}

static worker_request *take_last(scripted_worker *w) {
    pthread_mutex_lock(&w->lock);
    assert_true(w->running > 0);
    worker_request *request = take_at(w, w->running - 1);
    pthread_mutex_unlock(&w->lock);
    return request;
}

void scripted_finish(scripted_worker *w) {
    end_choices(take_last(w), WORKER_FINISH_LENGTH);
}

void scripted_fail(scripted_worker *w, hd_status status) {
    worker_request *request = take_last(w);
    request->on_event(
        request,
        &(worker_event){.kind = WORKER_FAILED, .last = true, .status = status, .message = "as the script says"});
}
