/* forward_rows.c - spans to rows. */
#include "worker/forward_rows.h"

#include <assert.h>

#include "base/memory.h"

hd_status forward_rows_init(forward_rows *r, uint32_t rows_max, uint32_t spans_max) {
    *r = (forward_rows){.rows_max = rows_max};
    r->places = hd_alloc_zeroed(rows_max * sizeof(*r->places), HD_CACHE_LINE);
    r->spans = hd_alloc_zeroed(spans_max * sizeof(*r->spans), HD_CACHE_LINE);
    r->logits_rows = hd_alloc_zeroed(rows_max * sizeof(*r->logits_rows), HD_CACHE_LINE);
    return r->places != NULL && r->spans != NULL && r->logits_rows != NULL ? HD_OK : HD_NO_MEMORY;
}

void forward_rows_fini(forward_rows *r) {
    hd_free(r->places);
    hd_free(r->spans);
    hd_free(r->logits_rows);
}

void forward_rows_place(forward_rows *r, const forward_span *spans, uint32_t span_count) {
    r->row_count = r->logits_row_count = 0;
    for (uint32_t i = 0; i < span_count; i++) {
        const attention_rows *rows = &spans[i].rows;
        assert(rows->count > 0 && rows->count <= r->rows_max - r->row_count);
        r->spans[i] = *rows;
        for (uint32_t k = 0; k < rows->count; k++) {
            bool is_last = k + 1 == rows->count;
            if (spans[i].need == FORWARD_ALL_LOGITS || (spans[i].need == FORWARD_LAST_LOGITS && is_last)) {
                r->logits_rows[r->logits_row_count++] = r->row_count;
            }
            r->places[r->row_count++] = (row_place){
                .token_id = rows->token_ids[k], .position = rows->first_position + k, .rope = spans[i].rope};
        }
    }
}
