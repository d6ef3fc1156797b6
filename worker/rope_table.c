/* rope_table.c - one row of cosines and sines a token and step; the layers share it. */
#include "worker/rope_table.h"

#include <math.h>

size_t rope_table_bytes(const rope_config *rope) {
    return sizeof(rope_table) + rope->rotary_dim / 2 * sizeof(float);
}

void rope_table_init(rope_table *table, const rope_config *rope, uint64_t sequence_tokens) {
    table->half = rope->rotary_dim / 2;
    rope_frequencies(rope, sequence_tokens, table->inverse_frequencies, &table->attention_factor);
}

uint64_t rope_table_variant(const rope_config *rope, uint64_t sequence_tokens) {
    /* Up to the original length `dynamic` is plain rope, and all those sequences share. */
    bool is_stretched = rope->kind == ROPE_DYNAMIC && (double)sequence_tokens > rope->original_max_position;
    return is_stretched ? sequence_tokens : 0;
}

void rope_table_row(const rope_table *table, uint64_t position, float *cosines, float *sines) {
    for (uint32_t i = 0; i < table->half; i++) {
        float angle = table->inverse_frequencies[i] * (float)position;
        sincosf(angle, &sines[i], &cosines[i]);
        cosines[i] *= table->attention_factor;
        sines[i] *= table->attention_factor;
    }
}
