/* weights_plan.h - which tensor of the files goes to which place of the packed weights.
 *
 * The plan is complete and checked (every tensor there, of the right shape and type, none left over) before a byte is
 * packed, so that a wrong checkpoint is refused at once. Its parts come in one order that depends on the configuration
 * alone.
 * Threads: the caller's. */
#ifndef MODEL_WEIGHTS_PLAN_H
#define MODEL_WEIGHTS_PLAN_H

#include "model/weights.h"

#define WEIGHT_PART_ROWS 64u /* rows that are packed, and hashed, at a time: a panel of columns */

/* rows x columns elements of a tensor, which become columns of a matrix, or floats, or stay where they are (the
 * embedding: it is only hashed). It refers to the matrix, and to the pointer to the floats, since their memory is
 * mapped only when the plan has been accepted. */
typedef struct weight_part {
    const safetensors_tensor *tensor;
    const unsigned char *data; /* inside the tensor */
    uint32_t rows, columns;
    kernel_matrix *matrix; /* or NULL */
    float **floats;        /* one row of them, or NULL */
    uint32_t first_column; /* or first float */
    model_columns kept;    /* of the whole matrix, what this rank has of it */
    bool is_gated;         /* panels of this part alternate with those of its other half, as KERNEL_SWIGLU has them */
} weight_part;

typedef struct weight_plan {
    weight_part *parts;
    uint32_t part_count;
    uint64_t tensor_bytes; /* of all parts */
    const safetensors_tensor *embedding;
    uint32_t ignored_count; /* tensors beside the model */
    const char *ignored_example;
} weight_plan;

/* Column of the part's matrix where row goes; up to the next multiple of WEIGHT_PART_ROWS the following rows go to the
 * columns behind. */
uint32_t weight_part_column(const weight_part *part, uint32_t row);

/* The plan refers to files and weights. */
hd_status weight_plan_init(const model_config *config, const safetensors *files, model_weights *weights,
                           weight_plan *plan, hd_error *error);
void weight_plan_fini(weight_plan *plan);

#endif
