/* memory_plan.c - see memory_plan.h. */
#include "cli/memory_plan.h"

#include <stdio.h>

#include "base/flags.h"

#define BLOCK_TOKENS 128u
#define INDEX_SHARE 8u        /* of the hot memory */
#define INDEX_MOST 2u         /* the same, where keys and values may be in files */
#define TABLES_SHARE 32u      /* of keys and values, for the tables that go with them */
#define DEFAULT_WARM_SHARE 4u /* of what is left, for pages of the cold tier */

typedef struct size_text {
    char text[32];
} size_text;

static size_text size_of(uint64_t bytes) {
    size_text size;
    hd_format_size(bytes, size.text, sizeof(size.text));
    return size;
}

/* What is taken before keys and values are, as a person says it. */
typedef struct taken_text {
    char text[128];
} taken_text;

static taken_text taken_of(const memory_request *r) {
    taken_text taken;
    if (r->weights_dtype == NULL) {
        snprintf(taken.text, sizeof(taken.text), "the service takes %s", size_of(r->working_bytes).text);
    } else {
        snprintf(taken.text, sizeof(taken.text), "the weights take %s and a step %s", size_of(r->weights_bytes).text,
                 size_of(r->working_bytes).text);
    }
    return taken;
}

static hd_status check_weights(const memory_request *r, hd_error *error) {
    if (r->weights_bytes <= r->usable_bytes && r->working_bytes <= r->usable_bytes - r->weights_bytes) return HD_OK;
    if (r->weights_dtype == NULL)
        return hd_error_set(error, HD_NO_MEMORY, "%s, and this process may use %s; give it more memory",
                            taken_of(r).text, size_of(r->usable_bytes).text);
    return hd_error_set(error, HD_NO_MEMORY,
                        "the weights take %s as %s, a step %s, and this process may use %s; give it more memory, or "
                        "smaller weights by --weights "
                        "int8 or a smaller model",
                        size_of(r->weights_bytes).text, r->weights_dtype, size_of(r->working_bytes).text,
                        size_of(r->usable_bytes).text);
}

static hd_status check_context(const memory_request *r, uint64_t bytes, hd_error *error) {
    if (r->context_tokens > r->model_tokens)
        return hd_error_set(error, HD_INVALID,
                            "--max-context %llu is more than the %llu positions that the model was made for",
                            (unsigned long long)r->context_tokens, (unsigned long long)r->model_tokens);
    uint64_t blocks = (r->context_tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    uint64_t block_bytes = r->kv_bytes_per_token * BLOCK_TOKENS;
    if (blocks <= bytes / block_bytes) return HD_OK;
    return hd_error_set(error, HD_NO_MEMORY,
                        "--max-context %llu needs %s of keys and values (%s a token), and there is %s for them, which "
                        "holds %llu tokens; lower "
                        "--max-context, or give more memory%s",
                        (unsigned long long)r->context_tokens, size_of(blocks * block_bytes).text,
                        size_of(r->kv_bytes_per_token).text, size_of(bytes).text,
                        (unsigned long long)(bytes / block_bytes * BLOCK_TOKENS),
                        r->cold_bytes > 0 ? " or --cold-size" : "");
}

static uint64_t warm_of(const memory_request *r, uint64_t left) {
    if (r->warm_bytes > 0 || r->cold_bytes == 0) return r->warm_bytes;
    if (r->hot_bytes == 0) return left / DEFAULT_WARM_SHARE;
    uint64_t rest = left > r->hot_bytes ? left - r->hot_bytes : 0;
    return rest < r->hot_bytes ? rest : r->hot_bytes;
}

hd_status memory_plan_make(const memory_request *r, memory_plan *plan, hd_error *error) {
    hd_status status = check_weights(r, error);
    if (status != HD_OK) return status;
    uint64_t left = r->usable_bytes - r->weights_bytes - r->working_bytes, warm_bytes = warm_of(r, left);
    if (r->hot_bytes > left)
        return hd_error_set(
            error, HD_NO_MEMORY, "--hot-memory %s does not fit: this process may use %s, of which %s; %s is left",
            size_of(r->hot_bytes).text, size_of(r->usable_bytes).text, taken_of(r).text, size_of(left).text);
    if (warm_bytes > left - r->hot_bytes)
        return hd_error_set(error, HD_NO_MEMORY,
                            "--warm-memory %s does not fit: this process may use %s, of which %s, and hot memory %s; "
                            "%s is left",
                            size_of(warm_bytes).text, size_of(r->usable_bytes).text, taken_of(r).text,
                            size_of(r->hot_bytes).text, size_of(left - r->hot_bytes).text);
    uint64_t hot_bytes = r->hot_bytes > 0 ? r->hot_bytes : left - warm_bytes;
    uint64_t kv_bytes = hot_bytes + (r->cold_bytes > 0 ? r->cold_bytes : warm_bytes);
    status = check_context(r, kv_bytes, error);
    if (status == HD_OK && r->index_bytes >= hot_bytes)
        status = hd_error_set(error, HD_INVALID, "--index-memory %s is part of the hot memory, %s, and has to be less",
                              size_of(r->index_bytes).text, size_of(hot_bytes).text);
    if (status != HD_OK) return status;
    *plan = (memory_plan){.hot_bytes = hot_bytes,
                          .warm_bytes = warm_bytes,
                          .context_fits = kv_bytes / (r->kv_bytes_per_token * BLOCK_TOKENS) * BLOCK_TOKENS};
    return HD_OK;
}

static bool index_fits(const index_request *r, uint64_t tokens, uint64_t bytes) {
    if (r->has_cold) return bytes <= r->hot_bytes / INDEX_MOST;
    uint64_t kv_bytes = tokens * r->kv_bytes_per_token;
    return bytes <= r->hot_bytes && kv_bytes + kv_bytes / TABLES_SHARE <= r->hot_bytes - bytes;
}

uint64_t memory_plan_index_bytes(const index_request *r) {
    uint64_t hot_tokens = r->hot_bytes / r->kv_bytes_per_token;
    uint64_t shortest = r->full_up_to < hot_tokens ? r->full_up_to : hot_tokens;
    if (r->longest <= shortest) return 0;
    uint64_t fits = shortest, too_long = r->longest + 1;
    while (too_long - fits > 1) {
        uint64_t tokens = fits + (too_long - fits) / 2;
        if (index_fits(r, tokens, r->bytes_for(r->context, tokens, false))) fits = tokens;
        else too_long = tokens;
    }
    if (fits == shortest || (r->is_fixed && fits < r->longest)) return 0;
    uint64_t bytes = r->bytes_for(r->context, fits, false), with_keys = r->bytes_for(r->context, fits, true);
    uint64_t share = r->hot_bytes / INDEX_SHARE;
    if (!r->has_cold && index_fits(r, fits, with_keys)) bytes = with_keys;
    return share > bytes && index_fits(r, fits, share) ? share : bytes;
}
