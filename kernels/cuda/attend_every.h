/* attend_every.h - the attention kernels over pages, for every head size.
 *
 * Split (decode; after LeanAttention, Sanovar et al. 2024): few query rows, memory bound. A block goes through
 * consecutive leaves, each warp takes every n-th piece through a ring of its own, so that no barrier stands between
 * memory and a warp; at the end of a leaf the warps' partials are folded in the order of the pieces.
 * Block (prefill; after FlashAttention-2, Dao 2023): 128 rows, 16 a warp, all warps over the same ring. Leaves are
 * merged as they come, with what waits in global memory (as in a binary counter). In both, 16 rows times 128 tokens
 * are one sequence of tensor-core products, always the same: a row has the same bits in either kernel, in any tile. */
#ifndef KERNELS_CUDA_ATTEND_EVERY_H
#define KERNELS_CUDA_ATTEND_EVERY_H

#include "kernels/cuda/attend_common.h"

/* clang-format off */
#define ATTEND_DIM 64
#include "kernels/cuda/attend_products.h"
#include "kernels/cuda/attend_split.h"
#include "kernels/cuda/attend_block.h"
#undef ATTEND_DIM
#define ATTEND_DIM 80
#include "kernels/cuda/attend_products.h"
#include "kernels/cuda/attend_split.h"
#include "kernels/cuda/attend_block.h"
#undef ATTEND_DIM
#define ATTEND_DIM 96
#include "kernels/cuda/attend_products.h"
#include "kernels/cuda/attend_split.h"
#include "kernels/cuda/attend_block.h"
#undef ATTEND_DIM
#define ATTEND_DIM 128
#include "kernels/cuda/attend_products.h"
#include "kernels/cuda/attend_split.h"
#include "kernels/cuda/attend_block.h"
#undef ATTEND_DIM
#define ATTEND_DIM 256
#include "kernels/cuda/attend_products.h"
#include "kernels/cuda/attend_split.h"
#include "kernels/cuda/attend_block.h"
#undef ATTEND_DIM
/* clang-format on */

#endif
