/* worker_messages.c - see worker_messages.h. Arrays of tokens cross as bytes: a million need no parsing. */
#include "proto/worker_messages.h"

#include <stdlib.h>
#include <string.h>

#include "proto/rpc_unary.h"

_Static_assert(sizeof(worker_logprob) == 8 && sizeof(float) == 4, "log-probabilities cross as they lie in memory");

static ProtobufCBinaryData ids(const uint32_t *token_ids, uint64_t count) {
    return (ProtobufCBinaryData){count * sizeof(*token_ids), (uint8_t *)token_ids};
}

static void encode_sampling(const worker_sampling *s, Hadal__Sampling *m) {
    hadal__sampling__init(m);
    m->temperature = s->temperature;
    m->top_k = s->top_k;
    m->top_p = s->top_p;
    m->min_p = s->min_p;
    m->repetition_penalty = s->repetition_penalty;
    m->presence_penalty = s->presence_penalty;
    m->frequency_penalty = s->frequency_penalty;
    m->seed = s->seed;
    m->n_stop_ids = s->stop_id_count;
    m->stop_ids = (uint32_t *)s->stop_ids;
    m->ignore_eos = s->ignore_eos;
    m->min_tokens = s->min_tokens;
    m->logprobs = s->logprobs;
    m->prompt_logprobs = s->prompt_logprobs;
}

static hd_status send_submit(rpc_stream *stream, Hadal__Submit *submit, const worker_request *request) {
    uint32_t bias_count = request->sampling.logit_bias_count,
             answer_count = request->answers != NULL ? request->choices : 0;
    Hadal__LogitBias *biases = calloc(bias_count + 1, sizeof(*biases));
    Hadal__LogitBias **bias_list = calloc(bias_count + 1, sizeof(*bias_list));
    Hadal__Answer *answers = calloc(answer_count + 1, sizeof(*answers));
    Hadal__Answer **answer_list = calloc(answer_count + 1, sizeof(*answer_list));
    hd_status status = HD_NO_MEMORY;
    if (biases != NULL && bias_list != NULL && answers != NULL && answer_list != NULL) {
        for (uint32_t i = 0; i < bias_count; i++) {
            hadal__logit_bias__init(bias_list[i] = &biases[i]);
            biases[i].token_id = request->sampling.logit_bias[i].token_id;
            biases[i].bias = request->sampling.logit_bias[i].bias;
        }
        for (uint32_t i = 0; i < answer_count; i++) {
            hadal__answer__init(answer_list[i] = &answers[i]);
            answers[i].token_ids = ids(request->answers[i].token_ids, request->answers[i].token_count);
            answers[i].has_ended = request->answers[i].has_ended;
        }
        submit->sampling->n_logit_bias = bias_count;
        submit->sampling->logit_bias = bias_list;
        submit->n_answers = answer_count;
        submit->answers = answer_list;
        Hadal__Order order = HADAL__ORDER__INIT;
        order.submit = submit;
        status = rpc_message_send(stream, &order.base);
    }
    free(biases);
    free(bias_list);
    free(answers);
    free(answer_list);
    return status;
}

hd_status worker_submit_send(rpc_stream *stream, const worker_request *request, uint64_t id) {
    Hadal__Sampling sampling;
    encode_sampling(&request->sampling, &sampling);
    Hadal__Submit submit = HADAL__SUBMIT__INIT;
    submit.id = id;
    submit.prompt_ids = ids(request->prompt_ids, request->prompt_count);
    submit.max_tokens = request->max_tokens;
    submit.choices = request->choices;
    submit.sampling = &sampling;
    submit.salt = (ProtobufCBinaryData){sizeof(request->salt), (uint8_t *)request->salt};
    submit.selection = (char *)(request->selection != NULL ? request->selection : "");
    submit.no_cache = request->no_cache;
    submit.sequence = request->sequence;
    submit.epoch = request->epoch;
    submit.trace_id = (char *)request->trace_id;
    return send_submit(stream, &submit, request);
}

static bool is_ids(const ProtobufCBinaryData *data) {
    return data->len % sizeof(uint32_t) == 0 && (uintptr_t)data->data % _Alignof(uint32_t) == 0;
}

static hd_status decode_sampling(const Hadal__Sampling *m, worker_sampling *s) {
    *s = (worker_sampling){.temperature = m->temperature,
                           .top_k = m->top_k,
                           .top_p = m->top_p,
                           .min_p = m->min_p,
                           .repetition_penalty = m->repetition_penalty,
                           .presence_penalty = m->presence_penalty,
                           .frequency_penalty = m->frequency_penalty,
                           .seed = m->seed,
                           .stop_ids = m->stop_ids,
                           .stop_id_count = (uint32_t)m->n_stop_ids,
                           .ignore_eos = m->ignore_eos,
                           .min_tokens = m->min_tokens,
                           .logprobs = m->logprobs < -1 ? -1 : m->logprobs,
                           .prompt_logprobs = m->prompt_logprobs < -1 ? -1 : m->prompt_logprobs};
    if (m->n_logit_bias == 0) return HD_OK;
    worker_logit_bias *bias = calloc(m->n_logit_bias, sizeof(*bias));
    if (bias == NULL) return HD_NO_MEMORY;
    for (size_t i = 0; i < m->n_logit_bias; i++)
        bias[i] = (worker_logit_bias){m->logit_bias[i]->token_id, m->logit_bias[i]->bias};
    s->logit_bias = bias;
    s->logit_bias_count = (uint32_t)m->n_logit_bias;
    return HD_OK;
}

static hd_status decode_answers(const Hadal__Submit *m, worker_request *request) {
    if (m->n_answers == 0) return HD_OK;
    worker_answer *answers = calloc(m->n_answers, sizeof(*answers));
    if (answers == NULL) return HD_NO_MEMORY;
    for (size_t i = 0; i < m->n_answers; i++) {
        const Hadal__Answer *answer = m->answers[i];
        answers[i] = (worker_answer){(const uint32_t *)answer->token_ids.data, answer->token_ids.len / sizeof(uint32_t),
                                     answer->has_ended};
    }
    request->answers = answers;
    return HD_OK;
}

hd_status worker_submit_decode(const Hadal__Submit *m, worker_request *request, hd_error *error) {
    *request = (worker_request){.prompt_ids = (const uint32_t *)m->prompt_ids.data,
                                .prompt_count = m->prompt_ids.len / sizeof(uint32_t),
                                .max_tokens = m->max_tokens,
                                .choices = m->choices,
                                .selection = m->selection != NULL && m->selection[0] != '\0' ? m->selection : NULL,
                                .no_cache = m->no_cache,
                                .sequence = m->sequence,
                                .epoch = m->epoch};
    bool fits = m->sampling != NULL && is_ids(&m->prompt_ids) && m->salt.len == sizeof(request->salt) &&
                (m->n_answers == 0 || m->n_answers == m->choices);
    for (size_t i = 0; fits && i < m->n_answers; i++) fits = is_ids(&m->answers[i]->token_ids);
    if (!fits) return hd_error_set(error, HD_CORRUPT, "a request's sampling, tokens, salt or answers are not whole");
    if (m->trace_id != NULL) hd_trace_take(m->trace_id, strlen(m->trace_id), request->trace_id);
    memcpy(request->salt, m->salt.data, sizeof(request->salt));
    hd_status status = decode_sampling(m->sampling, &request->sampling);
    if (status == HD_OK) status = decode_answers(m, request);
    if (status == HD_OK) return HD_OK;
    worker_submit_fini(request);
    return hd_error_set(error, status, "no memory for a request");
}

void worker_submit_fini(worker_request *request) {
    free((void *)request->answers);
    free((void *)request->sampling.logit_bias);
    request->answers = NULL;
    request->sampling.logit_bias = NULL;
}

size_t worker_event_pack(const worker_event *event, uint64_t id, unsigned char *bytes, size_t capacity) {
    Hadal__Event m = HADAL__EVENT__INIT, *list[1] = {&m};
    Hadal__Report report = HADAL__REPORT__INIT;
    m.id = id;
    m.kind = (uint32_t)event->kind;
    m.choice = event->choice;
    m.last = event->last;
    m.cached_tokens = event->cached_tokens;
    m.prompt_done = event->prompt_done;
    m.prompt_count = event->prompt_count;
    m.token_id = event->token_id;
    m.position = event->position;
    m.entry_count = event->entry_count;
    m.logprob_count = event->logprob_count;
    m.logprobs = (ProtobufCBinaryData){(size_t)event->entry_count * event->logprob_count * sizeof(worker_logprob),
                                       (uint8_t *)event->logprobs};
    m.finish = (uint32_t)event->finish;
    m.stop_id = event->stop_id;
    m.status = (uint32_t)rpc_code_of_status(event->status);
    m.message = (char *)(event->message != NULL ? event->message : "");
    m.selection = (char *)(event->selection != NULL ? event->selection : "");
    report.n_events = 1;
    report.events = list;
    size_t count = protobuf_c_message_get_packed_size(&report.base);
    if (count <= capacity) protobuf_c_message_pack(&report.base, bytes);
    return count;
}

hd_status worker_event_decode(const Hadal__Event *m, worker_event *event) {
    bool fits = m->kind <= WORKER_FAILED && m->finish <= WORKER_FINISH_CANCELLED && m->choice < WORKER_CHOICES_MAX &&
                m->logprob_count <= 1 + WORKER_LOGPROBS_MAX &&
                m->logprobs.len == (size_t)m->entry_count * m->logprob_count * sizeof(worker_logprob) &&
                (uintptr_t)m->logprobs.data % _Alignof(worker_logprob) == 0;
    if (!fits) return HD_CORRUPT;
    *event = (worker_event){.kind = (worker_event_kind)m->kind,
                            .choice = m->choice,
                            .last = m->last,
                            .cached_tokens = m->cached_tokens,
                            .prompt_done = m->prompt_done,
                            .prompt_count = m->prompt_count,
                            .selection = m->selection[0] != '\0' ? m->selection : NULL,
                            .token_id = m->token_id,
                            .position = m->position,
                            .logprobs = m->logprobs.len > 0 ? (const worker_logprob *)m->logprobs.data : NULL,
                            .entry_count = m->entry_count,
                            .logprob_count = m->logprob_count,
                            .finish = (worker_finish)m->finish,
                            .stop_id = m->stop_id,
                            .status = rpc_status_of_code((int)m->status),
                            .message = m->message};
    return HD_OK;
}

void worker_info_decode(const Hadal__Description *d, worker_info *info) {
    *info = (worker_info){.model_name = d->model_name,
                          .kernels = d->kernels,
                          .weights_dtype = d->weights_dtype,
                          .kv_dtype = d->kv_dtype,
                          .selection = d->selection,
                          .vocabulary_size = d->vocabulary_size,
                          .context_max = d->context_max,
                          .kv_bytes = d->kv_bytes,
                          .kv_bytes_per_token = d->kv_bytes_per_token,
                          .eos_ids = d->eos_ids,
                          .eos_id_count = (uint32_t)d->n_eos_ids,
                          .default_temperature = d->default_temperature,
                          .default_top_p = d->default_top_p,
                          .default_top_k = d->default_top_k,
                          .default_min_p = d->default_min_p,
                          .default_repetition_penalty = d->default_repetition_penalty};
}

void worker_load_encode(const worker_load *load, Hadal__Load *m) {
    hadal__load__init(m);
    m->running = load->running;
    m->waiting = load->waiting;
    m->blocks_total = load->blocks_total;
    m->blocks_sequences = load->blocks_sequences;
    m->blocks_reserved = load->blocks_reserved;
    m->blocks_cached = load->blocks_cached;
    m->prefix_query_tokens = load->prefix_query_tokens;
    m->prefix_hit_tokens = load->prefix_hit_tokens;
    m->preemptions = load->preemptions;
    m->context_max = load->context_max;
    m->steps = load->steps;
    m->step_rows = load->step_rows;
    m->dense_us = load->dense_us;
    m->wire_us = load->wire_us;
    m->attention_us = load->attention_us;
    m->is_draining = load->is_draining;
}

void worker_load_decode(const Hadal__Load *m, worker_load *load) {
    *load = (worker_load){.running = m->running,
                          .waiting = m->waiting,
                          .blocks_total = m->blocks_total,
                          .blocks_sequences = m->blocks_sequences,
                          .blocks_reserved = m->blocks_reserved,
                          .blocks_cached = m->blocks_cached,
                          .prefix_query_tokens = m->prefix_query_tokens,
                          .prefix_hit_tokens = m->prefix_hit_tokens,
                          .preemptions = m->preemptions,
                          .context_max = m->context_max,
                          .steps = m->steps,
                          .step_rows = m->step_rows,
                          .dense_us = m->dense_us,
                          .wire_us = m->wire_us,
                          .attention_us = m->attention_us,
                          .is_draining = m->is_draining};
}
