/* sequence_table.h - the requests that are being answered: each is found here until it is done.
 *
 * Bounded: beyond entries_max a request is refused before it costs anything. A visitor runs under the table's lock, so
 * what it is given cannot end meanwhile; it must be short, and must not call the table.
 * Threads: any. */
#ifndef COORDINATOR_SEQUENCE_TABLE_H
#define COORDINATOR_SEQUENCE_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef struct sequence_table sequence_table;
struct generation;

hd_status sequence_table_open(uint32_t entries_max, sequence_table **table);
void sequence_table_close(sequence_table *table); /* accepts NULL; asserts that it is empty */

/* HD_FULL: entries_max are in it. *slot is given back by remove. */
hd_status sequence_table_add(sequence_table *table, struct generation *g, uint32_t *slot);
void sequence_table_remove(sequence_table *table, uint32_t slot);
void sequence_table_visit(sequence_table *table, void (*visitor)(struct generation *g, void *context), void *context);
uint32_t sequence_table_count(sequence_table *table);
/* Waits until it is empty. */
void sequence_table_wait_empty(sequence_table *table);

#endif
