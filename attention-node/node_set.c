/* node_set.c - what membership says, what is linked, and the step between the two. */
#include "attention-node/node_set.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "attention-node/engine.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"

#define NAME_BYTES 128u
#define RETRY_NS 1000000000ull
#define DOUBLINGS_MAX 6u
#define LATE_FORGOTTEN_NS 300000000000ull
#define CALL_FACTOR 4u /* a call about a sequence may wait for a layer of somebody else's step */
#define NOT_LINKED UINT32_MAX

typedef struct known_node {
    char id[NAME_BYTES], address[RPC_ADDRESS_BYTES];
    bool is_known, is_listed, is_draining;
    bool is_back;   /* announced again: it is tried at once */
    bool is_let_go; /* for a lane that has nobody; the step thread's */
    uint32_t index; /* in the sharded attention; the step thread's */
    uint32_t lane;  /* that it has, or had when it was linked last: it is likely to have it still, or to get it again */
    bool has_lane;
    uint64_t retry_ns;
    uint32_t failures;   /* one after the other: the pause doubles each time */
    uint32_t times_late; /* likewise, of links that were given up for being late */
    uint64_t linked_ns;
} known_node;

struct node_set {
    node_set_config config;
    attention *sharded;
    uint32_t kv_heads;
    attention_stream *streams; /* of one lane, while a link is made */
    attention_layer *layers;
    _Atomic bool has_news;
    uint64_t looked_ns;
    pthread_mutex_t lock; /* of what membership says of the nodes */
    known_node nodes[PLACEMENT_NODES_MAX];
};

/* ---- What membership says ---- */

static known_node *find(node_set *set, const char *id) {
    for (uint32_t i = 0; i < PLACEMENT_NODES_MAX; i++) {
        if (set->nodes[i].is_known && strcmp(set->nodes[i].id, id) == 0) return &set->nodes[i];
    }
    return NULL;
}

/* A place that nobody has, or that of a node that is gone in every sense. */
static known_node *take_place(node_set *set, const char *id) {
    for (uint32_t i = 0; i < PLACEMENT_NODES_MAX; i++) {
        known_node *node = &set->nodes[i];
        if (node->is_known && (node->is_listed || node->index != NOT_LINKED)) continue;
        *node = (known_node){.is_known = true, .index = NOT_LINKED};
        snprintf(node->id, sizeof(node->id), "%s", id);
        return node;
    }
    return NULL;
}

hd_status node_set_put(node_set *set, const char *id, const char *address, bool is_draining) {
    pthread_mutex_lock(&set->lock);
    known_node *node = find(set, id);
    if (node == NULL) node = take_place(set, id);
    if (node != NULL) {
        if (!node->is_listed || strcmp(node->address, address) != 0) node->is_back = true;
        node->is_listed = true;
        node->is_draining = is_draining;
        snprintf(node->address, sizeof(node->address), "%s", address);
    }
    pthread_mutex_unlock(&set->lock);
    atomic_store(&set->has_news, true);
    return node != NULL ? HD_OK : HD_FULL;
}

void node_set_remove(node_set *set, const char *id) {
    pthread_mutex_lock(&set->lock);
    known_node *node = find(set, id);
    if (node != NULL) node->is_listed = false;
    pthread_mutex_unlock(&set->lock);
    atomic_store(&set->has_news, true);
}

bool node_set_is_empty(node_set *set) {
    pthread_mutex_lock(&set->lock);
    bool is_empty = true;
    for (uint32_t i = 0; i < PLACEMENT_NODES_MAX; i++)
        is_empty = is_empty && !(set->nodes[i].is_known && set->nodes[i].is_listed);
    pthread_mutex_unlock(&set->lock);
    return is_empty;
}

/* ---- Links ---- */

static placement_heads heads_of(const node_set *set, uint32_t lane) {
    uint32_t count = set->kv_heads / set->config.lanes;
    return (placement_heads){lane * count, count};
}

static hd_status link_lane(node_set *set, const char *address, uint32_t lane, attention **out, hd_error *error) {
    const sharded_config *sharded = &set->config.sharded;
    placement_heads heads = heads_of(set, lane);
    remote_config config = {.transport = set->config.transport,
                            .address = address,
                            .model_name = set->config.model_name,
                            .heads = heads,
                            .kv_dtype = sharded->kv_dtype,
                            .step_rows_max = sharded->step_rows_max * SHARDED_NODE_FACTOR,
                            .sequences_max = sharded->sequences_max * SHARDED_NODE_FACTOR,
                            .answer_ms = set->config.answer_ms,
                            .call_ms = sharded->replicas > 1 ? CALL_FACTOR * sharded->late_ms : 0,
                            .link_ms = set->config.link_ms,
                            .kernels = sharded->kernels->name};
    memcpy(config.fingerprint, set->config.fingerprint, sizeof(config.fingerprint));
    attention_layer_table_cut(&sharded->layers, heads.first, heads.count, set->streams, set->layers, &config.layers);
    return remote_open(&config, out, error);
}

static uint32_t nodes_of_lane(const node_set *set, uint32_t lane) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < PLACEMENT_NODES_MAX; i++) {
        const known_node *node = &set->nodes[i];
        count += node->index != NOT_LINKED && node->lane == lane && !sharded_is_lost(set->sharded, node->index);
    }
    return count;
}

/* Other nodes that are known to have it, linked or not. */
static uint32_t others_of_lane(const node_set *set, const known_node *node, uint32_t lane) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < PLACEMENT_NODES_MAX; i++) {
        const known_node *other = &set->nodes[i];
        bool is_there = other->index != NOT_LINKED || (other->is_known && other->is_listed);
        count += other != node && is_there && other->has_lane && other->lane == lane;
    }
    return count;
}

/* Of those not tried yet, the one that it had before, else the one that fewest others have. */
static uint32_t next_lane(const node_set *set, const known_node *node, const bool *is_tried) {
    uint32_t best = UINT32_MAX;
    if (node->has_lane && !is_tried[node->lane]) return node->lane;
    for (uint32_t lane = 0; lane < set->config.lanes; lane++) {
        if (is_tried[lane]) continue;
        if (best == UINT32_MAX || others_of_lane(set, node, lane) < others_of_lane(set, node, best)) best = lane;
    }
    return best;
}

static uint32_t missing_lane(const node_set *set) {
    uint32_t lane = 0;
    while (lane < set->config.lanes && nodes_of_lane(set, lane) > 0) lane++;
    return lane;
}

static void link_node(node_set *set, known_node *node, const char *address) {
    bool is_tried[PLACEMENT_NODES_MAX] = {false};
    node->is_let_go = node->is_let_go && missing_lane(set) < set->config.lanes;
    /* Linked for another lane than one that has nobody, it would never be free to change. */
    for (uint32_t lane = 0; lane < set->config.lanes; lane++)
        is_tried[lane] = node->is_let_go && nodes_of_lane(set, lane) > 0;
    hd_error error = {.text = ""};
    attention *remote = NULL;
    hd_status status = HD_INVALID;
    for (uint32_t lane; status == HD_INVALID && (lane = next_lane(set, node, is_tried)) != UINT32_MAX;) {
        is_tried[lane] = true;
        status = link_lane(set, address, lane, &remote, &error);
        if (status != HD_OK) continue;
        node->lane = lane;
        node->has_lane = true;
    }
    if (status == HD_OK) {
        sharded_node given = {
            .name = node->id, .address = address, .attention = remote, .heads = heads_of(set, node->lane)};
        status = sharded_add(set->sharded, &given, &node->index, &error);
        if (status != HD_OK) remote->ops->close(remote);
    }
    char id[160], reason[600];
    hd_log_quote(node->id, id, sizeof(id));
    if (status == HD_OK) {
        hd_log(HD_LOG_INFO, "attention_node_linked", "node=%s address=%s lane=%u", id, address, node->lane);
    } else {
        hd_log(HD_LOG_WARN, "attention_node_not_linked", "node=%s reason=%s", id,
               hd_log_quote(error.text, reason, sizeof(reason)));
    }
}

/* Whether anybody of the lane is linked and announced to take new things. */
static bool lane_is_announced(const node_set *set, uint32_t lane) {
    for (uint32_t i = 0; i < PLACEMENT_NODES_MAX; i++) {
        const known_node *node = &set->nodes[i];
        if (node->index != NOT_LINKED && node->lane == lane && node->is_listed && !node->is_draining) return true;
    }
    return false;
}

/* Nothing new goes to who is draining or has vanished; but where all of a lane have vanished, those that did not drain
 * take it, for who is linked is alive. */
static void set_draining(node_set *set) {
    bool drains[PLACEMENT_NODES_MAX], leaves[PLACEMENT_NODES_MAX];
    pthread_mutex_lock(&set->lock);
    for (uint32_t i = 0; i < PLACEMENT_NODES_MAX; i++) {
        const known_node *node = &set->nodes[i];
        leaves[i] = node->is_draining;
        drains[i] = node->is_draining || (!node->is_listed && lane_is_announced(set, node->lane));
    }
    pthread_mutex_unlock(&set->lock);
    for (uint32_t i = 0; i < PLACEMENT_NODES_MAX; i++) {
        if (set->nodes[i].index == NOT_LINKED) continue;
        sharded_set_draining(set->sharded, set->nodes[i].index, drains[i]);
        sharded_set_leaving(set->sharded, set->nodes[i].index, leaves[i]);
    }
}

/* Workers that meet new nodes at the same time may have given all of them one lane. When everybody who is there is
 * linked and a lane has nobody, every worker lets go of the same node, the last by name where there are several, and
 * the first one that finds it empty takes it for what is missing. */
static void rearrange(node_set *set) {
    known_node *last = NULL;
    if (missing_lane(set) == set->config.lanes) return;
    pthread_mutex_lock(&set->lock);
    bool is_everybody = true;
    for (uint32_t i = 0; i < PLACEMENT_NODES_MAX; i++) {
        known_node *node = &set->nodes[i];
        bool is_linked = node->is_known && node->index != NOT_LINKED;
        is_everybody = is_everybody && (is_linked || !node->is_known || !node->is_listed);
        if (is_linked && nodes_of_lane(set, node->lane) > 1 && (last == NULL || strcmp(node->id, last->id) > 0))
            last = node;
    }
    if (is_everybody && last != NULL) {
        sharded_remove(set->sharded, last->index);
        last->index = NOT_LINKED;
        last->retry_ns = 0;
        last->is_let_go = true;
        last->has_lane = false;
    }
    pthread_mutex_unlock(&set->lock);
    if (!is_everybody || last == NULL) return;
    char id[160];
    hd_log(HD_LOG_WARN, "attention_node_rearranged", "node=%s lane=%u missing_lane=%u",
           hd_log_quote(last->id, id, sizeof(id)), last->lane, missing_lane(set));
}

/* A node that is late again and again costs everybody a wait each time, so it is left alone for longer and longer. */
static void pause_after(known_node *node, bool is_late, uint64_t now_ns) {
    if (!is_late || now_ns - node->linked_ns > LATE_FORGOTTEN_NS) node->times_late = 0;
    node->retry_ns = now_ns + (RETRY_NS << (is_late ? node->times_late : 0));
    if (is_late && node->times_late < DOUBLINGS_MAX) node->times_late++;
}

/* Runs between two steps. Every step looks at a flag; the rest is done when there is news, and now and then. */
static void tend(void *context, attention *sharded) {
    node_set *set = context;
    uint64_t now = hd_now_ns();
    if (!atomic_exchange(&set->has_news, false) && now - set->looked_ns < RETRY_NS / 4) return;
    set->looked_ns = now;
    sharded_look(sharded);
    for (uint32_t i = 0; i < PLACEMENT_NODES_MAX; i++) {
        known_node *node = &set->nodes[i];
        pthread_mutex_lock(&set->lock);
        if (node->is_back) node->retry_ns = node->failures = 0;
        node->is_back = false;
        known_node said = *node;
        if (node->index != NOT_LINKED && sharded_is_lost(sharded, node->index)) {
            pause_after(node, sharded_is_late(sharded, node->index), now);
            sharded_remove(sharded, node->index);
            node->index = NOT_LINKED;
        }
        pthread_mutex_unlock(&set->lock);
        if (said.is_known && node->index == NOT_LINKED && said.is_listed && now >= node->retry_ns) {
            link_node(set, node, said.address);
            node->failures = node->index != NOT_LINKED        ? 0
                             : node->failures < DOUBLINGS_MAX ? node->failures + 1
                                                              : DOUBLINGS_MAX;
            node->linked_ns = hd_now_ns();
            node->retry_ns = node->linked_ns + (RETRY_NS << node->failures);
        }
    }
    rearrange(set);
    set_draining(set);
}

hd_status node_set_wait(node_set *set, uint64_t deadline_ms, hd_error *error) {
    uint64_t deadline = hd_now_ns() + deadline_ms * 1000000u;
    for (;;) {
        tend(set, set->sharded);
        uint32_t missing = missing_lane(set);
        if (missing == set->config.lanes) return HD_OK;
        if (hd_now_ns() >= deadline) {
            placement_heads heads = heads_of(set, missing);
            return hd_error_set(error, HD_TIMED_OUT,
                                "no attention node for KV heads %u to %u: start hadal attention-node with the same "
                                "--etcd and --cluster",
                                heads.first, heads.first + heads.count);
        }
        set->config.transport->ops->poll(set->config.transport, RETRY_NS / 20);
    }
}

attention *node_set_attention(node_set *set) {
    return set->sharded;
}

void node_set_close(node_set *set) {
    if (set == NULL) return;
    if (set->sharded != NULL) set->sharded->ops->close(set->sharded);
    hd_free(set->streams);
    hd_free(set->layers);
    pthread_mutex_destroy(&set->lock);
    hd_free(set);
}

/* An engine for each lane, in front of its nodes. */
static hd_status open_stage(node_set *set, hd_error *error) {
    const sharded_config *sharded = &set->config.sharded;
    hd_status status = HD_OK;
    for (uint32_t lane = 0; lane < set->config.lanes && status == HD_OK; lane++) {
        placement_heads heads = heads_of(set, lane);
        engine_config config = {.kv_dtype = sharded->kv_dtype,
                                .hot_bytes = set->config.stage_bytes / set->config.lanes,
                                .head_first = heads.first,
                                .step_rows_max = sharded->step_rows_max * SHARDED_NODE_FACTOR,
                                .sequences_max = sharded->sequences_max * SHARDED_NODE_FACTOR,
                                .kernels = sharded->kernels,
                                .pool = sharded->pool};
        memcpy(config.fingerprint, set->config.fingerprint, sizeof(config.fingerprint));
        attention_layer_table_cut(&sharded->layers, heads.first, heads.count, set->streams, set->layers,
                                  &config.layers);
        sharded_node stage = {.name = "this process", .heads = heads, .is_stage = true};
        uint32_t index;
        status = engine_open(&config, &stage.attention, error);
        if (status != HD_OK) break;
        status = sharded_add(set->sharded, &stage, &index, error);
        if (status != HD_OK) stage.attention->ops->close(stage.attention);
    }
    return status;
}

hd_status node_set_open(const node_set_config *config, node_set **out, hd_error *error) {
    const attention_layer_table *table = &config->sharded.layers;
    node_set *set = hd_alloc_zeroed(sizeof(*set), HD_CACHE_LINE);
    if (set == NULL) return hd_error_set(error, HD_NO_MEMORY, "out of memory");
    pthread_mutex_init(&set->lock, NULL);
    for (uint32_t i = 0; i < PLACEMENT_NODES_MAX; i++) set->nodes[i].index = NOT_LINKED;
    set->config = *config;
    set->config.sharded.tend = tend;
    set->config.sharded.tend_context = set;
    set->kv_heads = attention_layer_table_kv_heads(table);
    set->streams = hd_alloc(table->stream_count * sizeof(*set->streams), HD_CACHE_LINE);
    set->layers = hd_alloc(table->layer_count * sizeof(*set->layers), HD_CACHE_LINE);
    hd_status status = HD_OK;
    if (set->streams == NULL || set->layers == NULL) status = hd_error_set(error, HD_NO_MEMORY, "out of memory");
    if (status == HD_OK && (config->lanes == 0 || config->lanes > PLACEMENT_NODES_MAX || set->kv_heads == 0 ||
                            set->kv_heads % config->lanes != 0)) {
        status = hd_error_set(error, HD_INVALID, "%u KV heads cannot be split over %u lanes of attention nodes",
                              set->kv_heads, config->lanes);
    }
    if (status == HD_OK) status = sharded_open(&set->config.sharded, &set->sharded, error);
    if (status == HD_OK) set->config.sharded.layers = *sharded_table(set->sharded);
    if (status == HD_OK && config->stage_bytes > 0) status = open_stage(set, error);
    if (status == HD_OK) {
        *out = set;
    } else {
        node_set_close(set);
    }
    return status;
}
