/* weights.c - packing tensor by tensor, on all threads, and naming the result.
 *
 * The threads of the pool share the rows of one tensor, a panel of columns at a time, and hash the same rows while they
 * are in the cache. What is done is dropped from the mapping, within large tensors, too: the output matrix of a small
 * model is a fifth of it, and comes last. */
#include "model/weights.h"

#include <assert.h>
#include <sodium.h>
#include <stdatomic.h>
#include <string.h>
#include <xxhash.h>

#include "base/clock.h"
#include "base/flags.h"
#include "base/log.h"
#include "base/memory.h"
#include "model/weights_layout.h"
#include "model/weights_plan.h"

#define PROGRESS_NS 3000000000u
#define SLAB_BYTES ((uint64_t)64 << 20) /* of a tensor, between two droppings of pages */

typedef struct packer {
    hd_pool *pool;
    const weight_part *part; /* the one that is being packed, */
    uint32_t first, count;   /* and which of its pieces */
    _Atomic size_t ticket;
    XXH128_hash_t *hashes;  /* [pieces of the largest part] */
    unsigned char *aligned; /* a copy of a piece for each thread; for tensors at odd addresses */
    size_t aligned_bytes;   /* of one thread */
    crypto_generichash_state fingerprint;
} packer;

static uint32_t piece_count(const weight_part *part) {
    return (part->rows + WEIGHT_PART_ROWS - 1) / WEIGHT_PART_ROWS;
}

static size_t row_bytes(const weight_part *part) {
    return (size_t)part->columns * hd_dtype_bits(part->tensor->dtype) / 8;
}

static void read_floats(const unsigned char *source, hd_dtype dtype, uint32_t count, float *floats) {
    if (dtype == HD_F32) {
        memcpy(floats, source, count * sizeof(*floats));
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, source + i * sizeof(half), sizeof(half));
        floats[i] = dtype == HD_BF16 ? hd_bf16_to_f32(half) : hd_f16_to_f32(half);
    }
}

static void pack_piece(packer *p, unsigned thread, uint32_t piece) {
    const weight_part *part = p->part;
    uint32_t first = piece * WEIGHT_PART_ROWS, left = part->rows - first;
    uint32_t rows = left < WEIGHT_PART_ROWS ? left : WEIGHT_PART_ROWS;
    const unsigned char *source = part->data + first * row_bytes(part);
    p->hashes[piece] = XXH3_128bits(source, rows * row_bytes(part));
    if (part->floats != NULL) {
        read_floats(source, part->tensor->dtype, part->columns, *part->floats + part->first_column);
    }
    if (part->matrix == NULL) return;
    uint32_t column = weight_part_column(part, first), end = part->kept.first + part->kept.count;
    uint32_t skipped = column < part->kept.first ? part->kept.first - column : 0;
    if (skipped >= rows || column + skipped >= end) return; /* another rank's */
    if (p->aligned != NULL) source = memcpy(p->aligned + thread * p->aligned_bytes, source, rows * row_bytes(part));
    if (column + rows > end) rows = end - column;
    kernel_matrix_pack(part->matrix, column + skipped - part->kept.first, source + skipped * row_bytes(part),
                       part->tensor->dtype, part->columns, rows - skipped);
}

static void pack_pieces(void *context, unsigned thread, unsigned thread_count) {
    packer *p = context;
    for (size_t piece; (piece = hd_ticket_take(&p->ticket, p->count)) < p->count;) {
        pack_piece(p, thread, p->first + (uint32_t)piece);
    }
}

/* Pieces from first on, as many as a slab has. Returns the piece behind them. */
static uint32_t pack_slab(packer *p, uint32_t first) {
    const weight_part *part = p->part;
    uint64_t piece_bytes = WEIGHT_PART_ROWS * row_bytes(part), offset = first * piece_bytes;
    uint64_t count = SLAB_BYTES / piece_bytes + 1, left = piece_count(part) - first;
    p->first = first;
    p->count = (uint32_t)(count < left ? count : left);
    uint64_t bytes = p->count < left ? p->count * piece_bytes : part->rows * row_bytes(part) - offset;
    atomic_store(&p->ticket, 0);
    safetensors_expect(part->data + offset, bytes);
    hd_pool_run(p->pool, pack_pieces, p);
    safetensors_drop(part->data + offset, bytes);
    return first + p->count;
}

static void pack_part(packer *p, const weight_part *part) {
    p->part = part;
    for (uint32_t piece = 0; piece < piece_count(part);) piece = pack_slab(p, piece);
    const uint32_t facts[] = {(uint32_t)part->tensor->dtype, part->rows, part->columns};
    crypto_generichash_update(&p->fingerprint, (const unsigned char *)facts, sizeof(facts));
    crypto_generichash_update(&p->fingerprint, (const unsigned char *)p->hashes,
                              piece_count(part) * sizeof(*p->hashes));
}

static void pack_parts(packer *p, const weight_plan *plan) {
    uint64_t done_bytes = 0, told_ns = hd_now_ns();
    for (uint32_t i = 0; i < plan->part_count; i++) {
        pack_part(p, &plan->parts[i]);
        done_bytes += plan->parts[i].rows * row_bytes(&plan->parts[i]);
        if (hd_now_ns() - told_ns < PROGRESS_NS) continue;
        told_ns = hd_now_ns();
        char done[32], all[32];
        hd_log(HD_LOG_INFO, "loading_weights", "done=\"%s\" of=\"%s\"", hd_format_size(done_bytes, done, sizeof(done)),
               hd_format_size(plan->tensor_bytes, all, sizeof(all)));
    }
}

static bool is_aligned(const weight_part *part) {
    return (uintptr_t)part->data % (hd_dtype_bits(part->tensor->dtype) / 8) == 0;
}

/* Scratch for the largest part: its hashes, and copies of pieces when any tensor needs them. */
static hd_status packer_init(packer *p, const weight_plan *plan, hd_pool *pool) {
    *p = (packer){.pool = pool};
    uint32_t pieces_max = 1;
    bool is_all_aligned = true;
    for (uint32_t i = 0; i < plan->part_count; i++) {
        const weight_part *part = &plan->parts[i];
        if (piece_count(part) > pieces_max) pieces_max = piece_count(part);
        if (row_bytes(part) * WEIGHT_PART_ROWS > p->aligned_bytes)
            p->aligned_bytes = row_bytes(part) * WEIGHT_PART_ROWS;
        is_all_aligned = is_all_aligned && is_aligned(part);
    }
    p->hashes = hd_alloc(pieces_max * sizeof(*p->hashes), HD_CACHE_LINE);
    if (!is_all_aligned) p->aligned = hd_alloc(p->aligned_bytes * hd_pool_thread_count(pool), HD_CACHE_LINE);
    return p->hashes != NULL && (is_all_aligned || p->aligned != NULL) ? HD_OK : HD_NO_MEMORY;
}

static void packer_fini(packer *p) {
    hd_free(p->hashes);
    hd_free(p->aligned);
}

/* The numbers that the forward pass computes with. Shapes are in the parts. */
static void hash_config(crypto_generichash_state *fingerprint, const model_config *config, hd_dtype dtype) {
    const rope_config *rope = &config->rope;
    const double numbers[] = {
        dtype,
        config->layer_count,
        config->query_heads,
        config->kv_heads,
        config->head_dim,
        config->experts_per_token,
        config->expert_count,
        config->normalise_expert_weights,
        config->rms_eps,
        rope->kind,
        rope->theta,
        rope->factor,
        rope->original_max_position,
        rope->low_freq_factor,
        rope->high_freq_factor,
        rope->beta_fast,
        rope->beta_slow,
        rope->attention_factor,
        rope->mscale,
        rope->mscale_all_dim,
        rope->truncate,
        rope->rotary_dim,
    };
    crypto_generichash_update(fingerprint, (const unsigned char *)numbers, sizeof(numbers));
    crypto_generichash_update(fingerprint, (const unsigned char *)config->windows,
                              config->layer_count * sizeof(*config->windows));
    crypto_generichash_update(fingerprint, (const unsigned char *)config->is_sparse,
                              config->layer_count * sizeof(*config->is_sparse));
}

static hd_status pack_weights(const weight_plan *plan, const model_config *config, hd_pool *pool,
                              model_weights *weights) {
    packer p;
    hd_status status = packer_init(&p, plan, pool);
    if (status == HD_OK) {
        crypto_generichash_init(&p.fingerprint, NULL, 0, sizeof(weights->fingerprint));
        hash_config(&p.fingerprint, config, weights->dtype);
        pack_parts(&p, plan);
        crypto_generichash_final(&p.fingerprint, weights->fingerprint, sizeof(weights->fingerprint));
    }
    packer_fini(&p);
    return status;
}

static hd_status no_memory(const char *directory, const model_weights *weights, hd_error *error) {
    char size[32];
    return hd_error_set(error, HD_NO_MEMORY, "%s: no memory for weights of %s", directory,
                        hd_format_size(weights->bytes, size, sizeof(size)));
}

static void log_ignored(const weight_plan *plan) {
    if (plan->ignored_count == 0) return;
    char quoted[256];
    hd_log(HD_LOG_WARN, "tensors_ignored", "count=%u example=%s", plan->ignored_count,
           hd_log_quote(plan->ignored_example, quoted, sizeof(quoted)));
}

/* A checkpoint of finer numbers than are kept gives other answers than its authors saw: that is not done silently. */
static void log_rounded(const weight_plan *plan, hd_dtype kept) {
    if (kept != HD_BF16) return; /* int8 was asked for, and f32 holds everything */
    uint32_t count = 0;
    const weight_part *example = NULL;
    for (uint32_t i = 0; i < plan->part_count; i++) {
        if (plan->parts[i].matrix == NULL || plan->parts[i].tensor->dtype == HD_BF16) continue;
        example = &plan->parts[i];
        count++;
    }
    if (count == 0) return;
    hd_log(HD_LOG_WARN, "weights_rounded", "matrices=%u stored=%s kept=%s exact_with=f32", count,
           hd_dtype_name(example->tensor->dtype), hd_dtype_name(kept));
}

/* Everything can be refused before the memory is taken. */
static hd_status load(const char *directory, const model_config *config, hd_pool *pool, model_weights *weights,
                      hd_error *error) {
    weight_plan plan;
    hd_status status = safetensors_open(directory, &weights->files, error);
    if (status == HD_OK) status = weight_plan_init(config, weights->files, weights, &plan, error);
    if (status != HD_OK) return status;
    log_ignored(&plan);
    log_rounded(&plan, weights->dtype);
    weights->embedding = plan.embedding;
    status = weights_layout_place(config, weights);
    if (status == HD_OK) status = pack_weights(&plan, config, pool, weights);
    weight_plan_fini(&plan);
    return status == HD_OK ? HD_OK : no_memory(directory, weights, error);
}

hd_status model_weights_open(const char *model_directory, const model_config *config, hd_dtype dtype, model_share share,
                             hd_pool *pool, model_weights **weights, hd_error *error) {
    model_weights *w = NULL;
    if (weights_layout_open(config, dtype, share, &w) != HD_OK) {
        return hd_error_set(error, HD_NO_MEMORY, "%s: no memory for the table of weights", model_directory);
    }
    hd_status status = load(model_directory, config, pool, w, error);
    if (status == HD_OK) *weights = w;
    else model_weights_close(w);
    return status;
}

void model_weights_drop(model_weights *weights) {
    weights_layout_drop(weights);
}

void model_weights_close(model_weights *weights) {
    if (weights == NULL) return;
    safetensors_close(weights->files);
    weights_layout_close(weights);
}

hd_status model_weights_estimate(const char *model_directory, const model_config *config, hd_dtype dtype,
                                 model_share share, uint64_t *bytes, hd_error *error) {
    model_weights *weights = NULL;
    if (weights_layout_open(config, dtype, share, &weights) != HD_OK) {
        return hd_error_set(error, HD_NO_MEMORY, "%s: no memory for the table of weights", model_directory);
    }
    weight_plan plan;
    hd_status status = safetensors_open(model_directory, &weights->files, error);
    if (status == HD_OK) status = weight_plan_init(config, weights->files, weights, &plan, error);
    if (status == HD_OK) {
        weight_plan_fini(&plan);
        *bytes = weights->bytes;
    }
    model_weights_close(weights);
    return status;
}

void model_embed(const model_weights *weights, uint32_t token_id, float *row) {
    const safetensors_tensor *embedding = weights->embedding;
    assert(token_id < embedding->shape[0]);
    uint32_t width = (uint32_t)embedding->shape[1];
    size_t bytes = (size_t)width * hd_dtype_bits(embedding->dtype) / 8;
    /* At the end of the row, so that widening from its start never overtakes what is still to be read. */
    unsigned char *source = (unsigned char *)(row + width) - bytes;
    safetensors_read(weights->files, embedding, token_id * bytes, bytes, source);
    if (embedding->dtype != HD_F32) read_floats(source, embedding->dtype, width, row);
}
