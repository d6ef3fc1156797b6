/* golden_model.h - one folder of tests/golden/models, and altered copies of it. tests/golden/README.md says what the
 * files hold.
 *
 * Every call fails the running test when it cannot do what it says. */
#ifndef TESTS_WORKER_GOLDEN_MODEL_H
#define TESTS_WORKER_GOLDEN_MODEL_H

#include <jansson.h>
#include <stdint.h>

typedef struct golden_position { /* a record of bf16.bin */
    uint32_t f32_argmax, bf16_argmax;
    float margin, difference;
} golden_position;

typedef struct golden_model {
    char directory[512];
    json_t *index; /* golden.json */
    const char *name;
    uint32_t vocabulary, token_count, logit_count;
    uint64_t rope_length;
    double logits_rms, tolerance;
    uint32_t *token_ids; /* [token_count] */
    uint32_t *logit_positions;
    float *logits;              /* [logit_count, vocabulary] */
    golden_position *positions; /* [token_count] */
} golden_model;

/* The names of all models, sorted; returns how many. The names live until the process ends. */
size_t golden_model_names(const char *const **names);

void golden_model_open(golden_model *model, const char *name);
void golden_model_close(golden_model *model);

/* A directory in /tmp with the files that a model consists of; config_name is copied as config.json.
 * golden_directory_remove removes it. */
char *golden_directory_copy(const golden_model *model, const char *config_name);
/* The same with one of the alterations in golden.json. */
char *golden_directory_alter(const golden_model *model, const json_t *alteration);
void golden_directory_remove(char *directory); /* frees the name too */

#endif
