/* token_log.c - see token_log.h. */
#include "coordinator/token_log.h"

#include <stdlib.h>
#include <string.h>

void token_log_init(token_log *log, uint32_t width) {
    *log = (token_log){.width = width};
}

void token_log_fini(token_log *log) {
    free(log->entries);
    free(log->logprobs);
    *log = (token_log){0};
}

static bool grow(token_log *log) {
    size_t capacity = log->capacity == 0 ? 64 : log->capacity * 2;
    token_entry *entries = realloc(log->entries, capacity * sizeof(*entries));
    if (entries == NULL) return false;
    log->entries = entries;
    if (log->width > 0) {
        worker_logprob *logprobs = realloc(log->logprobs, capacity * log->width * sizeof(*logprobs));
        if (logprobs == NULL) return false;
        log->logprobs = logprobs;
    }
    log->capacity = capacity;
    return true;
}

void token_log_add(token_log *log, token_entry entry, const worker_logprob *logprobs) {
    if (log->is_failed || (log->count == log->capacity && !grow(log))) {
        log->is_failed = true;
        return;
    }
    entry.has_logprob = log->width > 0 && logprobs != NULL;
    log->entries[log->count] = entry;
    if (entry.has_logprob) memcpy(log->logprobs + log->count * log->width, logprobs, log->width * sizeof(*logprobs));
    log->count++;
}

const worker_logprob *token_log_logprobs(const token_log *log, size_t index) {
    return log->entries[index].has_logprob ? log->logprobs + index * log->width : NULL;
}

size_t token_log_before(const token_log *log, uint64_t text_byte) {
    size_t count = 0;
    while (count < log->count && log->entries[count].text_byte < text_byte) count++;
    return count;
}

void token_log_drop(token_log *log, size_t count) {
    if (count == 0) return;
    log->count -= count;
    memmove(log->entries, log->entries + count, log->count * sizeof(*log->entries));
    if (log->width > 0) {
        memmove(log->logprobs, log->logprobs + count * log->width, log->count * log->width * sizeof(*log->logprobs));
    }
}

void token_log_truncate(token_log *log, size_t count) {
    if (count < log->count) log->count = count;
}
