/* operations.c - how many blocks, threads and bytes each operation is launched with. */
#include "kernels/cuda/operations.h"

#define BLOCKS_EACH 8u /* of a multiprocessor, for loops over elements */
#define WARP 32u

static hd_status launch(kernel_queue *queue, cuda_kernel kernel, uint64_t blocks, uint32_t threads, size_t shared_bytes,
                        const void *arguments) {
    kernel_device *device = queue->device;
    if (blocks == 0) return HD_OK;
    uint64_t most = (uint64_t)device->facts.multiprocessors * BLOCKS_EACH;
    device_launch l = {.kernel = kernel,
                       .blocks = (uint32_t)(blocks < most ? blocks : most),
                       .threads = threads,
                       .shared_bytes = shared_bytes,
                       .arguments = arguments};
    return device->ops->launch(queue, &l);
}

static uint64_t blocks_for(uint64_t items, uint32_t each) {
    return (items + each - 1) / each;
}

hd_status device_rmsnorm(kernel_queue *queue, const rmsnorm_arguments *call) {
    return launch(queue, CUDA_rmsnorm, call->row_count, ROW_THREADS, ROW_THREADS / WARP * sizeof(float), call);
}

hd_status device_split_rows(kernel_queue *queue, const split_rows_arguments *call) {
    uint64_t heads = (uint64_t)call->row_count * (call->query_heads + 2 * call->kv_heads);
    return launch(queue, CUDA_split_rows, blocks_for(heads, ROW_THREADS / WARP), ROW_THREADS, 0, call);
}

hd_status device_silu_multiply(kernel_queue *queue, const silu_multiply_arguments *call) {
    uint64_t count = (uint64_t)call->row_count * call->width;
    return launch(queue, CUDA_silu_multiply, blocks_for(count, ROW_THREADS), ROW_THREADS, 0, call);
}

hd_status device_add_bias(kernel_queue *queue, const add_bias_arguments *call) {
    uint64_t count = (uint64_t)call->row_count * call->width;
    return launch(queue, CUDA_add_bias, blocks_for(count, ROW_THREADS), ROW_THREADS, 0, call);
}

hd_status device_page_store(kernel_queue *queue, const page_store_arguments *call) {
    uint64_t chunks = (uint64_t)call->row_count * call->kv_heads * (call->dim / 8);
    return launch(queue, CUDA_page_store, blocks_for(chunks, ROW_THREADS), ROW_THREADS, 0, call);
}

hd_status device_page_summary(kernel_queue *queue, const page_summary_arguments *call) {
    uint64_t warps = (uint64_t)call->page_count * call->kv_heads;
    return launch(queue, CUDA_page_summary, blocks_for(warps, ROW_THREADS / WARP), ROW_THREADS, 0, call);
}

hd_status device_page_score(kernel_queue *queue, const page_score_arguments *call) {
    uint64_t warps = (uint64_t)call->row_count * call->kv_heads * call->summary_count;
    return launch(queue, CUDA_page_score, blocks_for(warps, ROW_THREADS / WARP), ROW_THREADS, 0, call);
}

hd_status device_logits_summary(kernel_queue *queue, const logits_summary_arguments *call) {
    return launch(queue, CUDA_logits_summary, call->row_count, ROW_THREADS, ROW_THREADS / WARP * 2 * sizeof(float),
                  call);
}

hd_status device_sample(kernel_queue *queue, const sample_arguments *call) {
    return launch(queue, CUDA_sample, call->row_count, SAMPLE_THREADS, (SAMPLE_THREADS + 4) * sizeof(double), call);
}

hd_status device_unpack(kernel_queue *queue, const unpack_arguments *call) {
    uint64_t count = (uint64_t)call->n * call->k;
    return launch(queue, CUDA_unpack, blocks_for(count, ROW_THREADS), ROW_THREADS, 0, call);
}

hd_status device_read_all(kernel_queue *queue, const read_all_arguments *call) {
    return launch(queue, CUDA_read_all, blocks_for(call->bytes, ROW_THREADS * 16), ROW_THREADS, 0, call);
}

/* ---- Attention ---- */

typedef struct attend_kernels {
    uint32_t dim;
    cuda_kernel kernels[ATTEND_PATHS];
} attend_kernels;

static const attend_kernels every_dim[] = {
#define EVERY_DIM(dim) {dim, {CUDA_attend_split_##dim, CUDA_attend_block_##dim}},
    ATTEND_DIMS(EVERY_DIM)
#undef EVERY_DIM
};

static const attend_kernels *kernels_of(uint32_t dim) {
    for (size_t i = 0; i < sizeof(every_dim) / sizeof(every_dim[0]); i++) {
        if (every_dim[i].dim == dim) return &every_dim[i];
    }
    return NULL;
}

/* As attend_common.h lays it out. */
static size_t row_bytes(uint32_t dim) {
    return (size_t)dim * 2 + 16;
}

static uint32_t split_warps(uint32_t dim) {
    return dim > 128 ? 4 : 8;
}

static size_t split_shared_bytes(uint32_t dim, uint32_t stages, uint32_t rows) {
    size_t warps = split_warps(dim), exchange = warps * rows * (dim + 8 + 2) + 4 * (size_t)rows;
    return ATTEND_SPLIT_ROWS * row_bytes(dim) * (1 + warps * stages) + exchange * sizeof(float);
}

static size_t block_shared_bytes(uint32_t dim, uint32_t stages, uint32_t rows) {
    (void)rows;
    return (ATTEND_BLOCK_ROWS + 64 * (size_t)stages) * row_bytes(dim);
}

/* The most stages that shared memory holds; 0 where it does not even hold two. */
static uint32_t stages_for(const kernel_device_facts *facts, uint32_t dim, uint32_t rows,
                           size_t (*bytes)(uint32_t dim, uint32_t stages, uint32_t rows)) {
    uint32_t stages = ATTEND_STAGES_MAX;
    while (stages >= 2 && bytes(dim, stages, rows) > facts->shared_bytes_max) stages--;
    return stages >= 2 ? stages : 0;
}

size_t device_attend_stack_bytes(const kernel_device_facts *facts, uint32_t dim, uint32_t stack_levels) {
    return (size_t)facts->multiprocessors * (ATTEND_BLOCK_ROWS / 16) * stack_levels * (dim / 2 + 4) * WARP *
           sizeof(float);
}

static hd_status run_path(kernel_queue *queue, const device_attend *call, attend_path path, const attend_kernels *k) {
    const kernel_device_facts *facts = &queue->device->facts;
    const attend_tables *t = call->tables;
    attend_arguments a = call->arguments;
    a.counts = (const attend_counts *)(call->region + t->counts_at) + path;
    a.tiles = (const attend_tile *)(call->region + t->tiles_at[path]);
    a.pieces = (const attend_piece *)(call->region + t->pieces_at);
    a.group_pieces = (const uint32_t *)(call->region + t->group_pieces_at);
    a.positions = (const uint64_t *)(call->region + t->positions_at);
    a.exchange_rows = call->split_rows_max;
    size_t (*bytes)(uint32_t, uint32_t, uint32_t) = path == ATTEND_SPLIT ? split_shared_bytes : block_shared_bytes;
    a.stages = stages_for(facts, call->dim, a.exchange_rows, bytes);
    if (a.stages == 0) return HD_UNSUPPORTED;
    uint32_t warps = path == ATTEND_SPLIT ? split_warps(call->dim) : ATTEND_BLOCK_ROWS / 16;
    device_launch l = {.kernel = k->kernels[path],
                       .blocks = facts->multiprocessors,
                       .threads = warps * WARP,
                       .shared_bytes = bytes(call->dim, a.stages, a.exchange_rows),
                       .arguments = &a};
    return queue->device->ops->launch(queue, &l);
}

static hd_status run_finish(kernel_queue *queue, const device_attend *call, attend_path path) {
    const attend_tables *t = call->tables;
    attend_finish_arguments a = {.counts = (const attend_counts *)(call->region + t->counts_at) + path,
                                 .tiles = (const attend_tile *)(call->region + t->tiles_at[path]),
                                 .partials = call->arguments.partials,
                                 .dim = call->dim,
                                 .group_size = call->arguments.group_size,
                                 .sink_logits = call->sink_logits,
                                 .output = call->output,
                                 .output_stride = call->output_stride,
                                 .lse = call->lse,
                                 .query_heads = call->query_heads};
    size_t records = ATTEND_FINISH_WARPS * (ATTEND_STACK_LEVELS + 1);
    device_launch l = {.kernel = CUDA_attend_finish,
                       .blocks = queue->device->facts.multiprocessors * 2,
                       .threads = ATTEND_FINISH_WARPS * WARP,
                       .shared_bytes = records * (call->dim + 2) * sizeof(float),
                       .arguments = &a};
    return queue->device->ops->launch(queue, &l);
}

hd_status device_attend_run(kernel_queue *queue, const device_attend *call) {
    const attend_kernels *k = kernels_of(call->dim);
    if (k == NULL) return HD_UNSUPPORTED;
    hd_status status = HD_OK;
    for (int path = 0; path < ATTEND_PATHS && status == HD_OK; path++) {
        status = run_path(queue, call, (attend_path)path, k);
        if (status == HD_OK) status = run_finish(queue, call, (attend_path)path);
    }
    return status;
}
