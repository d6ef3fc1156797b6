#include "tests/coordinator/fake_worker.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REQUESTS_MAX 4096u
#define CHOICES_MAX 128u

typedef struct fake_job {
    worker_request *request;
    uint64_t said; /* tokens of each choice */
    uint64_t prompt_done;
    bool is_started, is_cancelled;
    bool is_choice_done[CHOICES_MAX], is_choice_cancelled[CHOICES_MAX];
    uint32_t open;
} fake_job;

struct fake_worker {
    worker_rpc rpc;
    fake_script script;
    size_t script_bytes;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    fake_job *jobs[REQUESTS_MAX];
    uint32_t job_count, cancelled, cache_resets;
    bool is_held, is_closing;
    fake_seen seen;
};

static void send(fake_job *job, worker_event event) {
    job->request->on_event(job->request, &event);
}

static void finish_choice(fake_job *job, uint32_t choice, worker_finish finish, uint32_t stop_id) {
    job->is_choice_done[choice] = true;
    job->open--;
    send(job,
         (worker_event){
             .kind = WORKER_FINISHED, .choice = choice, .last = job->open == 0, .finish = finish, .stop_id = stop_id});
}

static void likeliest(uint32_t token_id, worker_logprob *logprobs, uint32_t width) {
    logprobs[0] = (worker_logprob){.token_id = token_id, .logprob = -(float)token_id / 100.0f};
    for (uint32_t k = 1; k < width; k++)
        logprobs[k] = (worker_logprob){.token_id = k - 1, .logprob = -(float)(k - 1) / 100.0f};
}

static void start(fake_worker *worker, fake_job *job) {
    worker_request *request = job->request;
    job->is_started = true;
    send(job, (worker_event){.kind = WORKER_STARTED,
                             .cached_tokens = worker->script.cached_tokens,
                             .selection = request->selection != NULL ? request->selection : "full",
                             .prompt_count = request->prompt_count});
    if (request->sampling.prompt_logprobs < 0) return;
    uint32_t width = (uint32_t)request->sampling.prompt_logprobs + 1;
    worker_logprob *logprobs = calloc(request->prompt_count * width, sizeof(*logprobs));
    for (uint64_t i = 1; i < request->prompt_count; i++)
        likeliest(request->prompt_ids[i], logprobs + (i - 1) * width, width);
    /* In two pieces, as chunks give them. */
    uint64_t entries = request->prompt_count - 1, half = entries / 2;
    send(job, (worker_event){.kind = WORKER_PROMPT_LOGPROBS,
                             .position = 1,
                             .entry_count = (uint32_t)half,
                             .logprob_count = width,
                             .logprobs = logprobs});
    send(job, (worker_event){.kind = WORKER_PROMPT_LOGPROBS,
                             .position = 1 + half,
                             .entry_count = (uint32_t)(entries - half),
                             .logprob_count = width,
                             .logprobs = logprobs + half * width});
    free(logprobs);
}

static void say(fake_worker *worker, fake_job *job, uint32_t choice) {
    worker_request *request = job->request;
    const worker_sampling *sampling = &request->sampling;
    size_t length = worker->script_bytes + (request->choices > 1);
    uint64_t at = worker->script.is_endless ? job->said % length : job->said;
    if (at == length) {
        finish_choice(job, choice, WORKER_FINISH_STOP, FAKE_EOS);
        return;
    }
    uint32_t id = at < worker->script_bytes ? (unsigned char)worker->script.text[at] : '0' + choice;
    for (uint32_t i = 0; i < sampling->stop_id_count; i++) {
        if (sampling->stop_ids[i] != id) continue;
        finish_choice(job, choice, WORKER_FINISH_STOP, id);
        return;
    }
    worker_logprob logprobs[1 + WORKER_LOGPROBS_MAX];
    uint32_t width = sampling->logprobs >= 0 ? (uint32_t)sampling->logprobs + 1 : 0;
    if (width > 0) likeliest(id, logprobs, width);
    send(job, (worker_event){.kind = WORKER_TOKEN,
                             .choice = choice,
                             .token_id = id,
                             .position = request->prompt_count + job->said,
                             .logprobs = width > 0 ? logprobs : NULL,
                             .entry_count = width > 0,
                             .logprob_count = width});
    if (job->said + 1 == request->max_tokens) finish_choice(job, choice, WORKER_FINISH_LENGTH, 0);
}

/* One step of one request; true when it is over. */
static bool step(fake_worker *worker, fake_job *job) {
    worker_request *request = job->request;
    pthread_mutex_lock(&worker->lock);
    bool is_cancelled = job->is_cancelled;
    if (is_cancelled) worker->cancelled++;
    bool choice_cancelled[CHOICES_MAX];
    memcpy(choice_cancelled, job->is_choice_cancelled, sizeof(choice_cancelled));
    pthread_mutex_unlock(&worker->lock);
    uint32_t choices = request->choices; /* the request is gone after its last event */
    for (uint32_t c = 0; c < choices; c++) {
        if ((is_cancelled || choice_cancelled[c]) && !job->is_choice_done[c])
            finish_choice(job, c, WORKER_FINISH_CANCELLED, 0);
    }
    if (job->open == 0) return true;
    if (!job->is_started) start(worker, job);
    if (worker->script.progress_chunk > 0 && job->prompt_done < request->prompt_count) {
        usleep(worker->script.chunk_delay_us);
        job->prompt_done += worker->script.progress_chunk;
        if (job->prompt_done > request->prompt_count) job->prompt_done = request->prompt_count;
        send(job, (worker_event){
                      .kind = WORKER_PROGRESS, .prompt_done = job->prompt_done, .prompt_count = request->prompt_count});
        return false;
    }
    if (worker->script.token_delay_us > 0) usleep(worker->script.token_delay_us);
    if (worker->script.failure != HD_OK && job->said == 1) {
        const char *message = worker->script.failure_message;
        send(job, (worker_event){.kind = WORKER_FAILED,
                                 .last = true,
                                 .status = worker->script.failure,
                                 .message = message != NULL ? message : "a broken cable"});
        return true;
    }
    for (uint32_t c = 0; c < choices; c++) {
        if (!job->is_choice_done[c]) say(worker, job, c);
    }
    job->said++;
    if (job->said == worker->script.hold_after) fake_worker_hold(worker, true);
    return job->open == 0;
}

static void *thread_main(void *context) {
    fake_worker *worker = context;
    uint32_t next = 0;
    pthread_mutex_lock(&worker->lock);
    while (!worker->is_closing || worker->job_count > 0) {
        bool has_cancelled = false;
        for (uint32_t i = 0; i < worker->job_count; i++) has_cancelled = has_cancelled || worker->jobs[i]->is_cancelled;
        if (worker->job_count == 0 || (worker->is_held && !has_cancelled)) {
            pthread_cond_wait(&worker->changed, &worker->lock);
            continue;
        }
        next = (next + 1) % worker->job_count;
        fake_job *job = worker->jobs[next];
        if (worker->is_held && !job->is_cancelled) continue;
        pthread_mutex_unlock(&worker->lock);
        bool is_over = step(worker, job);
        pthread_mutex_lock(&worker->lock);
        if (is_over) {
            worker->jobs[next] = worker->jobs[--worker->job_count];
            free(job);
        }
    }
    pthread_mutex_unlock(&worker->lock);
    return NULL;
}

static hd_status submit(worker_rpc *self, worker_request *request, hd_error *error) {
    fake_worker *worker = (fake_worker *)self;
    assert(request->choices <= CHOICES_MAX);
    fake_job *job = calloc(1, sizeof(*job));
    job->request = request;
    job->open = request->choices;
    pthread_mutex_lock(&worker->lock);
    uint32_t bound = worker->script.requests_max > 0 ? worker->script.requests_max : REQUESTS_MAX;
    if (worker->job_count >= bound) {
        pthread_mutex_unlock(&worker->lock);
        free(job);
        return hd_error_set(error, HD_FULL, "full");
    }
    fake_seen *seen = &worker->seen;
    seen->max_tokens = request->max_tokens;
    seen->choices = request->choices;
    seen->prompt_count = request->prompt_count;
    memcpy(seen->prompt, request->prompt_ids,
           (request->prompt_count < 512 ? request->prompt_count : 512) * sizeof(uint32_t));
    seen->sampling = request->sampling;
    if (request->sampling.logit_bias_count > 0) seen->bias = request->sampling.logit_bias[0];
    memcpy(seen->salt, request->salt, sizeof(seen->salt));
    snprintf(seen->selection, sizeof(seen->selection), "%s", request->selection != NULL ? request->selection : "");
    seen->no_cache = request->no_cache;
    worker->jobs[worker->job_count++] = job;
    pthread_cond_signal(&worker->changed);
    pthread_mutex_unlock(&worker->lock);
    return HD_OK;
}

static void cancel(worker_rpc *self, uint64_t id, uint32_t choice) {
    fake_worker *worker = (fake_worker *)self;
    pthread_mutex_lock(&worker->lock);
    for (uint32_t i = 0; i < worker->job_count; i++) {
        if (worker->jobs[i]->request->id != id) continue;
        if (choice == UINT32_MAX) worker->jobs[i]->is_cancelled = true;
        else worker->jobs[i]->is_choice_cancelled[choice] = true;
    }
    pthread_cond_signal(&worker->changed);
    pthread_mutex_unlock(&worker->lock);
}

static void info(worker_rpc *self, worker_info *out) {
    static const uint32_t eos[] = {FAKE_EOS};
    fake_worker *worker = (fake_worker *)self;
    *out = (worker_info){
        .model_name = "script",
        .kernels = "fake",
        .weights_dtype = "bf16",
        .kv_dtype = "bf16",
        .selection = "full",
        .vocabulary_size = 261,
        .context_max = worker->script.context_max > 0 ? worker->script.context_max : 4096,
        .kv_bytes = 1 << 20,
        .kv_bytes_per_token = 256,
        .eos_ids = eos,
        .eos_id_count = 1,
        .default_temperature = 0.75f,
        .default_top_p = 0.5f,
        .default_top_k = 40,
        .default_min_p = 0.125f,
        .default_repetition_penalty = 1.25f,
    };
}

static void load(worker_rpc *self, worker_load *out) {
    *out = (worker_load){.running = fake_worker_running((fake_worker *)self)};
}

static void cache_reset(worker_rpc *self) {
    fake_worker *worker = (fake_worker *)self;
    pthread_mutex_lock(&worker->lock);
    worker->cache_resets++;
    pthread_mutex_unlock(&worker->lock);
}

static const worker_rpc_ops ops = {
    .name = "fake", .submit = submit, .cancel = cancel, .info = info, .load = load, .cache_reset = cache_reset};

fake_worker *fake_worker_open(const fake_script *script) {
    fake_worker *worker = calloc(1, sizeof(*worker));
    worker->rpc.ops = &ops;
    worker->script = *script;
    worker->script_bytes = strlen(script->text);
    pthread_mutex_init(&worker->lock, NULL);
    pthread_cond_init(&worker->changed, NULL);
    pthread_create(&worker->thread, NULL, thread_main, worker);
    return worker;
}

void fake_worker_close(fake_worker *worker) {
    /* The last event of a request is sent before the request is taken off the list. */
    for (int i = 0; i < 5000 && fake_worker_running(worker) > 0; i++) usleep(1000);
    pthread_mutex_lock(&worker->lock);
    assert(worker->job_count == 0);
    worker->is_closing = true;
    pthread_cond_signal(&worker->changed);
    pthread_mutex_unlock(&worker->lock);
    pthread_join(worker->thread, NULL);
    pthread_cond_destroy(&worker->changed);
    pthread_mutex_destroy(&worker->lock);
    free(worker);
}

worker_rpc *fake_worker_rpc(fake_worker *worker) {
    return &worker->rpc;
}

void fake_worker_hold(fake_worker *worker, bool is_held) {
    pthread_mutex_lock(&worker->lock);
    worker->is_held = is_held;
    pthread_cond_signal(&worker->changed);
    pthread_mutex_unlock(&worker->lock);
}

static uint32_t read_locked(fake_worker *worker, const uint32_t *field) {
    pthread_mutex_lock(&worker->lock);
    uint32_t value = *field;
    pthread_mutex_unlock(&worker->lock);
    return value;
}

uint32_t fake_worker_running(fake_worker *worker) {
    return read_locked(worker, &worker->job_count);
}

uint32_t fake_worker_cancelled(fake_worker *worker) {
    return read_locked(worker, &worker->cancelled);
}

uint32_t fake_worker_cache_resets(fake_worker *worker) {
    return read_locked(worker, &worker->cache_resets);
}

void fake_worker_seen(fake_worker *worker, fake_seen *seen) {
    pthread_mutex_lock(&worker->lock);
    *seen = worker->seen;
    pthread_mutex_unlock(&worker->lock);
}
