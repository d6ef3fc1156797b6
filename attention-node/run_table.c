/* run_table.c - one mapping of small pages; a list's pages are given back by madvise. */
#include "attention-node/run_table.h"

#include <assert.h>
#include <sys/mman.h>

#include "base/fault.h"

#define PAGE_BYTES 4096u

/* Runs beside the blocks they name are small change, unless the blocks are tiny: then shared prefixes could have lists
 * that are larger than the blocks, and sequences are refused instead. */
#define SHARE_OF_BLOCKS 64u

static uint64_t list_bytes(uint64_t runs) {
    return HD_ALIGN_UP(runs * sizeof(kv_run), (uint64_t)PAGE_BYTES);
}

uint64_t run_table_bytes(uint32_t slot_count, uint32_t block_count, uint64_t block_bytes) {
    uint64_t all = slot_count * list_bytes(block_count);
    uint64_t share =
        list_bytes(block_count) + (uint64_t)slot_count * PAGE_BYTES + block_count * block_bytes / SHARE_OF_BLOCKS;
    return all < share ? all : share;
}

hd_status run_table_init(run_table *table, uint32_t slot_count, uint32_t block_count, uint64_t block_bytes) {
    *table = (run_table){.slot_count = slot_count,
                         .slot_bytes = list_bytes(block_count),
                         .bytes_max = run_table_bytes(slot_count, block_count, block_bytes)};
    if (fault_strikes(FAULT_ALLOCATION)) return HD_NO_MEMORY;
    void *region = mmap(NULL, (size_t)(slot_count * table->slot_bytes), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region == MAP_FAILED) return HD_NO_MEMORY;
    /* Huge pages would round every short list up to 2 MiB. */
    madvise(region, (size_t)(slot_count * table->slot_bytes), MADV_NOHUGEPAGE);
    table->region = region;
    return HD_OK;
}

void run_table_fini(run_table *table) {
    if (table->region != NULL) munmap(table->region, (size_t)(table->slot_count * table->slot_bytes));
    *table = (run_table){0};
}

hd_status run_table_open(run_table *table, uint32_t slot, uint64_t runs_max, kv_run **runs) {
    uint64_t bytes = list_bytes(runs_max);
    assert(slot < table->slot_count && bytes <= table->slot_bytes);
    if (bytes > table->bytes_max - table->bytes_promised) return HD_FULL;
    table->bytes_promised += bytes;
    *runs = (kv_run *)(table->region + slot * table->slot_bytes);
    return HD_OK;
}

hd_status run_table_resize(run_table *table, uint64_t runs_max, uint64_t new_runs_max) {
    uint64_t others = table->bytes_promised - list_bytes(runs_max), bytes = list_bytes(new_runs_max);
    assert(bytes <= table->slot_bytes);
    if (bytes > table->bytes_max - others) return HD_FULL;
    table->bytes_promised = others + bytes;
    return HD_OK;
}

void run_table_close(run_table *table, uint32_t slot, uint64_t runs_max) {
    uint64_t bytes = list_bytes(runs_max);
    assert(bytes <= table->bytes_promised);
    table->bytes_promised -= bytes;
    madvise(table->region + slot * table->slot_bytes, (size_t)bytes, MADV_DONTNEED);
}
