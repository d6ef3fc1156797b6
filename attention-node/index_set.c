/* index_set.c - sets of indexes: opening them from what others had, growing them, and giving them up.
 *
 * Every list and flag that builders look at is under the home's lock. Whoever needs an index to itself (to cut, share
 * or close it) first marks its set as held, which keeps builders from beginning a piece, and waits for those at work.
 * */
#include "attention-node/index_set.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "attention-node/index_home.h"
#include "base/clock.h"
#include "base/flags.h"

/* ---- Where rows are ---- */

static const uint16_t *rows_at(const index_source_context *context, bool is_keys, uint64_t first, uint32_t count,
                               uint16_t *room) {
    index_set *set = context->set;
    const index_layer *layer = context->layer;
    uint32_t stream = is_keys ? layer->key_stream : layer->value_stream;
    uint32_t dim = is_keys ? layer->shape.key_dim : layer->shape.value_dim;
    uint32_t sealed = set->sealed_count;
    for (uint32_t i = sequence_run_at(set->runs, sealed, first), done = 0; done < count; i++) {
        const kv_run *run = &set->runs[i];
        assert(i < sealed);
        uint32_t skipped = (uint32_t)(first + done - run->position), rows = run->count - skipped;
        if (rows > count - done) rows = count - done;
        uint16_t *to = room + (size_t)done * dim;
        hd_status status = block_store_read_rows(set->home->config.store, run->block.index, stream, context->head,
                                                 &layer->shape, is_keys, run->first + skipped, rows, to);
        if (status != HD_OK) memset(to, 0, (size_t)rows * dim * sizeof(*room));
        if (status != HD_OK && status != HD_STALE) index_set_fail(set); /* what is given up is asked for no more */
        done += rows;
    }
    return room;
}

static const uint16_t *keys_at(void *context, uint64_t first, uint32_t count, uint16_t *room) {
    const uint16_t *rows = key_rows_at(&((const index_source_context *)context)->rows, first, count);
    return rows != NULL ? rows : rows_at(context, true, first, count, room);
}

static const uint16_t *values_at(void *context, uint64_t first, uint32_t count, uint16_t *room) {
    return rows_at(context, false, first, count, room);
}

/* ---- Having an index to oneself ---- */

static void hold(index_set *set) {
    index_home *home = set->home;
    pthread_mutex_lock(&home->lock);
    set->is_held = true;
    while (set->building_count > 0) pthread_cond_wait(&home->built, &home->lock);
    pthread_mutex_unlock(&home->lock);
}

static void let_go(index_set *set) {
    index_home *home = set->home;
    pthread_mutex_lock(&home->lock);
    set->is_held = false;
    pthread_cond_broadcast(&home->wanted);
    pthread_mutex_unlock(&home->lock);
}

/* ---- Sizes ---- */

static bool wants_rest(const index_kind *kind, const selection *chosen) {
    return chosen->has_estimate && index_kind_has_rest(kind);
}

static bool is_indexed(const index_home *home, const selection *chosen, uint32_t layer) {
    return layer >= chosen->full_layers && home->layers[layer].is_indexable;
}

static index_params params_of(const index_home *home, const index_set *set, uint32_t layer, uint32_t head) {
    const index_layer *l = &home->layers[layer];
    return (index_params){.kind = set->kind,
                          .kernels = home->config.kernels,
                          .key_dim = l->shape.key_dim,
                          .value_dim = l->shape.value_dim,
                          .keys_max = set->keys_max,
                          .sinks = SELECTION_INDEX_FIRST,
                          .seed = (uint64_t)layer << 32 | (home->config.head_first + head),
                          .has_rest = set->has_rest};
}

/* Of the set itself, and of a builder for the layer whose builder is largest. */
static void measure(const index_home *home, const selection *chosen, index_set *set, uint64_t *builder_bytes) {
    set->bytes = sizeof(*set) + set->id_max * sizeof(*set->ids);
    *builder_bytes = 0;
    for (uint32_t layer = 0; layer < home->layer_count; layer++) {
        if (!is_indexed(home, chosen, layer)) continue;
        index_params params = params_of(home, set, layer, 0);
        uint64_t builder = index_builder_bytes(&params);
        set->bytes += home->layers[layer].heads *
                      (index_bytes_max(&params) + sizeof(kv_index *) + sizeof(uint8_t) + sizeof(index_source_context));
        if (builder > *builder_bytes) *builder_bytes = builder;
        if (set->has_rows) set->bytes += home->layers[layer].heads * key_rows_bytes(set->keys_max, params.key_dim);
    }
}

uint64_t index_home_bytes(const index_home_config *config, const selection *chosen, uint64_t tokens, bool has_rows) {
    index_home_config idle = *config;
    index_home *home;
    const index_kind *kind;
    idle.builder_count = 0;
    if (index_kind_find(chosen->index, &kind, NULL) != HD_OK || index_home_open(&idle, &home) != HD_OK)
        return UINT64_MAX;
    uint64_t keys_max = HD_ALIGN_UP(tokens, (uint64_t)INDEX_GRAIN), builder_bytes;
    index_set set = {.kind = kind,
                     .keys_max = keys_max,
                     .id_max = (uint32_t)(keys_max / HD_BLOCK_TOKENS),
                     .has_rest = wants_rest(kind, chosen),
                     .has_rows = has_rows};
    measure(home, chosen, &set, &builder_bytes);
    index_home_close(home);
    return set.bytes + builder_bytes * config->builder_count;
}

/* ---- Whom to begin with ---- */

static const identity *id_of(const index_home *home, const kv_run *run) {
    return &block_pool_get(&home->config.store->pool, run->block)->id;
}

/* Blocks that a set and the beginning of a sequence have in common. */
static uint32_t common_blocks(const index_set *set, const sequence *s) {
    uint32_t count = set->id_count < s->sealed_count ? set->id_count : s->sealed_count, same = 0;
    while (same < count && identity_is_equal(&set->ids[same], id_of(set->home, &s->runs[same]))) same++;
    return same;
}

static index_set *find_donor(const index_home *home, const sequence *s, const index_kind *kind, uint32_t *blocks) {
    index_set *best = NULL;
    *blocks = 0;
    for (index_set *set = home->first; set != NULL; set = set->next) {
        bool is_alike = set->kind == kind && set->has_rest == wants_rest(kind, &s->selection) &&
                        set->full_layers <= s->selection.full_layers && !set->is_failed;
        uint32_t common = is_alike ? common_blocks(set, s) : 0;
        if (common <= *blocks) continue;
        *blocks = common;
        best = set;
    }
    return best;
}

uint64_t index_set_reusable(index_home *home, const sequence *s) {
    const index_kind *kind;
    uint32_t blocks;
    if (index_kind_find(s->selection.index, &kind, NULL) != HD_OK || !index_kind_learns(kind)) return s->length;
    find_donor(home, s, kind, &blocks);
    uint64_t tokens = (uint64_t)blocks * HD_BLOCK_TOKENS;
    return tokens < s->length ? tokens : s->length;
}

/* ---- Open and close ---- */

static void unlink_set(index_set *set) {
    index_home *home = set->home;
    pthread_mutex_lock(&home->lock);
    *(set->previous != NULL ? &set->previous->next : &home->first) = set->next;
    *(set->next != NULL ? &set->next->previous : &home->last) = set->previous;
    home->held_bytes -= set->bytes;
    pthread_mutex_unlock(&home->lock);
}

static void link_set(index_set *set) {
    index_home *home = set->home;
    pthread_mutex_lock(&home->lock);
    set->previous = home->last;
    set->next = NULL;
    *(home->last != NULL ? &home->last->next : &home->first) = set;
    home->last = set;
    home->held_bytes += set->bytes;
    pthread_mutex_unlock(&home->lock);
}

static void free_set(index_set *set) {
    for (uint32_t i = 0; set->indexes != NULL && i < set->home->index_count; i++) index_close(set->indexes[i]);
    for (uint32_t i = 0; set->contexts != NULL && i < set->home->index_count; i++)
        key_rows_fini(&set->contexts[i].rows);
    free(set->indexes);
    free(set->contexts);
    free(set->states);
    free(set->ids);
    free(set);
}

static void drop_set(index_set *set) {
    hold(set);
    unlink_set(set);
    free_set(set);
}

/* Gives up retained sets, oldest first, until there is room for so many bytes more. */
static bool make_room(index_home *home, uint64_t bytes, const index_set *spared) {
    for (index_set *set = home->first, *next; home->held_bytes + bytes > home->config.budget_bytes && set != NULL;
         set = next) {
        next = set->next;
        if (set->is_retained && set != spared) drop_set(set);
    }
    return home->held_bytes + bytes <= home->config.budget_bytes;
}

static hd_status reserve(index_home *home, const index_set *set, uint64_t builder_bytes, const index_set *spared,
                         hd_error *error) {
    uint64_t builders = builder_bytes > home->builder_bytes ? builder_bytes - home->builder_bytes : 0;
    builders *= home->config.builder_count;
    char needed[32], budget[32];
    if (!make_room(home, set->bytes + builders, spared)) {
        bool never = set->bytes + builder_bytes * home->config.builder_count > home->config.budget_bytes;
        hd_format_size(set->bytes + builders, needed, sizeof(needed));
        hd_format_size(home->config.budget_bytes, budget, sizeof(budget));
        return hd_error_set(error, never ? HD_INVALID : HD_FULL,
                            "%llu tokens need %s for their index, and of --index-memory %s %s",
                            (unsigned long long)set->keys_max, needed, budget,
                            never ? "that is more than all" : "too little is free now");
    }
    pthread_mutex_lock(&home->lock);
    home->held_bytes += builders;
    if (builder_bytes > home->builder_bytes) home->builder_bytes = builder_bytes;
    pthread_mutex_unlock(&home->lock);
    return HD_OK;
}

static hd_status take_memory(const index_home *home, index_set *set) {
    set->indexes = calloc(home->index_count, sizeof(kv_index *));
    set->contexts = calloc(home->index_count, sizeof(index_source_context));
    set->states = calloc(home->index_count, sizeof(uint8_t));
    set->ids = calloc(set->id_max + 1u, sizeof(identity));
    bool is_whole = set->indexes != NULL && set->contexts != NULL && set->states != NULL && set->ids != NULL;
    return is_whole ? HD_OK : HD_NO_MEMORY;
}

/* A set of its own for the sequence's first `tokens` tokens, forked from donor's where there is one. */
static hd_status make_indexes(index_set *set, const sequence *s, const index_set *donor, uint64_t tokens) {
    index_home *home = set->home;
    hd_status status = take_memory(home, set);
    for (uint32_t layer = 0; status == HD_OK && layer < home->layer_count; layer++) {
        if (!is_indexed(home, &s->selection, layer)) continue;
        for (uint32_t head = 0; status == HD_OK && head < home->layers[layer].heads; head++) {
            uint32_t at = home->layers[layer].first_index + head;
            index_params params = params_of(home, set, layer, head);
            set->contexts[at] = (index_source_context){.set = set, .layer = &home->layers[layer], .head = head};
            if (set->has_rows && home->layers[layer].shape.dtype != HD_F32) {
                status = key_rows_init(&set->contexts[at].rows, set->keys_max, params.key_dim);
                if (status == HD_OK && donor != NULL && donor->has_rows)
                    status = key_rows_share(&donor->contexts[at].rows, tokens, &set->contexts[at].rows);
                if (status != HD_OK) return status;
            }
            index_source source = {.context = &set->contexts[at], .keys = keys_at, .values = values_at};
            if (donor != NULL) {
                status = index_fork(donor->indexes[at], tokens, set->keys_max, &source, &set->indexes[at]);
            } else {
                status = index_open(&params, &source, &set->indexes[at]);
            }
        }
    }
    return status;
}

static void follow(index_set *set, const sequence *s) {
    set->runs = s->runs;
    set->exact_count = s->exact_count;
    index_set_grow(set, s);
}

static uint64_t keys_max_of(const sequence *s) {
    return HD_ALIGN_UP(s->tokens_max, (uint64_t)INDEX_GRAIN);
}

static void truncate_all(index_set *set, uint64_t length) {
    for (uint32_t i = 0; i < set->home->index_count; i++) {
        if (set->indexes[i] == NULL) continue;
        index_truncate(set->indexes[i], length);
        key_rows_truncate(&set->contexts[i].rows, length);
    }
}

/* A retained set becomes the sequence's; what it has beyond the common tokens goes. */
static index_set *adopt(index_set *set, const sequence *s, uint64_t tokens) {
    hold(set);
    truncate_all(set, tokens);
    set->id_count = (uint32_t)(tokens / HD_BLOCK_TOKENS);
    set->target = (index_extent){.covered = 0};
    set->needed = set->searched = 0;
    unlink_set(set);
    set->is_retained = false;
    link_set(set);
    follow(set, s);
    let_go(set);
    return set;
}

static hd_status open_from(index_home *home, const sequence *s, const index_kind *kind, index_set *donor,
                           uint64_t tokens, index_set **out, hd_error *error) {
    if (donor != NULL && donor->is_retained && donor->keys_max >= keys_max_of(s) &&
        donor->full_layers == s->selection.full_layers) {
        *out = adopt(donor, s, tokens);
        return HD_OK;
    }
    index_set *set = calloc(1, sizeof(*set));
    if (set == NULL) return hd_error_set(error, HD_NO_MEMORY, "no memory for an index");
    *set = (index_set){.home = home,
                       .kind = kind,
                       .keys_max = keys_max_of(s),
                       .id_max = (uint32_t)(keys_max_of(s) / HD_BLOCK_TOKENS),
                       .has_rest = wants_rest(kind, &s->selection),
                       .full_layers = s->selection.full_layers};
    uint64_t builder_bytes;
    set->has_rows = true;
    measure(home, &s->selection, set, &builder_bytes);
    hd_status status = reserve(home, set, builder_bytes, donor, NULL);
    if (status != HD_OK) {
        set->has_rows = false;
        measure(home, &s->selection, set, &builder_bytes);
        status = reserve(home, set, builder_bytes, donor, error);
    }
    if (status == HD_OK) {
        if (donor != NULL) hold(donor);
        status = make_indexes(set, s, donor, tokens);
        if (donor != NULL) let_go(donor);
        if (status != HD_OK) hd_error_set(error, status, "no memory for an index");
    }
    if (status != HD_OK) {
        free_set(set);
        return status;
    }
    link_set(set);
    follow(set, s);
    *out = set;
    return HD_OK;
}

hd_status index_set_open(index_home *home, const sequence *s, index_set **out, hd_error *error) {
    const index_kind *kind;
    hd_status status = index_kind_find(s->selection.index, &kind, error);
    if (status != HD_OK) return status;
    uint32_t blocks;
    index_set *donor = find_donor(home, s, kind, &blocks);
    return open_from(home, s, kind, donor, (uint64_t)blocks * HD_BLOCK_TOKENS, out, error);
}

hd_status index_set_fork(const index_set *source, const sequence *s, index_set **out, hd_error *error) {
    return open_from(source->home, s, source->kind, (index_set *)source, s->length, out, error);
}

/* Somebody else keeps all that it would keep. */
static bool is_kept_elsewhere(const index_set *set) {
    for (const index_set *other = set->home->first; other != NULL; other = other->next) {
        if (other == set || !other->is_retained || other->kind != set->kind || other->has_rest != set->has_rest ||
            other->full_layers != set->full_layers || other->id_count < set->id_count ||
            other->keys_max < set->keys_max)
            continue;
        if (set->id_count == 0 || identity_is_equal(&other->ids[set->id_count - 1], &set->ids[set->id_count - 1]))
            return true;
    }
    return false;
}

void index_set_close(index_set *set, bool keep) {
    if (set == NULL) return;
    if (!keep || set->is_failed || set->id_count == 0 || is_kept_elsewhere(set)) {
        drop_set(set);
        return;
    }
    hold(set); /* for good: its rows may be gone */
    truncate_all(set, (uint64_t)set->id_count * HD_BLOCK_TOKENS);
    unlink_set(set);
    set->is_retained = true;
    set->runs = NULL;
    set->sealed_count = 0;
    link_set(set);
}

void index_home_reset(index_home *home) {
    for (index_set *set = home->first, *next; set != NULL; set = next) {
        next = set->next;
        if (set->is_retained) drop_set(set);
    }
}

/* ---- Growing and cutting ---- */

static bool is_ready(const index_set *set, uint32_t layer, const index_extent *extent) {
    const index_layer *l = &set->home->layers[layer];
    for (uint32_t head = 0; head < l->heads; head++) {
        const kv_index *index = set->indexes[l->first_index + head];
        if (index != NULL && !index_is_ready(index, extent)) return false;
    }
    return true;
}

static bool set_is_ready(const index_set *set, const index_extent *extent) {
    uint32_t layer = 0;
    while (layer < set->home->layer_count && is_ready(set, layer, extent)) layer++;
    return layer == set->home->layer_count;
}

static void set_target(index_set *set, const index_extent *extent) {
    index_home *home = set->home;
    pthread_mutex_lock(&home->lock);
    for (uint32_t i = 0; i < home->index_count; i++) {
        if (set->indexes[i] == NULL) continue;
        index_target(set->indexes[i], extent);
        set->states[i] |= INDEX_WANTED;
    }
    set->target = *extent;
    pthread_cond_broadcast(&home->wanted);
    pthread_mutex_unlock(&home->lock);
}

/* Segments of the prompt may be as large as they get, at once: what is not built when it ends is waited for. */
index_extent index_set_extent(const index_set *set, uint64_t covered) {
    return (index_extent){.covered = covered, .settled = set->exact_count};
}

/* Tokens that a query at a position leaves to the index (selection.h, rule 3). */
static uint64_t covered_at(uint64_t position) {
    uint64_t settled = position < SELECTION_SETTLE_TOKENS ? 0 : position - SELECTION_SETTLE_TOKENS;
    return settled - settled % INDEX_GRAIN;
}

/* Segments that no later query needs; none that is in a prompt searches. */
static void drop_old(index_set *set, uint64_t length) {
    index_extent needed = index_set_extent(set, covered_at(length < set->exact_count ? set->exact_count : length));
    if (length >= set->exact_count) set->searched = needed.covered;
    if (needed.covered == set->needed) return;
    set->needed = needed.covered;
    hold(set);
    for (uint32_t i = 0; i < set->home->index_count; i++) {
        if (set->indexes[i] != NULL) index_drop(set->indexes[i], &needed);
    }
    let_go(set);
}

/* While a prompt runs, of what its end will need that which is there; later what the next queries will, one grain
 * after the other, because each extent has segments that the one after it may not have. */
static index_extent next_target(const index_set *set, uint64_t sealed, uint64_t length) {
    index_extent last = index_set_extent(set, covered_at(set->exact_count));
    if (length < set->exact_count) return sealed < last.covered ? index_extent_within(&last, sealed) : last;
    index_extent now = index_set_extent(set, covered_at(length));
    bool has_now = set->target.covered >= now.covered && set_is_ready(set, &now);
    if (has_now && now.covered + INDEX_GRAIN <= sealed) now.covered += INDEX_GRAIN;
    return now;
}

void index_set_grow(index_set *set, const sequence *s) {
    uint32_t sealed = s->sealed_count;
    set->sealed_count = sealed;
    set->exact_count = s->exact_count;
    while (set->id_count < sealed) {
        const kv_run *run = &s->runs[set->id_count];
        if (s->is_private || run->position + run->count > s->exact_count) break;
        set->ids[set->id_count++] = *id_of(set->home, run);
    }
    uint64_t tokens = sealed > 0 ? s->runs[sealed - 1].position + s->runs[sealed - 1].count : 0;
    drop_old(set, s->length); /* first: a target's segments have the room of what goes */
    index_extent target = next_target(set, tokens, s->length);
    if (target.covered != set->target.covered) set_target(set, &target);
}

void index_set_truncate(index_set *set, uint64_t length) {
    hold(set);
    uint32_t blocks = (uint32_t)(length / HD_BLOCK_TOKENS);
    if (set->id_count > blocks) set->id_count = blocks;
    if (set->sealed_count > blocks) set->sealed_count = blocks;
    truncate_all(set, length);
    set->needed = set->searched = 0;
    uint64_t covered = length - length % INDEX_GRAIN;
    if (set->target.covered > covered) set->target = index_set_extent(set, covered);
    let_go(set);
}

uint64_t index_set_keys_max(const index_set *set) {
    return set->keys_max;
}

bool index_set_has_rest(const index_set *set) {
    return set->has_rest;
}

/* ---- For steps ---- */

void index_set_fail(index_set *set) {
    pthread_mutex_lock(&set->home->lock);
    set->is_failed = true;
    pthread_mutex_unlock(&set->home->lock);
}

hd_status index_set_wait(index_set *set, uint32_t layer, const index_extent *extent) {
    if (is_ready(set, layer, extent) && !set->is_failed) return HD_OK;
    index_home *home = set->home;
    uint64_t start = hd_now_ns();
    if (set->target.covered != extent->covered) set_target(set, extent);
    pthread_mutex_lock(&home->lock);
    while (!set->is_failed && !is_ready(set, layer, extent)) pthread_cond_wait(&home->built, &home->lock);
    hd_status status = set->is_failed ? HD_NO_MEMORY : HD_OK;
    home->waits++;
    home->wait_ns += hd_now_ns() - start;
    pthread_mutex_unlock(&home->lock);
    return status;
}

bool index_set_is_ready(index_set *set, uint64_t position) {
    index_extent extent = index_set_extent(set, covered_at(position));
    if (position < set->exact_count || set->is_failed || set_is_ready(set, &extent)) return true;
    if (set->target.covered != extent.covered) set_target(set, &extent);
    return false;
}

hd_status index_set_add_query(index_set *set, uint32_t layer, uint32_t head, uint64_t position, const uint16_t *queries,
                              uint32_t count, size_t stride) {
    kv_index *index = set->indexes[set->home->layers[layer].first_index + head];
    return index == NULL ? HD_OK : index_add_query(index, position, queries, count, stride);
}

hd_status index_set_add_keys(index_set *set, uint32_t layer, uint32_t head, uint64_t position, const uint16_t *keys,
                             uint32_t count, size_t stride) {
    uint32_t at = set->home->layers[layer].first_index + head;
    key_rows *rows = &set->contexts[at].rows;
    return rows->chunks == NULL ? HD_OK : key_rows_add(rows, position, keys, count, stride);
}

const uint16_t *index_set_key(const index_set *set, uint32_t layer, uint32_t head, uint64_t position) {
    return key_rows_at(&set->contexts[set->home->layers[layer].first_index + head].rows, position, 1);
}

const kv_index *index_set_index(const index_set *set, uint32_t layer, uint32_t head) {
    return set->indexes[set->home->layers[layer].first_index + head];
}
