/* forward.c - what callers reach of a forward pass, whichever computes it. */
#include "worker/forward.h"

hd_status forward_open(const forward_config *config, forward **out) {
    return config->queue != NULL ? forward_device_open(config, out) : forward_host_open(config, out);
}

void forward_close(forward *f) {
    if (f != NULL) f->ops->close(f);
}

/* All batches are of one kind. */
void forward_run(forward_batch *batches, uint32_t count) {
    batches[0].forward->ops->run(batches, count);
}

hd_status forward_step(forward *f, const forward_span *spans, uint32_t span_count, bool *has_begun, hd_error *error) {
    forward_batch batch = {.forward = f, .spans = spans, .span_count = span_count};
    forward_run(&batch, 1);
    *has_begun = batch.has_begun;
    if (batch.status != HD_OK && error != NULL) *error = batch.error;
    return batch.status;
}

hd_status forward_lost(const forward *f) {
    return f->ops->lost(f);
}

uint32_t forward_logits_rows(const forward *f) {
    return f->ops->logits_rows(f);
}

float *forward_logits(forward *f, uint32_t first, uint32_t count) {
    return f->ops->logits(f, first, count);
}

size_t forward_logits_stride(const forward *f) {
    return f->ops->logits_stride(f);
}

bool forward_draw(forward *f, uint32_t first, uint32_t count, struct sampler_row *const *draws, bool *is_finite) {
    return f->ops->draw(f, first, count, draws, is_finite);
}
