#include "bench/kernels_dnnl.h"

#include <stdlib.h>
#include <string.h>

#if defined(HADAL_HAVE_DNNL)
#include <dnnl.h>
#include <omp.h>

struct kernels_dnnl {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_desc_t description;
    dnnl_primitive_t primitive;
    dnnl_memory_t input, weights, output;
};

/* Memory of the shape, all of it ordinary small numbers. */
static dnnl_memory_t take_memory(kernels_dnnl *p, const dnnl_memory_desc_t *shape) {
    dnnl_memory_t memory = NULL;
    void *data = NULL;
    if (dnnl_memory_create(&memory, shape, p->engine, DNNL_MEMORY_ALLOCATE) != dnnl_success) return NULL;
    if (dnnl_memory_get_data_handle(memory, &data) == dnnl_success)
        memset(data, 0x3c, dnnl_memory_desc_get_size(shape));
    return memory;
}

kernels_dnnl *kernels_dnnl_open(uint32_t m, uint32_t n, uint32_t k, unsigned thread_count) {
    omp_set_num_threads((int)thread_count);
    kernels_dnnl *p = calloc(1, sizeof(*p));
    if (p == NULL) return NULL;
    dnnl_dims_t input_dims = {m, k}, weights_dims = {k, n}, output_dims = {m, n};
    dnnl_memory_desc_t input, weights, output;
    dnnl_matmul_desc_t product;
    dnnl_memory_desc_init_by_tag(&input, 2, input_dims, dnnl_bf16, dnnl_ab);
    dnnl_memory_desc_init_by_tag(&weights, 2, weights_dims, dnnl_bf16, dnnl_format_tag_any);
    dnnl_memory_desc_init_by_tag(&output, 2, output_dims, dnnl_f32, dnnl_ab);
    bool is_open = dnnl_engine_create(&p->engine, dnnl_cpu, 0) == dnnl_success &&
                   dnnl_stream_create(&p->stream, p->engine, dnnl_stream_default_flags) == dnnl_success &&
                   dnnl_matmul_desc_init(&product, &input, &weights, NULL, &output) == dnnl_success &&
                   dnnl_primitive_desc_create(&p->description, &product, NULL, p->engine, NULL) == dnnl_success &&
                   dnnl_primitive_create(&p->primitive, p->description) == dnnl_success;
    if (is_open) {
        p->input = take_memory(p, &input);
        p->weights = take_memory(p, dnnl_primitive_desc_query_md(p->description, dnnl_query_weights_md, 0));
        p->output = take_memory(p, &output);
    }
    if (p->input != NULL && p->weights != NULL && p->output != NULL) return p;
    kernels_dnnl_close(p);
    return NULL;
}

void kernels_dnnl_close(kernels_dnnl *p) {
    if (p == NULL) return;
    if (p->output != NULL) dnnl_memory_destroy(p->output);
    if (p->weights != NULL) dnnl_memory_destroy(p->weights);
    if (p->input != NULL) dnnl_memory_destroy(p->input);
    if (p->primitive != NULL) dnnl_primitive_destroy(p->primitive);
    if (p->description != NULL) dnnl_primitive_desc_destroy(p->description);
    if (p->stream != NULL) dnnl_stream_destroy(p->stream);
    if (p->engine != NULL) dnnl_engine_destroy(p->engine);
    free(p);
}

void kernels_dnnl_run(kernels_dnnl *p) {
    dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, p->input}, {DNNL_ARG_WEIGHTS, p->weights}, {DNNL_ARG_DST, p->output}};
    dnnl_primitive_execute(p->primitive, p->stream, 3, arguments);
    dnnl_stream_wait(p->stream);
}
#else
kernels_dnnl *kernels_dnnl_open(uint32_t m, uint32_t n, uint32_t k, unsigned thread_count) {
    return NULL;
}

void kernels_dnnl_close(kernels_dnnl *product) {}

void kernels_dnnl_run(kernels_dnnl *product) {}
#endif
