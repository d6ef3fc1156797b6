/* matmul_lt.c - descriptors, algorithms, and the trial that decides between them.
 *
 * cuBLASLt counts columns first: our row-major output [rows][n] is its n x rows matrix, the weights [n][k] are its k
 * x n matrix, transposed, and the input [rows][k] its k x rows matrix. */
#include "kernels/cuda/matmul_lt.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "kernels/cuda/libraries.h"

#define FEW_ROWS 64u /* up to here the algorithm for few */
#define TRIAL_ROWS 512u
#define CANDIDATES 16
#define SHAPES_MAX 64u
#define WORKSPACE_BYTES ((size_t)32 << 20)
#define TEXT_OF(number) TEXT_OF_VALUE(number)
#define TEXT_OF_VALUE(number) #number
#define LIBRARY_FILE "libcublasLt.so." TEXT_OF(CUBLAS_VER_MAJOR)

/* What of the library is used. */
typedef struct lt_functions {
    __typeof__(cublasLtCreate) *create;
    __typeof__(cublasLtDestroy) *destroy;
    __typeof__(cublasLtGetVersion) *get_version;
    __typeof__(cublasLtMatmul) *matmul;
    __typeof__(cublasLtMatmulDescCreate) *desc_create;
    __typeof__(cublasLtMatmulDescDestroy) *desc_destroy;
    __typeof__(cublasLtMatmulDescSetAttribute) *desc_set;
    __typeof__(cublasLtMatrixLayoutCreate) *layout_create;
    __typeof__(cublasLtMatrixLayoutDestroy) *layout_destroy;
    __typeof__(cublasLtMatmulPreferenceCreate) *preference_create;
    __typeof__(cublasLtMatmulPreferenceDestroy) *preference_destroy;
    __typeof__(cublasLtMatmulPreferenceSetAttribute) *preference_set;
    __typeof__(cublasLtMatmulAlgoGetHeuristic) *heuristic;
    __typeof__(cublasLtMatmulAlgoConfigGetAttribute) *algorithm_get;
} lt_functions;

typedef struct shape {
    uint32_t n, k;
    cublasLtMatmulAlgo_t few, many;
} shape;

struct matmul_lt {
    library *library;
    lt_functions lt;
    cublasLtHandle_t handle;
    cudaStream_t stream;
    void *workspace;
    shape shapes[SHAPES_MAX];
    uint32_t shape_count;
};

static hd_status open_library(library **out, lt_functions *lt, hd_error *error) {
    const library_symbol symbols[] = {
        {"cublasLtCreate", &lt->create},
        {"cublasLtDestroy", &lt->destroy},
        {"cublasLtGetVersion", &lt->get_version},
        {"cublasLtMatmul", &lt->matmul},
        {"cublasLtMatmulDescCreate", &lt->desc_create},
        {"cublasLtMatmulDescDestroy", &lt->desc_destroy},
        {"cublasLtMatmulDescSetAttribute", &lt->desc_set},
        {"cublasLtMatrixLayoutCreate", &lt->layout_create},
        {"cublasLtMatrixLayoutDestroy", &lt->layout_destroy},
        {"cublasLtMatmulPreferenceCreate", &lt->preference_create},
        {"cublasLtMatmulPreferenceDestroy", &lt->preference_destroy},
        {"cublasLtMatmulPreferenceSetAttribute", &lt->preference_set},
        {"cublasLtMatmulAlgoGetHeuristic", &lt->heuristic},
        {"cublasLtMatmulAlgoConfigGetAttribute", &lt->algorithm_get},
    };
    return library_open(LIBRARY_FILE, symbols, sizeof(symbols) / sizeof(symbols[0]), out, error);
}

hd_status matmul_lt_open(void *stream, matmul_lt **out, hd_error *error) {
    matmul_lt *m = calloc(1, sizeof(*m));
    if (m == NULL) return HD_NO_MEMORY;
    m->stream = stream;
    hd_status status = open_library(&m->library, &m->lt, error);
    if (status == HD_OK && m->lt.create(&m->handle) != CUBLAS_STATUS_SUCCESS)
        status = hd_error_set(error, HD_IO, "%s: cublasLtCreate failed", library_path(m->library));
    if (status == HD_OK && cudaMalloc(&m->workspace, WORKSPACE_BYTES) != cudaSuccess) {
        status = hd_error_set(error, HD_NO_MEMORY, "no device memory for the workspace of cuBLASLt");
    }
    if (status == HD_OK) *out = m;
    else matmul_lt_close(m);
    return status;
}

void matmul_lt_close(matmul_lt *m) {
    if (m == NULL) return;
    cudaFree(m->workspace);
    if (m->handle != NULL) m->lt.destroy(m->handle);
    library_close(m->library);
    free(m);
}

void matmul_lt_describe(char *text, size_t bytes) {
    library *opened;
    lt_functions lt;
    hd_error error;
    if (open_library(&opened, &lt, &error) != HD_OK) {
        snprintf(text, bytes, "none");
        return;
    }
    size_t version = lt.get_version();
    snprintf(text, bytes, "%zu.%zu.%zu (%s)", version / 10000, version / 100 % 100, version % 100,
             library_path(opened));
    library_close(opened);
}

/* ---- One product ---- */

typedef struct problem {
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t weights, input, output;
} problem;

static void problem_fini(const matmul_lt *m, problem *p) {
    if (p->output != NULL) m->lt.layout_destroy(p->output);
    if (p->input != NULL) m->lt.layout_destroy(p->input);
    if (p->weights != NULL) m->lt.layout_destroy(p->weights);
    if (p->desc != NULL) m->lt.desc_destroy(p->desc);
}

static bool problem_init(const matmul_lt *m, const device_matmul *call, problem *p) {
    cublasOperation_t transposed = CUBLAS_OP_T;
    memset(p, 0, sizeof(*p));
    bool is_made = m->lt.desc_create(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
                   m->lt.desc_set(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)) ==
                       CUBLAS_STATUS_SUCCESS &&
                   m->lt.layout_create(&p->weights, CUDA_R_16BF, call->k, call->n, call->k) == CUBLAS_STATUS_SUCCESS &&
                   m->lt.layout_create(&p->input, CUDA_R_16BF, call->k, call->row_count, (int64_t)call->input_stride) ==
                       CUBLAS_STATUS_SUCCESS &&
                   m->lt.layout_create(&p->output, CUDA_R_32F, call->n, call->row_count,
                                       (int64_t)call->output_stride) == CUBLAS_STATUS_SUCCESS;
    if (!is_made) problem_fini(m, p);
    return is_made;
}

static hd_status run_with(const matmul_lt *m, const device_matmul *call, const cublasLtMatmulAlgo_t *algorithm) {
    problem p;
    if (!problem_init(m, call, &p)) return HD_IO;
    float one = 1.0f, added = call->epilogue == DEVICE_ADD ? 1.0f : 0.0f;
    cublasStatus_t result =
        m->lt.matmul(m->handle, p.desc, &one, call->weights, p.weights, call->input, p.input, &added, call->output,
                     p.output, call->output, p.output, algorithm, m->workspace, WORKSPACE_BYTES, m->stream);
    problem_fini(m, &p);
    return result == CUBLAS_STATUS_SUCCESS ? HD_OK : HD_IO;
}

static const shape *find_shape(const matmul_lt *m, uint32_t n, uint32_t k) {
    for (uint32_t i = 0; i < m->shape_count; i++) {
        if (m->shapes[i].n == n && m->shapes[i].k == k) return &m->shapes[i];
    }
    return NULL;
}

hd_status matmul_lt_run(matmul_lt *m, const device_matmul *call) {
    const shape *s = find_shape(m, call->n, call->k);
    if (s == NULL) return HD_NOT_FOUND;
    return run_with(m, call, call->row_count <= FEW_ROWS ? &s->few : &s->many);
}

/* ---- Choosing ---- */

static bool sums_in_one_block(const matmul_lt *m, const cublasLtMatmulAlgo_t *algorithm) {
    int32_t splits = 0;
    uint32_t scheme = 0;
    size_t written;
    return m->lt.algorithm_get(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits, sizeof(splits), &written) ==
               CUBLAS_STATUS_SUCCESS &&
           m->lt.algorithm_get(algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme, sizeof(scheme), &written) ==
               CUBLAS_STATUS_SUCCESS &&
           splits <= 1 && scheme == CUBLASLT_REDUCTION_SCHEME_NONE;
}

/* The library's candidates for so many rows, the fastest first by its own estimate. */
static uint32_t find_candidates(const matmul_lt *m, const device_matmul *call, cublasLtMatmulAlgo_t *found) {
    problem p;
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t results[CANDIDATES];
    int count = 0;
    uint32_t kept = 0, no_reduction = CUBLASLT_REDUCTION_SCHEME_NONE;
    size_t workspace = WORKSPACE_BYTES;
    if (!problem_init(m, call, &p)) return 0;
    if (m->lt.preference_create(&preference) == CUBLAS_STATUS_SUCCESS) {
        m->lt.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace));
        m->lt.preference_set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &no_reduction,
                             sizeof(no_reduction));
        if (m->lt.heuristic(m->handle, p.desc, p.weights, p.input, p.output, p.output, preference, CANDIDATES, results,
                            &count) != CUBLAS_STATUS_SUCCESS)
            count = 0;
        m->lt.preference_destroy(preference);
    }
    problem_fini(m, &p);
    for (int i = 0; i < count; i++) {
        if (results[i].state == CUBLAS_STATUS_SUCCESS && sums_in_one_block(m, &results[i].algo))
            found[kept++] = results[i].algo;
    }
    return kept;
}

/* What a trial needs: an input, and two outputs to compare. */
typedef struct trial {
    uint16_t *input, *host_input;
    float *output, *host[2];
    size_t input_bytes, output_bytes;
} trial;

static void trial_fini(trial *t) {
    cudaFree(t->input);
    cudaFree(t->output);
    free(t->host_input);
    free(t->host[0]);
    free(t->host[1]);
}

static bool trial_init(const matmul_lt *m, uint32_t n, uint32_t k, trial *t) {
    memset(t, 0, sizeof(*t));
    t->input_bytes = (size_t)TRIAL_ROWS * k * sizeof(uint16_t);
    t->output_bytes = (size_t)TRIAL_ROWS * n * sizeof(float);
    t->host_input = malloc(t->input_bytes);
    t->host[0] = malloc(t->output_bytes);
    t->host[1] = malloc(t->output_bytes);
    bool is_taken = t->host_input != NULL && t->host[0] != NULL && t->host[1] != NULL &&
                    cudaMalloc((void **)&t->input, t->input_bytes) == cudaSuccess &&
                    cudaMalloc((void **)&t->output, t->output_bytes) == cudaSuccess;
    if (!is_taken) {
        trial_fini(t);
        return false;
    }
    uint64_t state = 1;
    for (size_t i = 0; i < (size_t)TRIAL_ROWS * k; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        t->host_input[i] = hd_f32_to_bf16((float)(int32_t)(state >> 32) * 0x1p-31f);
    }
    cudaMemcpy(t->input, t->host_input, t->input_bytes, cudaMemcpyHostToDevice);
    return true;
}

static bool trial_run(const matmul_lt *m, const trial *t, device_matmul call, const cublasLtMatmulAlgo_t *algorithm,
                      float *host) {
    return run_with(m, &call, algorithm) == HD_OK && cudaStreamSynchronize(m->stream) == cudaSuccess &&
           cudaMemcpy(host, t->output, (size_t)call.row_count * call.n * sizeof(float), cudaMemcpyDeviceToHost) ==
               cudaSuccess;
}

hd_status matmul_lt_prepare(matmul_lt *m, const uint16_t *weights, uint32_t n, uint32_t k) {
    if (find_shape(m, n, k) != NULL) return HD_OK;
    if (m->shape_count == SHAPES_MAX) return HD_FULL;
    trial t;
    if (!trial_init(m, n, k, &t)) return HD_NO_MEMORY;
    device_matmul call = {.weights = weights, .n = n, .k = k, .input = t.input, .input_stride = k, .output_stride = n};
    call.output = t.output;
    cublasLtMatmulAlgo_t few[CANDIDATES], many[CANDIDATES];
    call.row_count = FEW_ROWS;
    uint32_t few_count = find_candidates(m, &call, few);
    bool is_same = few_count > 0 && trial_run(m, &t, call, &few[0], t.host[0]);
    call.row_count = TRIAL_ROWS;
    uint32_t many_count = is_same ? find_candidates(m, &call, many) : 0;
    shape *s = &m->shapes[m->shape_count];
    *s = (shape){.n = n, .k = k, .few = few[0], .many = few[0]};
    bool is_found = false;
    for (uint32_t i = 0; i < many_count && !is_found; i++) {
        is_found = trial_run(m, &t, call, &many[i], t.host[1]) &&
                   memcmp(t.host[0], t.host[1], (size_t)FEW_ROWS * n * sizeof(float)) == 0;
        if (is_found) s->many = many[i];
    }
    trial_fini(&t);
    if (!is_same) return HD_UNSUPPORTED;
    m->shape_count++;
    hd_log(HD_LOG_INFO, "matmul", "n=%u k=%u candidates=%u many_rows=%s", n, k, few_count + many_count,
           is_found ? "own_algorithm" : "as_few");
    return HD_OK;
}
