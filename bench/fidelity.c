/* fidelity.c - every task under every selection, on the same documents. */
#include "bench/fidelity.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attention-node/selection.h"
#include "bench/chart.h"
#include "bench/fidelity_document.h"
#include "bench/report.h"

#define ANSWER_TOKENS 12u
#define TEXT_BYTES_MAX ((size_t)256 << 20)

enum { AGREEMENT, NEEDLE, MULTI_NEEDLE, KEY_VALUE, TASK_COUNT };
static const char *const task_names[TASK_COUNT] = {"agreement", "needle", "multi-needle", "key-value"};

typedef struct bench {
    const fidelity_config *config;
    decoder *decoder;
    char *selection_text; /* cut into selections */
    const char *selections[FIDELITY_SELECTIONS_MAX];
    uint32_t selection_count;
    fidelity_source source;
    uint32_t *tokens;
    uint32_t vocabulary;
    bool has_reference;                                 /* of another run */
    float *reference;                                   /* [steps][vocabulary] log-probabilities of full attention */
    double shares[TASK_COUNT][FIDELITY_SELECTIONS_MAX]; /* right of 100 */
    double divergences[FIDELITY_SELECTIONS_MAX];
    FILE *table;
    json_t *rows; /* borrowed from the report */
} bench;

/* ---- Inputs ---- */

static hd_status split_selections(bench *b, hd_error *error) {
    b->selection_text = strdup(b->config->selections);
    if (b->selection_text == NULL) return hd_error_set(error, HD_NO_MEMORY, "out of memory");
    b->selections[b->selection_count++] = "full";
    for (char *next = b->selection_text, *one; (one = strsep(&next, ";")) != NULL;) {
        if (one[0] == '\0' || strcmp(one, "full") == 0) continue;
        selection parsed;
        hd_error problem;
        hd_status status = selection_parse(one, &parsed, &problem);
        if (status != HD_OK) return hd_error_set(error, status, "--selections: %s", problem.text);
        if (b->selection_count == FIDELITY_SELECTIONS_MAX)
            return hd_error_set(error, HD_INVALID, "--selections: more than %u", FIDELITY_SELECTIONS_MAX);
        b->selections[b->selection_count++] = one;
    }
    return HD_OK;
}

static hd_status read_text(bench *b, hd_error *error) {
    const char *path = b->config->text_path;
    FILE *file = fopen(path, "rb");
    if (file == NULL) return hd_error_set(error, HD_IO, "cannot read %s: %s", path, strerror(errno));
    char *bytes = malloc(TEXT_BYTES_MAX);
    size_t count = bytes != NULL ? fread(bytes, 1, TEXT_BYTES_MAX, file) : 0, longest = 0;
    fclose(file);
    hd_status status = bytes != NULL ? HD_OK : hd_error_set(error, HD_NO_MEMORY, "out of memory");
    if (status == HD_OK)
        status = text_encode(b->config->text, bytes, count, false, &b->tokens, &b->source.token_count, error);
    free(bytes);
    if (status != HD_OK) return status;
    b->source.text = b->config->text;
    b->source.tokens = b->tokens;
    for (size_t i = 0; i < b->config->lengths.count; i++) {
        if (b->config->lengths.values[i] > longest) longest = (size_t)b->config->lengths.values[i];
    }
    if (b->source.token_count >= longest + b->config->steps) return HD_OK;
    return hd_error_set(error, HD_INVALID, "%s has %zu tokens, and contexts of %zu need %zu", path,
                        b->source.token_count, longest, longest + b->config->steps);
}

/* ---- Agreement ---- */

static uint32_t likeliest(const float *values, uint32_t count) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++) best = values[i] > values[best] ? i : best;
    return best;
}

static double log_sum(const float *logits, uint32_t count) {
    double max = logits[likeliest(logits, count)], sum = 0.0;
    for (uint32_t i = 0; i < count; i++) sum += exp(logits[i] - max);
    return max + log(sum);
}

static double divergence(const float *reference, const float *logits, uint32_t count) {
    double total = log_sum(logits, count), sum = 0.0;
    for (uint32_t i = 0; i < count; i++) sum += exp((double)reference[i]) * (reference[i] - (logits[i] - total));
    return sum;
}

static void keep_reference(bench *b, uint32_t step, const float *logits) {
    double total = log_sum(logits, b->vocabulary);
    float *row = b->reference + (size_t)step * b->vocabulary;
    for (uint32_t i = 0; i < b->vocabulary; i++) row[i] = (float)(logits[i] - total);
}

/* The steps of one length that is measured; nothing is read where there is no file yet. */
static hd_status read_reference(bench *b, hd_error *error) {
    const char *path = b->config->reference_path;
    FILE *file = path != NULL ? fopen(path, "rb") : NULL;
    if (file == NULL) return HD_OK;
    size_t count = (size_t)b->config->steps * b->vocabulary;
    bool is_whole = fread(b->reference, sizeof(float), count, file) == count && fgetc(file) == EOF;
    fclose(file);
    b->has_reference = is_whole;
    if (is_whole) return HD_OK;
    return hd_error_set(error, HD_INVALID, "--reference %s is not of %u tokens and %u logits each", path,
                        b->config->steps, b->vocabulary);
}

static hd_status write_reference(const bench *b, hd_error *error) {
    const char *path = b->config->reference_path;
    if (path == NULL || b->has_reference) return HD_OK;
    FILE *file = fopen(path, "wb");
    size_t count = (size_t)b->config->steps * b->vocabulary;
    bool is_whole = file != NULL && fwrite(b->reference, sizeof(float), count, file) == count;
    if (file != NULL && fclose(file) != 0) is_whole = false;
    return is_whole ? HD_OK : hd_error_set(error, HD_IO, "cannot write --reference %s: %s", path, strerror(errno));
}

static hd_status measure_agreement(bench *b, size_t length, uint32_t selected, hd_error *error) {
    const fidelity_config *c = b->config;
    const float *logits;
    uint32_t same = 0;
    double divergence_sum = 0.0;
    hd_status status =
        decoder_start(b->decoder, b->tokens, length, length + c->steps, b->selections[selected], &logits, error);
    for (uint32_t step = 0; step < c->steps && status == HD_OK; step++) {
        /* The prompt's own last row sees everything, so what counts begins with the first token told. */
        status = decoder_step(b->decoder, b->tokens[length + step], &logits, error);
        if (status != HD_OK) break;
        if (selected == 0 && !b->has_reference) keep_reference(b, step, logits);
        const float *reference = b->reference + (size_t)step * b->vocabulary;
        same += likeliest(reference, b->vocabulary) == likeliest(logits, b->vocabulary);
        divergence_sum += divergence(reference, logits, b->vocabulary);
    }
    b->shares[AGREEMENT][selected] = 100.0 * same / c->steps;
    b->divergences[selected] = divergence_sum / c->steps;
    return status == HD_OK && selected == 0 ? write_reference(b, error) : status;
}

/* ---- Questions ---- */

static hd_status is_answered(bench *b, const fidelity_document *d, uint32_t question, uint32_t selected, bool *is_right,
                             hd_error *error) {
    uint32_t answer[ANSWER_TOKENS], count = 0;
    size_t prompt_count = d->token_count + d->question_counts[question];
    uint32_t *prompt = malloc(prompt_count * sizeof(*prompt));
    if (prompt == NULL) return hd_error_set(error, HD_NO_MEMORY, "out of memory");
    memcpy(prompt, d->tokens, d->token_count * sizeof(*prompt));
    memcpy(prompt + d->token_count, d->questions[question], d->question_counts[question] * sizeof(*prompt));
    const float *logits;
    hd_status status = decoder_start(b->decoder, prompt, prompt_count, prompt_count + ANSWER_TOKENS,
                                     b->selections[selected], &logits, error);
    while (status == HD_OK && count < ANSWER_TOKENS) {
        answer[count++] = likeliest(logits, b->vocabulary);
        if (count < ANSWER_TOKENS) status = decoder_step(b->decoder, answer[count - 1], &logits, error);
    }
    free(prompt);
    if (status != HD_OK) return status;
    char *text;
    size_t text_bytes;
    status = text_decode(b->config->text, answer, count, true, &text, &text_bytes, error);
    if (status != HD_OK) return status;
    const char *said = text + strspn(text, " ");
    *is_right = strncmp(said, d->answers[question], strlen(d->answers[question])) == 0;
    free(text);
    return HD_OK;
}

/* Adds the right answers to every question of a document, under each selection in turn. */
static hd_status ask_all(bench *b, fidelity_document *d, uint32_t *right, hd_error *error) {
    hd_status status = HD_OK;
    for (uint32_t selected = 0; selected < b->selection_count; selected++) {
        for (uint32_t i = 0; i < d->answer_count && status == HD_OK; i++) {
            bool is_right = false;
            status = is_answered(b, d, i, selected, &is_right, error);
            right[selected] += is_right;
        }
    }
    fidelity_document_fini(d);
    return status;
}

static hd_status measure_questions(bench *b, int task, size_t length, hd_error *error) {
    uint32_t right[FIDELITY_SELECTIONS_MAX] = {0}, trials = b->config->trials;
    fidelity_document d;
    hd_status status = HD_OK;
    for (uint32_t i = 0; i < (task == NEEDLE ? trials : 1) && status == HD_OK; i++) {
        if (task == NEEDLE) status = fidelity_make_needles(&b->source, length, i, 1, trials, &d, error);
        else if (task == MULTI_NEEDLE) status = fidelity_make_needles(&b->source, length, 0, trials, trials, &d, error);
        else status = fidelity_make_pairs(&b->source, length, trials, &d, error);
        if (status == HD_OK) status = ask_all(b, &d, right, error);
        else fidelity_document_fini(&d);
    }
    for (uint32_t i = 0; i < b->selection_count; i++) b->shares[task][i] = 100.0 * right[i] / trials;
    return status;
}

/* ---- The report ---- */

static void report_length(bench *b, size_t length) {
    for (uint32_t i = 0; i < b->selection_count; i++) {
        fprintf(b->table, "%8zu  %-44s %9.1f%% %10.5f %9.0f%% %12.0f%% %9.0f%%\n", length, b->selections[i],
                b->shares[AGREEMENT][i], b->divergences[i], b->shares[NEEDLE][i], b->shares[MULTI_NEEDLE][i],
                b->shares[KEY_VALUE][i]);
        json_array_append_new(b->rows, json_pack("{s:I, s:s, s:f, s:f, s:f, s:f, s:f}", "tokens", (json_int_t)length,
                                                 "selection", b->selections[i], "agreement", b->shares[AGREEMENT][i],
                                                 "divergence_nats", b->divergences[i], "needle", b->shares[NEEDLE][i],
                                                 "multi_needle", b->shares[MULTI_NEEDLE][i], "key_value",
                                                 b->shares[KEY_VALUE][i]));
    }
    fflush(b->table);
}

/* Of the last, longest context. */
static hd_status draw(const bench *b, size_t length, hd_error *error) {
    if (b->config->chart_path == NULL) return HD_OK;
    double values[TASK_COUNT * FIDELITY_SELECTIONS_MAX];
    for (uint32_t task = 0; task < TASK_COUNT; task++) {
        for (uint32_t i = 0; i < b->selection_count; i++) values[task * b->selection_count + i] = b->shares[task][i];
    }
    char title[256];
    snprintf(title, sizeof(title), "%s, %zu tokens: right answers, and agreement with full attention",
             b->config->model_name, length);
    chart c = {.title = title,
               .unit = "%",
               .categories = task_names,
               .category_count = TASK_COUNT,
               .series = b->selections,
               .series_count = b->selection_count,
               .values = values,
               .most = 100};
    return chart_write(&c, b->config->chart_path, error);
}

static hd_status run_all(bench *b, hd_error *error) {
    const fidelity_config *c = b->config;
    fprintf(b->table, "%s, %u questions a kind, %u tokens told\n%8s  %-44s %10s %10s %10s %13s %10s\n", c->model_name,
            c->trials, c->steps, "tokens", "selection", "agreement", "KL, nats", "needle", "multi-needle", "key-value");
    hd_status status = HD_OK;
    for (size_t i = 0; i < c->lengths.count && status == HD_OK; i++) {
        size_t length = (size_t)c->lengths.values[i];
        for (uint32_t selected = 0; selected < b->selection_count && status == HD_OK; selected++)
            status = measure_agreement(b, length, selected, error);
        for (int task = NEEDLE; task < TASK_COUNT && status == HD_OK; task++)
            status = measure_questions(b, task, length, error);
        if (status == HD_OK) report_length(b, length);
        if (status == HD_OK && i + 1 == c->lengths.count) status = draw(b, length, error);
    }
    return status;
}

hd_status bench_fidelity_run(const fidelity_config *config, hd_error *error) {
    bench b = {.config = config,
               .vocabulary = config->decoder.model->vocabulary_size,
               .table = bench_report_table(config->json_path)};
    hd_status status = split_selections(&b, error);
    if (status == HD_OK) status = read_text(&b, error);
    if (status == HD_OK) {
        b.reference = malloc((size_t)config->steps * b.vocabulary * sizeof(float));
        status = b.reference != NULL ? decoder_open(&config->decoder, &b.decoder) : HD_NO_MEMORY;
        if (status != HD_OK) hd_error_set(error, status, "no memory for a step and its logits");
    }
    if (status == HD_OK) status = read_reference(&b, error);
    if (status == HD_OK) {
        json_t *report = bench_report_open("fidelity");
        json_object_set_new(report, "model", json_string(config->model_name));
        json_object_set_new(report, "questions", json_integer(config->trials));
        json_object_set_new(report, "steps", json_integer(config->steps));
        json_object_set_new(report, "rows", b.rows = json_array());
        status = run_all(&b, error);
        if (status == HD_OK) status = bench_report_write(report, config->json_path, error);
        else json_decref(report);
    }
    decoder_close(b.decoder);
    free(b.reference);
    free(b.tokens);
    free(b.selection_text);
    return status;
}
