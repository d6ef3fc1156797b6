/* index_home.c - the builders: threads of low priority that take one index after another. */
#include "attention-node/index_home.h"

#include <assert.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "attention-node/index_kind.h"

#define BUILDER_NICE 10

bool index_kind_learns(const index_kind *kind) {
    return kind->queries_max > 0;
}

index_extent index_extent_within(const index_extent *extent, uint64_t tokens) {
    index_extent within = {.covered = 0, .settled = extent->settled};
    uint32_t count_max = index_plan_max(extent->covered);
    index_range *plan = malloc(count_max * sizeof(*plan));
    uint32_t count = plan != NULL ? index_plan(extent, plan, count_max) : 0;
    for (uint32_t i = 0; i < count && plan[i].first + plan[i].count <= tokens; i++)
        within.covered = plan[i].first + plan[i].count;
    free(plan);
    return within;
}

/* ---- Building ---- */

/* The next index that wants a builder; under the lock. */
static index_set *find_work(const index_home *home, uint32_t *at) {
    for (index_set *set = home->first; set != NULL; set = set->next) {
        if (set->is_held || set->is_retained || set->is_failed) continue;
        for (uint32_t i = 0; i < home->index_count; i++) {
            if (set->states[i] != INDEX_WANTED) continue;
            *at = i;
            return set;
        }
    }
    return NULL;
}

typedef struct builder_slot { /* a builder is made for one set of sizes */
    index_builder *builder;
    const index_kind *kind;
    const index_layer *layer;
    bool has_rest;
} builder_slot;

static hd_status fit_builder(builder_slot *slot, const index_set *set, const index_layer *layer) {
    bool fits = slot->builder != NULL && slot->kind == set->kind && slot->has_rest == set->has_rest &&
                slot->layer->shape.key_dim == layer->shape.key_dim &&
                slot->layer->shape.value_dim == layer->shape.value_dim;
    if (fits) return HD_OK;
    index_builder_close(slot->builder);
    *slot = (builder_slot){.kind = set->kind, .layer = layer, .has_rest = set->has_rest};
    index_params params = {.kind = set->kind,
                           .kernels = set->home->config.kernels,
                           .key_dim = layer->shape.key_dim,
                           .value_dim = layer->shape.value_dim,
                           .keys_max = set->keys_max,
                           .sinks = SELECTION_INDEX_FIRST,
                           .has_rest = set->has_rest};
    return index_builder_open(&params, &slot->builder);
}

/* Pieces of one index until its target is reached or somebody wants the set; called and returns with the lock. */
static void build(index_home *home, builder_slot *slot, index_set *set, uint32_t at) {
    set->states[at] = INDEX_BUILDING;
    set->building_count++;
    pthread_mutex_unlock(&home->lock);
    hd_status status = fit_builder(slot, set, set->contexts[at].layer);
    bool is_wanted_elsewhere = false;
    while (status == HD_OK || (status == HD_PENDING && !is_wanted_elsewhere)) {
        hd_status piece = index_build(set->indexes[at], slot->builder);
        pthread_mutex_lock(&home->lock);
        is_wanted_elsewhere = set->is_held || home->is_closing;
        pthread_mutex_unlock(&home->lock);
        status = piece;
        if (piece == HD_OK) break;
    }
    pthread_mutex_lock(&home->lock);
    /* Wanted again meanwhile: by a new target, or because the set was needed for something else. */
    set->states[at] = (set->states[at] & INDEX_WANTED) != 0 || status == HD_PENDING ? INDEX_WANTED : 0;
    if (status != HD_OK && status != HD_PENDING) set->is_failed = true;
    set->building_count--;
    pthread_cond_broadcast(&home->built);
}

static void *builder_main(void *context) {
    index_home *home = context;
    builder_slot slot = {.builder = NULL};
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), BUILDER_NICE);
    pthread_mutex_lock(&home->lock);
    while (!home->is_closing) {
        uint32_t at;
        index_set *set = find_work(home, &at);
        if (set != NULL) build(home, &slot, set, at);
        else pthread_cond_wait(&home->wanted, &home->lock);
    }
    pthread_mutex_unlock(&home->lock);
    index_builder_close(slot.builder);
    return NULL;
}

/* ---- Open and close ---- */

static hd_status describe_layers(index_home *home) {
    const attention_layer_table *table = home->config.table;
    home->layers = calloc(table->layer_count, sizeof(*home->layers));
    if (home->layers == NULL) return HD_NO_MEMORY;
    home->layer_count = table->layer_count;
    for (uint32_t i = 0; i < table->layer_count; i++) {
        const attention_layer *l = &table->layers[i];
        const attention_stream *keys = &table->streams[l->key_stream], *values = &table->streams[l->value_stream];
        bool is_plain = !l->value_is_key_prefix && keys->tokens_per_record == 1 && values->tokens_per_record == 1 &&
                        keys->dim % 16 == 0 && l->value_dim % 16 == 0;
        home->layers[i] = (index_layer){
            .shape = {.dtype = keys->codec, .key_dim = keys->dim, .value_dim = l->value_dim},
            .key_stream = l->key_stream,
            .value_stream = l->value_stream,
            .heads = keys->heads,
            .first_index = home->index_count,
            .is_indexable = is_plain && l->window == 0 && keys->window == 0,
        };
        home->index_count += keys->heads;
    }
    return HD_OK;
}

static hd_status start_builders(index_home *home) {
    home->threads = calloc(home->config.builder_count + 1u, sizeof(*home->threads));
    if (home->threads == NULL) return HD_NO_MEMORY;
    sigset_t all, before; /* signals are for the threads that expect them */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    hd_status status = HD_OK;
    for (unsigned i = 0; i < home->config.builder_count && status == HD_OK; i++) {
        if (pthread_create(&home->threads[i], NULL, builder_main, home) != 0) status = HD_NO_MEMORY;
        else pthread_setname_np(home->threads[home->thread_count++], "index");
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return status;
}

hd_status index_home_open(const index_home_config *config, index_home **out) {
    index_home *home = calloc(1, sizeof(*home));
    if (home == NULL) return HD_NO_MEMORY;
    home->config = *config;
    pthread_mutex_init(&home->lock, NULL);
    pthread_cond_init(&home->wanted, NULL);
    pthread_cond_init(&home->built, NULL);
    hd_status status = describe_layers(home);
    if (status == HD_OK) status = start_builders(home);
    if (status == HD_OK) *out = home;
    else index_home_close(home);
    return status;
}

void index_home_close(index_home *home) {
    if (home == NULL) return;
    pthread_mutex_lock(&home->lock);
    home->is_closing = true;
    pthread_cond_broadcast(&home->wanted);
    pthread_mutex_unlock(&home->lock);
    for (unsigned i = 0; i < home->thread_count; i++) pthread_join(home->threads[i], NULL);
    index_home_reset(home);
    assert(home->first == NULL);
    pthread_cond_destroy(&home->wanted);
    pthread_cond_destroy(&home->built);
    pthread_mutex_destroy(&home->lock);
    free(home->threads);
    free(home->layers);
    free(home);
}

void index_home_stats_read(index_home *home, index_home_stats *stats) {
    *stats = (index_home_stats){.budget_bytes = home->config.budget_bytes};
    pthread_mutex_lock(&home->lock);
    stats->held_bytes = home->held_bytes;
    stats->waits = home->waits;
    stats->wait_ns = home->wait_ns;
    for (const index_set *set = home->first; set != NULL; set = set->next) {
        stats->sets++;
        stats->retained_sets += set->is_retained;
        uint32_t wanted = 0;
        for (uint32_t i = 0; !set->is_retained && i < home->index_count; i++) wanted += set->states[i] != 0;
        if (wanted > 0 && set->target.covered > set->searched)
            stats->lag_tokens += set->target.covered - set->searched;
    }
    pthread_mutex_unlock(&home->lock);
}
