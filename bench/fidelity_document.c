/* fidelity_document.c - tokens are put together, not text, so that a document has exactly the length asked for. */
#include "bench/fidelity_document.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/random.h"

static const char *const words[FIDELITY_ANSWERS_MAX] = {
    "castle", "garden", "lamp",   "horse",  "bread",  "mirror", "copper", "island",
    "letter", "engine", "flower", "kettle", "market", "bottle", "cloud",  "hammer",
};

static hd_status encode(const fidelity_source *source, const char *text, uint32_t **ids, size_t *count,
                        hd_error *error) {
    return text_encode(source->text, text, strlen(text), false, ids, count, error);
}

static hd_status append(const fidelity_source *source, fidelity_document *d, const char *text, hd_error *error) {
    uint32_t *ids;
    size_t count;
    hd_status status = encode(source, text, &ids, &count, error);
    if (status != HD_OK) return status;
    memcpy(d->tokens + d->token_count, ids, count * sizeof(*ids));
    d->token_count += count;
    free(ids);
    return HD_OK;
}

static void append_filler(const fidelity_source *source, fidelity_document *d, size_t end, size_t *used) {
    while (d->token_count < end) d->tokens[d->token_count++] = source->tokens[(*used)++ % source->token_count];
}

static hd_status start(const fidelity_source *source, size_t length, fidelity_document *d, hd_error *error) {
    *d = (fidelity_document){.tokens = malloc((length + 4096) * sizeof(*d->tokens))};
    if (d->tokens == NULL) return hd_error_set(error, HD_NO_MEMORY, "no memory for a document");
    uint32_t bos;
    if (text_bos_id(source->text, &bos)) d->tokens[d->token_count++] = bos;
    return HD_OK;
}

static hd_status ask(const fidelity_source *source, fidelity_document *d, const char *question, const char *answer,
                     hd_error *error) {
    uint32_t i = d->answer_count++;
    snprintf(d->answers[i], FIDELITY_ANSWER_BYTES, "%s", answer);
    return encode(source, question, &d->questions[i], &d->question_counts[i], error);
}

/* Numbers that differ in their first two digits. */
static void number_of(uint32_t needle, char number[8]) {
    bench_random random = {needle + 1};
    snprintf(number, 8, "%u%03u", 11 + needle * 5, (unsigned)bench_random_below(&random, 1000));
}

hd_status fidelity_make_needles(const fidelity_source *source, size_t length, uint32_t first, uint32_t count,
                                uint32_t total, fidelity_document *d, hd_error *error) {
    hd_status status = start(source, length, d, error);
    size_t used = first * 997;
    for (uint32_t i = first; i < first + count && status == HD_OK; i++) {
        char number[8], text[128];
        number_of(i, number);
        append_filler(source, d, (size_t)((double)length * (i + 0.5) / total), &used);
        snprintf(text, sizeof(text), " The magic number of %s is %s.", words[i], number);
        status = append(source, d, text, error);
        snprintf(text, sizeof(text), " The magic number of %s is", words[i]);
        if (status == HD_OK) status = ask(source, d, text, number, error);
    }
    if (status == HD_OK) append_filler(source, d, length, &used);
    return status;
}

hd_status fidelity_make_pairs(const fidelity_source *source, size_t length, uint32_t count, fidelity_document *d,
                              hd_error *error) {
    hd_status status = start(source, length, d, error);
    bench_random random = {length};
    char line[64];
    size_t asked = 0;
    while (status == HD_OK && d->token_count < length) {
        uint32_t key = (uint32_t)bench_random_below(&random, 1u << 24),
                 value = 10000 + (uint32_t)bench_random_below(&random, 90000);
        snprintf(line, sizeof(line), "%06x: %05u\n", key, value);
        status = append(source, d, line, error);
        bool is_due = (double)d->token_count > (double)length * ((double)asked + 0.5) / count;
        if (status != HD_OK || asked == count || !is_due) continue;
        char question[16], answer[16];
        snprintf(question, sizeof(question), "%06x:", key);
        snprintf(answer, sizeof(answer), "%05u", value);
        status = ask(source, d, question, answer, error);
        asked++;
    }
    return status;
}

void fidelity_document_fini(fidelity_document *d) {
    for (uint32_t i = 0; i < d->answer_count; i++) free(d->questions[i]);
    free(d->tokens);
    *d = (fidelity_document){0};
}
