/* node_options.c - the flags and what their values may be. */
#include "cli/node_options.h"

#include <stdio.h>
#include <string.h>

#include "attention-node/selection.h"
#include "base/log.h"
#include "kernels/ops.h"

#define BATCH_TOKENS_MAX 65536u
#define REQUESTS_MAX 65536u
#define THREADS_MAX 1024u

size_t node_options_flags(node_options *o, hd_flag *flags) {
    const hd_flag all[] = {
        {"hot-memory", HD_FLAG_SIZE, &o->hot_memory, "BYTES",
         "memory for keys and values (default: what the weights leave)", false},
        {"warm-memory", HD_FLAG_SIZE, &o->warm_memory, "BYTES",
         "more of it; by default a quarter of what is left where there is a cold tier; with --device the host's, "
         "pinned",
         false},
        {"cold-dir", HD_FLAG_STRING, &o->cold_dir, "DIR",
         "directory for keys and values that memory does not hold; finished prompts are found there after a restart",
         false},
        {"cold-size", HD_FLAG_SIZE, &o->cold_size, "BYTES", "files in --cold-dir, taken at start", false},
        {"kv-dtype", HD_FLAG_STRING, &o->kv_dtype, "f32|bf16|int8", "how keys and values are kept", false},
        {"selection", HD_FLAG_STRING, &o->selection, "NAME[,key=value...]",
         "which earlier tokens a query attends to: full, window, retrieval, or auto: full or retrieval", false},
        {"full-up-to", HD_FLAG_U64, &o->full_up_to, "N",
         "tokens of a request, prompt and answer, up to which auto is full; above it is retrieval", false},
        {"selection-overrides", HD_FLAG_STRING, &o->selection_overrides, "FILE",
         "layers and KV heads that stay full, or see a window alone, under every other selection than full", false},
        {"index-memory", HD_FLAG_SIZE, &o->index_memory, "BYTES",
         "of the hot memory, for indexes (default: what the longest request needs that is not full, at least an "
         "eighth)",
         false},
        {"threads", HD_FLAG_U64, &o->threads, "N", "compute threads (default: the CPUs this process may use)", false},
        {"weights", HD_FLAG_STRING, &o->weights, "auto|f32|bf16|int8",
         "how weights are kept; auto is bf16, to which f16 and f32 are rounded", false},
        {"max-batch-tokens", HD_FLAG_U64, &o->max_batch_tokens, "N",
         "rows of a step: decoding requests and chunks of prompts together", false},
        {"max-context", HD_FLAG_U64, &o->max_context, "N",
         "tokens of a request, prompt and answer (default: the model's, or what fits)", false},
        {"max-requests", HD_FLAG_U64, &o->max_requests, "N", "requests running and waiting; more are refused", false},
        {"model-name", HD_FLAG_STRING, &o->model_name, "NAME",
         "what clients call the model (default: the last part of MODEL_DIR)", false},
        {"kernels", HD_FLAG_STRING, &o->kernels, "NAME", "the table of kernels (default: the best that this CPU runs)",
         false},
        {"device", HD_FLAG_STRING, &o->device, "auto|cpu|cuda|emulated",
         "where weights, keys and values are; auto: a GPU that can; emulated: one in this CPU, for tests", false},
        {"log-level", HD_FLAG_STRING, &o->log_level, "debug|info|warn|error", "what is logged", false},
    };
    memcpy(flags, all, sizeof(all));
    return sizeof(all) / sizeof(all[0]);
}

static hd_status choose_weights(const char *name, hd_dtype *dtype, hd_error *error) {
    if (strcmp(name, "auto") == 0 || strcmp(name, "bf16") == 0) *dtype = HD_BF16;
    else if (strcmp(name, "f32") == 0) *dtype = HD_F32;
    else if (strcmp(name, "int8") == 0) *dtype = HD_INT8;
    else return hd_error_set(error, HD_INVALID, "--weights: '%s' is none of auto, f32, bf16, int8", name);
    return HD_OK;
}

static hd_status choose_kv(const char *name, hd_dtype *dtype, hd_error *error) {
    if (strcmp(name, "bf16") == 0) *dtype = HD_BF16;
    else if (strcmp(name, "f32") == 0) *dtype = HD_F32;
    else if (strcmp(name, "int8") == 0) *dtype = HD_INT8;
    else return hd_error_set(error, HD_INVALID, "--kv-dtype: '%s' is none of f32, bf16, int8", name);
    return HD_OK;
}

hd_status node_options_log_level(const char *name, hd_error *error) {
    static const char *const names[] = {
        [HD_LOG_DEBUG] = "debug", [HD_LOG_INFO] = "info", [HD_LOG_WARN] = "warn", [HD_LOG_ERROR] = "error"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(name, names[i]) == 0) {
            hd_log_set_level((hd_log_level)i);
            return HD_OK;
        }
    return hd_error_set(error, HD_INVALID, "--log-level: '%s' is none of debug, info, warn, error", name);
}

static hd_status check_device(const char *name, hd_error *error) {
    static const char *const names[] = {"auto", "cpu", "cuda", "emulated"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(name, names[i]) == 0) return HD_OK;
    }
    return hd_error_set(error, HD_INVALID, "--device: '%s' is none of auto, cpu, cuda, emulated", name);
}

static hd_status check_selection(const char *text, hd_error *error) {
    selection parsed;
    hd_error problem;
    char resolved[SELECTION_TEXT_BYTES];
    hd_status status = selection_resolve(text, UINT64_MAX, 0, resolved, &problem); /* options are retrieval's */
    if (status == HD_OK) status = selection_parse(resolved, &parsed, &problem);
    return status == HD_OK ? HD_OK : hd_error_set(error, status, "--selection: %s", problem.text);
}

static hd_status check_range(const char *flag, uint64_t value, uint64_t least, uint64_t most, hd_error *error) {
    if (value >= least && value <= most) return HD_OK;
    return hd_error_set(error, HD_INVALID, "--%s: %llu is not between %llu and %llu", flag, (unsigned long long)value,
                        (unsigned long long)least, (unsigned long long)most);
}

/* The last part of the path: "models/x/" is x; "." and "/" have none. */
static void name_of_directory(const char *path, char *name, size_t name_bytes) {
    size_t end = strlen(path);
    while (end > 0 && path[end - 1] == '/') end--;
    size_t start = end;
    while (start > 0 && path[start - 1] != '/') start--;
    snprintf(name, name_bytes, "%.*s", (int)(end - start), path + start);
    if (name[0] == '\0' || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) snprintf(name, name_bytes, "model");
}

hd_status node_options_check(const node_options *o, node_settings *settings, hd_error *error) {
    const kernel_ops *kernels;
    *settings = (node_settings){.open_attention = NULL};
    hd_status status = node_options_log_level(o->log_level, error);
    if (status == HD_OK) status = choose_weights(o->weights, &settings->weights_dtype, error);
    if (status == HD_OK) status = choose_kv(o->kv_dtype, &settings->kv_dtype, error);
    if (status == HD_OK) status = check_selection(o->selection, error);
    if (status == HD_OK) status = check_device(o->device, error);
    if (status == HD_OK && (o->cold_dir != NULL) != (o->cold_size > 0))
        status = hd_error_set(error, HD_INVALID, "--cold-dir and --cold-size go together, and one of them is missing");
    if (status == HD_OK) status = check_range("threads", o->threads, 0, THREADS_MAX, error);
    if (status == HD_OK) status = check_range("max-batch-tokens", o->max_batch_tokens, 1, BATCH_TOKENS_MAX, error);
    if (status == HD_OK) status = check_range("max-requests", o->max_requests, 1, REQUESTS_MAX, error);
    if (status == HD_OK) {
        hd_error problem;
        status = kernel_ops_choose(o->kernels, &kernels, &problem);
        if (status != HD_OK) hd_error_set(error, status, "--kernels: %s", problem.text);
    }
    if (status != HD_OK) return status;
    if (o->model_name != NULL) snprintf(settings->model_name, sizeof(settings->model_name), "%s", o->model_name);
    else name_of_directory(o->model_directory, settings->model_name, sizeof(settings->model_name));
    return HD_OK;
}
