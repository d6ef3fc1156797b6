/* device_draw.c - changes of a row, of which each token may have one, whatever asked for them. */
#include "worker/device_draw.h"

#include <assert.h>
#include <string.h>

#include "base/memory.h"

hd_status device_draw_init(device_draw *d, uint32_t vocabulary_size, sample_change *changes, uint32_t changes_max) {
    assert(changes_max >= vocabulary_size);
    *d = (device_draw){.vocabulary_size = vocabulary_size, .changes = changes, .changes_max = changes_max};
    d->place_of = hd_alloc_zeroed(vocabulary_size * sizeof(*d->place_of), HD_CACHE_LINE);
    return d->place_of != NULL ? HD_OK : HD_NO_MEMORY;
}

void device_draw_fini(device_draw *d) {
    hd_free(d->place_of);
    *d = (device_draw){0};
}

void device_draw_begin(device_draw *d) {
    d->change_count = 0;
}

void device_draw_skip(const device_draw *d, sample_row *out) {
    *out = (sample_row){.first_change = d->change_count, .repetition_penalty = 1.0f, .top_p = 1.0f};
}

/* The token's change, a new one where it has none. */
static sample_change *change_of(device_draw *d, uint32_t token_id) {
    uint32_t *place = &d->place_of[token_id];
    if (*place == 0) {
        assert(d->change_count < d->changes_max);
        d->changes[d->change_count++] = (sample_change){.token_id = token_id};
        *place = d->change_count;
    }
    return &d->changes[*place - 1];
}

static void forbid(device_draw *d, const uint32_t *ids, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        if (ids[i] < d->vocabulary_size) change_of(d, ids[i])->is_forbidden = 1;
    }
}

/* At most: a token may be counted several times here. */
static uint64_t changes_of(const sampler_row *row) {
    const worker_sampling *sampling = row->sampling;
    uint64_t count = sampling->logit_bias_count;
    if (row->counts != NULL) count += row->counts->entry_count;
    if (!row->may_end) count += (uint64_t)row->end_id_count + sampling->stop_id_count;
    return count;
}

bool device_draw_add(device_draw *d, const sampler_row *row, sample_row *out) {
    const worker_sampling *sampling = row->sampling;
    if (d->change_count > 0 && changes_of(row) > d->changes_max - d->change_count) return false;
    uint32_t first = d->change_count;
    for (uint32_t i = 0; i < sampling->logit_bias_count; i++)
        change_of(d, sampling->logit_bias[i].token_id)->bias += sampling->logit_bias[i].bias;
    for (uint32_t i = 0; row->counts != NULL && i < row->counts->entry_count; i++) {
        sample_change *change = change_of(d, row->counts->entries[i].token_id);
        change->is_counted = 1;
        change->answer_count = row->counts->entries[i].answer_count;
    }
    if (!row->may_end) {
        forbid(d, row->end_ids, row->end_id_count);
        forbid(d, sampling->stop_ids, sampling->stop_id_count);
    }
    for (uint32_t i = first; i < d->change_count; i++) d->place_of[d->changes[i].token_id] = 0;
    *out = (sample_row){.first_change = first,
                        .change_count = d->change_count - first,
                        .repetition_penalty = sampling->repetition_penalty,
                        .frequency_penalty = sampling->frequency_penalty,
                        .presence_penalty = sampling->presence_penalty,
                        .temperature = sampling->temperature,
                        .top_p = sampling->top_p,
                        .min_p = sampling->min_p,
                        .top_k = sampling->top_k,
                        .uniform = sampler_uniform(sampling->seed, row->choice, row->position)};
    return true;
}
