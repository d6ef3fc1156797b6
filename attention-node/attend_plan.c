/* attend_plan.c - tiles, who shares what, cuts, and the order of tickets. */
#include "attention-node/attend_plan.h"

#include <assert.h>

#define ITEMS_PER_THREAD 16u
#define PARTIALS_PER_THREAD 16u /* of full tiles, for long sequences that are cut */
#define PARTIALS_PER_SPAN 8u    /* of one row, for sequences that share groups */
#define COST_CLASSES 256u

/* The cost of a group of blocks to an item: reading its keys and values, and the work for each row, in rows. */
#define COST_OF_READING 8u

static uint64_t max_u64(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

static uint64_t min_u64(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* ---- Memory ---- */

uint32_t attend_plan_item_rows_max(const plan_limits *limits) {
    return limits->tile_rows > limits->group_size_max ? limits->tile_rows : limits->group_size_max;
}

uint64_t attend_plan_partial_rows_max(const plan_limits *limits) {
    return (uint64_t)limits->thread_count * PARTIALS_PER_THREAD * attend_plan_item_rows_max(limits) +
           (uint64_t)limits->spans_max * PARTIALS_PER_SPAN * limits->group_size_max * limits->kv_heads_max +
           (uint64_t)limits->rows_max * limits->pieces_max * limits->group_size_max * limits->kv_heads_max;
}

/* Every tile has a row and an item; cutting adds a bounded number of items. */
static uint32_t items_max_of(const plan_limits *limits) {
    return limits->rows_max * (1 + limits->pieces_max) + limits->thread_count * ITEMS_PER_THREAD * 8;
}

uint64_t attend_plan_table_bytes(const plan_limits *limits) {
    uint64_t line = HD_CACHE_LINE;
    return HD_ALIGN_UP(limits->rows_max * sizeof(plan_tile), line) +
           HD_ALIGN_UP(items_max_of(limits) * sizeof(plan_item), line) +
           HD_ALIGN_UP(items_max_of(limits) * sizeof(uint32_t), line) +
           HD_ALIGN_UP((uint64_t)limits->rows_max * limits->kv_heads_max * sizeof(_Atomic uint32_t), line);
}

void attend_plan_init(attend_plan *plan, const plan_limits *limits, hd_arena *arena) {
    *plan = (attend_plan){.limits = *limits};
    plan->items_max = items_max_of(limits);
    plan->partial_rows_max = attend_plan_partial_rows_max(limits);
    plan->tiles = hd_arena_take(arena, limits->rows_max * sizeof(*plan->tiles));
    plan->items = hd_arena_take(arena, plan->items_max * sizeof(*plan->items));
    plan->order = hd_arena_take(arena, plan->items_max * sizeof(*plan->order));
    plan->counters = hd_arena_take(arena, (size_t)limits->rows_max * limits->kv_heads_max * sizeof(*plan->counters));
    assert(plan->tiles != NULL && plan->items != NULL && plan->order != NULL && plan->counters != NULL);
}

/* ---- Tiles ---- */

static void make_tiles(attend_plan *plan, uint32_t span_count) {
    uint32_t group_size = plan->shape.group_size, rows = plan->limits.tile_rows / group_size;
    if (rows == 0) rows = 1;
    for (uint32_t i = 0; i < span_count; i++) {
        const plan_span *span = &plan->spans[i];
        /* Rows behind a range see all of it, and there are no groups behind what is there. */
        const kv_run *last = span->run_count > 0 ? &span->runs[span->run_count - 1] : NULL;
        uint64_t groups = last != NULL ? (last->position + last->count - 1) / HD_GROUP_TOKENS + 1 : 1;
        for (uint32_t done = 0; done < span->row_count; done += rows) {
            uint32_t count = span->row_count - done < rows ? span->row_count - done : rows;
            uint64_t first = span->first_position + done, window = plan->shape.window;
            uint64_t visible = window != 0 && first + 1 > window ? first + 1 - window : 0;
            uint64_t end = min_u64((first + count - 1) / HD_GROUP_TOKENS + 1, groups);
            assert(plan->tile_count < plan->limits.rows_max);
            plan->tiles[plan->tile_count++] = (plan_tile){.span = i,
                                                          .first_row = span->first_row + done,
                                                          .row_count = count,
                                                          .group_first = min_u64(visible / HD_GROUP_TOKENS, end - 1),
                                                          .group_end = end,
                                                          .together = 1};
        }
    }
}

/* The group behind those that two spans have in common, whole. */
static uint64_t common_end(const plan_span *a, const plan_span *b) {
    uint32_t runs = a->run_count < b->run_count ? a->run_count : b->run_count, same = 0;
    while (same < runs && block_name_is_equal(a->runs[same].block, b->runs[same].block) &&
           a->runs[same].first == b->runs[same].first && a->runs[same].count == b->runs[same].count &&
           a->runs[same].position == b->runs[same].position) {
        same++;
    }
    return same == 0 ? 0 : (a->runs[same - 1].position + a->runs[same - 1].count) / HD_GROUP_TOKENS;
}

/* Joins tiles that are whole spans, one after the other, as long as that saves more reading. */
static void join_tiles(attend_plan *plan, uint32_t first) {
    plan_tile *head = &plan->tiles[first];
    const plan_span *span = &plan->spans[head->span];
    if (head->row_count != span->row_count) return;
    uint64_t shared_end = head->group_end, shared_first = head->group_first, latest_first = head->group_first;
    uint32_t rows = head->row_count;
    for (uint32_t next = first + 1; next < plan->tile_count; next++) {
        const plan_tile *tile = &plan->tiles[next];
        if (tile->first_row != head->first_row + rows) break; /* an item's rows follow each other */
        rows += tile->row_count;
        if (tile->row_count != plan->spans[tile->span].row_count ||
            rows * plan->shape.group_size > plan->limits.tile_rows)
            break;
        uint64_t begin = min_u64(shared_first, tile->group_first), joined = next - first;
        uint64_t end = min_u64(min_u64(shared_end, tile->group_end), common_end(span, &plan->spans[tile->span]));
        latest_first = max_u64(latest_first, tile->group_first);
        if (end <= latest_first || (end - begin) * joined <= (shared_end - shared_first) * (joined - 1)) break;
        shared_first = begin;
        shared_end = end;
        head->together = next - first + 1;
    }
    if (head->together == 1) return;
    head->shared_end = shared_end;
    for (uint32_t i = 1; i < head->together; i++) plan->tiles[first + i].shared_end = shared_end;
}

/* ---- Cutting ---- */

/* Cuts groups into nodes of at most level_max. At a hard edge somebody else's groups begin, and no node reaches over
 * it; behind a soft edge there is nothing. */
typedef struct {
    uint64_t next, end;
    uint32_t level_max;
    bool is_left_hard, is_right_hard;
} cutter;

static bool cut_next(cutter *c, plan_item *item) {
    if (c->next >= c->end) return false;
    uint32_t level = c->level_max;
    if (c->is_left_hard && c->next != 0 && level > (uint32_t)__builtin_ctzll(c->next))
        level = (uint32_t)__builtin_ctzll(c->next);
    while (c->is_right_hard && ((c->next >> level) + 1) << level > c->end) level--;
    item->level = level;
    item->index = c->next >> level;
    item->group_first = c->next;
    item->group_end = min_u64((item->index + 1) << level, c->end);
    c->next = item->group_end;
    c->is_left_hard = true; /* the next node begins where this one ends */
    return true;
}

static uint32_t cut_count(cutter c) {
    plan_item item;
    uint32_t count = 0;
    while (cut_next(&c, &item)) count++;
    return count;
}

static uint64_t unit_cost(const attend_plan *plan, uint32_t rows) {
    return COST_OF_READING + (uint64_t)rows * plan->shape.group_size;
}

/* The highest level whose nodes cost no more than target. */
static uint32_t level_for(const attend_plan *plan, uint32_t rows, uint64_t target) {
    uint32_t level = 0;
    uint64_t groups_max = plan->shape.groups_max;
    while (level < 40 && unit_cost(plan, rows) << (level + 1) <= target) level++;
    while (groups_max != 0 && 1ull << level > groups_max) level--;
    return level;
}

static void add_item(attend_plan *plan, plan_item item) {
    assert(plan->item_count < plan->items_max);
    item.cost = unit_cost(plan, item.row_count) * (item.group_end - item.group_first);
    if (!item.is_whole) {
        item.partial_row = plan->partial_row_count;
        plan->partial_row_count += (uint64_t)item.row_count * plan->shape.group_size * plan->shape.kv_heads;
        assert(plan->partial_row_count <= plan->partial_rows_max);
    }
    plan->items[plan->item_count++] = item;
}

static void add_cuts(attend_plan *plan, plan_item item, cutter c) {
    while (cut_next(&c, &item)) add_item(plan, item);
}

/* Whether so many items with so many rows in all fit, while each of the tiles to come still gets an item. */
static bool has_room(const attend_plan *plan, uint32_t items, uint64_t rows, uint32_t tiles_to_come) {
    uint64_t partial_rows = rows * plan->shape.group_size * plan->shape.kv_heads;
    return (uint64_t)plan->item_count + items + tiles_to_come <= plan->items_max &&
           plan->partial_row_count + partial_rows <= plan->partial_rows_max;
}

static void start_counter(attend_plan *plan, plan_tile *tile) {
    tile->counter = plan->counter_count++;
    for (uint32_t head = 0; head < plan->shape.kv_heads; head++) {
        atomic_store_explicit(&plan->counters[(size_t)tile->counter * plan->shape.kv_heads + head],
                              tile->shared_count + tile->own_count, memory_order_relaxed);
    }
}

static plan_item item_of(const attend_plan *plan, uint32_t tile) {
    const plan_tile *t = &plan->tiles[tile];
    return (plan_item){.first_tile = tile, .tile_count = 1, .first_row = t->first_row, .row_count = t->row_count};
}

static void add_tile(attend_plan *plan, uint32_t index, uint64_t target) {
    plan_tile *tile = &plan->tiles[index];
    plan_item item = item_of(plan, index);
    cutter c = {
        .next = tile->group_first, .end = tile->group_end, .level_max = level_for(plan, tile->row_count, target)};
    uint32_t count = cut_count(c);
    while (count > 1 && !has_room(plan, count, (uint64_t)count * tile->row_count, plan->tile_count - index)) {
        c.level_max++;
        count = cut_count(c);
    }
    tile->own_first = plan->item_count;
    tile->own_count = count;
    if (count > 1) start_counter(plan, tile);
    item.is_whole = count == 1;
    add_cuts(plan, item, c);
}

/* What of a tile lies behind the groups that it shares. */
static cutter own_cutter(const attend_plan *plan, const plan_tile *tile, uint64_t target) {
    return (cutter){.next = tile->shared_end,
                    .end = tile->group_end,
                    .level_max = level_for(plan, tile->row_count, target),
                    .is_left_hard = true};
}

/* False, and nothing added, when there is no room for the partials. */
static bool add_together(attend_plan *plan, uint32_t first, uint64_t target) {
    plan_tile *tiles = &plan->tiles[first];
    uint32_t together = tiles->together, item_count = 0;
    plan_item shared = item_of(plan, first);
    shared.tile_count = together;
    shared.row_count = 0;
    cutter c = {.next = UINT64_MAX, .end = tiles->shared_end, .is_right_hard = true};
    uint64_t rows = 0;
    for (uint32_t i = 0; i < together; i++) {
        uint32_t own = cut_count(own_cutter(plan, &tiles[i], target));
        item_count += own;
        rows += (uint64_t)own * tiles[i].row_count;
        shared.row_count += tiles[i].row_count;
        c.next = min_u64(c.next, tiles[i].group_first);
    }
    c.level_max = level_for(plan, shared.row_count, target);
    uint32_t shared_count = cut_count(c);
    rows += (uint64_t)shared_count * shared.row_count;
    if (!has_room(plan, item_count + shared_count, rows, plan->tile_count - first)) return false;

    uint32_t shared_first = plan->item_count;
    add_cuts(plan, shared, c);
    for (uint32_t i = 0; i < together; i++) {
        tiles[i].shared_first = shared_first;
        tiles[i].shared_count = shared_count;
        tiles[i].own_first = plan->item_count;
        add_cuts(plan, item_of(plan, first + i), own_cutter(plan, &tiles[i], target));
        tiles[i].own_count = plan->item_count - tiles[i].own_first;
        start_counter(plan, &tiles[i]);
    }
    return true;
}

/* What an item may cost, so that there are enough of them for all threads. */
static uint64_t target_cost(const attend_plan *plan) {
    if (plan->limits.thread_count == 1 || plan->shape.groups_max != 0) return UINT64_MAX / 2;
    uint64_t total = 0;
    for (uint32_t i = 0; i < plan->tile_count; i++) {
        const plan_tile *tile = &plan->tiles[i];
        total += unit_cost(plan, tile->row_count) * (tile->group_end - tile->group_first);
    }
    return max_u64(total * plan->shape.kv_heads / (plan->limits.thread_count * ITEMS_PER_THREAD), 1);
}

/* ---- Order ---- */

/* Four classes an octave: costly first is a rule of thumb, and sorting exactly would buy nothing. */
static uint32_t cost_class(uint64_t cost) {
    if (cost < 4) return (uint32_t)cost;
    uint32_t octave = 63 - (uint32_t)__builtin_clzll(cost);
    return octave * 4 + (uint32_t)(cost >> (octave - 2) & 3);
}

static void order_items(attend_plan *plan) {
    uint32_t starts[COST_CLASSES + 1] = {0};
    for (uint32_t i = 0; i < plan->item_count; i++) starts[COST_CLASSES - cost_class(plan->items[i].cost)]++;
    for (uint32_t i = 1; i <= COST_CLASSES; i++) starts[i] += starts[i - 1];
    for (uint32_t i = plan->item_count; i-- > 0;)
        plan->order[--starts[COST_CLASSES - cost_class(plan->items[i].cost)]] = i;
}

/* By sequence, position and tile; shell sort, because it needs no memory. */
static bool comes_before(const attend_plan *plan, uint32_t a, uint32_t b) {
    const plan_item *x = &plan->items[a], *y = &plan->items[b];
    uint32_t x_span = plan->tiles[x->first_tile].span, y_span = plan->tiles[y->first_tile].span;
    if (x_span != y_span) return x_span < y_span;
    return x->group_first != y->group_first ? x->group_first < y->group_first : a < b;
}

static void order_items_by_position(attend_plan *plan) {
    for (uint32_t i = 0; i < plan->item_count; i++) plan->order[i] = i;
    uint32_t gap = 1;
    while (gap < plan->item_count / 3) gap = gap * 3 + 1;
    for (; gap > 0; gap /= 3) {
        for (uint32_t i = gap; i < plan->item_count; i++) {
            uint32_t item = plan->order[i], k = i;
            for (; k >= gap && comes_before(plan, item, plan->order[k - gap]); k -= gap) {
                plan->order[k] = plan->order[k - gap];
            }
            plan->order[k] = item;
        }
    }
}

void attend_plan_build(attend_plan *plan, const plan_span *spans, uint32_t span_count, const plan_shape *shape) {
    plan->spans = spans;
    plan->shape = *shape;
    plan->tile_count = plan->item_count = plan->counter_count = 0;
    plan->partial_row_count = 0;
    make_tiles(plan, span_count);
    for (uint32_t i = 0; i < plan->tile_count; i += plan->tiles[i].together) join_tiles(plan, i);
    uint64_t target = target_cost(plan);
    for (uint32_t i = 0; i < plan->tile_count;) {
        uint32_t together = plan->tiles[i].together;
        if (together == 1 || !add_together(plan, i, target)) {
            for (uint32_t k = 0; k < together; k++) add_tile(plan, i + k, target);
        }
        i += together;
    }
    if (shape->groups_max != 0) order_items_by_position(plan);
    else order_items(plan);
}

bool attend_plan_tile_done(attend_plan *plan, const plan_tile *tile, uint32_t head) {
    _Atomic uint32_t *counter = &plan->counters[(size_t)tile->counter * plan->shape.kv_heads + head];
    if (atomic_fetch_sub_explicit(counter, 1, memory_order_acq_rel) > 1) return false;
    atomic_store_explicit(counter, tile->shared_count + tile->own_count, memory_order_relaxed);
    return true;
}
