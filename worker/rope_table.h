/* rope_table.h - inverse frequencies of a sequence, and the cosines and sines of a position.
 *
 * Computed as Hugging Face does: the fp32 product of inverse frequency and position, its cosine and sine, times the
 * attention factor.
 * Threads: pure functions on the caller's memory. */
#ifndef WORKER_ROPE_TABLE_H
#define WORKER_ROPE_TABLE_H

#include "model/config.h"

typedef struct rope_table {
    uint32_t half; /* rotary_dim / 2 */
    float attention_factor;
    float inverse_frequencies[]; /* [half] */
} rope_table;

size_t rope_table_bytes(const rope_config *rope);
/* sequence_tokens: prompt + max_tokens, which fixes the base of `dynamic` scaling. */
void rope_table_init(rope_table *table, const rope_config *rope, uint64_t sequence_tokens);
/* A name for the frequencies: equal for sequences whose keys may be shared. */
uint64_t rope_table_variant(const rope_config *rope, uint64_t sequence_tokens);

void rope_table_row(const rope_table *table, uint64_t position, float *cosines, float *sines); /* [half] each */

#endif
