/* index_linear.h - the little linear algebra that indexes need: factors of symmetric matrices of at most a few hundred
 * rows, in one fixed order of operations, so that the same input gives the same bits.
 *
 * Matrices are square, row-major floats, n rows.
 * Threads: pure functions on the caller's memory. */
#ifndef ATTENTION_NODE_INDEX_LINEAR_H
#define ATTENTION_NODE_INDEX_LINEAR_H

#include <stddef.h>
#include <stdint.h>

/* The lower triangle L with L L^T = a, in place; what lies above the diagonal becomes 0. A pivot that is not above
 * `floor` is taken as floor, so that a matrix of less than full rank has a factor too. */
void linear_cholesky(float *a, uint32_t n, float floor);
/* x = L^-1 b, and x = L^-T b, both in place. */
void linear_solve_lower(const float *lower, uint32_t n, float *b);
void linear_solve_upper(const float *lower, uint32_t n, float *b);

/* Rows of f (n x n) are turned until they are orthogonal: f becomes R f, rotation becomes R (its rows orthonormal). So
 * the rows of R are the eigenvectors of f f^T, and the squared lengths of the new rows of f its eigenvalues. */
void linear_orthogonalise(float *f, float *rotation, uint32_t n);

#endif
