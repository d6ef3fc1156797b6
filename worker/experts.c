/* experts.c - route, sort rows by expert, two products an expert.
 *
 * A slot is one (row, expert) pair; slots are numbered by expert, then by row. The products' items of all experts
 * form one list, so that a decode step with a handful of slots keeps every thread busy. */
#include "worker/experts.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "worker/product.h"

typedef struct route {
    uint32_t expert, slot;
    float weight;
} route;

typedef struct group { /* of slots that share an expert */
    uint32_t expert, first_slot, slot_count;
    product gate_up, down;
    size_t gate_up_items_end, down_items_end; /* of this and all groups before it */
} group;

enum { TICKET_ROUTER, TICKET_GATE_UP, TICKET_DOWN, TICKET_COUNT };

struct experts {
    const kernel_ops *kernels;
    hd_pool *pool;
    uint32_t expert_count, each, hidden_size;
    size_t gathered_stride, gated_stride; /* elements */
    bool is_normalised;
    hd_dtype input_dtype;
    size_t element_bytes;

    float *router_logits; /* [rows_max, router_stride] */
    size_t router_stride;
    route *routes;       /* [rows_max, each], each row's in ascending order of expert */
    uint32_t *slot_rows; /* [rows_max * each] */
    group *groups;       /* [expert_count] */
    uint32_t *slot_ends; /* [expert_count + 1] */
    void *gathered;      /* [rows_max * each, gathered_stride] */
    void *gated;         /* [rows_max * each, gated_stride] */
    float *outputs;      /* [rows_max * each, hidden_size] */

    /* Of the run. */
    const model_layer *layer;
    const char *normed;
    size_t normed_stride;
    uint32_t row_count, group_count;
    product router;
    struct {
        _Alignas(HD_CACHE_LINE) _Atomic size_t next;
    } tickets[TICKET_COUNT];
};

hd_status experts_open(const model_config *model, hd_dtype input_dtype, uint32_t rows_max, hd_pool *pool,
                       const kernel_ops *kernels, experts **out) {
    experts *e = hd_alloc_zeroed(sizeof(*e), HD_CACHE_LINE);
    if (e == NULL) return HD_NO_MEMORY;
    e->kernels = kernels;
    e->pool = pool;
    e->expert_count = model->expert_count;
    e->each = model->experts_per_token;
    e->hidden_size = model->hidden_size;
    e->gathered_stride = kernel_input_stride(HD_BF16, model->hidden_size); /* whatever the type */
    e->gated_stride = kernel_input_stride(HD_BF16, HD_ALIGN_UP(model->expert_intermediate_size, KERNEL_PANEL));
    e->is_normalised = model->normalise_expert_weights;
    e->input_dtype = input_dtype;
    e->element_bytes = hd_dtype_bits(input_dtype) / 8;
    e->router_stride = HD_ALIGN_UP(model->expert_count, KERNEL_N_ALIGN);

    size_t slots_max = (size_t)rows_max * e->each;
    e->router_logits = hd_alloc(rows_max * e->router_stride * sizeof(float), HD_CACHE_LINE);
    e->routes = hd_alloc(slots_max * sizeof(route), HD_CACHE_LINE);
    e->slot_rows = hd_alloc(slots_max * sizeof(uint32_t), HD_CACHE_LINE);
    e->groups = hd_alloc(e->expert_count * sizeof(group), HD_CACHE_LINE);
    e->slot_ends = hd_alloc((e->expert_count + 1) * sizeof(uint32_t), HD_CACHE_LINE);
    e->gathered = hd_alloc(slots_max * e->gathered_stride * e->element_bytes, HD_CACHE_LINE);
    e->gated = hd_alloc(slots_max * e->gated_stride * e->element_bytes, HD_CACHE_LINE);
    e->outputs = hd_alloc(slots_max * e->hidden_size * sizeof(float), HD_CACHE_LINE);
    if (e->router_logits == NULL || e->routes == NULL || e->slot_rows == NULL || e->groups == NULL ||
        e->slot_ends == NULL || e->gathered == NULL || e->gated == NULL || e->outputs == NULL) {
        experts_close(e);
        return HD_NO_MEMORY;
    }
    *out = e;
    return HD_OK;
}

void experts_close(experts *e) {
    if (e == NULL) return;
    hd_free(e->router_logits);
    hd_free(e->routes);
    hd_free(e->slot_rows);
    hd_free(e->groups);
    hd_free(e->slot_ends);
    hd_free(e->gathered);
    hd_free(e->gated);
    hd_free(e->outputs);
    hd_free(e);
}

void experts_prepare(experts *e, const model_layer *layer, const void *normed, size_t normed_stride,
                     uint32_t row_count) {
    e->layer = layer;
    e->normed = normed;
    e->normed_stride = normed_stride;
    e->row_count = row_count;
    kernel_matmul call = {.weights = &layer->router,
                          .input = normed,
                          .input_stride = normed_stride,
                          .row_count = row_count,
                          .output = e->router_logits,
                          .output_stride = e->router_stride,
                          .epilogue = KERNEL_STORE};
    product_init(&e->router, &call, hd_pool_thread_count(e->pool));
    for (int i = 0; i < TICKET_COUNT; i++) atomic_store_explicit(&e->tickets[i].next, 0, memory_order_relaxed);
}

/* Softmax over all experts, then the likeliest `each`, kept in ascending order of expert. */
static void route_row(experts *e, uint32_t row) {
    float *p = e->router_logits + row * e->router_stride;
    route *routes = e->routes + (size_t)row * e->each;
    float max = -INFINITY, sum = 0.0f, chosen_sum = 0.0f;
    for (uint32_t i = 0; i < e->expert_count; i++) max = fmaxf(max, p[i]);
    for (uint32_t i = 0; i < e->expert_count; i++) sum += p[i] = expf(p[i] - max);
    for (uint32_t k = 0; k < e->each; k++) {
        uint32_t best = 0;
        for (uint32_t i = 1; i < e->expert_count; i++) {
            if (p[i] > p[best]) best = i;
        }
        float weight = p[best] / sum;
        p[best] = -1.0f; /* not again */
        chosen_sum += weight;
        uint32_t place = k;
        for (; place > 0 && routes[place - 1].expert > best; place--) routes[place] = routes[place - 1];
        routes[place] = (route){.expert = best, .weight = weight};
    }
    for (uint32_t k = 0; e->is_normalised && k < e->each; k++) routes[k].weight /= chosen_sum;
}

/* Numbers the slots and lists the products. */
static void form_groups(experts *e) {
    uint32_t *ends = e->slot_ends;
    size_t route_count = (size_t)e->row_count * e->each;
    memset(ends, 0, (e->expert_count + 1) * sizeof(ends[0]));
    for (size_t i = 0; i < route_count; i++) ends[e->routes[i].expert + 1]++;
    for (uint32_t i = 0; i < e->expert_count; i++) ends[i + 1] += ends[i];

    unsigned thread_count = hd_pool_thread_count(e->pool);
    size_t gate_up_items = 0, down_items = 0;
    e->group_count = 0;
    for (uint32_t expert = 0; expert < e->expert_count; expert++) {
        uint32_t first = ends[expert], count = ends[expert + 1] - first;
        if (count == 0) continue;
        group *g = &e->groups[e->group_count++];
        g->expert = expert;
        g->first_slot = first;
        g->slot_count = count;
        const model_expert *weights = &e->layer->experts[expert];
        kernel_matmul gate_up = {.weights = &weights->gate_up,
                                 .input = (char *)e->gathered + (size_t)first * e->gathered_stride * e->element_bytes,
                                 .input_stride = e->gathered_stride,
                                 .row_count = count,
                                 .output = (char *)e->gated + (size_t)first * e->gated_stride * e->element_bytes,
                                 .output_stride = e->gated_stride,
                                 .epilogue = KERNEL_SWIGLU};
        kernel_matmul down = {.weights = &weights->down,
                              .input = gate_up.output,
                              .input_stride = e->gated_stride,
                              .row_count = count,
                              .output = e->outputs + (size_t)first * e->hidden_size,
                              .output_stride = e->hidden_size,
                              .epilogue = KERNEL_STORE};
        product_init(&g->gate_up, &gate_up, thread_count);
        product_init(&g->down, &down, thread_count);
        g->gate_up_items_end = gate_up_items += product_items(&g->gate_up);
        g->down_items_end = down_items += product_items(&g->down);
    }
    for (uint32_t row = 0; row < e->row_count; row++) {
        for (uint32_t k = 0; k < e->each; k++) {
            route *r = &e->routes[(size_t)row * e->each + k];
            r->slot = ends[r->expert]++;
            e->slot_rows[r->slot] = row;
        }
    }
}

static void gather(experts *e, unsigned thread, unsigned thread_count) {
    size_t first, count, row_bytes = e->gathered_stride * e->element_bytes,
                         copied_bytes = HD_ALIGN_UP(e->hidden_size, KERNEL_K_ALIGN) * e->element_bytes;
    hd_share((size_t)e->row_count * e->each, 1, thread, thread_count, &first, &count);
    for (size_t slot = first; slot < first + count; slot++) {
        memcpy((char *)e->gathered + slot * row_bytes,
               e->normed + e->slot_rows[slot] * e->normed_stride * e->element_bytes, copied_bytes);
    }
}

static void run_products(experts *e, bool is_down, void *scratch) {
    const group *last = &e->groups[e->group_count - 1];
    size_t items = is_down ? last->down_items_end : last->gate_up_items_end, begin = 0;
    uint32_t g = 0;
    _Atomic size_t *ticket = &e->tickets[is_down ? TICKET_DOWN : TICKET_GATE_UP].next;
    for (size_t item; (item = hd_ticket_take(ticket, items)) < items;) {
        /* Tickets grow, so the search goes on where the last one ended. */
        for (;; g++) {
            size_t end = is_down ? e->groups[g].down_items_end : e->groups[g].gate_up_items_end;
            if (item < end) break;
            begin = end;
        }
        product_run_item(is_down ? &e->groups[g].down : &e->groups[g].gate_up, e->kernels, item - begin, scratch);
    }
}

void experts_run(experts *e, unsigned thread, unsigned thread_count, void *scratch) {
    product_run(&e->router, e->kernels, &e->tickets[TICKET_ROUTER].next, scratch);
    hd_pool_barrier(e->pool);
    size_t first, count;
    hd_share(e->row_count, 1, thread, thread_count, &first, &count);
    for (size_t row = first; row < first + count; row++) route_row(e, (uint32_t)row);
    hd_pool_barrier(e->pool);
    if (thread == 0) form_groups(e);
    hd_pool_barrier(e->pool);
    gather(e, thread, thread_count);
    hd_pool_barrier(e->pool);
    run_products(e, false, scratch);
    hd_pool_barrier(e->pool);
    run_products(e, true, scratch);
    hd_pool_barrier(e->pool);
}

void experts_add(const experts *e, uint32_t row, float *residual) {
    for (uint32_t k = 0; k < e->each; k++) {
        const route *r = &e->routes[(size_t)row * e->each + k];
        e->kernels->add_scaled(residual, e->outputs + (size_t)r->slot * e->hidden_size, r->weight, e->hidden_size);
    }
}
