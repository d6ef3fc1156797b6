/* page_import.c - the side that fetches: one sequence over one link, looked at, opened, copied, switched to. */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention-node/mover_state.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"

#define RELINK_NS 50000000ull
#define LOOK_BLOCKS 4u /* that are still to be asked for: time to learn of more */
#define PIECES_IN_WINDOW 8u
#define PIECE_BYTES_LEAST ((uint64_t)128 << 10)

/* ---- Failing ---- */

static void drop_link(page_import *x) {
    if (x->link != NULL) x->link->owner->ops->disconnect(x->link);
    x->link = NULL;
    x->is_greeted = x->has_looked = x->is_looking = false;
    x->asked_first = x->asked_end;
    copy_window_gave_up(&x->mover->window, x->bytes_out);
    x->bytes_out = 0;
}

static void fail(page_import *x, hd_status status, const char *reason) {
    if (x->state == IMPORT_FAILED || x->state == IMPORT_OVER) return;
    if (status == HD_PENDING) status = HD_CORRUPT; /* what refuses does not go on, and the owner would wait for it */
    char quoted[600];
    hd_log(HD_LOG_WARN, "pull_failed", "sequence=%" PRIu64 " from=%s status=%s reason=%s", x->params.sequence,
           x->address, hd_status_name(status), hd_log_quote(reason, quoted, sizeof(quoted)));
    x->state = IMPORT_FAILED;
    x->status = status;
    hd_error_write(&x->error, "%s", reason);
    mover_tell(x->mover);
}

/* ---- Calls ---- */

static void send_call(page_import *x, frame *f, transport_send *send) {
    f->sequence = x->params.sequence;
    f->epoch = x->params.epoch;
    if (x->link->owner->ops->send(x->link, f, send) != HD_OK) fail(x, HD_PEER_LOST, "the other node takes no calls");
}

static void say_hello(page_import *x) {
    x->hello = x->mover->own;
    frame f = {.kind = PAGES_HELLO, .part_count = 1, .parts = {{&x->hello, sizeof(x->hello)}}};
    send_call(x, &f, &x->call);
}

static void send_look(page_import *x, uint64_t now_ns) {
    x->is_looking = true;
    x->look_ns = now_ns + MOVER_LOOK_NS;
    frame f = {.kind = PAGES_LOOK, .layer = (uint32_t)x->known, .value = x->has_wanted ? x->wanted : UINT64_MAX};
    send_call(x, &f, &x->call);
}

static uint64_t piece_bytes(const page_import *x, const block_piece *piece) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < piece->unit_count; i++)
        bytes += engine_unit_bytes(x->mover->engine, piece->first_unit + i);
    return bytes;
}

/* Somebody stands still until another pull has everything. */
static bool gives_way(const page_import *x) {
    for (const page_import *other = x->mover->imports; other != NULL && !x->has_wanted; other = other->next) {
        if (other->has_wanted && other->state == IMPORT_COPYING) return true;
    }
    return false;
}

/* Every message costs both sides some work, but one has to be a small part of what is under way. */
static uint32_t piece_units(const page_mover *m) {
    uint64_t units = m->window.bytes / PIECES_IN_WINDOW / m->unit_bytes_max;
    uint64_t least = PIECE_BYTES_LEAST / m->unit_bytes_max;
    if (units < least) units = least;
    return units < 1 ? 1 : units > PAGES_UNITS_MAX ? PAGES_UNITS_MAX : (uint32_t)units;
}

static void ask_pieces(page_import *x) {
    block_piece piece;
    copy_window *window = &x->mover->window;
    if (gives_way(x)) return;
    x->copy.piece_units = piece_units(x->mover);
    uint64_t bytes_max = x->copy.piece_units * x->mover->unit_bytes_max;
    while (x->state == IMPORT_COPYING && copy_window_has_room(window, bytes_max) &&
           x->asked_end - x->asked_first < MOVER_ASKED_MAX) {
        page_asked *asked = &x->asked[x->asked_end % MOVER_ASKED_MAX];
        bool is_out = atomic_load_explicit(&asked->send.is_out, memory_order_acquire);
        if (is_out || !block_copy_ask(&x->copy, &piece)) return;
        asked->piece = piece;
        asked->bytes = piece_bytes(x, &piece);
        asked->asked_ns = hd_now_ns();
        copy_window_asked(window, asked->bytes);
        x->bytes_out += asked->bytes;
        frame f = {.kind = PAGES_READ,
                   .flags = (uint16_t)piece.unit_count,
                   .layer = piece.first_unit,
                   .tag = x->asked_end++,
                   .value = piece.block};
        send_call(x, &f, &asked->send);
    }
}

void page_import_ask_all(page_mover *m) {
    for (page_import *x = m->imports; x != NULL; x = x->next) {
        bool is_ready = x->state == IMPORT_COPYING && x->link != NULL && x->is_greeted && x->has_looked;
        if (is_ready && !x->needs_rollback) ask_pieces(x);
    }
}

/* ---- What the source has ---- */

static const identity *chain_before(const page_import *x, uint64_t block) {
    return block == 0 ? &x->root : &x->chain[block - 1];
}

static bool know_blocks(page_import *x, const uint32_t *tokens, uint64_t count) {
    if (x->known + count > x->known_room) {
        uint64_t room = x->known + count + count / 2 + 64;
        uint32_t *all = realloc(x->tokens, room * HD_BLOCK_TOKENS * sizeof(*all));
        if (all != NULL) x->tokens = all;
        identity *chain = all != NULL ? realloc(x->chain, room * sizeof(*chain)) : NULL;
        if (chain == NULL) return false;
        x->chain = chain;
        x->known_room = room;
    }
    memcpy(x->tokens + x->known * HD_BLOCK_TOKENS, tokens, count * HD_BLOCK_TOKENS * sizeof(*tokens));
    for (uint64_t end = x->known + count; x->known < end; x->known++) {
        page_chain_block(chain_before(x, x->known), x->tokens + x->known * HD_BLOCK_TOKENS, HD_BLOCK_TOKENS,
                         &x->chain[x->known]);
    }
    return true;
}

static void set_end(page_import *x) {
    x->copy.end = x->known + (x->has_tail && x->tail_count > 0 ? 1 : 0);
}

/* A tail that was fetched before is one of another length. */
static void take_tail(page_import *x, const uint32_t *tokens) {
    x->needs_rollback = x->needs_rollback || x->has_tail;
    x->has_tail = x->look.has_tail != 0 && x->has_wanted && x->look.length == x->wanted;
    x->tail_count = x->has_tail ? x->look.tail_count : 0;
    if (!x->has_tail) return;
    memcpy(x->tail_tokens, tokens, x->tail_count * sizeof(*tokens));
    page_chain_block(chain_before(x, x->known), x->tail_tokens, x->tail_count, &x->tail_chain);
    x->is_wanted_looked = true;
}

static bool is_look(const page_import *x, const frame *f) {
    if (f->part_count != 4 || f->parts[1].count != sizeof(wire_look)) return false;
    wire_look look;
    memcpy(&look, f->parts[1].bytes, sizeof(look));
    uint64_t block_bytes = HD_BLOCK_TOKENS * sizeof(uint32_t);
    return look.sealed >= x->known && f->parts[2].count % block_bytes == 0 &&
           f->parts[2].count / block_bytes == look.sealed - x->known && look.tail_count < HD_BLOCK_TOKENS &&
           f->parts[3].count == look.tail_count * sizeof(uint32_t) &&
           (look.has_tail == 0 || look.length == look.sealed * HD_BLOCK_TOKENS + look.tail_count);
}

static void take_look(page_import *x, const frame *f) {
    x->is_looking = false;
    if (f->flags != HD_OK || !is_look(x, f)) {
        char reason[300] = "a look that does not fit";
        if (f->flags != HD_OK && f->part_count > 0)
            snprintf(reason, sizeof(reason), "%.*s", (int)f->parts[0].count, (const char *)f->parts[0].bytes);
        fail(x, f->flags != HD_OK ? (hd_status)f->flags : HD_CORRUPT, reason);
        return;
    }
    memcpy(&x->look, f->parts[1].bytes, sizeof(x->look));
    identity_scope scope = {.variant = x->look.variant, .first_position = x->look.first_position};
    memcpy(scope.salt, x->look.salt, sizeof(scope.salt));
    memcpy(scope.prefix, x->look.prefix, sizeof(scope.prefix));
    page_chain_root(x->mover->own.fingerprint, (hd_dtype)x->mover->own.kv_dtype, &scope, &x->root);
    if (!identity_is_equal(&x->look.before, chain_before(x, x->known))) {
        fail(x, HD_STALE, "the sequence has other tokens than before");
        return;
    }
    if (!know_blocks(x, f->parts[2].bytes, x->look.sealed - x->known)) {
        fail(x, HD_NO_MEMORY, "no memory for the tokens of a sequence");
        return;
    }
    take_tail(x, f->parts[3].bytes);
    x->has_looked = true;
    if (x->state == IMPORT_LOOKING) x->state = IMPORT_OPENING;
    else set_end(x);
    mover_tell(x->mover);
}

/* ---- Pieces ---- */

static hd_status write_pages(page_import *x, const block_piece *piece, const frame *f) {
    const attention *engine = x->mover->engine;
    uint32_t block = x->grants[piece->block % MOVER_GRANTS], at = 0;
    const uint64_t *checksums = f->parts[2].bytes;
    hd_status status = HD_OK;
    mover_begin_work(x->mover);
    for (uint32_t i = 0; i < piece->unit_count && status == HD_OK; i++) {
        status = engine_import_page(engine, block, piece->first_unit + i, f->parts[3 + i].bytes, checksums + at);
        at += engine_unit_pages(engine, piece->first_unit + i);
    }
    mover_end_work(x->mover);
    return status;
}

static bool is_piece(const page_import *x, const block_piece *piece, const frame *f) {
    const attention *engine = x->mover->engine;
    if (f->part_count != 3 + piece->unit_count || f->parts[1].count != sizeof(wire_piece)) return false;
    uint32_t pages = 0;
    for (uint32_t i = 0; i < piece->unit_count; i++) {
        pages += engine_unit_pages(engine, piece->first_unit + i);
        if (f->parts[3 + i].count != engine_unit_bytes(engine, piece->first_unit + i)) return false;
    }
    return f->parts[2].count == pages * sizeof(uint64_t);
}

static void take_piece(page_import *x, const frame *f) {
    page_asked *asked = &x->asked[x->asked_first % MOVER_ASKED_MAX];
    if (x->asked_first == x->asked_end || f->tag != x->asked_first) {
        fail(x, HD_CORRUPT, "a piece that was not asked for");
        return;
    }
    uint64_t now = hd_now_ns();
    x->asked_first++;
    copy_window_came(&x->mover->window, asked->bytes, now - asked->asked_ns, now);
    x->bytes_out -= asked->bytes;
    if (x->state != IMPORT_COPYING || block_copy_check(&x->copy, &asked->piece) == HD_STALE) return;
    const block_piece piece = asked->piece;
    hd_status status = (hd_status)f->flags;
    if (status == HD_OK && !is_piece(x, &piece, f)) status = HD_CORRUPT;
    const identity *chain = piece.block < x->known ? &x->chain[piece.block] : &x->tail_chain;
    if (status == HD_OK && memcmp(f->parts[1].bytes, chain, sizeof(*chain)) != 0) status = HD_CORRUPT;
    if (status == HD_OK) status = write_pages(x, &piece, f);
    if (status == HD_OK) status = block_copy_come(&x->copy, &piece);
    if (status != HD_OK) {
        char reason[160];
        snprintf(reason, sizeof(reason), "block %" PRIu64 ", page %u: %s", piece.block, piece.first_unit,
                 hd_status_text(status));
        fail(x, status, reason);
        return;
    }
    atomic_fetch_add_explicit(&x->mover->bytes_in, asked->bytes, memory_order_relaxed);
    x->bytes += asked->bytes;
    if (x->copy.come_unit == 0) mover_tell(x->mover);
    page_import_ask_all(x->mover);
}

/* ---- The link ---- */

static void on_frame(void *context, transport_link *link, const frame *f) {
    page_import *x = context;
    pthread_mutex_lock(&x->mover->lock);
    if (x->state == IMPORT_FAILED || x->state == IMPORT_OVER || f->flags >= HD_STATUS_COUNT) {
    } else if (f->kind == (PAGES_HELLO | PAGES_ANSWER)) {
        char reason[300] = "";
        if (f->part_count > 0)
            snprintf(reason, sizeof(reason), "%.*s", (int)f->parts[0].count, (const char *)f->parts[0].bytes);
        if (f->flags != HD_OK) fail(x, (hd_status)f->flags, reason);
        else x->is_greeted = true;
    } else if (f->kind == (PAGES_LOOK | PAGES_ANSWER) && x->is_looking) {
        take_look(x, f);
    } else if (f->kind == (PAGES_READ | PAGES_ANSWER)) {
        take_piece(x, f);
    } else {
        fail(x, HD_CORRUPT, "an answer to nothing that was asked");
    }
    pthread_mutex_unlock(&x->mover->lock);
}

/* Whole blocks stay, and the rest is asked for again. */
static void on_lost(void *context, transport_link *link, hd_status status, const char *reason) {
    page_import *x = context;
    pthread_mutex_lock(&x->mover->lock);
    if (x->relinks == MOVER_RELINKS) fail(x, status, reason);
    drop_link(x);
    x->relinks++;
    x->link_ns = hd_now_ns() + RELINK_NS * x->relinks;
    x->is_wanted_looked = false;
    if (x->state == IMPORT_COPYING) block_copy_restart(&x->copy, block_copy_whole(&x->copy));
    pthread_mutex_unlock(&x->mover->lock);
}

static void connect_link(page_import *x) {
    static const transport_handlers handlers = {.on_frame = on_frame, .on_lost = on_lost};
    transport *t = x->mover->config.transport;
    hd_error error = {.text = ""};
    hd_status status = t->ops->connect(t, x->address, "pages", &handlers, x, &x->link, &error);
    if (status == HD_OK) say_hello(x);
    else fail(x, status, error.text);
}

static bool is_anything_out(const page_import *x) {
    bool is_out = atomic_load_explicit(&x->call.is_out, memory_order_acquire);
    for (uint32_t i = 0; i < MOVER_ASKED_MAX && !is_out; i++)
        is_out = atomic_load_explicit(&x->asked[i].send.is_out, memory_order_acquire);
    return is_out;
}

/* With a look now and then it is known how much there is to fetch; the switch asks for one at once. */
static bool wants_look(const page_import *x, uint64_t now_ns) {
    if (x->is_looking || x->state == IMPORT_OPENING) return false;
    if (!x->has_looked) return true;
    if (x->has_wanted) return !x->is_wanted_looked && now_ns >= x->look_ns - MOVER_LOOK_NS + MOVER_LOOK_NS / 10;
    return now_ns >= x->look_ns && x->copy.ask_block + LOOK_BLOCKS >= x->copy.end;
}

bool page_import_drive(page_import *x) {
    if (x->state == IMPORT_FAILED || x->state == IMPORT_OVER) {
        drop_link(x);
        return x->state == IMPORT_OVER && !is_anything_out(x);
    }
    uint64_t now = hd_now_ns();
    bool is_call_out = atomic_load_explicit(&x->call.is_out, memory_order_acquire);
    if (x->link == NULL && !is_call_out && now >= x->link_ns) connect_link(x);
    if (x->link == NULL || !x->is_greeted) return false;
    if (!is_call_out && wants_look(x, now)) send_look(x, now);
    return false;
}

void page_import_free(page_import *x) {
    atomic_fetch_sub(&x->mover->pulls, 1);
    hd_free(x->asked);
    free(x->tokens);
    free(x->chain);
    hd_free(x);
}

/* ---- The engine's thread ---- */

static void close_sequence(page_import *x) {
    if (!x->is_open) return;
    attention *engine = x->mover->engine;
    (void)engine->ops->sequence_close(engine, x->params.sequence, x->params.epoch, true, true);
    x->is_open = false;
}

void page_import_end(page_import *x) {
    if (x->state == IMPORT_OVER) return;
    mover_await_work(x->mover);
    close_sequence(x);
    x->state = IMPORT_OVER;
    mover_tell(x->mover); /* the next one's turn */
}

static hd_status check_same(const page_import *x, hd_error *error) {
    const attention_sequence_params *p = &x->params;
    selection chosen;
    hd_status status = selection_parse(p->selection, &chosen, error);
    if (status != HD_OK) return status;
    bool is_same = memcmp(p->salt, x->look.salt, sizeof(p->salt)) == 0 && p->variant == x->look.variant &&
                   p->first_position == x->look.first_position && p->end_position == x->look.end_position &&
                   (selection_is_full(&chosen) || p->prompt_count == x->look.prompt_count);
    if (is_same) return HD_OK;
    return hd_error_set(error, HD_INVALID,
                        "the other node has sequence %" PRIu64 " with another salt, variant or range", p->sequence);
}

static void open_sequence(page_import *x) {
    attention *engine = x->mover->engine;
    hd_error error = {.text = ""};
    attention_sequence_params params = x->params;
    params.token_ids = x->tokens;
    params.token_count = params.reuse_max = x->known * HD_BLOCK_TOKENS;
    params.prompt_count = x->look.prompt_count;
    params.has_prefix = params.first_position > 0 && x->look.is_private == 0;
    memcpy(params.prefix, x->look.prefix, sizeof(params.prefix));
    hd_status status = check_same(x, &error);
    if (status == HD_OK) status = engine_import_open(engine, &params, &x->committed, &error);
    if (status != HD_OK) {
        fail(x, status, error.text);
        return;
    }
    x->is_open = true;
    x->state = IMPORT_COPYING;
    block_copy_init(&x->copy, x->mover->own.unit_count, piece_units(x->mover), x->committed);
    set_end(x);
}

static void commit_whole(page_import *x) {
    uint64_t whole = block_copy_whole(&x->copy) < x->known ? block_copy_whole(&x->copy) : x->known;
    if (whole <= x->committed) return;
    engine_import_commit(x->mover->engine, x->params.sequence, (uint32_t)(whole - x->committed));
    x->committed = whole;
}

static void grant(page_import *x) {
    while (x->copy.granted < x->copy.end && x->copy.granted < x->committed + x->mover->grants) {
        uint64_t block = x->copy.granted;
        bool is_tail = block == x->known;
        hd_status status = engine_import_extend(
            x->mover->engine, x->params.sequence, is_tail ? x->tail_tokens : x->tokens + block * HD_BLOCK_TOKENS,
            is_tail ? x->tail_count : HD_BLOCK_TOKENS, &x->grants[block % MOVER_GRANTS]);
        if (status != HD_OK) {
            fail(x, status, "no memory for a block that was promised");
            return;
        }
        x->copy.granted++;
    }
}

/* Two copy at once. The others have looked, and open when the one before them has what the source had: what it shares
 * with them is here then, and does not cross twice. */
static bool is_its_turn(const page_import *x) {
    uint32_t elder = 0;
    for (const page_import *other = x->mover->imports; other != x; other = other->next) {
        bool is_beginning = other->state == IMPORT_LOOKING || other->state == IMPORT_OPENING;
        bool is_copying = other->state == IMPORT_COPYING && other->committed < other->known;
        elder += is_beginning || is_copying;
    }
    return elder < MOVER_COPIES;
}

void page_import_tend(page_import *x) {
    if (x->state == IMPORT_OPENING && is_its_turn(x)) open_sequence(x);
    if (x->state == IMPORT_FAILED) close_sequence(x);
    if (x->state != IMPORT_COPYING) return;
    if (x->needs_rollback) {
        mover_await_work(x->mover);
        uint64_t whole = x->committed;
        engine_import_rollback(x->mover->engine, x->params.sequence);
        x->copy.granted = whole;
        block_copy_restart(&x->copy, whole);
        set_end(x);
        x->needs_rollback = false;
    }
    commit_whole(x);
    grant(x);
}

static bool has_everything(const page_import *x) {
    return x->state == IMPORT_COPYING && x->has_wanted && x->is_wanted_looked && x->has_tail && !x->needs_rollback &&
           x->committed == x->known && block_copy_whole(&x->copy) == x->copy.end &&
           x->known * HD_BLOCK_TOKENS + x->tail_count == x->wanted;
}

hd_status page_import_pull(page_import *x, uint64_t wanted, bool has_wanted, uint64_t *tokens, hd_error *error) {
    if (x->has_wanted != has_wanted || x->wanted != wanted) x->is_wanted_looked = false;
    x->has_wanted = has_wanted;
    x->wanted = wanted;
    page_import_tend(x);
    *tokens = x->params.first_position + x->committed * HD_BLOCK_TOKENS;
    if (x->state == IMPORT_FAILED) {
        hd_status status = x->status;
        if (error != NULL) *error = x->error;
        page_import_end(x);
        return status;
    }
    if (!has_everything(x)) return HD_PENDING;
    attention *engine = x->mover->engine;
    if (x->tail_count > 0) engine_import_commit(engine, x->params.sequence, 1);
    engine_import_end(engine, x->params.sequence);
    hd_log(HD_LOG_INFO, "pulled", "sequence=%" PRIu64 " from=%s tokens=%" PRIu64 " bytes=%" PRIu64 " ms=%" PRIu64,
           x->params.sequence, x->address, x->wanted, x->bytes, (hd_now_ns() - x->begun_ns) / 1000000u);
    *tokens = x->params.first_position + x->wanted;
    x->is_open = false; /* it is the engine's alone */
    x->state = IMPORT_OVER;
    mover_tell(x->mover);
    return HD_OK;
}
