/* report.h - what every benchmark says beside its figures: when, which version, on which machine; and where the JSON
 * goes.
 *
 * Threads: stateless. */
#ifndef BENCH_REPORT_H
#define BENCH_REPORT_H

#include <jansson.h>
#include <stdio.h>

#include "base/status.h"

/* {"benchmark": name, "date": ..., "version": ..., "machine": {"cpu", "cpus", "memory_bytes"}}; NULL without memory. */
json_t *bench_report_open(const char *name);

/* Writes the report and releases it. path NULL: nowhere; "-": standard output. */
hd_status bench_report_write(json_t *report, const char *path, hd_error *error);

/* Where the table goes: standard output, unless that is where the JSON goes. */
FILE *bench_report_table(const char *json_path);

/* The CPU's own name ("Intel(R) Xeon(R) ..."); returns buffer. */
const char *bench_cpu_name(char *buffer, size_t buffer_bytes);

#endif
