/* product.c - how big an item is.
 *
 * Few rows: the product reads the matrix once and does little else, so items are some panels in a row, as long as
 * enough of them are left that the last one to finish keeps nobody waiting. Many rows: a kernel reads the rows once
 * for each PANELS_TOGETHER panels (kernels/cpu/matmul.c), so items have as many; where there are too few panels for
 * the threads, first the panels of an item are fewer and then its rows. */
#include "worker/product.h"

#define FEW_ROWS 32u
#define FEW_ROWS_PANELS_MAX 8u
#define PANELS_TOGETHER 4u
#define ROWS_LEAST 64u /* of an item, where rows are split */
#define ITEMS_PER_THREAD 4u

static uint32_t least(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

static uint32_t blocks(uint32_t count, uint32_t each) {
    return (count + each - 1) / each;
}

void product_init(product *p, const kernel_matmul *call, unsigned thread_count) {
    uint32_t panels = kernel_matrix_panels(call->weights), items = ITEMS_PER_THREAD * thread_count;
    uint32_t grain = call->epilogue == KERNEL_SWIGLU ? 2 : 1;
    bool has_few_rows = call->row_count <= FEW_ROWS;
    p->call = *call;
    p->panels_each = least(panels / items, has_few_rows ? FEW_ROWS_PANELS_MAX : PANELS_TOGETHER) / grain * grain;
    if (p->panels_each < grain) p->panels_each = grain;
    p->panel_blocks = blocks(panels, p->panels_each);
    p->rows_each = call->row_count;
    if (!has_few_rows && p->panel_blocks > 0 && p->panel_blocks < items) { /* a rank may have no panel */
        uint32_t wanted = blocks(items, p->panel_blocks);
        p->rows_each = (uint32_t)HD_ALIGN_UP(blocks(call->row_count, wanted), ROWS_LEAST);
    }
    p->row_blocks = blocks(call->row_count, p->rows_each);
}

size_t product_items(const product *p) {
    return (size_t)p->panel_blocks * p->row_blocks;
}

void product_run_item(const product *p, const kernel_ops *kernels, size_t item, void *scratch) {
    kernel_matmul call = p->call;
    uint32_t first_row = (uint32_t)(item / p->panel_blocks) * p->rows_each;
    uint32_t first_panel = (uint32_t)(item % p->panel_blocks) * p->panels_each;
    hd_dtype input_dtype = kernel_matrix_input_dtype(call.weights);
    hd_dtype output_dtype = call.epilogue == KERNEL_SWIGLU ? input_dtype : HD_F32;
    call.input = (const char *)call.input + first_row * call.input_stride * hd_dtype_bits(input_dtype) / 8;
    call.output = (char *)call.output + first_row * call.output_stride * hd_dtype_bits(output_dtype) / 8;
    call.row_count = least(call.row_count - first_row, p->rows_each);
    call.scratch = scratch;
    kernels->matmul(&call, first_panel, least(kernel_matrix_panels(call.weights) - first_panel, p->panels_each));
}

void product_run(const product *p, const kernel_ops *kernels, _Atomic size_t *ticket, void *scratch) {
    size_t items = product_items(p);
    for (size_t item; (item = hd_ticket_take(ticket, items)) < items;) product_run_item(p, kernels, item, scratch);
}
