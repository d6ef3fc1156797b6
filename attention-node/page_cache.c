/* page_cache.c - slots, where each page is, and the reads that are out. */
#include "attention-node/page_cache.h"

#include <assert.h>
#include <sched.h>

#include "base/clock.h"

#define READS_MAX 256u     /* requests of up to 16 pages */
#define SPINS 200          /* looks at a page before sleeping: a few microseconds */
#define SLEEP_NS 20000000u /* at most, between two looks at the clock */
#define NO_ROUND UINT64_MAX

struct page_read {
    read_request request; /* first */
    page_cache *cache;
    uint32_t slots[READ_PARTS_MAX];
    _Atomic bool is_lent;
};

static uint64_t aligned(uint64_t bytes) {
    return HD_ALIGN_UP(bytes, (uint64_t)HD_CACHE_LINE);
}

uint64_t page_cache_table_bytes(uint32_t block_count, uint32_t unit_count, uint32_t slot_count) {
    return aligned(slot_count * sizeof(page_slot)) + aligned((uint64_t)block_count * unit_count * sizeof(uint32_t)) +
           2 * aligned(slot_count * sizeof(uint32_t)) + aligned(READS_MAX * sizeof(page_read)) +
           aligned(READS_MAX * sizeof(read_request *));
}

uint64_t page_cache_slot_bytes(const block_layout *layout) {
    uint64_t most = 0;
    for (uint32_t i = 0; i < layout->unit_count; i++) {
        if (layout->units[i].bytes > most) most = layout->units[i].bytes;
    }
    return most;
}

static uint32_t *place_of(const page_cache *c, uint32_t block, uint32_t unit) {
    return &c->places[(uint64_t)block * c->pool->layout.unit_count + unit];
}

bool page_cache_has(const page_cache *c, uint32_t block, uint32_t unit) {
    return *place_of(c, block, unit) != 0;
}

/* ---- Reads ---- */

static void end_read(read_request *request, hd_status status) {
    page_read *read = (page_read *)request;
    page_cache *c = read->cache;
    if (status != HD_OK) atomic_fetch_add_explicit(&c->read_errors, 1, memory_order_relaxed);
    for (uint32_t i = 0; i < request->part_count; i++) {
        atomic_store(&c->slots[read->slots[i]].state, status == HD_OK ? PAGE_READ : PAGE_LOST);
    }
    atomic_store(&read->is_lent, false);
    atomic_fetch_add_explicit(&c->reads_done, 1, memory_order_relaxed);
}

static page_read *take_read(page_cache *c) {
    for (uint32_t i = 0; i < READS_MAX; i++) {
        page_read *read = &c->reads[(c->next_read + i) % READS_MAX];
        if (atomic_load(&read->is_lent)) continue;
        c->next_read = (c->next_read + i + 1) % READS_MAX;
        atomic_store(&read->is_lent, true);
        read->request.part_count = 0;
        read->request.bytes = 0;
        return read;
    }
    return NULL;
}

/* The read that a page at this offset joins, or a new one; NULL when all are out. */
static page_read *read_for(page_cache *c, uint64_t offset) {
    page_read *last = c->batch_count > 0 ? (page_read *)c->batch[c->batch_count - 1] : NULL;
    if (last != NULL && last->request.part_count < READ_PARTS_MAX &&
        last->request.offset + last->request.bytes == offset)
        return last;
    page_read *read = take_read(c);
    if (read == NULL) return NULL;
    read->request.offset = offset;
    c->batch[c->batch_count++] = &read->request;
    return read;
}

static bool has_read(const page_cache *c, uint64_t offset) {
    const read_request *last = c->batch_count > 0 ? c->batch[c->batch_count - 1] : NULL;
    if (last != NULL && last->part_count < READ_PARTS_MAX && last->offset + last->bytes == offset) return true;
    for (uint32_t i = 0; i < READS_MAX; i++) {
        if (!atomic_load(&c->reads[(c->next_read + i) % READS_MAX].is_lent)) return true;
    }
    return false;
}

static void ask_for(page_cache *c, uint32_t slot) {
    page_slot *s = &c->slots[slot];
    page_read *read = read_for(c, cold_page_offset(&c->pool->layout, s->cold_slot, s->unit));
    assert(read != NULL);
    size_t bytes = (size_t)c->pool->layout.units[s->unit].bytes;
    read->request.parts[read->request.part_count] =
        (struct iovec){.iov_base = c->memory + slot * c->slot_bytes, .iov_len = bytes};
    read->slots[read->request.part_count++] = slot;
    read->request.bytes += bytes;
    s->read = (uint32_t)(read - c->reads);
    atomic_store(&s->state, PAGE_READING);
    atomic_fetch_add_explicit(&c->read_bytes, bytes, memory_order_relaxed);
}

void page_cache_submit(page_cache *c) {
    read_queue_submit(c->queue, c->batch, c->batch_count);
    c->batch_count = 0;
}

/* ---- Slots ---- */

static bool may_go(const page_cache *c, const page_slot *s) {
    return (s->round == NO_ROUND || s->round <= c->released) && atomic_load(&s->state) != PAGE_READING;
}

static uint32_t take_slot(page_cache *c) {
    if (c->fresh_count > 0) return c->slot_count - c->fresh_count--;
    while (c->spent_count > 0) {
        uint32_t slot = c->spent[--c->spent_count];
        page_slot *s = &c->slots[slot];
        if (s->is_scanned && may_go(c, s)) return slot;
        s->is_scanned = false; /* retrieved since, or in use: the clock's from now on */
    }
    for (uint32_t i = 0; i < 2 * c->slot_count; i++) {
        uint32_t slot = c->hand;
        c->hand = (c->hand + 1) % c->slot_count;
        page_slot *s = &c->slots[slot];
        if (!may_go(c, s) || s->is_scanned) continue;
        if (!s->was_used) return slot;
        s->was_used = false;
    }
    return EXTENT_SLOT_NONE;
}

static void empty_slot(page_cache *c, page_slot *s) {
    if (s->block != FRAME_NONE) *place_of(c, s->block, s->unit) = 0;
    s->block = FRAME_NONE;
}

bool page_cache_pin(page_cache *c, uint32_t block, uint32_t unit, uint32_t cold_slot, uint64_t round, bool is_scan) {
    uint32_t *place = place_of(c, block, unit);
    uint64_t offset = cold_page_offset(&c->pool->layout, cold_slot, unit);
    if (*place != 0) {
        page_slot *s = &c->slots[*place - 1];
        bool is_lost = atomic_load(&s->state) == PAGE_LOST; /* its read failed: the next may not */
        if (is_lost && !has_read(c, offset)) return false;
        c->pinned_count += s->round != round;
        s->round = round;
        s->was_used = true;
        if (!is_scan) s->is_scanned = false;
        if (is_lost) ask_for(c, *place - 1);
        atomic_fetch_add_explicit(is_lost ? &c->misses : &c->hits, 1, memory_order_relaxed);
        return true;
    }
    if (!has_read(c, offset)) return false;
    uint32_t slot = take_slot(c);
    if (slot == EXTENT_SLOT_NONE) return false;
    page_slot *s = &c->slots[slot];
    empty_slot(c, s);
    s->block = block;
    s->unit = unit;
    s->cold_slot = cold_slot;
    s->round = round;
    c->pinned_count++;
    s->was_used = !is_scan;
    s->is_scanned = is_scan;
    *place = slot + 1;
    if (is_scan && c->scanned_count < c->slot_count) {
        c->scanned[(c->scanned_first + c->scanned_count++) % c->slot_count] = slot;
    } else {
        s->is_scanned = false;
    }
    ask_for(c, slot);
    atomic_fetch_add_explicit(&c->misses, 1, memory_order_relaxed);
    return true;
}

void page_cache_release(page_cache *c, uint64_t round) {
    c->released = round;
    while (c->scanned_count > 0) {
        uint32_t slot = c->scanned[c->scanned_first];
        page_slot *s = &c->slots[slot];
        if (s->round != NO_ROUND && s->round > round) return;
        c->scanned_first = (c->scanned_first + 1) % c->slot_count;
        c->scanned_count--;
        if (s->is_scanned && c->spent_count < c->slot_count) c->spent[c->spent_count++] = slot;
        else s->is_scanned = false; /* the clock's */
    }
}

void page_cache_forget(page_cache *c, uint32_t block) {
    for (uint32_t unit = 0; unit < c->pool->layout.unit_count; unit++) {
        uint32_t *place = place_of(c, block, unit);
        if (*place == 0) continue;
        page_slot *s = &c->slots[*place - 1];
        s->round = NO_ROUND;
        s->was_used = false;
        empty_slot(c, s);
    }
}

uint32_t page_cache_next_corrupt(const page_cache *c, uint32_t *from) {
    for (; *from < c->slot_count; ++*from) {
        const page_slot *s = &c->slots[*from];
        if (atomic_load(&s->state) == PAGE_CORRUPT && s->block != FRAME_NONE) return c->slots[(*from)++].block;
    }
    return FRAME_NONE;
}

/* ---- Use ---- */

static hd_status await(page_cache *c, page_slot *s, uint64_t patience_ns) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load(&s->state) != PAGE_READING) return HD_OK;
        __asm__ volatile("" ::: "memory");
    }
    hd_turn *turn = read_queue_turn(c->queue);
    for (uint32_t seen; seen = hd_turn_read(turn), atomic_load(&s->state) == PAGE_READING;) {
        uint64_t started = atomic_load_explicit(&c->reads[s->read].request.started_ns, memory_order_relaxed);
        if (started != 0 && hd_now_ns() - started > patience_ns && atomic_load(&s->state) == PAGE_READING) {
            return HD_TIMED_OUT;
        }
        hd_turn_wait(turn, seen, SLEEP_NS);
    }
    return HD_OK;
}

hd_status page_cache_use(page_cache *c, uint32_t block, uint32_t unit, uint64_t patience_ns,
                         const unsigned char **bytes) {
    uint32_t place = *place_of(c, block, unit);
    assert(place != 0);
    page_slot *s = &c->slots[place - 1];
    hd_status status = atomic_load(&s->state) == PAGE_READING ? await(c, s, patience_ns) : HD_OK;
    if (status != HD_OK) return status;
    unsigned char *page = c->memory + (uint64_t)(place - 1) * c->slot_bytes;
    uint32_t expected = PAGE_READ;
    if (atomic_compare_exchange_strong(&s->state, &expected, PAGE_CHECKING)) {
        status = cold_store_accept(c->cold, s->cold_slot, unit, &c->pool->records[block].id, page);
        atomic_store(&s->state, status == HD_OK ? PAGE_GOOD : PAGE_CORRUPT);
    }
    while (atomic_load(&s->state) == PAGE_CHECKING) sched_yield(); /* another thread is at it, for microseconds */
    uint32_t state = atomic_load(&s->state);
    if (state == PAGE_GOOD) *bytes = page;
    return state == PAGE_GOOD ? HD_OK : state == PAGE_LOST ? HD_IO : HD_CORRUPT;
}

/* ---- Start and end ---- */

hd_status page_cache_init(page_cache *c, const block_pool *pool, cold_store *cold, uint32_t slot_count,
                          uint32_t reads_beside, hd_arena *arena) {
    *c = (page_cache){.pool = pool,
                      .cold = cold,
                      .slot_bytes = page_cache_slot_bytes(&pool->layout),
                      .slot_count = slot_count,
                      .fresh_count = slot_count};
    uint64_t places = (uint64_t)pool->block_count * pool->layout.unit_count;
    c->slots = hd_arena_take(arena, slot_count * sizeof(*c->slots));
    c->places = hd_arena_take(arena, places * sizeof(*c->places));
    c->scanned = hd_arena_take(arena, slot_count * sizeof(*c->scanned));
    c->spent = hd_arena_take(arena, slot_count * sizeof(*c->spent));
    c->reads = hd_arena_take(arena, READS_MAX * sizeof(*c->reads));
    c->batch = hd_arena_take(arena, READS_MAX * sizeof(*c->batch));
    assert(c->slots != NULL && c->places != NULL && c->scanned != NULL && c->spent != NULL);
    assert(c->reads != NULL && c->batch != NULL);
    for (uint32_t i = 0; i < slot_count; i++) c->slots[i] = (page_slot){.block = FRAME_NONE, .round = NO_ROUND};
    memset(c->places, 0, places * sizeof(*c->places));
    for (uint32_t i = 0; i < READS_MAX; i++) c->reads[i] = (page_read){.request = {.done = end_read}, .cache = c};
    c->memory = hd_region_map(slot_count * c->slot_bytes);
    hd_status status = c->memory != NULL ? HD_OK : HD_NO_MEMORY;
    if (status == HD_OK) status = read_queue_open(cold->directory.pages, READS_MAX + reads_beside, &c->queue);
    return status;
}

void page_cache_fini(page_cache *c) {
    read_queue_close(c->queue);
    hd_region_unmap(c->memory, c->slot_count * c->slot_bytes);
    *c = (page_cache){0};
}
