/* fidelity_document.h - token ids of documents with answers in them, and of the questions.
 *
 * Threads: stateless. */
#ifndef BENCH_FIDELITY_DOCUMENT_H
#define BENCH_FIDELITY_DOCUMENT_H

#include <stddef.h>
#include <stdint.h>

#include "model/text/text.h"

#define FIDELITY_ANSWERS_MAX 16u
#define FIDELITY_ANSWER_BYTES 16u

typedef struct fidelity_document {
    uint32_t *tokens;
    size_t token_count;
    uint32_t *questions[FIDELITY_ANSWERS_MAX]; /* each goes behind the document */
    size_t question_counts[FIDELITY_ANSWERS_MAX];
    char answers[FIDELITY_ANSWERS_MAX][FIDELITY_ANSWER_BYTES];
    uint32_t answer_count;
} fidelity_document;

typedef struct fidelity_source {
    const text_model *text;
    const uint32_t *tokens; /* of the text that documents are made of */
    size_t token_count;
} fidelity_source;

/* Needles number first .. first + count - 1 of `total`, whose depths are spread evenly over `length` tokens. */
hd_status fidelity_make_needles(const fidelity_source *source, size_t length, uint32_t first, uint32_t count,
                                uint32_t total, fidelity_document *document, hd_error *error);
/* `count` of the keys of a document of key-value lines are asked for. */
hd_status fidelity_make_pairs(const fidelity_source *source, size_t length, uint32_t count, fidelity_document *document,
                              hd_error *error);
void fidelity_document_fini(fidelity_document *document); /* accepts a zeroed one */

#endif
