/* key_rows.c - chunks with a count of references; the last one, which still grows, is copied instead of shared. */
#include "attention-node/key_rows.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

struct key_rows_chunk {
    _Atomic uint32_t references;
    _Atomic uint32_t filled; /* read by builders while it grows */
    size_t bytes;            /* of rows */
    uint16_t *rows;          /* [KEY_ROWS_CHUNK or what is left of tokens_max, dim] */
};

uint64_t key_rows_bytes(uint64_t tokens_max, uint32_t dim) {
    uint64_t chunks = (tokens_max + KEY_ROWS_CHUNK - 1) / KEY_ROWS_CHUNK;
    return tokens_max * dim * sizeof(uint16_t) + chunks * (sizeof(key_rows_chunk) + sizeof(key_rows_chunk *));
}

hd_status key_rows_init(key_rows *rows, uint64_t tokens_max, uint32_t dim) {
    *rows = (key_rows){.tokens_max = tokens_max,
                       .chunk_max = (uint32_t)((tokens_max + KEY_ROWS_CHUNK - 1) / KEY_ROWS_CHUNK),
                       .dim = dim};
    rows->chunks = calloc(rows->chunk_max + 1u, sizeof(key_rows_chunk *));
    return rows->chunks != NULL ? HD_OK : HD_NO_MEMORY;
}

static void release(key_rows_chunk *chunk) {
    if (chunk == NULL || atomic_fetch_sub(&chunk->references, 1) != 1) return;
    hd_region_unmap(chunk->rows, chunk->bytes);
    free(chunk);
}

void key_rows_fini(key_rows *rows) {
    for (uint32_t i = 0; rows->chunks != NULL && i < rows->chunk_max; i++) release(rows->chunks[i]);
    free(rows->chunks);
    *rows = (key_rows){0};
}

static key_rows_chunk *chunk_open(const key_rows *rows, uint32_t ordinal) {
    key_rows_chunk *chunk = calloc(1, sizeof(*chunk));
    if (chunk == NULL) return NULL;
    uint64_t left = rows->tokens_max - (uint64_t)ordinal * KEY_ROWS_CHUNK;
    chunk->references = 1;
    chunk->bytes = (size_t)(left < KEY_ROWS_CHUNK ? left : KEY_ROWS_CHUNK) * rows->dim * sizeof(uint16_t);
    chunk->rows = hd_region_map(chunk->bytes);
    if (chunk->rows != NULL) return chunk;
    free(chunk);
    return NULL;
}

hd_status key_rows_add(key_rows *rows, uint64_t position, const uint16_t *keys, uint32_t count, size_t stride) {
    assert(position + count <= rows->tokens_max);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t at = position + i;
        uint32_t slot = (uint32_t)(at % KEY_ROWS_CHUNK);
        key_rows_chunk **chunk = &rows->chunks[at / KEY_ROWS_CHUNK];
        if (*chunk == NULL && slot == 0 && (*chunk = chunk_open(rows, (uint32_t)(at / KEY_ROWS_CHUNK))) == NULL)
            return HD_NO_MEMORY;
        if (*chunk == NULL || (*chunk)->filled != slot) continue;
        memcpy((*chunk)->rows + (size_t)slot * rows->dim, keys + i * stride, rows->dim * sizeof(uint16_t));
        (*chunk)->filled++;
    }
    return HD_OK;
}

void key_rows_truncate(key_rows *rows, uint64_t length) {
    for (uint64_t i = length / KEY_ROWS_CHUNK; i < rows->chunk_max; i++) {
        key_rows_chunk *chunk = rows->chunks[i];
        uint64_t kept = i * KEY_ROWS_CHUNK < length ? length - i * KEY_ROWS_CHUNK : 0;
        if (chunk == NULL || chunk->filled <= kept) continue;
        if (kept > 0 && chunk->references == 1) {
            chunk->filled = (uint32_t)kept;
            continue;
        }
        /* Another sequence has it too: what is kept is copied, or where there is no memory read from pages. */
        rows->chunks[i] = kept > 0 ? chunk_open(rows, (uint32_t)i) : NULL;
        if (rows->chunks[i] != NULL) {
            memcpy(rows->chunks[i]->rows, chunk->rows, (size_t)kept * rows->dim * sizeof(uint16_t));
            rows->chunks[i]->filled = (uint32_t)kept;
        }
        release(chunk);
    }
}

hd_status key_rows_share(const key_rows *source, uint64_t length, key_rows *rows) {
    assert(source->dim == rows->dim);
    for (uint32_t i = 0; i < source->chunk_max && (uint64_t)i * KEY_ROWS_CHUNK < length; i++) {
        key_rows_chunk *chunk = source->chunks[i];
        uint64_t first = (uint64_t)i * KEY_ROWS_CHUNK, left = length - first;
        if (chunk == NULL) continue;
        if (chunk->filled == KEY_ROWS_CHUNK && left >= KEY_ROWS_CHUNK) {
            atomic_fetch_add(&chunk->references, 1);
            rows->chunks[i] = chunk;
            continue;
        }
        uint32_t count = left < chunk->filled ? (uint32_t)left : chunk->filled;
        hd_status status = key_rows_add(rows, first, chunk->rows, count, rows->dim);
        if (status != HD_OK) return status;
    }
    return HD_OK;
}

const uint16_t *key_rows_at(const key_rows *rows, uint64_t position, uint32_t count) {
    uint32_t slot = (uint32_t)(position % KEY_ROWS_CHUNK);
    const key_rows_chunk *chunk =
        position / KEY_ROWS_CHUNK < rows->chunk_max ? rows->chunks[position / KEY_ROWS_CHUNK] : NULL;
    if (chunk == NULL || slot + count > chunk->filled) return NULL;
    return chunk->rows + (size_t)slot * rows->dim;
}
