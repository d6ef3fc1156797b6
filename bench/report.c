/* report.c - the frame of a benchmark's JSON. */
#include "bench/report.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "base/memory.h"
#include "base/threads.h"

const char *bench_cpu_name(char *buffer, size_t buffer_bytes) {
    snprintf(buffer, buffer_bytes, "unknown");
    FILE *file = fopen("/proc/cpuinfo", "re");
    if (file == NULL) return buffer;
    char line[512];
    while (fgets(line, sizeof(line), file) != NULL) {
        if (strncmp(line, "model name", 10) != 0) continue;
        const char *name = strchr(line, ':');
        if (name == NULL) continue;
        name += 1 + strspn(name + 1, " ");
        snprintf(buffer, buffer_bytes, "%.*s", (int)strcspn(name, "\n"), name);
        break;
    }
    fclose(file);
    return buffer;
}

json_t *bench_report_open(const char *name) {
    char date[32], cpu[256];
    struct tm utc;
    time_t now = time(NULL);
    strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    return json_pack("{s:s, s:s, s:s, s:{s:s, s:i, s:I}}", "benchmark", name, "date", date, "version", HADAL_VERSION,
                     "machine", "cpu", bench_cpu_name(cpu, sizeof(cpu)), "cpus", (int)hd_cpu_limit(), "memory_bytes",
                     (json_int_t)hd_memory_limit_bytes());
}

FILE *bench_report_table(const char *json_path) {
    return json_path != NULL && strcmp(json_path, "-") == 0 ? stderr : stdout;
}

hd_status bench_report_write(json_t *report, const char *path, hd_error *error) {
    if (path == NULL) {
        json_decref(report);
        return HD_OK;
    }
    if (report == NULL) return hd_error_set(error, HD_NO_MEMORY, "no memory for the report");
    bool is_stdout = strcmp(path, "-") == 0;
    FILE *file = is_stdout ? stdout : fopen(path, "we");
    hd_status status = file != NULL ? HD_OK : hd_error_set(error, HD_IO, "cannot write %s: %s", path, strerror(errno));
    if (status == HD_OK) {
        bool is_written =
            json_dumpf(report, file, JSON_INDENT(2) | JSON_REAL_PRECISION(6)) == 0 && fputc('\n', file) != EOF;
        is_written = (is_stdout ? fflush(file) : fclose(file)) == 0 && is_written;
        if (!is_written) status = hd_error_set(error, HD_IO, "cannot write %s: %s", path, strerror(errno));
    }
    json_decref(report);
    return status;
}
