/* placement.c - lanes, ranges, and which node has room. */
#include "attention-node/placement.h"

#include <assert.h>

#include "attention-node/merge_tree.h"

static bool is_same_heads(placement_heads a, placement_heads b) {
    return a.first == b.first && a.count == b.count;
}

bool placement_row_is_whole(const placement_row *row) {
    return row->end_position == 0;
}

bool placement_row_has(const placement_row *row, uint32_t node) {
    for (uint32_t i = 0; i < row->node_count; i++) {
        if (row->nodes[i] == node) return true;
    }
    return false;
}

uint64_t placement_lane_end(const placement *map, placement_heads heads) {
    uint64_t end = 0;
    for (uint32_t i = 0; i < map->row_count; i++) {
        if (!is_same_heads(map->rows[i].heads, heads)) continue;
        end = placement_row_is_whole(&map->rows[i]) ? UINT64_MAX : map->rows[i].end_position;
    }
    return end;
}

/* Behind the lane's other rows. NULL: the map is full. */
static placement_row *add_row(placement *map, placement_heads heads) {
    if (map->row_count == PLACEMENT_ROWS_MAX) return NULL;
    uint32_t at = 0, ordinal = 0;
    while (at < map->row_count && map->rows[at].heads.first <= heads.first) {
        ordinal = is_same_heads(map->rows[at].heads, heads) ? map->rows[at].ordinal + 1 : 0;
        at++;
    }
    for (uint32_t i = map->row_count; i > at; i--) map->rows[i] = map->rows[i - 1];
    map->row_count++;
    map->rows[at] = (placement_row){.heads = heads, .ordinal = ordinal};
    return &map->rows[at];
}

/* ---- Lanes ---- */

hd_status placement_lanes(const placement_request *request, placement_heads *lanes, uint32_t *lane_count,
                          hd_error *error) {
    uint32_t count = 0, next = 0;
    while (next < request->kv_heads) {
        const placement_node *found = NULL;
        for (uint32_t i = 0; i < request->node_count; i++) {
            const placement_node *node = &request->nodes[i];
            if (!node->is_usable || node->heads.first != next) continue;
            if (found == NULL) found = node;
            if (found->heads.count != node->heads.count) {
                return hd_error_set(error, HD_INVALID, "two attention nodes have KV heads from %u on, one %u, one %u",
                                    next, found->heads.count, node->heads.count);
            }
        }
        /* It was there, and may come back; who waits for room waits for it too. */
        if (found == NULL) {
            return hd_error_set(error, HD_FULL, "no attention node that is ready has KV head %u of %u", next,
                                request->kv_heads);
        }
        lanes[count++] = found->heads;
        next += found->heads.count;
    }
    *lane_count = count;
    return HD_OK;
}

/* ---- Placing ---- */

typedef struct {
    const placement_request *request;
    placement_heads lane;
    uint64_t taken[PLACEMENT_NODES_MAX]; /* tokens, by this sequence */
    uint32_t shares[PLACEMENT_NODES_MAX];
    bool is_empty; /* as if nobody else were there */
} placing;

static uint64_t room_of(const placing *p, uint32_t node) {
    const placement_node *n = &p->request->nodes[node];
    uint64_t tokens = p->is_empty ? n->total_tokens : n->free_tokens;
    return tokens > p->taken[node] ? tokens - p->taken[node] : 0;
}

static bool is_candidate(const placing *p, uint32_t node, const placement_row *row, uint64_t tokens) {
    const placement_node *n = &p->request->nodes[node];
    return n->is_usable && is_same_heads(n->heads, p->lane) && p->shares[node] < PLACEMENT_SHARE_MAX &&
           !placement_row_has(row, node) && room_of(p, node) >= tokens;
}

static uint32_t nodes_of_lane(const placement_request *request, placement_heads lane) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < request->node_count; i++)
        count += request->nodes[i].is_usable && is_same_heads(request->nodes[i].heads, lane);
    return count;
}

/* Where the sequence has least already, then where most is free: ranges spread over the nodes. */
static bool add_nodes(placing *p, placement_row *row, uint64_t tokens) {
    while (row->node_count < p->request->replicas) {
        uint32_t best = UINT32_MAX;
        for (uint32_t i = 0; i < p->request->node_count; i++) {
            if (!is_candidate(p, i, row, tokens)) continue;
            if (best == UINT32_MAX || p->shares[i] < p->shares[best] ||
                (p->shares[i] == p->shares[best] && room_of(p, i) > room_of(p, best)))
                best = i;
        }
        /* Where there are not so many nodes, there are fewer replicas. */
        if (best == UINT32_MAX) return row->node_count > 0 && row->node_count == nodes_of_lane(p->request, p->lane);
        row->nodes[row->node_count++] = best;
        p->taken[best] += tokens;
        p->shares[best]++;
    }
    return true;
}

static uint64_t least(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* What the rows that are there take of each node. Their tokens are counted whole, though some are in its cache. */
static bool count_rows(placing *p, placement *map) {
    for (uint32_t i = 0; i < map->row_count; i++) {
        placement_row *row = &map->rows[i];
        if (!is_same_heads(row->heads, p->lane)) continue;
        uint64_t end = placement_row_is_whole(row) ? UINT64_MAX : row->end_position;
        uint64_t tokens = least(end, p->request->tokens_max) - row->first_position;
        for (uint32_t k = 0; k < row->node_count; k++) {
            p->taken[row->nodes[k]] += tokens;
            p->shares[row->nodes[k]]++;
        }
        if (row->node_count == 0 && !add_nodes(p, row, tokens)) return false;
    }
    return true;
}

/* Ranges of that size from where the lane ends. */
static bool place_ranges(placing *p, placement *map, uint64_t size) {
    if (!count_rows(p, map)) return false;
    for (uint64_t first; (first = placement_lane_end(map, p->lane)) < p->request->tokens_max;) {
        uint64_t fitting = size;
        while (first % fitting != 0) fitting /= 2;
        placement_row *row = add_row(map, p->lane);
        if (row == NULL) return false;
        bool is_whole = first == 0 && fitting >= p->request->tokens_max;
        row->first_position = first;
        row->end_position = is_whole ? 0 : first + fitting;
        if (!add_nodes(p, row, least(fitting, p->request->tokens_max - first))) return false;
    }
    return true;
}

/* Whole while it is short or there is one node; else about as much for every node. */
static uint64_t range_size(const placement_request *request, placement_heads lane) {
    uint64_t size = request->range_min, nodes = nodes_of_lane(request, lane);
    if (nodes == 0) return size; /* all of them have gone: nothing will fit, whatever the size */
    while (size <= request->tokens_max / nodes / 2) size *= 2;
    while ((nodes == 1 || request->is_whole_only) && size < request->tokens_max) size *= 2;
    return size;
}

static bool place_lane(const placement_request *request, placement_heads lane, bool is_empty, placement *map) {
    /* Smaller ranges where these do not fit. */
    for (uint64_t size = range_size(request, lane); size >= HD_GROUP_TOKENS; size /= 2) {
        placing p = {.request = request, .lane = lane, .is_empty = is_empty};
        placement attempt = *map;
        if (request->is_whole_only && size < request->tokens_max) return false;
        if (!place_ranges(&p, &attempt, size)) continue;
        *map = attempt;
        return true;
    }
    return false;
}

bool placement_inherit(placement *map, const placement_request *request, placement_heads heads, const uint32_t *nodes,
                       uint32_t node_count, uint64_t tokens) {
    uint64_t first = placement_lane_end(map, heads);
    if (first >= request->tokens_max || request->tokens_max > PLACEMENT_TOKENS_MAX) return false;
    uint64_t size = range_size(request, heads);
    while (first % size != 0) size /= 2;
    while (size < tokens) size *= 2;
    bool is_whole = first == 0 && size >= request->tokens_max;
    /* What ends like a range was one, and the next range may be there as well. */
    bool is_range = tokens % HD_GROUP_TOKENS == 0 && (tokens & (tokens - 1)) == 0 && first % tokens == 0;
    if (is_range && !is_whole) size = tokens;
    placing p = {.request = request, .lane = heads};
    placement attempt = *map;
    if (first % size != 0 || !count_rows(&p, &attempt)) return false;
    placement_row *row = add_row(&attempt, heads);
    if (row == NULL || (request->is_whole_only && !is_whole)) return false;
    row->first_position = first;
    row->end_position = is_whole ? 0 : first + size;
    for (uint32_t i = 0; i < node_count && row->node_count < request->replicas; i++) {
        if (is_candidate(&p, nodes[i], row, least(size, request->tokens_max - first)))
            row->nodes[row->node_count++] = nodes[i];
    }
    if (row->node_count == 0) return false;
    *map = attempt;
    map->version++;
    return true;
}

static bool place_lanes(const placement_request *request, const placement_heads *lanes, uint32_t lane_count,
                        bool is_empty, placement *map) {
    for (uint32_t i = 0; i < lane_count; i++) {
        if (!place_lane(request, lanes[i], is_empty, map)) return false;
    }
    return true;
}

static hd_status explain(const placement_request *request, bool could_fit, hd_error *error) {
    uint64_t free_tokens = 0, total_tokens = 0;
    for (uint32_t i = 0; i < request->node_count; i++) {
        if (!request->nodes[i].is_usable) continue;
        free_tokens += request->nodes[i].free_tokens;
        total_tokens += request->nodes[i].total_tokens;
    }
    return hd_error_set(
        error, could_fit ? HD_FULL : HD_INVALID,
        "%llu tokens%s%s on %u attention nodes, which hold %llu tokens of their heads and have %llu free",
        (unsigned long long)request->tokens_max, request->replicas > 1 ? ", replicated," : "",
        could_fit ? " have no room now" : " never fit", request->node_count, (unsigned long long)total_tokens,
        (unsigned long long)free_tokens);
}

hd_status placement_place(placement *map, const placement_request *request, hd_error *error) {
    assert(request->node_count <= PLACEMENT_NODES_MAX && request->replicas >= 1);
    assert(request->replicas <= PLACEMENT_REPLICAS_MAX && request->range_min >= HD_GROUP_TOKENS);
    placement_heads lanes[PLACEMENT_NODES_MAX];
    uint32_t lane_count;
    hd_status status = placement_lanes(request, lanes, &lane_count, error);
    if (status != HD_OK) return status;
    if (request->tokens_max > PLACEMENT_TOKENS_MAX) return explain(request, false, error);
    placement attempt = *map;
    if (place_lanes(request, lanes, lane_count, false, &attempt)) {
        *map = attempt;
        map->version++;
        return HD_OK;
    }
    attempt = (placement){.version = 0};
    return explain(request, place_lanes(request, lanes, lane_count, true, &attempt), error);
}

/* ---- Changes ---- */

bool placement_move(placement *map, uint32_t row_index, uint32_t from, uint32_t to) {
    placement_row *row = &map->rows[row_index];
    if (placement_row_has(row, to)) return false;
    for (uint32_t i = 0; i < row->node_count; i++) {
        if (row->nodes[i] != from) continue;
        row->nodes[i] = to;
        map->version++;
        return true;
    }
    return false;
}

bool placement_add(placement *map, uint32_t row_index, uint32_t node) {
    placement_row *row = &map->rows[row_index];
    if (placement_row_has(row, node) || row->node_count == PLACEMENT_REPLICAS_MAX) return false;
    row->nodes[row->node_count++] = node;
    map->version++;
    return true;
}

bool placement_drop_from(placement *map, uint32_t row_index, uint32_t node) {
    placement_row *row = &map->rows[row_index];
    if (row->node_count < 2 || !placement_row_has(row, node)) return false;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < row->node_count; i++) {
        if (row->nodes[i] != node) row->nodes[kept++] = row->nodes[i];
    }
    row->node_count = kept;
    map->version++;
    return true;
}

bool placement_drop(placement *map, uint32_t node) {
    bool is_complete = true;
    for (uint32_t i = 0; i < map->row_count; i++) {
        placement_row *row = &map->rows[i];
        uint32_t kept = 0;
        for (uint32_t k = 0; k < row->node_count; k++) {
            if (row->nodes[k] != node) row->nodes[kept++] = row->nodes[k];
        }
        if (kept < row->node_count) map->version++;
        row->node_count = kept;
        is_complete = is_complete && kept > 0;
    }
    return is_complete;
}

void placement_remove_row(placement *map, uint32_t row) {
    map->row_count--;
    for (uint32_t i = row; i < map->row_count; i++) map->rows[i] = map->rows[i + 1];
    map->version++;
}

bool placement_put(placement *map, const placement_row *found) {
    uint32_t at = 0;
    while (at < map->row_count &&
           (map->rows[at].heads.first < found->heads.first ||
            (is_same_heads(map->rows[at].heads, found->heads) && map->rows[at].ordinal < found->ordinal)))
        at++;
    placement_row *row = &map->rows[at];
    if (at < map->row_count && is_same_heads(row->heads, found->heads) && row->ordinal == found->ordinal) {
        bool is_same = row->first_position == found->first_position && row->end_position == found->end_position;
        if (!is_same || row->node_count == PLACEMENT_REPLICAS_MAX || placement_row_has(row, found->nodes[0]))
            return false;
        row->nodes[row->node_count++] = found->nodes[0];
    } else {
        if (map->row_count == PLACEMENT_ROWS_MAX) return false;
        for (uint32_t i = map->row_count; i > at; i--) map->rows[i] = map->rows[i - 1];
        map->row_count++;
        *row = *found;
    }
    map->version++;
    return true;
}

uint32_t placement_whole_rows(const placement *map, placement_heads heads) {
    uint32_t count = 0;
    uint64_t end = 0;
    for (uint32_t i = 0; i < map->row_count; i++) {
        const placement_row *row = &map->rows[i];
        if (!is_same_heads(row->heads, heads)) continue;
        if (row->node_count == 0 || row->first_position != end || row->ordinal != count) break;
        end = placement_row_is_whole(row) ? UINT64_MAX : row->end_position;
        count++;
    }
    return count;
}

void placement_cut(placement *map, uint64_t position) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < map->row_count; i++) {
        if (map->rows[i].first_position < position || map->rows[i].first_position == 0)
            map->rows[kept++] = map->rows[i];
    }
    if (kept < map->row_count) map->version++;
    map->row_count = kept;
}
