/* row_cache.c - grains, where each is, and the reads that are out. */
#include "attention-node/row_cache.h"

#include <assert.h>
#include <time.h>

#include "attention-node/page_cache.h"
#include "base/clock.h"

#define NO_GRAIN UINT32_MAX
#define LOOKED_AT 8u          /* grains, before any goes */
#define FEW_READS 32u         /* that each is worth being woken for */
#define SLEEP_NS 20000000u    /* at most, between two looks at the clock */
#define PAUSE_NS 30000u       /* while many reads are out: being woken by each costs more than the disk's time */
#define LOOKS_OF_PATIENCE 64u /* pauses between two looks for a read that takes too long */

struct row_grain {
    _Atomic uint32_t state;                  /* page_state */
    uint32_t block, generation, unit, place; /* block FRAME_NONE: nobody's; place: which grain of the unit page */
    uint32_t cold_slot, read, next;          /* read: with PAGE_READING. next: in the bucket, as in buckets */
    uint64_t round, asked;                   /* the last that pinned it; that asked for its bytes */
    bool was_used;                           /* since it was looked at last */
};

struct row_read {
    read_request request; /* first */
    row_cache *cache;
    uint32_t grains[READ_PARTS_MAX];
    _Atomic bool is_lent;
};

static uint64_t aligned(uint64_t bytes) {
    return HD_ALIGN_UP(bytes, (uint64_t)HD_CACHE_LINE);
}

static uint32_t bucket_count_of(uint32_t grain_count) {
    uint32_t count = 16;
    while (count < grain_count) count *= 2;
    return count;
}

uint64_t row_cache_table_bytes(uint32_t grain_count) {
    if (grain_count == 0) return 0;
    return aligned(grain_count * sizeof(row_grain)) + aligned(bucket_count_of(grain_count) * sizeof(uint32_t)) +
           aligned(ROW_CACHE_READS * sizeof(row_read)) + aligned(ROW_CACHE_READS * sizeof(read_request *));
}

uint64_t row_cache_memory_bytes(uint32_t grain_count) {
    return (uint64_t)grain_count * COLD_CHUNK_BYTES;
}

uint32_t row_cache_grains(uint64_t bytes) {
    uint64_t most = bytes / COLD_CHUNK_BYTES;
    uint32_t low = 0, high = most < UINT32_MAX / 4 ? (uint32_t)most : UINT32_MAX / 4;
    while (low < high) {
        uint32_t middle = low + (high - low + 1) / 2;
        if (row_cache_memory_bytes(middle) + row_cache_table_bytes(middle) <= bytes) low = middle;
        else high = middle - 1;
    }
    return low;
}

bool row_cache_has_unit(const row_cache *c, uint32_t unit) {
    const unit_place *place = &c->pool->layout.units[unit];
    return c->grain_count > 0 && place->row_bytes > 0 && place->bytes % c->grain_bytes == 0;
}

/* ---- Reads ---- */

static void end_read(read_request *request, hd_status status) {
    row_read *read = (row_read *)request;
    row_cache *c = read->cache;
    if (status != HD_OK) atomic_fetch_add_explicit(&c->read_errors, 1, memory_order_relaxed);
    for (uint32_t i = 0; i < request->part_count; i++)
        atomic_store(&c->grains[read->grains[i]].state, status == HD_OK ? PAGE_READ : PAGE_LOST);
    atomic_store(&read->is_lent, false);
    atomic_fetch_add_explicit(&c->reads_done, 1, memory_order_release);
}

static void submit(row_cache *c) {
    read_queue_submit(c->queue, c->batch, c->batch_count);
    c->batch_count = 0;
}

static uint32_t lent_count(const row_cache *c) {
    return (uint32_t)(c->reads_asked - atomic_load_explicit(&c->reads_done, memory_order_acquire));
}

static bool is_too_slow(const row_cache *c, uint64_t patience_ns) {
    uint64_t now_ns = hd_now_ns();
    for (uint32_t i = 0; i < ROW_CACHE_READS; i++) {
        const row_read *read = &c->reads[i];
        uint64_t started = atomic_load_explicit(&read->request.started_ns, memory_order_relaxed);
        if (atomic_load(&read->is_lent) && started != 0 && now_ns > started && now_ns - started > patience_ns)
            return true;
    }
    return false;
}

/* Until at most `most` reads are out; false: one of them takes longer than patience_ns. */
static bool await(row_cache *c, uint32_t most, uint64_t patience_ns) {
    submit(c);
    if (lent_count(c) <= most) return true;
    uint64_t start_ns = hd_now_ns();
    hd_turn *turn = read_queue_turn(c->queue);
    bool is_patient = true;
    for (uint32_t looks = 1, lent, seen; is_patient && (seen = hd_turn_read(turn), lent = lent_count(c)) > most;
         looks++) {
        if (lent - most > FEW_READS) nanosleep(&(struct timespec){.tv_nsec = PAUSE_NS}, NULL);
        else hd_turn_wait(turn, seen, SLEEP_NS);
        if (looks % LOOKS_OF_PATIENCE == 0) is_patient = !is_too_slow(c, patience_ns);
    }
    atomic_fetch_add_explicit(&c->wait_ns, hd_now_ns() - start_ns, memory_order_relaxed);
    return is_patient;
}

void row_cache_await(row_cache *c, uint64_t patience_ns) {
    if (c->grain_count > 0) (void)await(c, 0, patience_ns);
}

static row_read *take_read(row_cache *c) {
    for (uint32_t i = 0; i < ROW_CACHE_READS; i++) {
        row_read *read = &c->reads[(c->next_read + i) % ROW_CACHE_READS];
        if (atomic_load(&read->is_lent)) continue;
        c->next_read = (c->next_read + i + 1) % ROW_CACHE_READS;
        atomic_store(&read->is_lent, true);
        c->reads_asked++;
        read->request.part_count = 0;
        read->request.bytes = 0;
        return read;
    }
    return NULL;
}

/* The read that bytes at this offset join, or a new one; NULL: the disk does not answer. */
static row_read *read_for(row_cache *c, uint64_t offset, uint64_t patience_ns) {
    row_read *last = c->batch_count > 0 ? (row_read *)c->batch[c->batch_count - 1] : NULL;
    if (last != NULL && last->request.part_count < READ_PARTS_MAX &&
        last->request.offset + last->request.bytes == offset)
        return last;
    if (lent_count(c) == ROW_CACHE_READS && !await(c, ROW_CACHE_READS / 2, patience_ns)) return NULL;
    row_read *read = take_read(c);
    assert(read != NULL);
    read->request.offset = offset;
    c->batch[c->batch_count++] = &read->request;
    return read;
}

static bool ask_for(row_cache *c, uint32_t index, uint64_t round, uint64_t patience_ns) {
    row_grain *g = &c->grains[index];
    uint64_t offset = cold_page_offset(&c->pool->layout, g->cold_slot, g->unit) + (uint64_t)g->place * c->grain_bytes;
    row_read *read = read_for(c, offset, patience_ns);
    if (read == NULL) return false;
    read->request.parts[read->request.part_count] =
        (struct iovec){.iov_base = c->memory + (uint64_t)index * c->grain_bytes, .iov_len = c->grain_bytes};
    read->grains[read->request.part_count++] = index;
    read->request.bytes += c->grain_bytes;
    g->asked = round;
    atomic_store(&g->state, PAGE_READING);
    atomic_fetch_add_explicit(&c->read_bytes, c->grain_bytes, memory_order_relaxed);
    return true;
}

/* ---- Grains ---- */

static uint32_t *bucket_of(const row_cache *c, uint32_t block, uint32_t generation, uint32_t unit, uint32_t place) {
    uint64_t hash = ((uint64_t)block << 32 | generation) * 0x9e3779b97f4a7c15u;
    hash = (hash ^ hash >> 29 ^ ((uint64_t)unit << 32 | place)) * 0xbf58476d1ce4e5b9u;
    return &c->buckets[(hash >> 32) & c->bucket_mask];
}

static uint32_t find(const row_cache *c, uint32_t block, uint32_t generation, uint32_t unit, uint32_t place) {
    for (uint32_t at = *bucket_of(c, block, generation, unit, place); at != 0; at = c->grains[at - 1].next) {
        const row_grain *g = &c->grains[at - 1];
        if (g->block == block && g->place == place && g->unit == unit && g->generation == generation) return at - 1;
    }
    return NO_GRAIN;
}

static void empty(row_cache *c, uint32_t index) {
    row_grain *g = &c->grains[index];
    if (g->block == FRAME_NONE) return;
    uint32_t *at = bucket_of(c, g->block, g->generation, g->unit, g->place);
    while (*at != index + 1) at = &c->grains[*at - 1].next;
    *at = g->next;
    g->block = FRAME_NONE;
}

static uint32_t random_grain(row_cache *c) {
    uint64_t z = c->random += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    return (uint32_t)((z >> 32) * c->grain_count >> 32);
}

static bool may_go(const row_cache *c, const row_grain *g) {
    return g->round <= c->released && atomic_load(&g->state) != PAGE_READING;
}

/* A few at random: the first that was not used since it was looked at last. Steps go round through the layers, and
 * where a round asks for more than there is room, whoever goes by age has nothing left when it is asked for again. */
static uint32_t take_grain(row_cache *c) {
    if (c->fresh_count > 0) return c->grain_count - c->fresh_count--;
    for (uint32_t i = 0; i < LOOKED_AT; i++) {
        uint32_t index = random_grain(c);
        row_grain *g = &c->grains[index];
        if (!may_go(c, g)) continue;
        if (!g->was_used) return index;
        g->was_used = false;
    }
    for (uint32_t i = 0, index = random_grain(c); i < c->grain_count; i++) {
        if (may_go(c, &c->grains[index])) return index;
        index = index + 1 < c->grain_count ? index + 1 : 0;
    }
    return NO_GRAIN;
}

/* One grain of a row; *is_here: its bytes are, or were asked for in an earlier round. */
static bool pin_grain(row_cache *c, const row_name *name, uint32_t place, uint64_t round, uint64_t patience_ns,
                      bool *is_here) {
    uint32_t generation = c->pool->records[name->block].generation;
    uint32_t index = find(c, name->block, generation, name->unit, place);
    *is_here = false;
    if (index != NO_GRAIN) {
        row_grain *g = &c->grains[index];
        c->pinned_count += g->round != round;
        g->round = round;
        g->was_used = true;
        if (atomic_load(&g->state) == PAGE_LOST) return ask_for(c, index, round, patience_ns);
        *is_here = g->asked != round;
        return true;
    }
    index = take_grain(c);
    if (index == NO_GRAIN) return false;
    empty(c, index);
    row_grain *g = &c->grains[index];
    uint32_t *bucket = bucket_of(c, name->block, generation, name->unit, place);
    g->block = name->block;
    g->generation = generation;
    g->unit = name->unit;
    g->place = place;
    g->cold_slot = name->cold_slot;
    g->round = round;
    g->was_used = false; /* what is asked for a second time stays longer */
    g->next = *bucket;
    *bucket = index + 1;
    c->pinned_count++;
    atomic_store(&g->state, PAGE_LOST);
    return ask_for(c, index, round, patience_ns);
}

static uint32_t first_place(const row_cache *c, const row_name *name, uint64_t *offset, uint32_t *last) {
    uint32_t row_bytes = c->pool->layout.units[name->unit].row_bytes;
    *offset = (uint64_t)name->token * row_bytes;
    *last = (uint32_t)((*offset + row_bytes - 1) / c->grain_bytes);
    return (uint32_t)(*offset / c->grain_bytes);
}

bool row_cache_pin(row_cache *c, const row_name *name, uint64_t round, uint64_t patience_ns) {
    uint64_t offset;
    uint32_t last, place = first_place(c, name, &offset, &last);
    bool is_hit = true, is_here;
    for (; place <= last; place++) {
        if (!pin_grain(c, name, place, round, patience_ns, &is_here)) return false;
        is_hit = is_hit && is_here;
    }
    atomic_fetch_add_explicit(is_hit ? &c->hits : &c->misses, 1, memory_order_relaxed);
    return true;
}

void row_cache_release(row_cache *c, uint64_t round) {
    c->released = round;
}

uint32_t row_cache_next_corrupt(const row_cache *c, uint32_t *from) {
    for (; *from < c->grain_count; ++*from) {
        const row_grain *g = &c->grains[*from];
        bool is_its = g->block != FRAME_NONE && c->pool->records[g->block].generation == g->generation;
        if (atomic_load(&g->state) == PAGE_CORRUPT && is_its) return c->grains[(*from)++].block;
    }
    return FRAME_NONE;
}

/* ---- Use ---- */

/* Two threads may both verify a grain: they find the same. */
static hd_status use_grain(row_cache *c, const row_name *name, uint32_t place, const unsigned char **bytes) {
    const block_record *record = &c->pool->records[name->block];
    uint32_t index = find(c, name->block, record->generation, name->unit, place);
    if (index == NO_GRAIN) return HD_TIMED_OUT; /* its pin was given up */
    row_grain *g = &c->grains[index];
    const unsigned char *grain = c->memory + (uint64_t)index * c->grain_bytes;
    if (atomic_load(&g->state) == PAGE_READ) {
        uint32_t chunks = c->grain_bytes / COLD_CHUNK_BYTES;
        hd_status status =
            cold_store_verify(c->cold, g->cold_slot, name->unit, &record->id, place * chunks, chunks, grain);
        atomic_store(&g->state, status == HD_OK ? PAGE_GOOD : PAGE_CORRUPT);
    }
    switch ((page_state)atomic_load(&g->state)) {
    case PAGE_GOOD: *bytes = grain; return HD_OK;
    case PAGE_READING: return HD_TIMED_OUT;
    case PAGE_LOST: return HD_IO;
    default: return HD_CORRUPT;
    }
}

hd_status row_cache_use(row_cache *c, const row_name *name, unsigned char *room, const unsigned char **row) {
    uint64_t offset, done = 0, row_bytes = c->pool->layout.units[name->unit].row_bytes;
    uint32_t last, place = first_place(c, name, &offset, &last);
    const unsigned char *grain;
    if (place == last) {
        hd_status status = use_grain(c, name, place, &grain);
        if (status == HD_OK) *row = grain + offset % c->grain_bytes;
        return status;
    }
    for (; place <= last; place++) {
        hd_status status = use_grain(c, name, place, &grain);
        if (status != HD_OK) return status;
        uint64_t begin = (offset + done) % c->grain_bytes, count = c->grain_bytes - begin;
        if (count > row_bytes - done) count = row_bytes - done;
        memcpy(room + done, grain + begin, count);
        done += count;
    }
    *row = room;
    return HD_OK;
}

/* ---- Start and end ---- */

hd_status row_cache_init(row_cache *c, const block_pool *pool, cold_store *cold, read_queue *queue,
                         uint32_t grain_count, hd_arena *arena) {
    *c = (row_cache){.pool = pool, .cold = cold, .queue = queue, .grain_bytes = cold->directory.grain_bytes};
    if (grain_count == 0) return HD_OK;
    uint32_t buckets = bucket_count_of(grain_count);
    c->bucket_mask = buckets - 1;
    c->grains = hd_arena_take(arena, grain_count * sizeof(*c->grains));
    c->buckets = hd_arena_take(arena, buckets * sizeof(*c->buckets));
    c->reads = hd_arena_take(arena, ROW_CACHE_READS * sizeof(*c->reads));
    c->batch = hd_arena_take(arena, ROW_CACHE_READS * sizeof(*c->batch));
    assert(c->grains != NULL && c->buckets != NULL && c->reads != NULL && c->batch != NULL);
    c->grain_count = c->fresh_count = (uint32_t)(row_cache_memory_bytes(grain_count) / c->grain_bytes);
    for (uint32_t i = 0; i < c->grain_count; i++) c->grains[i] = (row_grain){.block = FRAME_NONE};
    memset(c->buckets, 0, buckets * sizeof(*c->buckets));
    for (uint32_t i = 0; i < ROW_CACHE_READS; i++) c->reads[i] = (row_read){.request = {.done = end_read}, .cache = c};
    c->memory = hd_region_map((size_t)c->grain_count * c->grain_bytes);
    return c->memory != NULL ? HD_OK : HD_NO_MEMORY;
}

void row_cache_fini(row_cache *c) {
    hd_region_unmap(c->memory, (size_t)c->grain_count * c->grain_bytes);
    *c = (row_cache){0};
}
