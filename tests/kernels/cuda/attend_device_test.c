/* Attention on a device: right against a softmax in double precision, and the same bits for a row whichever kernel it
 * is computed by, whatever runs beside it and wherever the work is cut. */
#include <string.h>

#include "kernels/cuda/operations.h"
#include "tests/kernels/cuda/device_cases.h"

#define PAGE 128u

/* Sequences whose pages lie in any order, and queries. */
typedef struct world {
    uint32_t heads, group_size, dim, query_stride;
    float scale, soft_cap;
    uint64_t window;
    uint32_t page_count;
    uint16_t *pages; /* [head][page][keys, values][128][dim], on the host */
    unsigned char *device_pages;
} world;

typedef struct tokens { /* of a sequence: its pages in order */
    uint32_t first_page, count;
} tokens;

static size_t page_elements(const world *w) {
    return (size_t)2 * PAGE * w->dim;
}

static world make_world(uint32_t heads, uint32_t group_size, uint32_t dim, uint32_t page_count, uint64_t *seed) {
    world w = {.heads = heads,
               .group_size = group_size,
               .dim = dim,
               .query_stride = (dim + 31) / 32 * 32,
               .scale = 1.0f / sqrtf((float)dim),
               .page_count = page_count};
    size_t elements = heads * page_count * page_elements(&w);
    w.pages = cases_take(elements * sizeof(uint16_t));
    cases_fill(w.pages, HD_BF16, elements, 1.0f, seed);
    w.device_pages = device_put(w.pages, elements * sizeof(uint16_t));
    return w;
}

/* Pages of a sequence lie backwards, so that they never follow each other. */
static uint32_t page_of(const world *w, const tokens *t, uint64_t position) {
    return w->page_count - 1 - t->first_page - (uint32_t)(position / PAGE);
}

static const uint16_t *token_at(const world *w, const tokens *t, uint32_t head, uint64_t position, bool is_value) {
    size_t page = (size_t)head * w->page_count + page_of(w, t, position);
    return w->pages + page * page_elements(w) + (is_value ? PAGE * w->dim : 0) + position % PAGE * w->dim;
}

static uint64_t token_address(const world *w, const tokens *t, uint32_t head, uint64_t position, bool is_value) {
    return (uint64_t)(uintptr_t)w->device_pages +
           (uint64_t)((const char *)token_at(w, t, head, position, is_value) - (const char *)w->pages);
}

/* Every token of the sequence. */
static attend_span full_span(const world *w, const tokens *t, uint32_t first_row, uint32_t row_count) {
    uint32_t count = (t->count + PAGE - 1) / PAGE;
    attend_piece *pieces = cases_take(count * sizeof(*pieces));
    for (uint32_t i = 0; i < count; i++) {
        pieces[i] = (attend_piece){.offset = page_of(w, t, (uint64_t)i * PAGE) * page_elements(w) * sizeof(uint16_t),
                                   .position = (uint64_t)i * PAGE,
                                   .count = t->count - i * PAGE < PAGE ? t->count - i * PAGE : PAGE};
    }
    return (attend_span){.pieces = pieces,
                         .piece_count = count,
                         .first_row = first_row,
                         .row_count = row_count,
                         .first_position = t->count - row_count,
                         .head_count = w->heads};
}

typedef struct answer {
    uint32_t row_count;
    uint16_t *queries; /* [head][row][group][query_stride] */
    uint16_t *output;  /* [row][heads * group * dim + 8] */
    float *lse;        /* [row][heads * group] */
    size_t output_stride;
    uint32_t split_tiles, block_tiles;
} answer;

typedef struct run_options {
    uint64_t partial_rows_max;
    const attend_token *tokens;
    size_t token_count;
    const float *sinks;
} run_options;

static uint16_t *make_queries(const world *w, uint32_t row_count, uint64_t *seed) {
    size_t rows = (size_t)w->heads * row_count * w->group_size;
    uint16_t *queries = cases_take(rows * w->query_stride * sizeof(uint16_t));
    for (size_t i = 0; i < rows; i++) cases_fill(queries + i * w->query_stride, HD_BF16, w->dim, 1.5f, seed);
    return queries;
}

static answer run(const world *w, const attend_span *spans, uint32_t span_count, uint32_t row_count,
                  const uint16_t *queries, run_options options) {
    answer r = {.row_count = row_count, .output_stride = (size_t)w->heads * w->group_size * w->dim + 8};
    attend_tables_limits limits = {.rows_max = 300,
                                   .spans_max = 40,
                                   .pieces_max = 20000,
                                   .groups_max = 4000,
                                   .context_max = (uint64_t)1 << 21,
                                   .partial_rows_max = options.partial_rows_max > 0 ? options.partial_rows_max : 100000,
                                   .multiprocessors = device->facts.multiprocessors};
    attend_tables tables;
    void *region = cases_take(attend_tables_bytes(&limits));
    attend_tables_init(&tables, &limits, region);
    attend_tables_shape shape = {.group_size = w->group_size, .window = w->window};
    assert_ok(attend_tables_build(&tables, spans, span_count, &shape));
    r.split_tiles = attend_tables_counts(&tables)[ATTEND_SPLIT].tile_count;
    r.block_tiles = attend_tables_counts(&tables)[ATTEND_BLOCK].tile_count;

    uint32_t query_heads = w->heads * w->group_size, levels = attend_tables_stack_levels(&limits);
    size_t query_bytes = (size_t)query_heads * row_count * w->query_stride * sizeof(uint16_t);
    size_t output_bytes = row_count * r.output_stride * sizeof(uint16_t);
    size_t lse_bytes = (size_t)row_count * query_heads * sizeof(float);
    unsigned char *pages = w->device_pages;
    device_attend call = {
        .dim = w->dim,
        .arguments = {.tokens = options.tokens != NULL
                                    ? device_put(options.tokens, options.token_count * sizeof(attend_token))
                                    : NULL,
                      .keys = pages,
                      .values = pages + (size_t)PAGE * w->dim * sizeof(uint16_t),
                      .head_stride = w->page_count * page_elements(w) * sizeof(uint16_t),
                      .queries = device_put(queries, query_bytes),
                      .query_head_stride = (uint64_t)row_count * w->group_size * w->query_stride,
                      .query_stride = w->query_stride,
                      .group_size = w->group_size,
                      .scale = w->scale,
                      .soft_cap = w->soft_cap,
                      .window = w->window,
                      .partials = {.out = device_take((tables.partial_rows + 1) * w->dim * sizeof(float)),
                                   .max = device_take((tables.partial_rows + 1) * sizeof(float)),
                                   .sum = device_take((tables.partial_rows + 1) * sizeof(float))},
                      .stacks = device_take(device_attend_stack_bytes(&device->facts, w->dim, levels)),
                      .stack_levels = levels},
        .tables = &tables,
        .region = device_put(region, tables.used_bytes),
        .split_rows_max = ATTEND_SPLIT_ROWS / w->group_size * w->group_size,
        .sink_logits = options.sinks != NULL ? device_put(options.sinks, query_heads * sizeof(float)) : NULL,
        .output = device_take(output_bytes),
        .output_stride = r.output_stride,
        .lse = device_take(lse_bytes),
        .query_heads = query_heads};
    assert_ok(device_attend_run(queue, &call));
    r.output = device_get(call.output, output_bytes);
    r.lse = device_get(call.lse, lse_bytes);
    return r;
}

/* One row and query head, by definition. `is_seen` may hide more. */
static void assert_row(const world *w, const tokens *t, const answer *r, const uint16_t *queries, uint32_t row,
                       uint64_t position, const bool *is_seen, const float *sinks) {
    double *scores = cases_take(t->count * sizeof(double));
    for (uint32_t query_head = 0; query_head < w->heads * w->group_size; query_head++) {
        uint32_t head = query_head / w->group_size, g = query_head % w->group_size;
        const uint16_t *query = queries + (((size_t)head * r->row_count + row) * w->group_size + g) * w->query_stride;
        double max = -INFINITY, sum = 0.0, out[256] = {0};
        for (uint32_t p = 0; p < t->count; p++) {
            bool is_visible = p <= position && (w->window == 0 || p + w->window > position);
            if (is_seen != NULL && !is_seen[p]) is_visible = false;
            double s = 0.0;
            const uint16_t *key = token_at(w, t, head, p, false);
            for (uint32_t k = 0; k < w->dim; k++) s += (double)hd_bf16_to_f32(query[k]) * hd_bf16_to_f32(key[k]);
            s *= w->scale;
            if (w->soft_cap > 0.0f) s = w->soft_cap * tanh(s / w->soft_cap);
            scores[p] = is_visible ? s : -INFINITY;
            max = fmax(max, scores[p]);
        }
        for (uint32_t p = 0; p < t->count; p++) {
            double weight = scores[p] == -INFINITY ? 0.0 : exp(scores[p] - max);
            sum += weight;
            const uint16_t *value = token_at(w, t, head, p, true);
            for (uint32_t n = 0; weight > 0.0 && n < w->dim; n++) out[n] += weight * hd_bf16_to_f32(value[n]);
        }
        const uint16_t *actual = r->output + row * r->output_stride + (size_t)query_head * w->dim;
        float lse = r->lse[(size_t)row * w->heads * w->group_size + query_head];
        if (sum == 0.0) {
            assert_true(lse == -INFINITY);
            for (uint32_t n = 0; n < w->dim; n++) assert_int_equal(actual[n] & 0x7fff, 0);
            continue;
        }
        double all = sinks != NULL ? sum + exp(sinks[query_head] - max) : sum;
        if (fabs(lse - max - log(all)) > 3e-3)
            fail_msg("row %u head %u: lse %g, not %g", row, query_head, lse, max + log(all));
        for (uint32_t n = 0; n < w->dim; n++) {
            /* The weights' rounding, 2^-9 each, of random sign, and that of the output. */
            double expected = out[n] / all, got = hd_bf16_to_f32(actual[n]);
            if (!(fabs(got - expected) <= 6e-3 + 5e-3 * fabs(expected)))
                fail_msg("row %u head %u column %u: %g, not %g", row, query_head, n, got, expected);
        }
    }
}

static void assert_spans(const world *w, const tokens *sequences, const attend_span *spans, uint32_t span_count,
                         const answer *r, const uint16_t *queries) {
    for (uint32_t i = 0; i < span_count; i++) {
        for (uint32_t row = 0; row < spans[i].row_count; row++) {
            /* Of many rows the first, the last and some. */
            if (row > 2 && row + 2 < spans[i].row_count && row % 13 != 0) continue;
            assert_row(w, &sequences[i], r, queries, spans[i].first_row + row, spans[i].first_position + row, NULL,
                       NULL);
        }
    }
}

static const uint32_t dims[] = {64, 80, 96, 128, 256};

static void answers_are_right_for_every_head_size(void **state) {
    uint64_t seed = 1;
    for (size_t d = 0; d < 5; d++) {
        for (uint32_t rows = 1; rows <= 21; rows += 20) {
            world w = make_world(1, 4, dims[d], 10, &seed);
            tokens t = {.count = (is_quick ? 270 : 1100) + (uint32_t)d};
            attend_span span = full_span(&w, &t, 0, rows);
            uint16_t *queries = make_queries(&w, rows, &seed);
            answer r = run(&w, &span, 1, rows, queries, (run_options){0});
            assert_int_equal(r.split_tiles, rows == 1);
            assert_spans(&w, &t, &span, 1, &r, queries);
            device_teardown(NULL);
        }
    }
}

static void answers_are_right_for_every_group_size_window_cap_and_length(void **state) {
    static const uint32_t groups[] = {1, 2, 3, 4, 5, 7, 8, 16},
                          lengths[] = {1, 2, 15, 16, 17, 127, 128, 129, 700, 1025};
    static const uint64_t windows[] = {0, 1, 50, 128, 300};
    static const uint32_t rows_of[] = {1, 1, 3, 1, 10, 40};
    uint64_t seed = 2;
    for (size_t g = 0; g < 8; g++) {
        for (size_t l = 0; l < 10; l++) {
            if (is_quick && (g + l) % 7 != 0) continue;
            world w = make_world(1 + (uint32_t)l % 2, groups[g], 64, 9, &seed);
            w.window = windows[(g * 3 + l) % 5];
            w.soft_cap = (g + l) % 3 == 0 ? 1.5f : 0.0f;
            tokens t = {.count = lengths[l]};
            uint32_t rows = rows_of[(g + l / 2) % 6];
            if (rows > t.count) rows = t.count;
            attend_span span = full_span(&w, &t, 0, rows);
            uint16_t *queries = make_queries(&w, rows, &seed);
            answer r = run(&w, &span, 1, rows, queries, (run_options){0});
            assert_spans(&w, &t, &span, 1, &r, queries);
            device_teardown(NULL);
        }
    }
}

static void batches_of_decode_and_prefill_rows_are_right(void **state) {
    uint64_t seed = 3;
    world w = make_world(2, 4, 64, 60, &seed);
    tokens sequences[] = {{0, is_quick ? 1030 : 2500}, {20, 1}, {21, 300}, {24, 1024}, {32, 260}, {35, 130}};
    uint32_t rows[] = {1, 1, 70, 1, 2, 5}, row_count = 0;
    attend_span spans[6];
    for (int i = 0; i < 6; i++) {
        spans[i] = full_span(&w, &sequences[i], row_count, rows[i]);
        row_count += rows[i];
    }
    uint16_t *queries = make_queries(&w, row_count, &seed);
    answer r = run(&w, spans, 6, row_count, queries, (run_options){0});
    assert_int_equal(r.split_tiles, 4);
    assert_spans(&w, sequences, spans, 6, &r, queries);
}

static void assert_same_row(const world *w, const answer *a, uint32_t row_a, const answer *b, uint32_t row_b) {
    size_t heads = (size_t)w->heads * w->group_size;
    assert_memory_equal(a->output + row_a * a->output_stride, b->output + row_b * b->output_stride,
                        heads * w->dim * sizeof(uint16_t));
    assert_memory_equal(a->lse + row_a * heads, b->lse + row_b * heads, heads * sizeof(float));
}

/* The queries of one row of an answer to come, as the only row. */
static uint16_t *row_queries(const world *w, const uint16_t *queries, uint32_t row_count, uint32_t row) {
    size_t bytes = w->group_size * w->query_stride * sizeof(uint16_t);
    char *one = cases_take(w->heads * bytes);
    for (uint32_t head = 0; head < w->heads; head++)
        memcpy(one + head * bytes, (const char *)queries + ((size_t)head * row_count + row) * bytes, bytes);
    return (uint16_t *)one;
}

static void a_row_has_the_same_bits_in_either_kernel_and_in_any_batch(void **state) {
    uint64_t seed = 4;
    for (size_t d = 0; d < 5; d += is_quick ? 3 : 1) { /* 64 and 128; on a device all */
        world w = make_world(1, 4, dims[d], is_quick ? 24 : 40, &seed);
        w.window = d % 2 != 0 ? 900 : 0;
        tokens sequences[] = {{0, 1100}, {15, is_quick ? 1040 : 2200}};
        uint32_t rows[] = {40, 1};
        attend_span spans[2] = {full_span(&w, &sequences[0], 0, 40), full_span(&w, &sequences[1], 40, 1)};
        uint16_t *queries = make_queries(&w, 41, &seed);
        answer together = run(&w, spans, 2, 41, queries, (run_options){0});
        for (uint32_t row = 0; row < 41; row += is_quick ? 20 : 13) {
            uint32_t s = row < rows[0] ? 0 : 1;
            tokens seen = sequences[s];
            if (s == 0) seen.count = sequences[0].count - 39 + row; /* what came later is not even there */
            attend_span span = full_span(&w, &seen, 0, 1);
            answer alone = run(&w, &span, 1, 1, row_queries(&w, queries, 41, row), (run_options){0});
            assert_int_equal(alone.split_tiles, 1);
            assert_same_row(&w, &alone, 0, &together, row);
        }
        device_teardown(NULL);
    }
}

static void cuts_leave_bits_alone(void **state) {
    uint64_t seed = 5;
    world w = make_world(1, 2, 64, 50, &seed);
    w.window = is_quick ? 1800 : 2500;
    tokens t = {.count = is_quick ? 2300 : 6300};
    for (uint32_t rows = 1; rows <= 20; rows += 19) {
        attend_span span = full_span(&w, &t, 0, rows);
        uint16_t *queries = make_queries(&w, rows, &seed);
        answer as_planned = run(&w, &span, 1, rows, queries, (run_options){0});
        for (uint64_t nodes = 1; nodes <= 2; nodes++) { /* that there is room for */
            answer tight = run(&w, &span, 1, rows, queries, (run_options){.partial_rows_max = rows * 2 * nodes});
            assert_int_equal(tight.split_tiles, 0);
            for (uint32_t row = 0; row < rows; row++) assert_same_row(&w, &as_planned, row, &tight, row);
        }
    }
}

static void single_tokens_are_attended_to_wherever_they_lie(void **state) {
    uint64_t seed = 6;
    world w = make_world(2, 4, 96, 30, &seed);
    tokens t = {.count = 2100};
    /* Head 0 sees sinks, some tokens and the latest; head 1 other tokens alone. */
    bool *is_seen[2] = {cases_take(t.count), cases_take(t.count)};
    attend_token *list = cases_take(2 * t.count * sizeof(*list));
    attend_piece pieces[2][64];
    uint32_t piece_count[2] = {0, 0}, listed = 0;
    for (uint32_t head = 0; head < 2; head++) {
        attend_piece *p = pieces[head];
        if (head == 0) {
            p[piece_count[0]++] = (attend_piece){
                .offset = page_of(&w, &t, 0) * page_elements(&w) * sizeof(uint16_t), .position = 0, .count = 4};
            for (uint32_t i = 0; i < 4; i++) is_seen[0][i] = true;
        }
        for (uint32_t group = 0; group < 2; group++) {
            uint32_t first = listed;
            for (uint32_t position = group * 1024 + 4; position < group * 1024 + 1024; position++) {
                if (cases_random_below(&seed, head == 0 ? 9 : 3) != 0) continue;
                is_seen[head][position] = true;
                list[listed++] = (attend_token){.key = token_address(&w, &t, head, position, false),
                                                .value = token_address(&w, &t, head, position, true)};
            }
            for (; first < listed; first += PAGE) {
                p[piece_count[head]++] = (attend_piece){.offset = first,
                                                        .position = group * 1024,
                                                        .count = listed - first < PAGE ? listed - first : PAGE,
                                                        .is_list = 1};
            }
        }
        if (head == 0) {
            uint64_t at = page_of(&w, &t, 2048) * page_elements(&w) * sizeof(uint16_t);
            p[piece_count[0]++] =
                (attend_piece){.offset = at + 2 * w.dim * sizeof(uint16_t), .position = 2050, .count = 50};
            for (uint32_t i = 2050; i < 2100; i++) is_seen[0][i] = true;
        }
    }
    attend_span spans[2];
    for (uint32_t head = 0; head < 2; head++) {
        spans[head] = (attend_span){.pieces = pieces[head],
                                    .piece_count = piece_count[head],
                                    .row_count = 1,
                                    .first_position = 2099,
                                    .head_first = head,
                                    .head_count = 1};
    }
    uint16_t *queries = make_queries(&w, 1, &seed);
    answer r = run(&w, spans, 2, 1, queries, (run_options){.tokens = list, .token_count = listed});
    /* Each head against its own tokens: the other's half is looked at through a world of that head. */
    for (uint32_t head = 0; head < 2; head++) {
        world one = w;
        one.heads = 1;
        one.pages = w.pages + (size_t)head * w.page_count * page_elements(&w);
        answer half = r;
        half.output += (size_t)head * w.group_size * w.dim;
        half.lse += head * w.group_size;
        assert_row(&one, &t, &half, queries + (size_t)head * w.group_size * w.query_stride, 0, 2099, is_seen[head],
                   NULL);
    }
}

static void a_row_that_sees_nothing_gives_zeros(void **state) {
    uint64_t seed = 7;
    world w = make_world(1, 4, 64, 4, &seed);
    tokens t = {.count = 200};
    attend_span span = full_span(&w, &t, 0, 1);
    span.piece_count = 0;
    uint16_t *queries = make_queries(&w, 1, &seed);
    bool *nothing = cases_take(t.count);
    answer r = run(&w, &span, 1, 1, queries, (run_options){0});
    assert_row(&w, &t, &r, queries, 0, 199, nothing, NULL);
}

static void sinks_join_the_sum_alone(void **state) {
    uint64_t seed = 8;
    world w = make_world(1, 4, 64, 4, &seed);
    tokens t = {.count = 200};
    float sinks[] = {-3.0f, 5.0f, 0.5f, 1.0f};
    attend_span span = full_span(&w, &t, 0, 1);
    uint16_t *queries = make_queries(&w, 1, &seed);
    answer r = run(&w, &span, 1, 1, queries, (run_options){.sinks = sinks});
    assert_row(&w, &t, &r, queries, 0, 199, NULL, sinks);
}

static void huge_scores_stay_finite(void **state) {
    uint64_t seed = 9;
    world w = make_world(1, 4, 64, 12, &seed);
    w.scale = 300.0f;
    tokens t = {.count = 1200};
    attend_span span = full_span(&w, &t, 0, 1);
    uint16_t *queries = make_queries(&w, 1, &seed);
    answer r = run(&w, &span, 1, 1, queries, (run_options){0});
    for (uint32_t i = 0; i < 4 * 64; i++) assert_true(isfinite(hd_bf16_to_f32(r.output[i])));
}

static void long_contexts_are_right(void **state) {
    uint64_t seed = 10;
    uint32_t count = is_quick ? 2100 : 300000;
    world w = make_world(1, 4, 64, count / PAGE + 1, &seed);
    tokens t = {.count = count};
    attend_span span = full_span(&w, &t, 0, 1);
    uint16_t *queries = make_queries(&w, 1, &seed);
    answer r = run(&w, &span, 1, 1, queries, (run_options){0});
    assert_row(&w, &t, &r, queries, 0, count - 1, NULL, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(answers_are_right_for_every_head_size, device_teardown),
        cmocka_unit_test_teardown(answers_are_right_for_every_group_size_window_cap_and_length, device_teardown),
        cmocka_unit_test_teardown(batches_of_decode_and_prefill_rows_are_right, device_teardown),
        cmocka_unit_test_teardown(a_row_has_the_same_bits_in_either_kernel_and_in_any_batch, device_teardown),
        cmocka_unit_test_teardown(cuts_leave_bits_alone, device_teardown),
        cmocka_unit_test_teardown(single_tokens_are_attended_to_wherever_they_lie, device_teardown),
        cmocka_unit_test_teardown(a_row_that_sees_nothing_gives_zeros, device_teardown),
        cmocka_unit_test_teardown(sinks_join_the_sum_alone, device_teardown),
        cmocka_unit_test_teardown(huge_scores_stay_finite, device_teardown),
        cmocka_unit_test_teardown(long_contexts_are_right, device_teardown),
    };
    return device_cases_run(tests, sizeof(tests) / sizeof(tests[0]));
}
