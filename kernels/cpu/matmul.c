/* matmul.c - products with packed weights: which part of the weights meets which rows, when.
 *
 * Weights come from memory once for each MATMUL_ROWS rows, in chunks of one panel by MATMUL_DEPTH, and while one
 * chunk is multiplied the next is fetched. A few panels go together through k, so that the rows, which do not fit
 * beside them in the second-level cache when k is large, are read once for all of these panels. Sums wait in scratch
 * meanwhile, as f32: cutting k leaves every bit alone (tile.h). int8 weights become bf16 a chunk at a time, for one
 * row as for many, while the chunk before is multiplied, and their scale is applied to the sum. */
#include "kernels/cpu/matmul.h"

#include <assert.h>

#include "kernels/cpu/tile.h"

static uint32_t least(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

/* One call's rows [first_row, first_row + rows) with panels [first_panel, first_panel + panels). */
typedef struct part {
    const kernel_matmul *call;
    uint32_t first_row, rows, first_panel, panels, last_panel; /* last_panel: where the whole call ends */
    uint32_t depth;
    float *sums;           /* [panels][rows][64] */
    uint16_t *expanded[2]; /* of int8, chunks of even and odd number: [depth / 2][64][2] */
} part;

/* The chunks of a part go by number: all panels of one depth of k, then those of the next. */
typedef struct chunk {
    const char *data;
    uint32_t panel, k, depth, width; /* panel: within the part */
} chunk;

static uint32_t panel_width(const kernel_matrix *weights, uint32_t panel) {
    return least(weights->n_padded - panel * KERNEL_PANEL, KERNEL_PANEL);
}

static const char *data_at(const kernel_matrix *weights, uint32_t panel, uint32_t k) {
    size_t elements = (size_t)panel * KERNEL_PANEL * weights->k_padded + (size_t)k * panel_width(weights, panel);
    return (const char *)weights->data + elements * hd_dtype_bits(weights->dtype) / 8;
}

static uint32_t chunk_count(const part *p) {
    return (p->call->weights->k_padded + p->depth - 1) / p->depth * p->panels;
}

static chunk chunk_of(const part *p, uint32_t number) {
    assert(p->panels > 0);
    const kernel_matrix *weights = p->call->weights;
    uint32_t k = number / p->panels * p->depth, panel = number % p->panels;
    return (chunk){
        .data = data_at(weights, p->first_panel + panel, k),
        .panel = panel,
        .k = k,
        .depth = least(weights->k_padded - k, p->depth),
        .width = panel_width(weights, p->first_panel + panel),
    };
}

/* What to fetch for that number, which may belong to the part after this one; NULL after the last of all. */
static const char *chunk_wanted(const part *p, uint32_t number) {
    uint32_t count = chunk_count(p);
    if (number < count) return chunk_of(p, number).data;
    uint32_t panel = p->first_panel + p->panels + number - count;
    return panel < p->last_panel ? data_at(p->call->weights, panel, 0) : NULL;
}

static void expand(const int8_t *from, uint16_t *to, size_t count) {
    for (size_t i = 0; i < count; i += 2 * VEC_LANES) {
        vec_store_pairs(to + i, vec_from_int8(from + i), vec_from_int8(from + i + VEC_LANES));
    }
}

/* Multiplies one chunk and expands the next between the steps: a tile unit and the vector units work side by side. With
 * many rows a step is a whole block, since there are plenty. */
static void multiply_and_expand(tile_product *product, const chunk *next, uint16_t *expanded) {
    size_t elements = (size_t)next->depth * next->width, done = 0;
    uint32_t steps = product->steps;
    while (product->steps > 0) {
        if (product->rows <= 32) {
            tile_step(product);
        } else {
            tile_step_block(product);
        }
        size_t until = elements * (steps - product->steps) / steps / (2 * VEC_LANES) * (2 * VEC_LANES);
        expand((const int8_t *)next->data + done, expanded + done, until - done);
        done = until;
    }
}

#if defined(KERNEL_HAS_AMX)
/* Where a tile unit would have one row only, vectors take int8 weights as they are. */
static void part_sum_row(const part *p) {
    const uint16_t *input = (const uint16_t *)p->call->input + p->first_row * p->call->input_stride;
    for (uint32_t number = 0, count = chunk_count(p); number < count; number++) {
        chunk now = chunk_of(p, number);
        row_multiply_amx(input + now.k, (const int8_t *)now.data, now.depth, now.width,
                         p->sums + (size_t)now.panel * KERNEL_PANEL, now.k > 0, chunk_wanted(p, number + 1));
    }
}
#endif

static void part_sum(const part *p) {
    const kernel_matmul *call = p->call;
    const kernel_matrix *weights = call->weights;
    bool is_int8 = weights->dtype == HD_INT8;
#if defined(KERNEL_HAS_AMX)
    if (is_int8 && p->rows == 1) {
        part_sum_row(p);
        return;
    }
#endif
    hd_dtype input_dtype = kernel_matrix_input_dtype(weights);
    size_t input_bytes = hd_dtype_bits(input_dtype) / 8;
    const char *input = (const char *)call->input + p->first_row * call->input_stride * input_bytes;
    chunk now = chunk_of(p, 0);
    if (is_int8) expand((const int8_t *)now.data, p->expanded[0], (size_t)now.depth * now.width);
    for (uint32_t number = 0, count = chunk_count(p); number < count; number++) {
        now = chunk_of(p, number);
        tile_product product = {
            .a = input + now.k * input_bytes,
            .a_stride = call->input_stride,
            .rows = p->rows,
            .b = is_int8 ? (const void *)p->expanded[number % 2] : now.data,
            .width = now.width,
            .k = now.depth,
            .c = p->sums + (size_t)now.panel * p->rows * KERNEL_PANEL,
            .c_stride = KERNEL_PANEL,
            .adds = now.k > 0,
            .ahead = chunk_wanted(p, number + (is_int8 ? 2 : 1)),
            .ahead_bytes = (size_t)now.depth * now.width * hd_dtype_bits(weights->dtype) / 8,
        };
        tile_start(&product, input_dtype);
        if (is_int8 && number + 1 < count) {
            chunk next = chunk_of(p, number + 1);
            multiply_and_expand(&product, &next, p->expanded[(number + 1) % 2]);
        } else {
            tile_finish(&product);
        }
    }
}

/* Scale, bias, and what was there: 16 columns at a time, fewer at the end of n. */
static void write_sums(const part *p, uint32_t i) {
    const kernel_matmul *call = p->call;
    const float *sums = p->sums + (size_t)i * p->rows * KERNEL_PANEL, *scales = call->weights->scales;
    uint32_t first = (p->first_panel + i) * KERNEL_PANEL, columns = least(call->weights->n - first, KERNEL_PANEL);
    for (uint32_t row = 0; row < p->rows; row++, sums += KERNEL_PANEL) {
        float *output = (float *)call->output + (p->first_row + row) * call->output_stride + first;
        for (uint32_t column = 0; column < columns; column += VEC_LANES) {
            uint32_t count = least(columns - column, VEC_LANES);
            vec value = vec_load(sums + column);
            if (scales != NULL) value = vec_mul(value, vec_load(scales + first + column));
            if (call->bias != NULL) value = vec_add(value, vec_load_part(call->bias + first + column, count));
            if (call->epilogue == KERNEL_ADD) value = vec_add(vec_load_part(output + column, count), value);
            vec_store_part(output + column, value, count);
        }
    }
}

static vec silu(vec x) {
    return vec_div(x, vec_add(vec_set(1.0f), vec_exp(vec_sub(vec_set(0.0f), x))));
}

static void write_gated(const part *p, uint32_t i) {
    const kernel_matmul *call = p->call;
    const float *gates = p->sums + (size_t)i * p->rows * KERNEL_PANEL, *ups = gates + (size_t)p->rows * KERNEL_PANEL;
    uint32_t first = (p->first_panel + i) * KERNEL_PANEL;
    const float *scales = call->weights->scales;
    bool is_f32 = call->weights->dtype == HD_F32;
    for (uint32_t row = 0; row < p->rows; row++, gates += KERNEL_PANEL, ups += KERNEL_PANEL) {
        size_t index = (p->first_row + row) * call->output_stride + first / 2;
        for (uint32_t column = 0; column < KERNEL_PANEL; column += VEC_LANES) {
            vec gate = vec_load(gates + column), up = vec_load(ups + column);
            if (scales != NULL) {
                gate = vec_mul(gate, vec_load(scales + first + column));
                up = vec_mul(up, vec_load(scales + first + KERNEL_PANEL + column));
            }
            vec value = vec_mul(silu(gate), up);
            if (is_f32) {
                vec_store((float *)call->output + index + column, value);
            } else {
                vec_to_bf16((uint16_t *)call->output + index + column, value);
            }
        }
    }
}

void table_matmul(const kernel_matmul *call, uint32_t first_panel, uint32_t panel_count) {
    bool is_gated = call->epilogue == KERNEL_SWIGLU;
    assert(!is_gated || (first_panel % 2 == 0 && panel_count % 2 == 0 && call->bias == NULL));
    /* A few rows are bound by reading the weights: go straight through memory, and keep an expanded chunk in the
     * first-level cache. */
    bool is_small = call->row_count <= 32, expands = call->weights->dtype == HD_INT8 && call->row_count > 1;
    uint32_t panels_at_once = is_small ? 2 : MATMUL_PANELS, last_panel = first_panel + panel_count;
    part p = {
        .call = call,
        .last_panel = last_panel,
        .depth = is_small && expands ? MATMUL_DEPTH / 4 : MATMUL_DEPTH,
        .sums = call->scratch,
        .expanded = {(uint16_t *)((char *)call->scratch + MATMUL_SUM_BYTES),
                     (uint16_t *)((char *)call->scratch + MATMUL_SUM_BYTES + MATMUL_CHUNK_BYTES)},
    };
    for (p.first_row = 0; p.first_row < call->row_count; p.first_row += p.rows) {
        p.rows = least(call->row_count - p.first_row, MATMUL_ROWS);
        for (p.first_panel = first_panel; p.first_panel < last_panel; p.first_panel += p.panels) {
            p.panels = least(last_panel - p.first_panel, panels_at_once);
            part_sum(&p);
            for (uint32_t i = 0; i < p.panels; i += is_gated ? 2 : 1) {
                if (is_gated) {
                    write_gated(&p, i);
                } else {
                    write_sums(&p, i);
                }
            }
        }
    }
    tile_end();
}
