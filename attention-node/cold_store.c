/* cold_store.c - jobs go to the writer through a ring, and their ends come back as a count: order is all there is. */
#include "attention-node/cold_store.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/xxh3.h"

#define RETRY_NS 1000000000u /* after a failed write */
#define DIRECT_ALIGN 4096u   /* of memory */

static uint32_t chunk_count_of(uint64_t block_bytes) {
    return (uint32_t)(block_bytes / COLD_CHUNK_BYTES);
}

/* Every slot may be freed once for each write of it, and a write waits for its frame. */
static uint32_t job_count_of(uint32_t slot_count, uint32_t frame_count) {
    uint32_t count = 16;
    while (count < slot_count + 2 * frame_count) count *= 2;
    return count;
}

static uint64_t aligned(uint64_t bytes) {
    return HD_ALIGN_UP(bytes, (uint64_t)HD_CACHE_LINE);
}

static uint64_t rows_bytes_of(const attention_layer_table *table) {
    return EXTENT_BLOCKS * block_layout_unit_bytes_max(table) + DIRECT_ALIGN;
}

uint64_t cold_store_table_bytes(const attention_layer_table *table, uint32_t slot_count, uint32_t frame_count) {
    uint64_t block_bytes = attention_layer_table_block_bytes(table);
    return aligned(rows_bytes_of(table)) + extent_table_bytes(slot_count) +
           aligned((uint64_t)slot_count * chunk_count_of(block_bytes) * sizeof(uint64_t)) + aligned(slot_count) +
           aligned(job_count_of(slot_count, frame_count) * sizeof(cold_job)) + aligned(cold_record_bytes(block_bytes));
}

/* ---- Checksums ---- */

static uint64_t chunk_sum(const identity *id, uint32_t unit, uint32_t chunk, const unsigned char *bytes) {
    uint64_t seed;
    memcpy(&seed, id->bytes, sizeof(seed)); /* of a keyed hash */
    return XXH3_64bits_withSeed(bytes, COLD_CHUNK_BYTES, seed + ((uint64_t)unit << 32 | chunk) * 0x9e3779b97f4a7c15u);
}

static uint64_t *unit_sums(const cold_store *c, uint32_t slot, uint32_t unit) {
    return c->sums + (uint64_t)slot * c->chunk_count + c->pool->layout.units[unit].offset / COLD_CHUNK_BYTES;
}

hd_status cold_store_verify(cold_store *c, uint32_t slot, uint32_t unit, const identity *id, uint32_t first,
                            uint32_t count, const void *bytes) {
    const uint64_t *sums = unit_sums(c, slot, unit);
    if (fault_strikes(FAULT_VERIFY)) return HD_OK;
    for (uint32_t i = 0; i < count; i++) {
        const unsigned char *chunk = (const unsigned char *)bytes + (size_t)i * COLD_CHUNK_BYTES;
        if (chunk_sum(id, unit, first + i, chunk) == sums[first + i]) continue;
        atomic_fetch_add_explicit(&c->verify_failures, 1, memory_order_relaxed);
        hd_log(HD_LOG_ERROR, "cold_page_corrupt", "slot=%u unit=%u chunk=%u", slot, unit, first + i);
        return HD_CORRUPT;
    }
    return HD_OK;
}

hd_status cold_store_accept(cold_store *c, uint32_t slot, uint32_t unit, const identity *id, void *page) {
    const unit_place *place = &c->pool->layout.units[unit];
    hd_status status = cold_store_verify(c, slot, unit, id, 0, (uint32_t)(place->bytes / COLD_CHUNK_BYTES), page);
    if (status != HD_OK || place->row_bytes == 0) return status;
    _Alignas(HD_CACHE_LINE) unsigned char rows[COLD_UNIT_BYTES_MAX];
    size_t bytes = (size_t)place->row_bytes * HD_BLOCK_TOKENS;
    memcpy(rows, page, bytes);
    if (bytes < place->bytes) memset(page, 0, (size_t)place->bytes); /* padding */
    kernel_token_rows_store(&place->shape, rows, page, (unsigned char *)page + place->value_offset);
    return HD_OK;
}

static hd_status read_bytes(const cold_store *c, uint32_t slot, uint32_t unit, uint64_t offset, uint64_t count,
                            void *bytes) {
    off_t at = (off_t)(cold_page_offset(&c->pool->layout, slot, unit) + offset);
    bool has_failed = fault_strikes(FAULT_READ);
    return has_failed || pread(c->directory.pages, bytes, (size_t)count, at) != (ssize_t)count ? HD_IO : HD_OK;
}

hd_status cold_store_read(cold_store *c, uint32_t slot, uint32_t unit, const identity *id, uint64_t offset,
                          uint64_t count, void *bytes) {
    hd_status status = read_bytes(c, slot, unit, offset, count, bytes);
    return status == HD_OK ? cold_store_verify(c, slot, unit, id, (uint32_t)(offset / COLD_CHUNK_BYTES),
                                               (uint32_t)(count / COLD_CHUNK_BYTES), bytes)
                           : status;
}

hd_status cold_store_read_page(cold_store *c, uint32_t slot, uint32_t unit, const identity *id, void *page) {
    hd_status status = read_bytes(c, slot, unit, 0, c->pool->layout.units[unit].bytes, page);
    return status == HD_OK ? cold_store_accept(c, slot, unit, id, page) : status;
}

hd_status cold_store_load(cold_store *c, uint32_t slot, const identity *id, uint32_t frame) {
    hd_status status = HD_OK;
    for (uint32_t unit = 0; unit < c->pool->layout.unit_count && status == HD_OK; unit++)
        status = cold_store_read_page(c, slot, unit, id, block_pool_unit(c->pool, frame, unit));
    return status;
}

/* ---- The writer ---- */

static hd_status clear_record(cold_store *c, uint32_t slot) {
    if (!c->has_record[slot]) return HD_OK;
    hd_status status = cold_directory_clear_record(&c->directory, slot);
    if (status == HD_OK) c->has_record[slot] = false;
    return status;
}

/* A unit page as it is to lie on disk; room has its size. */
static const unsigned char *as_on_disk(const unit_place *place, const unsigned char *page, unsigned char *room) {
    if (place->row_bytes == 0) return page;
    size_t bytes = (size_t)place->row_bytes * HD_BLOCK_TOKENS;
    kernel_token_rows_read(&place->shape, page, page + place->value_offset, room);
    memset(room + bytes, 0, (size_t)place->bytes - bytes);
    return room;
}

/* The same unit of blocks in consecutive slots: one write. */
static hd_status write_unit(cold_store *c, const cold_job *jobs, uint32_t count, uint32_t unit) {
    const unit_place *place = &c->pool->layout.units[unit];
    struct iovec parts[EXTENT_BLOCKS];
    for (uint32_t i = 0; i < count; i++) {
        const unsigned char *page = block_pool_unit(c->pool, c->pool->frame_of[jobs[i].block], unit);
        const unsigned char *bytes = as_on_disk(place, page, c->rows + i * place->bytes);
        const identity *id = &c->pool->records[jobs[i].block].id;
        uint64_t *sums = unit_sums(c, jobs[i].slot, unit);
        for (uint32_t k = 0; k < place->bytes / COLD_CHUNK_BYTES; k++) {
            sums[k] = chunk_sum(id, unit, k, bytes + k * COLD_CHUNK_BYTES);
        }
        parts[i] = (struct iovec){.iov_base = (void *)bytes, .iov_len = (size_t)place->bytes};
    }
    if (fault_strikes(FAULT_WRITE)) {
        errno = ENOSPC;
        return HD_IO;
    }
    ssize_t bytes = (ssize_t)(count * place->bytes);
    off_t offset = (off_t)cold_page_offset(&c->pool->layout, jobs[0].slot, unit);
    if (pwritev(c->directory.pages, parts, (int)count, offset) != bytes) return HD_IO;
    atomic_fetch_add_explicit(&c->written_bytes, (uint64_t)bytes, memory_order_relaxed);
    return HD_OK;
}

static hd_status put_record(cold_store *c, const cold_job *job) {
    const block_record *block = &c->pool->records[job->block];
    memset(c->record, 0, c->directory.record_bytes);
    c->record->depth = job->depth;
    c->record->id = block->id;
    c->record->parent = job->parent;
    c->record->scope = block->scope;
    memcpy(c->record->token_ids, block->token_ids, sizeof(c->record->token_ids));
    memcpy(c->record->sums, c->sums + (uint64_t)job->slot * c->chunk_count, c->chunk_count * sizeof(uint64_t));
    hd_status status = cold_directory_put_record(&c->directory, job->slot, c->record);
    c->has_record[job->slot] = true;
    return status;
}

static hd_status write_blocks(cold_store *c, const cold_job *jobs, uint32_t count) {
    hd_status status = HD_OK;
    for (uint32_t i = 0; i < count && status == HD_OK; i++) status = clear_record(c, jobs[i].slot);
    for (uint32_t unit = 0; unit < c->pool->layout.unit_count && status == HD_OK; unit++) {
        status = write_unit(c, jobs, count, unit);
    }
    for (uint32_t i = 0; i < count && status == HD_OK; i++) {
        if (jobs[i].is_kept) status = put_record(c, &jobs[i]);
    }
    if (status == HD_OK) return HD_OK;
    char path[600], reason[64];
    atomic_fetch_add_explicit(&c->write_errors, 1, memory_order_relaxed);
    hd_log(HD_LOG_ERROR, "cold_write_failed", "directory=%s reason=%s",
           hd_log_quote(c->directory.path, path, sizeof(path)),
           hd_log_quote(strerrordesc_np(errno), reason, sizeof(reason)));
    return status;
}

/* How many of the next jobs, at most `ready`, are one write. */
static uint32_t batch_of(const cold_store *c, uint64_t first, uint64_t ready, cold_job *batch) {
    uint32_t count = 0;
    while (count < ready && count < EXTENT_BLOCKS) {
        const cold_job *job = &c->jobs[(first + count) & c->job_mask];
        bool follows = count == 0 || (job->block != FRAME_NONE && batch[0].block != FRAME_NONE &&
                                      job->slot == batch[0].slot + count && job->slot % EXTENT_BLOCKS != 0);
        if (!follows) break;
        batch[count++] = *job;
    }
    return count;
}

static void do_jobs(cold_store *c) {
    for (uint64_t done = atomic_load(&c->done), asked; done < (asked = atomic_load(&c->asked));) {
        cold_job batch[EXTENT_BLOCKS];
        uint32_t count = batch_of(c, done, asked - done, batch);
        assert(count > 0);
        hd_status status =
            batch[0].block == FRAME_NONE ? clear_record(c, batch[0].slot) : write_blocks(c, batch, count);
        for (uint32_t i = 0; i < count; i++) c->jobs[(done + i) & c->job_mask].status = status;
        done += count;
        atomic_store(&c->done, done);
        hd_turn_advance(&c->turn);
    }
}

static void *writer_main(void *context) {
    cold_store *c = context;
    uint64_t news;
    for (;;) {
        if (read(c->event, &news, sizeof(news)) != (ssize_t)sizeof(news)) continue;
        do_jobs(c);
        if (atomic_load(&c->is_closing)) return NULL;
    }
}

/* ---- The step thread ---- */

static void wake_writer(cold_store *c) {
    uint64_t one = 1;
    ssize_t written = write(c->event, &one, sizeof(one));
    assert(written == (ssize_t)sizeof(one));
    (void)written;
}

static void ask(cold_store *c, const cold_job *job) {
    uint64_t asked = atomic_load_explicit(&c->asked, memory_order_relaxed);
    assert(asked - c->polled <= c->job_mask);
    c->jobs[asked & c->job_mask] = *job;
    atomic_store(&c->asked, asked + 1);
    wake_writer(c);
}

bool cold_store_is_failing(const cold_store *c) {
    return c->failing_until_ns != 0 && hd_now_ns() < c->failing_until_ns;
}

uint32_t cold_store_take(cold_store *c, block_claim *claim, uint32_t wanted) {
    return cold_store_is_failing(c) ? COLD_SLOT_NONE : extent_table_take(&c->slots, claim, wanted);
}

void cold_store_write(cold_store *c, uint32_t slot, uint32_t block, uint32_t depth, const identity *parent,
                      bool is_kept) {
    cold_job job = {.slot = slot, .block = block, .depth = depth, .is_kept = is_kept};
    if (parent != NULL) job.parent = *parent;
    ask(c, &job);
}

void cold_store_free(cold_store *c, uint32_t slot) {
    extent_table_give(&c->slots, slot);
    ask(c, &(cold_job){.slot = slot, .block = FRAME_NONE});
}

bool cold_store_poll(cold_store *c, cold_job *job) {
    if (c->polled == atomic_load(&c->done)) return false;
    *job = c->jobs[c->polled++ & c->job_mask];
    if (job->block != FRAME_NONE) c->failing_until_ns = job->status == HD_OK ? 0 : hd_now_ns() + RETRY_NS;
    return true;
}

void cold_store_wait(cold_store *c, uint64_t timeout_ns) {
    uint32_t turn = hd_turn_read(&c->turn);
    if (c->polled == atomic_load(&c->done)) hd_turn_wait(&c->turn, turn, timeout_ns);
}

uint64_t cold_store_pending(const cold_store *c) {
    uint64_t done = atomic_load(&c->done);
    return atomic_load(&c->asked) - done;
}

/* ---- Start and end ---- */

typedef struct {
    uint32_t slot, depth;
} found_slot;

static int by_depth(const void *a, const void *b) {
    const found_slot *x = a, *y = b;
    if (x->depth != y->depth) return x->depth < y->depth ? -1 : 1;
    return x->slot < y->slot ? -1 : x->slot > y->slot;
}

hd_status cold_store_recover(cold_store *c, cold_store_visit *visit, void *context) {
    uint32_t slot_count = c->slots.slot_count, found_count = 0;
    found_slot *found = hd_alloc(slot_count * sizeof(*found), HD_CACHE_LINE);
    if (found == NULL) return HD_NO_MEMORY;
    for (uint32_t slot = 0; slot < slot_count; slot++) {
        if (cold_directory_get_record(&c->directory, slot, c->record) != HD_OK) continue;
        found[found_count++] = (found_slot){slot, c->record->depth};
    }
    qsort(found, found_count, sizeof(*found), by_depth);
    for (uint32_t i = 0; i < found_count; i++) {
        uint32_t slot = found[i].slot;
        if (cold_directory_get_record(&c->directory, slot, c->record) != HD_OK) continue;
        extent_table_take_slot(&c->slots, slot);
        c->has_record[slot] = true;
        memcpy(c->sums + (uint64_t)slot * c->chunk_count, c->record->sums, c->chunk_count * sizeof(uint64_t));
        if (!visit(context, slot, c->record)) {
            extent_table_give(&c->slots, slot);
            clear_record(c, slot);
        }
    }
    hd_free(found);
    return HD_OK;
}

hd_status cold_store_start(cold_store *c) {
    sigset_t all, before; /* signals are for the threads that expect them */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    c->has_writer = pthread_create(&c->writer, NULL, writer_main, c) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!c->has_writer) return HD_NO_MEMORY;
    pthread_setname_np(c->writer, "cold-write");
    return HD_OK;
}

hd_status cold_store_open(cold_store *c, const cold_config *config, const attention_layer_table *table,
                          const block_pool *pool, hd_arena *arena, hd_error *error) {
    *c = (cold_store){.pool = pool, .event = -1, .directory = {.directory = -1, .index = -1, .pages = -1}};
    c->chunk_count = chunk_count_of(pool->layout.block_bytes);
    hd_status status = cold_directory_open(&c->directory, config, table, &pool->layout, error);
    if (status != HD_OK) return status;
    uint32_t slot_count = c->directory.slot_count, frame_count = pool->frames.slot_count;
    extent_table_init(&c->slots, slot_count, arena);
    c->sums = hd_arena_take(arena, (size_t)slot_count * c->chunk_count * sizeof(*c->sums));
    c->has_record = hd_arena_take(arena, slot_count);
    c->job_mask = job_count_of(slot_count, frame_count) - 1;
    c->jobs = hd_arena_take(arena, ((size_t)c->job_mask + 1) * sizeof(*c->jobs));
    c->record = hd_arena_take(arena, c->directory.record_bytes);
    c->rows = hd_arena_take(arena, (size_t)rows_bytes_of(table));
    assert(c->rows != NULL);
    c->rows = (unsigned char *)HD_ALIGN_UP((uintptr_t)c->rows, (uintptr_t)DIRECT_ALIGN);
    assert(c->sums != NULL && c->has_record != NULL && c->jobs != NULL && c->record != NULL);
    memset(c->has_record, 0, slot_count);
    c->event = eventfd(0, EFD_CLOEXEC);
    return c->event >= 0 ? HD_OK : hd_error_set(error, HD_NO_MEMORY, "no file descriptor for the cold tier");
}

void cold_store_close(cold_store *c) {
    if (c->has_writer) {
        atomic_store(&c->is_closing, true);
        wake_writer(c);
        pthread_join(c->writer, NULL);
        fdatasync(c->directory.pages);
        fdatasync(c->directory.index);
    }
    if (c->event >= 0) close(c->event);
    cold_directory_close(&c->directory);
    *c = (cold_store){.event = -1, .directory = {.directory = -1, .index = -1, .pages = -1}};
}
