/* served.h - a coordinator over a scripted worker, for the tests that speak HTTP to it. */
#ifndef TESTS_COORDINATOR_SERVED_H
#define TESTS_COORDINATOR_SERVED_H

#include "coordinator/coordinator.h"
#include "tests/coordinator/fake_worker.h"
#include "tests/coordinator/raw_client.h"

typedef struct served {
    coordinator_config config; /* set by served_init; change it before served_open */
    fake_script script;
    text_model *text;
    hd_metrics *metrics;
    fake_worker *worker;
    coordinator *coordinator;
    const char *address;
} served;

void served_init(served *s, const char *script);
void served_open(served *s);
void served_close(served *s);

/* One request on a connection of its own. */
raw_answer served_post(const served *s, const char *path, const char *body);
raw_answer served_post_with(const served *s, const char *path, const char *extra_headers, const char *body);
raw_answer served_get(const served *s, const char *path);
/* Waits until the worker runs so many requests. Fails the test after 10 s. */
void served_wait_running(const served *s, uint32_t count);
/* The value of a metric without labels (or with them, as rendered); -1 where there is none. */
double served_metric(const served *s, const char *name);

#endif
