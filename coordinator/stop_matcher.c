/* stop_matcher.c - Knuth, Morris and Pratt, once for each stop string: a byte costs a step for each of them. */
#include "coordinator/stop_matcher.h"

#include <stdlib.h>
#include <string.h>

_Static_assert(REQUEST_STOP_BYTES_MAX <= UINT16_MAX, "matched counts bytes in 16 bits");

hd_status stop_set_init(stop_set *set, const request_stop *stops, uint32_t count) {
    *set = (stop_set){.stops = stops, .count = count};
    for (uint32_t s = 0; s < count; s++) {
        uint16_t *fallback = calloc(stops[s].text_bytes, sizeof(*fallback));
        if (fallback == NULL) {
            stop_set_fini(set);
            return HD_NO_MEMORY;
        }
        set->fallbacks[s] = fallback;
        uint16_t length = 0;
        for (size_t i = 1; i < stops[s].text_bytes; i++) {
            while (length > 0 && stops[s].text[i] != stops[s].text[length]) length = fallback[length - 1];
            if (stops[s].text[i] == stops[s].text[length]) length++;
            fallback[i] = length;
        }
    }
    return HD_OK;
}

void stop_set_fini(stop_set *set) {
    for (uint32_t s = 0; s < set->count; s++) free(set->fallbacks[s]);
    *set = (stop_set){0};
}

void stop_matcher_init(stop_matcher *matcher, const stop_set *set) {
    *matcher = (stop_matcher){.set = set};
}

bool stop_matcher_push(stop_matcher *matcher, const char *bytes, size_t count, size_t *used, uint32_t *stop) {
    const stop_set *set = matcher->set;
    *used = count;
    if (set->count == 0) return false;
    for (size_t i = 0; i < count; i++) {
        size_t longest = 0;
        for (uint32_t s = 0; s < set->count; s++) {
            uint16_t length = matcher->matched[s];
            while (length > 0 && bytes[i] != set->stops[s].text[length]) length = set->fallbacks[s][length - 1];
            if (bytes[i] == set->stops[s].text[length]) length++;
            matcher->matched[s] = length;
            if (length == set->stops[s].text_bytes && length > longest) {
                longest = length;
                *stop = s;
            }
        }
        if (longest > 0) {
            *used = i + 1;
            return true;
        }
    }
    return false;
}

size_t stop_matcher_held(const stop_matcher *matcher) {
    size_t held = 0;
    for (uint32_t s = 0; s < matcher->set->count; s++) {
        if (matcher->matched[s] > held) held = matcher->matched[s];
    }
    return held;
}
