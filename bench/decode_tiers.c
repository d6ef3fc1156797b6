/* decode_tiers.c - differences of an attention's figures, and a few seconds of the same disk. */
#include "bench/decode_tiers.h"

#include "base/memory.h"
#include "bench/disk_rate.h"

#define DISK_SECONDS 2.0

static double rate_of(uint64_t hits, uint64_t misses) {
    return hits + misses > 0 ? (double)hits / (double)(hits + misses) : 1.0;
}

void decode_tiers_measure(decode_tiers *t, const attention_stats *before, const attention_stats *now,
                          const decode_tiers_run *run) {
    *t = (decode_tiers){.is_there = now->cold_bytes > 0};
    if (!t->is_there) return;
    double steps = (double)run->steps;
    uint64_t page_hits = now->page_hits - before->page_hits, page_misses = now->page_misses - before->page_misses,
             row_hits = now->row_hits - before->row_hits, row_misses = now->row_misses - before->row_misses;
    t->step_ms = run->step_ms;
    t->wait_ms = (double)(now->row_wait_ns - before->row_wait_ns) * 1e-6 / steps;
    t->page_hit_rate = rate_of(page_hits, page_misses);
    t->page_misses = (double)page_misses / steps;
    t->row_hit_rate = rate_of(row_hits, row_misses);
    t->row_misses = (double)row_misses / steps;
    t->read_bytes = (double)(now->cold_read_bytes - before->cold_read_bytes) / steps;
    t->reads = (double)(now->cold_reads - before->cold_reads) / steps;
    t->missed_bytes = t->row_misses * run->token_bytes;
    /* Where tokens are read with their pages: the share that the missed pages are of all that were asked for. */
    if (row_hits + row_misses == 0)
        t->missed_bytes = (double)(now->searched_tokens - before->searched_tokens) / steps * run->token_bytes *
                          (1.0 - t->page_hit_rate);
    t->hot_bytes = (double)now->hot_used_bytes;
    t->warm_bytes = (double)now->warm_used_bytes;
    t->cold_bytes = (double)now->cold_used_bytes;
    t->index_bytes = (double)now->index_bytes;
    t->resident_bytes = (double)(hd_memory_resident_bytes() - run->own_bytes);
    char path[600];
    snprintf(path, sizeof(path), "%s/pages", run->cold_directory != NULL ? run->cold_directory : "");
    if (t->reads >= 1.0) t->disk_reads = bench_disk_reads(path, (uint64_t)(t->read_bytes / t->reads), DISK_SECONDS);
    if (t->disk_reads > 0.0) t->disk_ms = 1e3 * t->reads / t->disk_reads;
}

void decode_tiers_print(const decode_tiers *t, FILE *table) {
    if (!t->is_there) return;
    double mib = 1 << 20;
    fprintf(table,
            "%16s  tiers: hot %.0f MiB, warm %.0f MiB, indexes %.0f MiB, cold %.0f MiB; resident %.0f MiB; of the "
            "pages of cold blocks %.1f %% were in memory, of their tokens that were found %.1f %%\n",
            "", t->hot_bytes / mib, t->warm_bytes / mib, t->index_bytes / mib, t->cold_bytes / mib,
            t->resident_bytes / mib, 100 * t->page_hit_rate, 100 * t->row_hit_rate);
    if (t->reads == 0.0) return;
    fprintf(table,
            "%16s  a step reads %.1f MiB of the disk in %.0f reads of %.0f bytes, and waits %.0f ms for it; this disk "
            "now takes %.0f ms for such (%.0f a second), all else %.0f ms\n",
            "", t->read_bytes / mib, t->reads, t->read_bytes / t->reads, t->wait_ms, t->disk_ms, t->disk_reads,
            t->step_ms - t->wait_ms);
    if (t->missed_bytes > 0.0)
        fprintf(table, "%16s  that is %.2f times the %.2f MiB of the tokens found and in no memory\n", "",
                t->read_bytes / t->missed_bytes, t->missed_bytes / mib);
}

json_t *decode_tiers_json(const decode_tiers *t) {
    if (!t->is_there) return json_null();
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "page_hit_rate",
                     t->page_hit_rate, "page_misses", t->page_misses, "row_hit_rate", t->row_hit_rate, "row_misses",
                     t->row_misses, "read_bytes", t->read_bytes, "reads", t->reads, "missed_token_bytes",
                     t->missed_bytes, "wait_ms", t->wait_ms, "disk_reads_per_s", t->disk_reads, "disk_ms", t->disk_ms,
                     "hot_bytes", t->hot_bytes, "warm_bytes", t->warm_bytes, "cold_bytes", t->cold_bytes, "index_bytes",
                     t->index_bytes, "resident_bytes", t->resident_bytes);
}
