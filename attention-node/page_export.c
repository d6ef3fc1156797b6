/* page_export.c - the side that has the blocks: looks, holds, and pages lent to the wire where they lie. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention-node/mover_state.h"
#include "base/log.h"
#include "base/memory.h"

static void end_export(page_export *x) {
    x->is_ended = true;
    if (x->link != NULL) x->link->owner->ops->disconnect(x->link);
    x->link = NULL;
    mover_tell(x->mover);
}

static void cut(page_export *x, const char *reason) {
    char quoted[160];
    hd_log(HD_LOG_WARN, "pages_link_cut", "reason=%s", hd_log_quote(reason, quoted, sizeof(quoted)));
    end_export(x);
}

/* ---- Answers ---- */

static page_answer *take_answer(page_export *x) {
    for (uint32_t i = 0; i < MOVER_ANSWERS; i++) {
        page_answer *a = &x->answers[i];
        if (atomic_load_explicit(&a->send.is_out, memory_order_acquire)) continue;
        hd_free(a->room);
        a->room = NULL;
        return a;
    }
    return NULL;
}

static void send_answer(page_export *x, page_answer *a, uint16_t kind, uint64_t tag, hd_status status,
                        const char *sentence, const frame_part *parts, uint32_t part_count) {
    snprintf(a->sentence, sizeof(a->sentence), "%s", sentence);
    frame f = {.kind = (uint16_t)(kind | PAGES_ANSWER),
               .flags = (uint16_t)status,
               .tag = tag,
               .sequence = x->name,
               .part_count = 1 + part_count,
               .parts = {{a->sentence, strlen(a->sentence)}}};
    for (uint32_t i = 0; i < part_count; i++) f.parts[1 + i] = parts[i];
    if (x->link->owner->ops->send(x->link, &f, &a->send) != HD_OK) cut(x, "it takes no answers");
}

static void refuse(page_export *x, const frame *f, hd_status status, const char *sentence) {
    page_answer *a = take_answer(x);
    if (a == NULL) cut(x, "it asks for more than it takes");
    else send_answer(x, a, f->kind, f->tag, status, sentence, NULL, 0);
}

/* ---- HELLO ---- */

static hd_status check_hello(const page_mover *m, const frame *f, hd_error *error) {
    if (f->part_count < 1 || f->parts[0].count != sizeof(wire_pages_hello))
        return hd_error_set(error, HD_CORRUPT, "a HELLO without its part");
    wire_pages_hello other;
    memcpy(&other, f->parts[0].bytes, sizeof(other));
    const wire_pages_hello *own = &m->own;
    if (other.version_min > PAGES_WIRE_VERSION || other.version_max < PAGES_WIRE_VERSION_MIN) {
        return hd_error_set(error, HD_UNSUPPORTED,
                            "the attention node that fetches speaks versions %u to %u of pages, this one %u to %u",
                            other.version_min, other.version_max, PAGES_WIRE_VERSION_MIN, PAGES_WIRE_VERSION);
    }
    if (m->engine == NULL || memcmp(other.fingerprint, own->fingerprint, sizeof(own->fingerprint)) != 0)
        return hd_error_set(error, HD_INVALID, "this attention node keeps no keys and values of those weights");
    if (other.head_first != own->head_first || other.head_count != own->head_count) {
        return hd_error_set(error, HD_INVALID, "this attention node keeps KV heads %u to %u, not %u to %u",
                            own->head_first, own->head_first + own->head_count, other.head_first,
                            other.head_first + other.head_count);
    }
    if (other.kv_dtype != own->kv_dtype || other.unit_count != own->unit_count ||
        other.block_bytes != own->block_bytes || strncmp(other.kernels, own->kernels, sizeof(own->kernels)) != 0) {
        return hd_error_set(
            error, HD_INVALID,
            "this attention node keeps blocks of %llu bytes for kernels %.32s, the other one of %llu for "
            "%.32s",
            (unsigned long long)own->block_bytes, own->kernels, (unsigned long long)other.block_bytes, other.kernels);
    }
    return HD_OK;
}

static void run_hello(page_export *x, const frame *f) {
    hd_error error = {.text = ""};
    hd_status status = x->is_greeted ? HD_CORRUPT : check_hello(x->mover, f, &error);
    x->is_greeted = status == HD_OK;
    refuse(x, f, status, error.text);
}

/* ---- LOOK ---- */

static void run_look(page_export *x, const frame *f) {
    bool is_other = x->name != 0 && (x->name != f->sequence || x->epoch != f->epoch);
    if (is_other || x->is_asked || x->is_looked) {
        cut(x, "a link looks at one sequence, and once at a time");
        return;
    }
    x->name = f->sequence;
    x->epoch = f->epoch;
    x->is_asked = true;
    x->look_tag = f->tag;
    x->look_wanted = f->value;
    x->look_first = f->layer;
    mover_tell(x->mover);
}

static bool make_room(page_export *x, uint32_t count) {
    if (count <= x->room) return true;
    uint32_t room = count + count / 2 + 64;
    block_name *blocks = realloc(x->blocks, room * sizeof(*blocks));
    if (blocks != NULL) x->blocks = blocks;
    identity *chain = blocks != NULL ? realloc(x->chain, room * sizeof(*chain)) : NULL;
    if (chain != NULL) x->chain = chain;
    uint32_t *tokens = chain != NULL ? realloc(x->tokens, (size_t)room * HD_BLOCK_TOKENS * sizeof(*tokens)) : NULL;
    if (tokens == NULL) return false;
    x->tokens = tokens;
    x->room = room;
    return true;
}

static const identity *chain_before(const page_export *x, uint32_t block) {
    return block == 0 ? &x->root : &x->chain[block - 1];
}

static hd_status hold_new(page_export *x, uint32_t sealed) {
    if (!make_room(x, sealed)) return HD_NO_MEMORY;
    if (sealed > x->count) {
        engine_block_hold(x->mover->engine, x->name, x->count, sealed - x->count, x->blocks + x->count,
                          x->tokens + (size_t)x->count * HD_BLOCK_TOKENS);
    }
    for (; x->count < sealed; x->count++) {
        page_chain_block(chain_before(x, x->count), x->tokens + (size_t)x->count * HD_BLOCK_TOKENS, HD_BLOCK_TOKENS,
                         &x->chain[x->count]);
    }
    return HD_OK;
}

static hd_status copy_tail(page_export *x) {
    if (x->tail == NULL) x->tail = hd_alloc(engine_units_bytes(x->mover->engine), HD_CACHE_LINE);
    if (x->tail == NULL) return HD_NO_MEMORY;
    hd_status status = engine_block_copy_tail(x->mover->engine, x->name, x->tail_tokens, x->tail);
    if (status != HD_OK) return status;
    x->tail_count = x->look.length % HD_BLOCK_TOKENS;
    page_chain_block(chain_before(x, x->count), x->tail_tokens, x->tail_count, &x->tail_chain);
    x->has_tail = true;
    return HD_OK;
}

/* On the engine's thread. */
static hd_status look(page_export *x) {
    page_mover *m = x->mover;
    if (m->engine == NULL) return HD_NOT_FOUND;
    hd_status status = engine_block_look(m->engine, x->name, &x->look, &x->look_error);
    if (status != HD_OK) return status;
    if (x->look.epoch > x->epoch) return hd_error_set(&x->look_error, HD_STALE, "it has a newer owner");
    uint32_t sealed = (uint32_t)(x->look.length / HD_BLOCK_TOKENS);
    bool is_cut = sealed < x->count ||
                  (x->count > 0 && !engine_block_is_at(m->engine, x->name, x->count - 1, x->blocks[x->count - 1]));
    if (is_cut) return hd_error_set(&x->look_error, HD_STALE, "it has been cut meanwhile");
    page_chain_root(m->own.fingerprint, (hd_dtype)m->own.kv_dtype, &x->look.scope, &x->root);
    status = hold_new(x, sealed);
    x->has_tail = false;
    if (status == HD_OK && x->look.length == x->look_wanted) status = copy_tail(x);
    return status;
}

/* On the mover's thread, when the engine's has looked. */
static void answer_look(page_export *x) {
    page_answer *a = take_answer(x);
    x->is_looked = false;
    if (a == NULL) {
        cut(x, "it asks for more than it takes");
        return;
    }
    hd_status status = x->look_status;
    if (status == HD_OK && x->look_first > x->count) status = HD_STALE;
    uint32_t first = x->look_first, tail_count = x->has_tail ? x->tail_count : 0;
    size_t tokens = status == HD_OK ? (size_t)(x->count - first) * HD_BLOCK_TOKENS : 0;
    if (status == HD_OK) a->room = hd_alloc((tokens + tail_count + 1) * sizeof(uint32_t), HD_CACHE_LINE);
    if (status == HD_OK && a->room == NULL) status = HD_NO_MEMORY;
    if (status != HD_OK) {
        const char *why = x->look_error.text[0] != '\0' ? x->look_error.text : hd_status_text(status);
        send_answer(x, a, PAGES_LOOK, x->look_tag, status, why, NULL, 0);
        return;
    }
    uint32_t *copy = a->room;
    memcpy(copy, x->tokens + (size_t)first * HD_BLOCK_TOKENS, tokens * sizeof(*copy));
    memcpy(copy + tokens, x->tail_tokens, tail_count * sizeof(*copy));
    a->look = (wire_look){.length = x->look.length,
                          .first_position = x->look.first_position,
                          .end_position = x->look.end_position,
                          .prompt_count = x->look.prompt_count,
                          .variant = x->look.scope.variant,
                          .sealed = x->count,
                          .has_tail = x->has_tail,
                          .tail_count = tail_count,
                          .is_private = x->look.is_private,
                          .before = *chain_before(x, first)};
    memcpy(a->look.salt, x->look.scope.salt, sizeof(a->look.salt));
    memcpy(a->look.prefix, x->look.scope.prefix, sizeof(a->look.prefix));
    frame_part parts[3] = {
        {&a->look, sizeof(a->look)}, {copy, tokens * sizeof(*copy)}, {copy + tokens, tail_count * sizeof(*copy)}};
    send_answer(x, a, PAGES_LOOK, x->look_tag, HD_OK, "", parts, 3);
}

/* ---- READ ---- */

/* The tail is copied once more, since the next look writes over it; so is what lies on a disk. */
static hd_status find_pages(page_export *x, page_answer *a, const frame *f, frame_part *parts) {
    const attention *engine = x->mover->engine;
    page_mover *m = x->mover;
    bool is_tail = f->value == x->count;
    block_name block = is_tail ? BLOCK_NONE : x->blocks[f->value];
    uint32_t checksums = 0;
    unsigned char *room = NULL;
    uint64_t bytes = 0, skipped = 0;
    for (uint32_t i = 0; i < f->flags; i++) bytes += engine_unit_bytes(engine, f->layer + i);
    for (uint32_t i = 0; i < f->layer; i++) skipped += engine_unit_bytes(engine, i);
    if (is_tail || engine_has_cold(engine)) room = a->room = hd_alloc(bytes, HD_CACHE_LINE);
    if (room == NULL && (is_tail || engine_has_cold(engine))) return HD_NO_MEMORY;
    if (is_tail) memcpy(room, x->tail + skipped, bytes);
    a->piece.chain = is_tail ? x->tail_chain : x->chain[f->value];
    mover_begin_work(m);
    hd_status status = HD_OK;
    for (uint32_t i = 0; i < f->flags && status == HD_OK; i++) {
        uint32_t unit = f->layer + i;
        const void *page = room;
        if (!is_tail) status = engine_block_page(engine, block, unit, room, &page);
        if (status != HD_OK) break;
        uint64_t *to = a->checksums + checksums;
        checksums += is_tail ? engine_page_checksums(engine, unit, page, to)
                             : engine_block_checksums(engine, block, unit, page, to);
        parts[2 + i] = (frame_part){page, engine_unit_bytes(engine, unit)};
        if (room != NULL) room += parts[2 + i].count;
    }
    mover_end_work(m);
    if (status != HD_OK) return status;
    parts[0] = (frame_part){&a->piece, sizeof(a->piece)};
    parts[1] = (frame_part){a->checksums, checksums * sizeof(uint64_t)};
    atomic_fetch_add_explicit(&m->bytes_out, bytes, memory_order_relaxed);
    return HD_OK;
}

static void run_read(page_export *x, const frame *f) {
    const page_mover *m = x->mover;
    bool is_there = f->value < x->count || (x->has_tail && x->tail_count > 0 && f->value == x->count);
    bool is_piece = f->flags > 0 && f->flags <= PAGES_UNITS_MAX && f->layer < m->own.unit_count &&
                    f->flags <= m->own.unit_count - f->layer;
    if (x->name != f->sequence || !is_piece) {
        cut(x, "it reads what is no piece of a block of its sequence");
        return;
    }
    page_answer *a = take_answer(x);
    if (a == NULL) {
        cut(x, "it asks for more than it takes");
        return;
    }
    frame_part parts[2 + PAGES_UNITS_MAX];
    hd_status status = is_there ? find_pages(x, a, f, parts) : HD_STALE;
    send_answer(x, a, PAGES_READ, f->tag, status, status == HD_OK ? "" : hd_status_text(status), parts,
                status == HD_OK ? 2u + f->flags : 0);
}

/* ---- The link ---- */

static void on_frame(void *context, transport_link *link, const frame *f) {
    page_export *x = context;
    pthread_mutex_lock(&x->mover->lock);
    if (x->is_ended) {
    } else if (f->kind == PAGES_HELLO) {
        run_hello(x, f);
    } else if (!x->is_greeted || x->mover->engine == NULL) {
        cut(x, "a link begins with a HELLO that fits");
    } else if (f->kind == PAGES_LOOK) {
        run_look(x, f);
    } else if (f->kind == PAGES_READ) {
        run_read(x, f);
    } else {
        refuse(x, f, HD_UNSUPPORTED, "a call that this version does not know");
    }
    pthread_mutex_unlock(&x->mover->lock);
}

static void on_lost(void *context, transport_link *link, hd_status status, const char *reason) {
    page_export *x = context;
    pthread_mutex_lock(&x->mover->lock);
    if (!x->is_ended) end_export(x);
    pthread_mutex_unlock(&x->mover->lock);
}

hd_status page_mover_accept(void *context, transport_link *link, transport_handlers *handlers, void **out) {
    page_mover *m = context;
    page_export *x = hd_alloc_zeroed(sizeof(*x), HD_CACHE_LINE);
    if (x != NULL) x->answers = hd_alloc_zeroed(MOVER_ANSWERS * sizeof(*x->answers), HD_CACHE_LINE);
    if (x == NULL || x->answers == NULL) {
        hd_free(x);
        return HD_NO_MEMORY;
    }
    x->mover = m;
    x->link = link;
    pthread_mutex_lock(&m->lock);
    x->next = m->exports;
    m->exports = x;
    pthread_mutex_unlock(&m->lock);
    atomic_fetch_add(&m->links, 1);
    *handlers = (transport_handlers){.on_frame = on_frame, .on_lost = on_lost};
    *out = x;
    return HD_OK;
}

static bool has_answers_out(const page_export *x) {
    for (uint32_t i = 0; i < MOVER_ANSWERS; i++) {
        if (atomic_load_explicit(&x->answers[i].send.is_out, memory_order_acquire)) return true;
    }
    return false;
}

bool page_export_drive(page_export *x) {
    if (x->is_looked && !x->is_ended) answer_look(x);
    if (!x->is_ended) return false;
    if (x->link != NULL) end_export(x);
    if (x->count > 0) mover_tell(x->mover); /* once more, until what was lent has been given back */
    return x->count == 0 && !has_answers_out(x);
}

/* Blocks whose pages are still on their way stay held. */
void page_export_tend(page_export *x) {
    if (x->is_ended) {
        if (x->count == 0 || has_answers_out(x)) return;
        for (uint32_t i = x->count; i-- > 0;) engine_block_release(x->mover->engine, x->blocks[i]);
        x->count = 0;
    } else if (x->is_asked) {
        x->look_error.text[0] = '\0';
        x->look_status = look(x);
        x->is_asked = false;
        x->is_looked = true;
    }
}

void page_export_free(page_export *x) {
    assert(x->count == 0);
    atomic_fetch_sub(&x->mover->links, 1);
    for (uint32_t i = 0; i < MOVER_ANSWERS; i++) hd_free(x->answers[i].room);
    hd_free(x->answers);
    hd_free(x->tail);
    free(x->blocks);
    free(x->chain);
    free(x->tokens);
    hd_free(x);
}
