/* catalog.h - requests with the answers that one process alone gives to them, made once, before the first seed.
 *
 * Prompts share prefixes in families, some are longer than a range of positions, and some have several choices, draws
 * or penalties. Threads: catalog_make on the runner; then read only. */
#ifndef TESTS_SIMULATION_CATALOG_H
#define TESTS_SIMULATION_CATALOG_H

#include "tests/simulation/roles.h"

#define CATALOG_ENTRIES 40u
#define CATALOG_CHOICES_MAX 3u
#define CATALOG_TOKENS_MAX 40u

typedef struct catalog_answer {
    uint32_t tokens[CATALOG_TOKENS_MAX];
    uint32_t count;
    bool has_ended;
    worker_finish finish;
    uint32_t stop_id;
} catalog_answer;

typedef struct catalog_entry {
    uint32_t *prompt;
    uint64_t prompt_count, max_tokens;
    uint32_t choices;
    worker_sampling sampling;
    catalog_answer answers[CATALOG_CHOICES_MAX];
} catalog_entry;

/* False: the machine has failed. */
bool catalog_make(const cluster_shape *shape);
const catalog_entry *catalog_get(unsigned index);
worker_request catalog_request(const catalog_entry *entry);

#endif
