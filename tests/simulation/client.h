/* client.h - who asks a coordinator, and compares every event with what one process alone answers.
 *
 *   WAITING --submit--> ACCEPTED --last event--> ENDED;   refused because all is full: asks again, a little later
 *
 * Threads: a task of the coordinator's process, as an HTTP thread would be; events on its loop. */
#ifndef TESTS_SIMULATION_CLIENT_H
#define TESTS_SIMULATION_CLIENT_H

#include "tests/simulation/catalog.h"

typedef struct client {
    worker_request request; /* first */
    const catalog_entry *entry;
    role *coordinator;
    unsigned number;
    uint64_t hang_up_ns;     /* 0: never; from the submit on */
    uint32_t hang_up_choice; /* UINT32_MAX: all */
    bool is_accepted, has_started, has_ended, has_hung_up, is_refused;
    uint32_t counts[CATALOG_CHOICES_MAX];
    bool finished[CATALOG_CHOICES_MAX];
    unsigned refusals;
} client;

void client_start(client *c, unsigned number, const catalog_entry *entry, role *coordinator);

#endif
