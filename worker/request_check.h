/* request_check.h - what a worker refuses before it accepts a request, with a sentence that names the field.
 *
 * Threads: a pure function. */
#ifndef WORKER_REQUEST_CHECK_H
#define WORKER_REQUEST_CHECK_H

#include "proto/worker_rpc.h"

typedef struct request_limits {
    uint32_t vocabulary_size;
    uint64_t context_max;
} request_limits;

hd_status request_check(const worker_request *request, const request_limits *limits, hd_error *error);

#endif
