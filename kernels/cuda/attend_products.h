/* attend_products.h - the products and copies of attention for one head size (attend_every.h). */
/* Adds q . k of 16 rows and 16 * `pairs` tokens, a constant, to as many pairs of score tiles. */
SIMT_FUNCTION void ATTEND_NAME(attend_score)(float (*scores)[4], const unsigned char *queries,
                                             const unsigned char *keys, const uint32_t pairs) {
    uint32_t lane = simt_lane();
    const unsigned char *query = queries + lane % 16 * ATTEND_STRIDE + lane / 16 * 16;
    const unsigned char *key = keys + (lane / 16 * 8 + lane % 8) * ATTEND_STRIDE + lane / 8 % 2 * 16;
    SIMT_UNROLL
    for (uint32_t k = 0; k < ATTEND_DIM / 16; k++) {
        uint32_t a[4];
        simt_load_matrices(a, query + k * 32);
        SIMT_UNROLL
        for (uint32_t pair = 0; pair < pairs; pair++) {
            uint32_t b[4];
            simt_load_matrices(b, key + pair * 16 * ATTEND_STRIDE + k * 32);
            simt_mma(scores[pair * 2], a, b);
            simt_mma(scores[pair * 2 + 1], a, b + 2);
        }
    }
}

/* Adds the weights of 16 tokens times their values to 16 rows of output. */
SIMT_FUNCTION void ATTEND_NAME(attend_add_values)(float out[ATTEND_VALUE_TILES][4], const uint32_t low[2],
                                                  const uint32_t high[2], const unsigned char *values) {
    uint32_t lane = simt_lane();
    uint32_t a[4];
    a[0] = low[0];
    a[1] = low[1];
    a[2] = high[0];
    a[3] = high[1];
    const unsigned char *value = values + (lane / 8 % 2 * 8 + lane % 8) * ATTEND_STRIDE + lane / 16 * 16;
    SIMT_UNROLL
    for (uint32_t n = 0; n < ATTEND_DIM / 16; n++) {
        uint32_t b[4];
        simt_load_matrices_transposed(b, value + n * 32);
        simt_mma(out[n * 2], a, b);
        simt_mma(out[n * 2 + 1], a, b + 2);
    }
}

/* Begins to copy tokens [first, first + count) of a piece, keys or values, by `threads` threads. */
SIMT_FUNCTION void ATTEND_NAME(attend_fetch)(const attend_arguments *a, const attend_piece *piece, uint32_t head,
                                             bool is_value, uint32_t first, uint32_t count, unsigned char *to,
                                             uint32_t thread, uint32_t threads) {
    const unsigned char *pages = (is_value ? a->values : a->keys) + head * a->head_stride;
    SIMT_KEEP_LOOP
    for (uint32_t i = thread; i < count * ATTEND_CHUNKS; i += threads) {
        uint32_t row = i / ATTEND_CHUNKS, chunk = i % ATTEND_CHUNKS, token = first + row;
        bool is_valid = token < piece->count;
        const unsigned char *from = pages;
        if (is_valid && piece->is_list) {
            const attend_token *t = &a->tokens[piece->offset + token];
            from = (const unsigned char *)(uintptr_t)(is_value ? t->value : t->key);
        } else if (is_valid) {
            from = pages + piece->offset + (uint64_t)token * (ATTEND_DIM * 2);
        }
        simt_copy16(to + row * ATTEND_STRIDE + chunk * 16, from + chunk * 16, is_valid);
    }
}

/* A tile's queries into shared memory, zeros behind its last row. Needs a barrier behind it. */
SIMT_FUNCTION void ATTEND_NAME(attend_load_queries)(const attend_arguments *a, const attend_item *item, uint32_t rows,
                                                    unsigned char *to) {
    const uint16_t *queries =
        a->queries + item->head * a->query_head_stride + (uint64_t)item->tile->first_row * a->query_stride;
    for (uint32_t i = simt_thread(); i < rows * ATTEND_CHUNKS; i += simt_thread_count()) {
        uint32_t row = i / ATTEND_CHUNKS, chunk = i % ATTEND_CHUNKS;
        simt_vector v;
        SIMT_UNROLL
        for (uint32_t w = 0; w < 4; w++) v.words[w] = 0;
        if (row < item->tile->row_count)
            v = *(const simt_vector *)(queries + (uint64_t)row * a->query_stride + chunk * 8);
        *(simt_vector *)(to + row * ATTEND_STRIDE + chunk * 16) = v;
    }
}

SIMT_FUNCTION uint64_t ATTEND_NAME(attend_item_row)(const attend_item *item) {
    return (uint64_t)item->tile->partial_row + (uint64_t)item->index * item->tile->row_count;
}
