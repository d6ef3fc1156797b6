/* sharded_handover.c - rows that go to other nodes: which, where to, and the calls that handover.h asks for. */
#include <inttypes.h>
#include <string.h>

#include "attention-node/sharded_sequences.h"
#include "base/clock.h"
#include "base/log.h"

#define NS_PER_MS 1000000ull
#define LOOK_NS (100 * NS_PER_MS)      /* between two searches for work that found none */
#define RETRY_NS (1000 * NS_PER_MS)    /* for a row whose handover failed */
#define REFUSED_NS (30000 * NS_PER_MS) /* for one that cannot move */

static const handover_limits limits = {.poll_ns = 20 * NS_PER_MS,
                                       .switch_ns = 250 * NS_PER_MS,
                                       .pause_ns = 1000 * NS_PER_MS,
                                       .stall_ns = 15000 * NS_PER_MS,
                                       .lag_tokens = 2 * HD_BLOCK_TOKENS - 1,
                                       .lag_ns = 60 * NS_PER_MS};

/* ---- Who is concerned ---- */

static bool is_usable(const sharded *s, uint32_t node) {
    return s->nodes[node].attention != NULL && !s->nodes[node].is_lost;
}

static placement_row *row_of(shard_sequence *sequence, const shard_handover *h, uint32_t *index) {
    for (uint32_t i = 0; i < sequence->map.row_count; i++) {
        placement_row *row = &sequence->map.rows[i];
        if (row->heads.first != h->heads.first || row->ordinal != h->ordinal) continue;
        *index = i;
        return row;
    }
    return NULL;
}

static bool is_going_on(const sharded *s, uint64_t sequence, const placement_row *row) {
    for (uint32_t i = 0; i < SHARDED_HANDOVERS; i++) {
        const shard_handover *h = &s->handovers[i];
        if (h->state.state != HANDOVER_IDLE && h->sequence == sequence && h->heads.first == row->heads.first &&
            h->ordinal == row->ordinal)
            return true;
    }
    return false;
}

/* ---- Calls ---- */

static hd_status pull(sharded *s, const shard_sequence *sequence, const placement_row *row, const shard_handover *h,
                      uint64_t length, uint64_t *tokens, hd_error *error) {
    attention *to = s->nodes[h->to].attention;
    if (to->ops->sequence_pull == NULL || s->nodes[h->from].address[0] == '\0')
        return hd_error_set(error, HD_UNSUPPORTED, "these attention nodes cannot reach each other");
    attention_pull p = {.address = s->nodes[h->from].address,
                        .params = {.sequence = shard_name(sequence->name, row),
                                   .epoch = sequence->epoch,
                                   .tokens_max = sequence->tokens_max,
                                   .prompt_count = sequence->prompt_count,
                                   .variant = sequence->variant,
                                   .selection = sequence->has_selection ? sequence->selection : NULL,
                                   .first_position = row->first_position,
                                   .end_position = row->end_position},
                        .length = length,
                        .wait_ms = length > 0 ? (uint32_t)(limits.switch_ns / NS_PER_MS) : 0};
    memcpy(p.params.salt, sequence->salt, sizeof(p.params.salt));
    hd_status status = to->ops->sequence_pull(to, &p, tokens, error);
    if (status == HD_PEER_LOST && error->text[0] != '\0') /* the receiver's link, or that it has lost the source */
        return HD_PEER_LOST;
    return status;
}

static void close_at(sharded *s, uint32_t node, const shard_sequence *sequence, const placement_row *row) {
    if (!is_usable(s, node)) return;
    attention *a = s->nodes[node].attention;
    hd_status status = a->ops->sequence_close(a, shard_name(sequence->name, row), sequence->epoch, true, true);
    if (status == HD_PEER_LOST) sharded_lose(s, node, status);
}

static void log_end(const sharded *s, const shard_handover *h, const char *event, const char *reason) {
    char from[160], to[160], quoted[600];
    hd_log(HD_LOG_INFO, event,
           "sequence=%" PRIu64 " range=%u from=%s to=%s tokens=%" PRIu64 " switches=%" PRIu64 " reason=%s", h->sequence,
           h->ordinal, hd_log_quote(s->nodes[h->from].name, from, sizeof(from)),
           hd_log_quote(s->nodes[h->to].name, to, sizeof(to)), h->state.tokens, h->state.switches,
           hd_log_quote(reason, quoted, sizeof(quoted)));
}

static void adopt(sharded *s, shard_sequence *sequence, shard_handover *h, uint32_t row_index) {
    placement_row row = sequence->map.rows[row_index];
    if (h->is_move) {
        placement_move(&sequence->map, row_index, h->from, h->to);
        close_at(s, h->from, sequence, &row);
        s->moves.moved++;
    } else {
        placement_add(&sequence->map, row_index, h->to);
        s->moves.repaired++;
    }
    log_end(s, h, h->is_move ? "row_moved" : "row_replicated", "");
    handover_adopted(&h->state);
    s->handovers_ns = 0;
}

/* The receiver forgets what has come, if it can be told. */
static void end(sharded *s, shard_handover *h, const shard_sequence *sequence, const placement_row *row) {
    if (sequence != NULL && row != NULL) close_at(s, h->to, sequence, row);
    s->moves.failed++;
    log_end(s, h, "handover_ended", hd_status_text(h->state.why));
    handover_ended(&h->state);
}

static void ask(sharded *s, shard_sequence *sequence, const placement_row *row, shard_handover *h, uint64_t length) {
    uint64_t tokens = 0, start = hd_now_ns();
    hd_error error = {.text = ""};
    hd_status status = pull(s, sequence, row, h, length, &tokens, &error);
    uint64_t now = hd_now_ns();
    if (length > 0 && now - start > s->moves.longest_ns) s->moves.longest_ns = now - start;
    if (status != HD_OK && status != HD_PENDING) {
        sequence->move_ns = now + (status == HD_UNSUPPORTED ? REFUSED_NS : RETRY_NS);
        char to[160], quoted[600];
        hd_log(HD_LOG_WARN, "handover_refused", "sequence=%" PRIu64 " to=%s status=%s reason=%s", sequence->name,
               hd_log_quote(s->nodes[h->to].name, to, sizeof(to)), hd_status_name(status),
               hd_log_quote(error.text, quoted, sizeof(quoted)));
    }
    handover_answered(&h->state, status, tokens > row->first_position ? tokens - row->first_position : 0, now);
}

/* What the receiver is to have of the row: positions that the sequence has in it. */
static hd_status length_at(sharded *s, const shard_handover *h, const shard_sequence *sequence,
                           const placement_row *row, uint64_t *length) {
    attention *from = s->nodes[h->from].attention;
    hd_status status = from->ops->sequence_length(from, shard_name(sequence->name, row), length);
    if (status == HD_PEER_LOST) sharded_lose(s, h->from, status);
    return status;
}

/* ---- One that goes on ---- */

static void check(sharded *s, shard_handover *h, const shard_sequence *sequence, const placement_row *row) {
    bool is_there = sequence != NULL && !sequence->is_broken && row != NULL && placement_row_has(row, h->from);
    if (!is_there || !is_usable(s, h->from)) handover_cancel(&h->state, HD_PEER_LOST);
    else if (!is_usable(s, h->to)) handover_cancel(&h->state, HD_PEER_LOST);
    else if (s->nodes[h->to].is_draining || (h->is_move && !s->nodes[h->from].is_leaving))
        handover_cancel(&h->state, HD_CANCELLED);
}

static bool is_behind_another(const sharded *s, const shard_handover *h) {
    for (uint32_t i = 0; i < SHARDED_HANDOVERS; i++) {
        const shard_handover *other = &s->handovers[i];
        if (other->state.state != HANDOVER_IDLE && other->to == h->to && other->number < h->number) return true;
    }
    return false;
}

static void tend_one(sharded *s, shard_handover *h) {
    shard_sequence *sequence = sharded_find(s, h->sequence);
    uint32_t index = 0;
    const placement_row *row = sequence != NULL ? row_of(sequence, h, &index) : NULL;
    check(s, h, sequence, row);
    bool is_copying = h->state.state == HANDOVER_COPYING;
    if (is_copying && hd_now_ns() < h->state.next_ns) return;
    uint64_t length = 0;
    if (is_copying && length_at(s, h, sequence, row, &length) != HD_OK) return;
    uint64_t place = row != NULL && length > row->first_position ? length - row->first_position : 0;
    if (is_behind_another(s, h)) handover_waited(&h->state, hd_now_ns());
    switch (handover_next(&h->state, place, hd_now_ns())) {
    case HANDOVER_WAIT: return;
    case HANDOVER_ASK: ask(s, sequence, row, h, 0); return;
    case HANDOVER_SWITCH:
        ask(s, sequence, row, h, length);
        if (h->state.state == HANDOVER_ADOPTING) adopt(s, sequence, h, index);
        return;
    case HANDOVER_ADOPT: adopt(s, sequence, h, index); return;
    case HANDOVER_END: end(s, h, sequence, row); return;
    }
}

/* ---- What begins ---- */

static uint64_t free_tokens(const sharded *s, uint32_t node) {
    attention_stats stats;
    s->nodes[node].attention->ops->stats(s->nodes[node].attention, &stats);
    uint64_t taken = stats.blocks_sequences + stats.blocks_reserved;
    return stats.blocks_total > taken ? (stats.blocks_total - taken) * HD_BLOCK_TOKENS : 0;
}

static uint32_t rows_on(const shard_sequence *sequence, uint32_t node) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < sequence->map.row_count; i++) count += placement_row_has(&sequence->map.rows[i], node);
    return count;
}

/* The node of the lane with most room; UINT32_MAX: none has enough. */
static uint32_t find_receiver(const sharded *s, const shard_sequence *sequence, const placement_row *row) {
    uint64_t end = placement_row_is_whole(row) || row->end_position > sequence->tokens_max ? sequence->tokens_max
                                                                                           : row->end_position;
    uint64_t needed = end > row->first_position ? end - row->first_position : 0, most = 0;
    uint32_t best = UINT32_MAX;
    for (uint32_t i = 0; i < s->node_count; i++) {
        const shard_node *node = &s->nodes[i];
        bool is_candidate = is_usable(s, i) && !node->is_draining && !node->is_stage &&
                            node->heads.first == row->heads.first && node->heads.count == row->heads.count &&
                            !placement_row_has(row, i) && rows_on(sequence, i) < PLACEMENT_SHARE_MAX;
        uint64_t room = is_candidate ? free_tokens(s, i) : 0;
        if (!is_candidate || room < needed || (best != UINT32_MAX && room <= most)) continue;
        best = i;
        most = room;
    }
    return best;
}

static uint32_t leaving_node(const sharded *s, const placement_row *row) {
    for (uint32_t i = 0; i < row->node_count; i++) {
        if (is_usable(s, row->nodes[i]) && s->nodes[row->nodes[i]].is_leaving) return row->nodes[i];
    }
    return UINT32_MAX;
}

/* Nobody has the room for one more, but another node that stays has it all. */
static bool leave(sharded *s, shard_sequence *sequence, uint32_t row_index, uint32_t node) {
    const placement_row row = sequence->map.rows[row_index];
    bool has_other = false;
    for (uint32_t i = 0; i < row.node_count; i++)
        has_other = has_other || (is_usable(s, row.nodes[i]) && !s->nodes[row.nodes[i]].is_draining);
    if (!has_other || !placement_drop_from(&sequence->map, row_index, node)) return false;
    close_at(s, node, sequence, &row);
    return true;
}

static bool begin_row(sharded *s, shard_sequence *sequence, uint32_t row_index, shard_handover *h) {
    const placement_row *row = &sequence->map.rows[row_index];
    uint32_t leaving = leaving_node(s, row);
    bool is_move = leaving != UINT32_MAX, lacks = row->node_count < s->config.replicas;
    if (row->node_count == 0 || (!is_move && !lacks) || is_going_on(s, sequence->name, row)) return false;
    uint32_t to = find_receiver(s, sequence, row);
    if (to == UINT32_MAX) {
        if (is_move) leave(s, sequence, row_index, leaving);
        return false;
    }
    *h = (shard_handover){.number = ++s->handovers_begun,
                          .sequence = sequence->name,
                          .heads = row->heads,
                          .ordinal = row->ordinal,
                          .from = is_move ? leaving : row->nodes[0],
                          .to = to,
                          .is_move = is_move};
    handover_begin(&h->state, &limits, hd_now_ns());
    return true;
}

static bool begin_any(sharded *s, shard_handover *h, uint64_t now_ns) {
    for (uint32_t i = 0; i < s->config.sequences_max; i++) {
        shard_sequence *sequence = &s->sequences[i];
        /* A staged prompt's rows wait until it is there. */
        bool is_waiting = now_ns < sequence->move_ns || sequence->staged_end != 0;
        if (!sequence->is_open || sequence->is_broken || is_waiting) continue;
        for (uint32_t row = 0; row < sequence->map.row_count; row++) {
            if (begin_row(s, sequence, row, h)) return true;
        }
    }
    return false;
}

/* Views of the home have steps of their own, which all have ended when the home's next one begins. */
static bool is_between_steps(const sharded *s) {
    if (s->home != s || s->step.is_open) return false;
    for (uint32_t i = 0; i < SHARDED_VIEWS_MAX; i++) {
        if (s->views[i] != NULL && s->views[i]->step.is_open) return false;
    }
    return true;
}

void sharded_tend_handovers(sharded *s) {
    if (!is_between_steps(s)) return;
    for (uint32_t i = 0; i < SHARDED_HANDOVERS; i++) {
        shard_handover *h = &s->handovers[i];
        if (h->state.state != HANDOVER_IDLE) tend_one(s, h);
    }
    uint64_t now = hd_now_ns();
    if (now < s->handovers_ns) return;
    for (uint32_t i = 0; i < SHARDED_HANDOVERS; i++) {
        shard_handover *h = &s->handovers[i];
        if (h->state.state != HANDOVER_IDLE) continue;
        if (begin_any(s, h, now)) tend_one(s, h);
        else s->handovers_ns = now + LOOK_NS;
    }
}

void sharded_stop_handovers(sharded *s, uint64_t name) {
    for (uint32_t i = 0; i < SHARDED_HANDOVERS; i++) {
        shard_handover *h = &s->handovers[i];
        if (h->state.state == HANDOVER_IDLE || h->sequence != name) continue;
        handover_cancel(&h->state, HD_CANCELLED);
        tend_one(s, h);
    }
}

void sharded_forget_node(sharded *s, uint32_t node) {
    for (uint32_t i = 0; i < SHARDED_HANDOVERS; i++) {
        shard_handover *h = &s->handovers[i];
        if (h->state.state == HANDOVER_IDLE || (h->from != node && h->to != node)) continue;
        handover_cancel(&h->state, HD_PEER_LOST);
        tend_one(s, h);
    }
}
