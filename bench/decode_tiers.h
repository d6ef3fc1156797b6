/* decode_tiers.h - of decode steps over a cold tier, what came from the disk, and what the disk would have taken for
 * it.
 *
 * Threads: the step thread, which waits for the disk. */
#ifndef BENCH_DECODE_TIERS_H
#define BENCH_DECODE_TIERS_H

#include <jansson.h>
#include <stdio.h>

#include "attention-node/attention.h"

typedef struct decode_tiers_run {
    size_t steps; /* between the two readings of the figures */
    double step_ms, token_bytes;
    uint64_t own_bytes;         /* of this process, that the benchmark holds for itself */
    const char *cold_directory; /* NULL: there is none */
} decode_tiers_run;

typedef struct decode_tiers { /* of a step, where nothing else is said */
    bool is_there;
    double step_ms, wait_ms; /* wait: of the step, for tokens that were found */
    double page_hit_rate, page_misses;
    double row_hit_rate, row_misses; /* of tokens found in blocks that are not hot */
    double read_bytes, reads;
    double missed_bytes;        /* of tokens found that were in no memory */
    double disk_reads, disk_ms; /* a second, of scattered reads of that size; what it takes for these */
    double hot_bytes, warm_bytes, cold_bytes, index_bytes;
    double resident_bytes; /* of the process, without its own_bytes */
} decode_tiers;

/* Reads the disk for two seconds. */
void decode_tiers_measure(decode_tiers *tiers, const attention_stats *before, const attention_stats *now,
                          const decode_tiers_run *run);
void decode_tiers_print(const decode_tiers *tiers, FILE *table);
json_t *decode_tiers_json(const decode_tiers *tiers);

#endif
