/* product.c - how big an item is.
 *
 * Few rows: the product reads the matrix once and does little else, so items are a panel or a few, enough of them
 * that the last one to finish does not keep the others waiting. Many rows: a block of rows has to stay in a core's
 * cache while panel after panel passes. */
#include "worker/product.h"

#define ROWS_BLOCK 256u
#define ITEMS_PER_THREAD 8u
#define PANELS_MAX 8u

void product_init(product *p, const kernel_matmul *call, unsigned thread_count) {
    uint32_t panels = kernel_matrix_panels(call->weights);
    uint32_t grain = call->epilogue == KERNEL_SWIGLU ? 2 : 1;
    uint32_t each = panels / (ITEMS_PER_THREAD * thread_count) / grain * grain;
    if (each > PANELS_MAX) each = PANELS_MAX;
    p->call = *call;
    p->panels_each = each > grain ? each : grain;
    p->panel_blocks = (panels + p->panels_each - 1) / p->panels_each;
    p->row_blocks = (call->row_count + ROWS_BLOCK - 1) / ROWS_BLOCK;
}

size_t product_items(const product *p) {
    return (size_t)p->panel_blocks * p->row_blocks;
}

void product_run_item(const product *p, const kernel_ops *kernels, size_t item, void *scratch) {
    kernel_matmul call = p->call;
    uint32_t first_row = (uint32_t)(item / p->panel_blocks) * ROWS_BLOCK;
    uint32_t first_panel = (uint32_t)(item % p->panel_blocks) * p->panels_each;
    uint32_t panels_left = kernel_matrix_panels(call.weights) - first_panel;
    hd_dtype input_dtype = kernel_matrix_input_dtype(call.weights);
    hd_dtype output_dtype = call.epilogue == KERNEL_SWIGLU ? input_dtype : HD_F32;
    call.input = (const char *)call.input + first_row * call.input_stride * hd_dtype_bits(input_dtype) / 8;
    call.output = (char *)call.output + first_row * call.output_stride * hd_dtype_bits(output_dtype) / 8;
    call.row_count = call.row_count - first_row < ROWS_BLOCK ? call.row_count - first_row : ROWS_BLOCK;
    call.scratch = scratch;
    kernels->matmul(&call, first_panel, panels_left < p->panels_each ? panels_left : p->panels_each);
}

void product_run(const product *p, const kernel_ops *kernels, _Atomic size_t *ticket, void *scratch) {
    size_t items = product_items(p);
    for (size_t item; (item = hd_ticket_take(ticket, items)) < items;) product_run_item(p, kernels, item, scratch);
}
