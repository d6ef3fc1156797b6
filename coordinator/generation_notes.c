/* generation_notes.c - what others tell a generation and ask of it: the ticker, the server's end, operators. */
#include "coordinator/generation_state.h"

bool generation_has_note(const generation_notes *notes) {
    return notes->is_gone || notes->is_ending || notes->is_cancelled || notes->overflow != OVERFLOW_NONE ||
           notes->is_keep_alive_due || notes->is_submit_due || notes->has_progress || notes->timeout != TIMEOUT_NONE;
}

void generation_end(generation *g) {
    pthread_mutex_lock(&g->lock);
    g->notes.is_ending = true;
    generation_schedule(g);
    pthread_mutex_unlock(&g->lock);
}

void generation_cancel(generation *g) {
    pthread_mutex_lock(&g->lock);
    g->notes.is_cancelled = true;
    generation_schedule(g);
    pthread_mutex_unlock(&g->lock);
}

void generation_describe(generation *g, uint64_t now_ns, operator_sequence *row) {
    *row = (operator_sequence){
        .id = g->parts[0].request.id,
        .model = g->model->limits.model_name,
        .prompt_tokens = g->prompt_tokens,
        .choices = g->choice_count,
        .age_s = now_ns > g->arrived_ns ? (now_ns - g->arrived_ns) / 1000000000u : 0,
    };
    pthread_mutex_lock(&g->lock);
    for (uint32_t i = 0; i < g->request.prompt_count; i++) row->prompt_done += g->parts[i].prompt_done;
    row->generated_tokens = g->said_tokens;
    row->state = g->said_tokens > 0 ? "decoding" : g->is_admitted ? "prefill" : "waiting";
    pthread_mutex_unlock(&g->lock);
}

void generation_tick(generation *g, uint64_t now_ns) {
    const api *a = g->api;
    uint64_t age_ms = now_ns > g->arrived_ns ? (now_ns - g->arrived_ns) / 1000000u : 0;
    uint64_t last_write_ns = atomic_load_explicit(&g->last_write_ns, memory_order_relaxed);
    pthread_mutex_lock(&g->lock);
    if (g->request.is_stream && now_ns > last_write_ns && now_ns - last_write_ns >= a->keep_alive_ms * 1000000u) {
        g->notes.is_keep_alive_due = true;
        atomic_store_explicit(&g->last_write_ns, now_ns, memory_order_relaxed);
    }
    if (a->request_timeout_ms > 0 && age_ms >= a->request_timeout_ms) g->notes.timeout = TIMEOUT_REQUEST;
    else if (a->queue_timeout_ms > 0 && !g->is_admitted && age_ms >= a->queue_timeout_ms)
        g->notes.timeout = TIMEOUT_QUEUE;
    if (g->has_waiting_parts) g->notes.is_submit_due = true;
    if (generation_has_note(&g->notes)) generation_schedule(g);
    pthread_mutex_unlock(&g->lock);
}
