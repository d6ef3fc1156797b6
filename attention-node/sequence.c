/* sequence.c - growing, sharing and cutting a list of runs. */
#include "attention-node/sequence.h"

#include <assert.h>

static block_record *record_of(const sequence_home *home, const kv_run *run) {
    return block_pool_get(&home->store.pool, run->block);
}

uint32_t sequence_run_at(const kv_run *runs, uint32_t run_count, uint64_t position) {
    /* Where nothing was dropped, runs are whole blocks. */
    uint64_t guess = position / HD_BLOCK_TOKENS;
    if (guess < run_count && runs[guess].position <= position && position - runs[guess].position < runs[guess].count) {
        return (uint32_t)guess;
    }
    uint32_t low = 0, high = run_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (runs[middle].position + runs[middle].count > position) high = middle;
        else low = middle + 1;
    }
    return low;
}

uint64_t sequence_match(const sequence_home *home, const sequence *s, uint64_t first_position,
                        const uint32_t *token_ids, uint64_t count) {
    uint64_t done = 0;
    for (uint32_t i = sequence_run_at(s->runs, s->run_count, first_position); i < s->run_count && done < count; i++) {
        const kv_run *run = &s->runs[i];
        const uint32_t *tokens = record_of(home, run)->token_ids + run->first;
        for (uint64_t k = first_position + done - run->position; k < run->count && done < count; k++, done++) {
            if (tokens[k] != token_ids[done]) return done;
        }
    }
    return done;
}

/* ---- Admission ---- */

static hd_status check_fits(const sequence_home *home, uint64_t tokens_max, hd_error *error) {
    uint64_t capacity = (uint64_t)home->store.pool.block_count * HD_BLOCK_TOKENS;
    if (tokens_max <= capacity) return HD_OK;
    return hd_error_set(error, HD_INVALID, "%llu tokens never fit: the memory for keys and values holds %llu tokens",
                        (unsigned long long)tokens_max, (unsigned long long)capacity);
}

static hd_status open_runs(sequence_home *home, sequence *s, uint64_t tokens_max, hd_error *error) {
    hd_status status = check_fits(home, tokens_max, error);
    if (status != HD_OK) return status;
    status = run_table_open(&home->runs, s->slot, sequence_blocks_of(tokens_max), &s->runs);
    if (status != HD_OK) {
        return hd_error_set(error, status,
                            "%llu tokens: no room for a further list of blocks beside those of the open sequences",
                            (unsigned long long)tokens_max);
    }
    s->tokens_max = tokens_max;
    return HD_OK;
}

static void close_runs(sequence_home *home, sequence *s) {
    run_table_close(&home->runs, s->slot, sequence_blocks_of(s->tokens_max));
    s->runs = NULL;
}

static hd_status reserve(sequence_home *home, sequence *s, uint64_t blocks, hd_error *error) {
    uint32_t available = block_store_available(&home->store);
    if (blocks <= available && block_store_reserve(&home->store, (uint32_t)blocks) == HD_OK) {
        s->reserved += (uint32_t)blocks;
        return HD_OK;
    }
    uint32_t capacity = block_store_capacity(&home->store);
    return hd_error_set(error, HD_FULL, "%llu tokens need room for %llu more now, but only %llu of %llu are free%s",
                        (unsigned long long)s->tokens_max, (unsigned long long)blocks * HD_BLOCK_TOKENS,
                        (unsigned long long)available * HD_BLOCK_TOKENS, (unsigned long long)capacity * HD_BLOCK_TOKENS,
                        capacity < home->store.pool.block_count ? ": the cold tier takes no writes" : "");
}

static void append_run(sequence *s, block_name block, uint32_t count) {
    s->runs[s->run_count] = (kv_run){.block = block, .count = count, .position = s->end};
    s->run_count++;
    s->end += count;
}

/* A new block, still without tokens. */
static void take_block(sequence_home *home, sequence *s) {
    assert(s->reserved > 0);
    block_name block = block_store_take(&home->store, &s->claim, s->reserved);
    s->reserved--;
    append_run(s, block, 0);
}

/* What others hold already costs nothing; what only the cache has is paid for like a new block. */
static void share_block(sequence_home *home, sequence *s, block_name block) {
    if (block_pool_get(&home->store.pool, block)->references == 0) {
        assert(s->reserved > 0);
        block_store_unreserve(&home->store, 1);
        s->reserved--;
    }
    hd_status status = block_store_share(&home->store, block);
    assert(status == HD_OK);
    (void)status;
}

/* Puts the cached blocks of the prompt, at most blocks_max, at the head of the list, and returns how many of them are
 * not held. */
static uint64_t find_prefix(const sequence_home *home, sequence *s, const uint32_t *token_ids, uint64_t blocks_max) {
    uint64_t retired = 0;
    identity id = s->root;
    block_name block = BLOCK_NONE;
    for (uint64_t i = 0; i < blocks_max; i++) {
        const uint32_t *tokens = token_ids + i * HD_BLOCK_TOKENS;
        identity_of_block(home->key, &id, tokens, &id);
        block = prefix_cache_find(&home->store.cache, &id, &s->scope, block, tokens);
        if (block.index == BLOCK_NONE.index) break;
        retired += block_pool_get(&home->store.pool, block)->references == 0;
        append_run(s, block, HD_BLOCK_TOKENS);
    }
    return retired;
}

uint64_t sequence_find_prefix(const sequence_home *home, const identity_scope *scope, const uint32_t *token_ids,
                              uint64_t token_count) {
    identity id;
    block_name block = BLOCK_NONE;
    uint64_t found = 0;
    identity_of_root(home->key, home->fingerprint, home->kv_dtype, scope, &id);
    while (home->is_sharing && token_count - found >= HD_BLOCK_TOKENS) {
        identity_of_block(home->key, &id, token_ids + found, &id);
        block = prefix_cache_find(&home->store.cache, &id, scope, block, token_ids + found);
        if (block.index == BLOCK_NONE.index) break;
        found += HD_BLOCK_TOKENS;
    }
    return found;
}

hd_status sequence_start(sequence_home *home, sequence *s, const uint32_t *token_ids, uint64_t token_count,
                         uint64_t reuse_max, uint64_t tokens_max, hd_error *error) {
    hd_status status = open_runs(home, s, tokens_max, error);
    if (status != HD_OK) return status;
    identity_of_root(home->key, home->fingerprint, home->kv_dtype, &s->scope, &s->root);
    uint64_t blocks_max = home->is_sharing && !s->is_private ? sequence_blocks_of(reuse_max) : 0;
    if (blocks_max > token_count / HD_BLOCK_TOKENS) blocks_max = token_count / HD_BLOCK_TOKENS;
    uint64_t retired = find_prefix(home, s, token_ids, blocks_max);

    status = reserve(home, s, sequence_blocks_of(tokens_max) - s->run_count + retired, error);
    if (status != HD_OK) {
        close_runs(home, s);
        return status;
    }
    for (uint32_t i = 0; i < s->run_count; i++) share_block(home, s, s->runs[i].block);
    s->sealed_count = s->run_count;
    s->length = s->end;
    return HD_OK;
}

/* A copy of the first `count` tokens of a run in a block of the sequence's own. */
static hd_status copy_run(sequence_home *home, sequence *s, const kv_run *run, uint32_t count) {
    hd_status room = block_store_make_room(&home->store, 2); /* for the copy, and for what is copied */
    if (room == HD_OK) room = block_store_load(&home->store, run->block);
    if (room != HD_OK) return room;
    take_block(home, s);
    kv_run *copy = &s->runs[s->run_count - 1];
    hd_status status = block_pool_copy(&home->store.pool, copy->block, run->block);
    copy->first = run->first;
    copy->count = count;
    copy->position = run->position;
    s->end = run->position + count;
    return status;
}

hd_status sequence_start_fork(sequence_home *home, sequence *s, const sequence *source, uint64_t length,
                              uint64_t tokens_max, hd_error *error) {
    assert(length <= source->length && length <= tokens_max);
    hd_status status = open_runs(home, s, tokens_max, error);
    if (status != HD_OK) return status;
    s->scope = source->scope;
    s->first = source->first;
    s->range = source->range;
    s->root = source->root;
    s->selection = source->selection;
    s->exact_count = source->exact_count;
    s->is_private = source->is_private;
    uint32_t shared = 0;
    while (shared < source->sealed_count && source->runs[shared].position + source->runs[shared].count <= length)
        shared++;
    status = reserve(home, s, sequence_blocks_of(tokens_max) - shared, error);
    if (status != HD_OK) {
        close_runs(home, s);
        return status;
    }
    for (uint32_t i = 0; i < shared; i++) {
        s->runs[i] = source->runs[i];
        share_block(home, s, s->runs[i].block);
    }
    s->run_count = s->sealed_count = shared;
    s->end = shared > 0 ? s->runs[shared - 1].position + s->runs[shared - 1].count : 0;
    if (shared < source->run_count && source->runs[shared].position < length) {
        const kv_run *run = &source->runs[shared];
        status = copy_run(home, s, run, (uint32_t)(length - run->position));
    }
    s->length = s->end;
    if (status != HD_OK) sequence_finish(home, s, RETAIN_NOT);
    return status;
}

hd_status sequence_set_tokens_max(sequence_home *home, sequence *s, uint64_t tokens_max, hd_error *error) {
    if (tokens_max < s->end) {
        return hd_error_set(error, HD_INVALID, "%llu tokens at most, but %llu are there",
                            (unsigned long long)tokens_max, (unsigned long long)s->end);
    }
    hd_status status = check_fits(home, tokens_max, error);
    if (status != HD_OK) return status;
    uint64_t before = sequence_blocks_of(s->tokens_max), after = sequence_blocks_of(tokens_max);
    status = run_table_resize(&home->runs, before, after);
    if (status != HD_OK)
        return hd_error_set(error, status, "%llu tokens: no room for a longer list of blocks",
                            (unsigned long long)tokens_max);
    if (after > before) {
        status = reserve(home, s, after - before, error);
    } else {
        block_store_unreserve(&home->store, (uint32_t)(before - after));
        s->reserved -= (uint32_t)(before - after);
    }
    if (status == HD_OK) {
        s->tokens_max = tokens_max;
    } else {
        hd_status undone = run_table_resize(&home->runs, after, before);
        assert(undone == HD_OK);
        (void)undone;
    }
    return status;
}

void sequence_finish(sequence_home *home, sequence *s, block_retention retention) {
    for (uint32_t i = s->run_count; i-- > 0;) block_store_release(&home->store, s->runs[i].block, retention);
    block_pool_claim_drop(&home->store.pool, &s->claim);
    if (home->store.has_cold) extent_table_drop(&home->store.cold.slots, &s->cold_claim);
    block_store_unreserve(&home->store, s->reserved);
    close_runs(home, s);
    s->run_count = s->sealed_count = s->reserved = 0;
}

/* ---- Growing and cutting ---- */

void sequence_extend(sequence_home *home, sequence *s, const uint32_t *token_ids, uint64_t count) {
    assert(s->end + count <= s->tokens_max);
    while (count > 0) {
        if (s->end % HD_BLOCK_TOKENS == 0) take_block(home, s);
        kv_run *run = &s->runs[s->run_count - 1];
        uint32_t slot = run->first + run->count, added = HD_BLOCK_TOKENS - slot;
        if (added > count) added = (uint32_t)count;
        memcpy(record_of(home, run)->token_ids + slot, token_ids, added * sizeof(*token_ids));
        run->count += added;
        s->end += added;
        token_ids += added;
        count -= added;
    }
}

/* What an approximate selection has generated is nobody else's: keys and values of such tokens are functions of more
 * than the tokens. */
static bool is_shareable(const sequence_home *home, const sequence *s, const kv_run *run) {
    if (s->is_private || !home->is_sharing) return false;
    return selection_is_full(&s->selection) || run->position + run->count <= s->exact_count;
}

void sequence_commit(sequence_home *home, sequence *s) {
    sequence_commit_to(home, s, s->end);
}

void sequence_commit_to(sequence_home *home, sequence *s, uint64_t length) {
    s->length = length;
    for (; s->sealed_count < s->run_count; s->sealed_count++) {
        kv_run *run = &s->runs[s->sealed_count];
        if (run->first + run->count < HD_BLOCK_TOKENS || run->position + run->count > length) return;
        const kv_run *before = s->sealed_count > 0 ? run - 1 : NULL;
        block_name parent = before != NULL ? before->block : BLOCK_NONE;
        identity id;
        identity_of_block(home->key, before != NULL ? &record_of(home, before)->id : &s->root,
                          record_of(home, run)->token_ids, &id);
        if (is_shareable(home, s, run)) {
            run->block = block_store_seal(&home->store, run->block, &id, &s->scope, parent);
        } else {
            block_store_seal_privately(&home->store, run->block, &id, &s->scope, parent);
        }
        block_store_spill(&home->store, run->block, &s->cold_claim, s->reserved + s->run_count - s->sealed_count);
    }
}

/* Gives back the blocks that hold nothing below `length`, and the promise of them to the sequence. */
static hd_status drop_tail(sequence_home *home, sequence *s, uint32_t run_count, uint64_t length, uint32_t extra,
                           block_retention retention) {
    uint64_t promised = sequence_blocks_of(s->end) - sequence_blocks_of(length) + extra, freed = 0;
    for (uint32_t i = run_count; i < s->run_count; i++) freed += record_of(home, &s->runs[i])->references == 1;
    if (promised > block_store_available(&home->store) + freed) return HD_FULL;
    for (uint32_t i = s->run_count; i-- > run_count;) block_store_release(&home->store, s->runs[i].block, retention);
    s->run_count = run_count;
    hd_status status = block_store_reserve(&home->store, (uint32_t)promised);
    assert(status == HD_OK);
    s->reserved += (uint32_t)promised;
    return status;
}

hd_status sequence_truncate(sequence_home *home, sequence *s, uint64_t length) {
    if (length >= s->end) return HD_OK;
    uint32_t kept = sequence_run_at(s->runs, s->run_count, length); /* runs that stay as they are */
    kv_run cut = {.block = BLOCK_NONE};                             /* the one that stays in part */
    bool is_cut = kept < s->run_count && s->runs[kept].position < length;
    if (is_cut) cut = s->runs[kept];
    bool is_sealed = is_cut && kept < s->sealed_count;
    bool is_shared = is_sealed && record_of(home, &cut)->references > 1;
    hd_status status = HD_OK;
    if (is_sealed) status = block_store_make_room(&home->store, 2);
    if (is_sealed && status == HD_OK) status = block_store_load(&home->store, cut.block);
    if (is_shared && status == HD_OK) status = block_pool_verify(&home->store.pool, cut.block);
    if (status != HD_OK) return status;

    /* What follows a block that is about to be rewritten could not be found any more. */
    block_retention retention = is_sealed && !is_shared ? RETAIN_NOT : RETAIN_EARLY;
    status = drop_tail(home, s, kept + is_cut, length, is_shared, retention);
    if (status != HD_OK) return status;
    if (is_shared) {
        s->run_count = kept;
        status = copy_run(home, s, &cut, (uint32_t)(length - cut.position));
        block_store_release(&home->store, cut.block, RETAIN_EARLY);
        if (status != HD_OK) length = s->run_count > 0 ? s->runs[kept - 1].position + s->runs[kept - 1].count : 0;
    } else if (is_cut) {
        if (is_sealed) s->runs[kept].block = block_store_reopen(&home->store, cut.block);
        s->runs[kept].count = (uint32_t)(length - cut.position);
    }
    if (s->sealed_count > kept) s->sealed_count = kept;
    s->end = length;
    if (s->length > length) s->length = length;
    return status;
}

void sequence_rollback(sequence_home *home, sequence *s) {
    hd_status status = sequence_truncate(home, s, s->length);
    assert(status == HD_OK); /* nothing of what goes was shared */
    (void)status;
}
