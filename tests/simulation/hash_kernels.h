/* hash_kernels.h - operations whose results are hashes, so that whatever was lost, doubled, changed or taken in another
 * order shows in the next token.
 *
 * A page keeps a digest of each token's key and of its value. What a row attends to is the chain of these digests in
 * order, mixed with its query; partial results are merged by a hash that is not symmetric, and count their tokens. A
 * product hashes its input row. Rotation, norms and conversions are the portable table's.
 * Threads: as kernels/ops.h. */
#ifndef TESTS_SIMULATION_HASH_KERNELS_H
#define TESTS_SIMULATION_HASH_KERNELS_H

#include "kernels/ops.h"

const kernel_ops *hash_kernels(void);

#endif
