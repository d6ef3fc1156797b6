/* forward.h - one pass of a batch through the model: rows of several sequences in, logits of the rows that need them
 * out.
 *
 * A step's rows are spans: decode rows (one token) and chunks of prefill, in any mix. The residual stream is fp32;
 * products take their inputs in the weights' type. What a row gets depends on its own sequence alone: not on the
 * batch, the chunks or the threads.
 *   1. All memory is taken at open, for rows_max rows; a step allocates nothing.
 *   2. Between two calls of attention lies one run of the pool; its phases are separated by barriers.
 *   3. In the last layer only rows that need logits go on behind attention.
 * Two implementations: host (forward_host.c: the pool and kernels/ops.h) and device (forward_device.c: one queue of
 * kernels/device.h, which a step waits for once). Adding one: a table of functions, and a line in forward_open.
 * Threads: one, the step thread; the pool works for it. */
#ifndef WORKER_FORWARD_H
#define WORKER_FORWARD_H

#include "attention-node/attention.h"
#include "base/threads.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "model/weights.h"
#include "worker/ranks.h"
#include "worker/rope_table.h"

typedef struct forward forward;
struct sampler_row; /* sampler.h */

typedef struct forward_config { /* what it points to is lent until the forward closes */
    const model_config *model;
    const model_weights *weights;
    const kernel_ops *kernels;
    hd_pool *pool;
    struct kernel_queue *queue; /* the weights are copied to its device, and the rows are computed there; NULL: here */
    attention *attention;       /* takes tensors of that place */
    ranks *ranks;               /* that have the other columns of the weights; NULL: the weights are whole */
    uint32_t rows_max, spans_max; /* of a step */
    uint32_t logits_rows_max;     /* of one call of forward_logits */
} forward_config;

typedef enum { FORWARD_NO_LOGITS, FORWARD_LAST_LOGITS, FORWARD_ALL_LOGITS } forward_need;

typedef struct forward_span {
    attention_rows rows;
    forward_need need;
    const rope_table *rope; /* of the sequence */
} forward_span;

/* What the model and its weights lack for a device, whose error names it. */
hd_status forward_device_check(const model_config *model, hd_dtype weights_dtype, hd_error *error);
/* Memory that a forward pass takes on a device beside its weights. */
uint64_t forward_device_bytes(const model_config *model, uint32_t rows_max, uint32_t logits_rows_max);

hd_status forward_open(const forward_config *config, forward **out);
void forward_close(forward *forward); /* accepts NULL */

/* One of several steps that are run in turns. */
typedef struct forward_batch {
    forward *forward; /* each has its own, over an attention of its own (attention.h, attach) */
    const forward_span *spans;
    uint32_t span_count;
    bool has_begun;   /* out: attention took the step */
    hd_status status; /* out */
    hd_error error;   /* out */
    bool has_ended;   /* forward's own, with what attention said to it */
    hd_status ended;
} forward_batch;

/* Runs the layers of every batch in turns: while one is at its attention, the next one's products run. Each has its
 * own end, and the bits that it would have alone. */
void forward_run(forward_batch *batches, uint32_t batch_count);

/* One step. *has_begun tells whether attention took the step: false means that nothing has changed. */
hd_status forward_step(forward *forward, const forward_span *spans, uint32_t span_count, bool *has_begun,
                       hd_error *error);

/* HD_OK, or why attention did not keep the rows of some spans of the last step (attention.h, rule 7): their logits mean
 * nothing. */
hd_status forward_lost(const forward *forward);

/* Rows of the last step that need logits, in the order of spans and positions. */
uint32_t forward_logits_rows(const forward *forward);
/* Logits [count, forward_logits_stride()] of rows [first, first + count), at most logits_rows_max. The caller may
 * write into them; they hold until the next call. */
float *forward_logits(forward *forward, uint32_t first, uint32_t count);
size_t forward_logits_stride(const forward *forward);

/* Tokens for rows [first, first + count) of the last step, at most logits_rows_max, drawn where the logits are. NULL:
 * the row is left out. logits and logprobs of draws are not used. false: this forward pass has none of that, and
 * whoever needs tokens draws from forward_logits. */
bool forward_draw(forward *forward, uint32_t first, uint32_t count, struct sampler_row *const *draws, bool *is_finite);

/* ---- Implementations ---- */

typedef struct forward_ops {
    void (*close)(forward *self);
    void (*run)(forward_batch *batches, uint32_t count);
    hd_status (*lost)(const forward *self);
    uint32_t (*logits_rows)(const forward *self);
    float *(*logits)(forward *self, uint32_t first, uint32_t count);
    size_t (*logits_stride)(const forward *self);
    bool (*draw)(forward *self, uint32_t first, uint32_t count, struct sampler_row *const *draws, bool *is_finite);
} forward_ops;

struct forward {
    const forward_ops *ops; /* first member of every implementation */
};

hd_status forward_host_open(const forward_config *config, forward **out);
hd_status forward_device_open(const forward_config *config, forward **out);

#endif
