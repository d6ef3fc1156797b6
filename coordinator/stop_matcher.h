/* stop_matcher.h - finds stop strings in text that comes in pieces, and says how much of it may be shown.
 *
 *   1. The match is the one that ends first; of those that end together, the one that begins first. So the result does
 *      not depend on how the text was cut into pieces.
 *   2. Text that may turn out to be the beginning of a stop string is held back: nothing of a stop string is ever
 *      shown.
 * A stop_set is built once for a request and shared by its choices; a stop_matcher is one choice's place in the text.
 * Threads: a set is read only once built; a matcher belongs to one thread. */
#ifndef COORDINATOR_STOP_MATCHER_H
#define COORDINATOR_STOP_MATCHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "coordinator/request.h"

typedef struct stop_set {
    const request_stop *stops; /* borrowed */
    uint32_t count;
    uint16_t
        *fallbacks[REQUEST_STOPS_MAX]; /* of stop s after i + 1 bytes: the longest shorter start of s that fits there */
} stop_set;

hd_status stop_set_init(stop_set *set, const request_stop *stops, uint32_t count);
void stop_set_fini(stop_set *set); /* accepts a set that init has not filled, if it is zeroed */

typedef struct stop_matcher {
    const stop_set *set;
    uint16_t matched[REQUEST_STOPS_MAX]; /* bytes of each stop that the text ends with now */
} stop_matcher;

void stop_matcher_init(stop_matcher *matcher, const stop_set *set);
/* Feeds bytes up to the first match. *used: how many of them were read; *stop: which one ended there. False: no match.
 * */
bool stop_matcher_push(stop_matcher *matcher, const char *bytes, size_t count, size_t *used, uint32_t *stop);
/* How many of the last bytes may belong to a stop string and must wait. */
size_t stop_matcher_held(const stop_matcher *matcher);

#endif
