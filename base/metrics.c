/* metrics.c - families of series in lists that only grow while the program starts; values are relaxed atomics.
 *
 * A histogram's buckets are kept apart and summed up when rendered: an observation touches one bucket and the sum, and
 * the rendered count is always that of the +Inf bucket, whatever is being observed meanwhile. */
#include "base/metrics.h"

#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "base/memory.h"

typedef enum { COUNTER, GAUGE, HISTOGRAM } metric_kind;

struct hd_counter {
    _Atomic uint64_t value;
};
struct hd_gauge {
    _Atomic double value;
};
struct hd_histogram {
    _Atomic double sum;
    const double *upper_bounds; /* ascending, copied */
    size_t bound_count;
    _Atomic uint64_t *buckets; /* [bound_count + 1], not cumulative; the last one is +Inf's own share */
};

typedef struct series {
    struct series *next;
    char *labels;
    union {
        hd_counter counter;
        hd_gauge gauge;
        hd_histogram histogram;
    };
} series;

typedef struct family {
    struct family *next;
    metric_kind kind;
    char *name, *help;
    series *first, *last;
} family;

struct hd_metrics {
    family *first, *last;
};

const double hd_bounds_seconds[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1,  0.15, 0.2,
                                    0.3,   0.5,    0.75,  1,    1.5,   2.5,  5,     7.5,  10,   15,
                                    20,    30,     60,    120,  240,   480,  960,   1920, 3600, 7680};
const size_t hd_bounds_seconds_count = sizeof(hd_bounds_seconds) / sizeof(hd_bounds_seconds[0]);
const double hd_bounds_tokens[] = {1,    2,    4,    8,     16,    32,    64,     128,    256,    512,     1024,
                                   2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288, 1048576, 2097152};
const size_t hd_bounds_tokens_count = sizeof(hd_bounds_tokens) / sizeof(hd_bounds_tokens[0]);

static char *copy_text(const char *text) {
    size_t bytes = strlen(text) + 1;
    char *copy = hd_alloc(bytes, 1);
    if (copy != NULL) memcpy(copy, text, bytes);
    return copy;
}

hd_status hd_metrics_open(hd_metrics **out) {
    hd_metrics *metrics = hd_alloc_zeroed(sizeof(*metrics), HD_CACHE_LINE);
    if (metrics == NULL) return HD_NO_MEMORY;
    *out = metrics;
    return HD_OK;
}

static void series_free(series *s, metric_kind kind) {
    if (s == NULL) return;
    if (kind == HISTOGRAM) {
        hd_free((void *)s->histogram.upper_bounds);
        hd_free(s->histogram.buckets);
    }
    hd_free(s->labels);
    hd_free(s);
}

static void family_free(family *f) {
    if (f == NULL) return;
    for (series *s = f->first, *next; s != NULL; s = next) {
        next = s->next;
        series_free(s, f->kind);
    }
    hd_free(f->name);
    hd_free(f->help);
    hd_free(f);
}

void hd_metrics_close(hd_metrics *metrics) {
    if (metrics == NULL) return;
    for (family *f = metrics->first, *next; f != NULL; f = next) {
        next = f->next;
        family_free(f);
    }
    hd_free(metrics);
}

static bool is_valid_name(const char *name) {
    if (*name >= '0' && *name <= '9') return false;
    for (const char *c = name; *c != '\0'; c++)
        if (!((*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') || *c == '_' ||
              *c == ':'))
            return false;
    return *name != '\0';
}

static family *family_find_or_add(hd_metrics *metrics, metric_kind kind, const char *name, const char *help) {
    assert(is_valid_name(name));
    for (family *f = metrics->first; f != NULL; f = f->next)
        if (strcmp(f->name, name) == 0) {
            assert(f->kind == kind); /* one name, one type */
            return f;
        }
    family *f = hd_alloc_zeroed(sizeof(*f), HD_CACHE_LINE);
    if (f == NULL) return NULL;
    f->kind = kind;
    f->name = copy_text(name);
    f->help = copy_text(help);
    if (f->name == NULL || f->help == NULL) {
        family_free(f);
        return NULL;
    }
    if (metrics->last != NULL) metrics->last->next = f;
    else metrics->first = f;
    metrics->last = f;
    return f;
}

/* A name registered twice with the same labels is the same series: two lines of one identity would be no valid text. */
static series *series_register(hd_metrics *metrics, metric_kind kind, const char *name, const char *labels,
                               const char *help, const double *upper_bounds, size_t bound_count) {
    family *f = family_find_or_add(metrics, kind, name, help);
    if (f == NULL) return NULL;
    for (series *s = f->first; s != NULL; s = s->next)
        if (strcmp(s->labels, labels) == 0) return s;

    series *s = hd_alloc_zeroed(sizeof(*s), HD_CACHE_LINE);
    if (s == NULL) return NULL;
    s->labels = copy_text(labels);
    bool is_complete = s->labels != NULL;
    if (is_complete && kind == HISTOGRAM) {
        double *bounds = hd_alloc((bound_count + 1) * sizeof(*bounds), HD_CACHE_LINE);
        s->histogram.upper_bounds = bounds;
        s->histogram.bound_count = bound_count;
        s->histogram.buckets = hd_alloc_zeroed((bound_count + 1) * sizeof(*s->histogram.buckets), HD_CACHE_LINE);
        is_complete = bounds != NULL && s->histogram.buckets != NULL;
        for (size_t i = 0; is_complete && i < bound_count; i++) {
            assert(i == 0 || upper_bounds[i] > upper_bounds[i - 1]);
            bounds[i] = upper_bounds[i];
        }
    }
    if (!is_complete) {
        series_free(s, kind);
        return NULL;
    }
    if (f->last != NULL) f->last->next = s;
    else f->first = s;
    f->last = s;
    return s;
}

hd_counter *hd_counter_register(hd_metrics *metrics, const char *name, const char *labels, const char *help) {
    series *s = series_register(metrics, COUNTER, name, labels, help, NULL, 0);
    return s != NULL ? &s->counter : NULL;
}

hd_gauge *hd_gauge_register(hd_metrics *metrics, const char *name, const char *labels, const char *help) {
    series *s = series_register(metrics, GAUGE, name, labels, help, NULL, 0);
    return s != NULL ? &s->gauge : NULL;
}

hd_histogram *hd_histogram_register(hd_metrics *metrics, const char *name, const char *labels, const char *help,
                                    const double *upper_bounds, size_t bound_count) {
    series *s = series_register(metrics, HISTOGRAM, name, labels, help, upper_bounds, bound_count);
    return s != NULL ? &s->histogram : NULL;
}

static void add_to(_Atomic double *sum, double amount) {
    double before = atomic_load_explicit(sum, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(sum, &before, before + amount, memory_order_relaxed,
                                                  memory_order_relaxed)) {}
}

void hd_counter_add(hd_counter *counter, uint64_t amount) {
    if (counter != NULL) atomic_fetch_add_explicit(&counter->value, amount, memory_order_relaxed);
}

uint64_t hd_counter_value(const hd_counter *counter) {
    return counter != NULL ? atomic_load_explicit(&counter->value, memory_order_relaxed) : 0;
}

void hd_gauge_set(hd_gauge *gauge, double value) {
    if (gauge != NULL) atomic_store_explicit(&gauge->value, value, memory_order_relaxed);
}

void hd_gauge_add(hd_gauge *gauge, double amount) {
    if (gauge != NULL) add_to(&gauge->value, amount);
}

double hd_gauge_value(const hd_gauge *gauge) {
    return gauge != NULL ? atomic_load_explicit(&gauge->value, memory_order_relaxed) : 0;
}

void hd_histogram_observe(hd_histogram *histogram, double value) {
    if (histogram == NULL) return;
    size_t low = 0, high = histogram->bound_count; /* the first bound that is >= value; none: +Inf */
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (value <= histogram->upper_bounds[middle]) high = middle;
        else low = middle + 1;
    }
    atomic_fetch_add_explicit(&histogram->buckets[low], 1, memory_order_relaxed);
    add_to(&histogram->sum, value);
}

const char *hd_metrics_label(const char *name, const char *value, char *buffer, size_t buffer_bytes) {
    size_t used = (size_t)snprintf(buffer, buffer_bytes, "%s=\"", name);
    assert(used + 2 <= buffer_bytes);
    size_t room = buffer_bytes - 2; /* the closing quote and the terminator */
    for (const char *c = value; *c != '\0'; c++) {
        char escape = *c == '\n' ? 'n' : *c;
        bool is_escaped = *c == '\\' || *c == '"' || *c == '\n';
        if (used + 1 + is_escaped > room) break;
        if (is_escaped) buffer[used++] = '\\';
        buffer[used++] = escape;
    }
    buffer[used++] = '"';
    buffer[used] = '\0';
    return buffer;
}

static void print_number(FILE *out, double value) {
    if (isnan(value)) fputs("NaN", out);
    else if (isinf(value)) fputs(value > 0 ? "+Inf" : "-Inf", out);
    else fprintf(out, "%.15g", value);
}

static void print_help(FILE *out, const char *help) {
    for (const char *c = help; *c != '\0'; c++) {
        if (*c == '\\') fputs("\\\\", out);
        else if (*c == '\n') fputs("\\n", out);
        else fputc(*c, out);
    }
}

/* name{labels} and a space; le is the bound of a bucket or NULL. */
static void print_identity(FILE *out, const char *name, const char *suffix, const char *labels, const double *le) {
    fprintf(out, "%s%s", name, suffix);
    if (*labels != '\0' || le != NULL) {
        fprintf(out, "{%s", labels);
        if (le != NULL) {
            fputs(*labels != '\0' ? ",le=\"" : "le=\"", out);
            print_number(out, *le);
            fputc('"', out);
        }
        fputc('}', out);
    }
    fputc(' ', out);
}

static void print_histogram(FILE *out, const char *name, const char *labels, const hd_histogram *histogram) {
    uint64_t count = 0;
    for (size_t i = 0; i <= histogram->bound_count; i++) {
        double bound = i < histogram->bound_count ? histogram->upper_bounds[i] : (double)INFINITY;
        count += atomic_load_explicit(&histogram->buckets[i], memory_order_relaxed);
        print_identity(out, name, "_bucket", labels, &bound);
        fprintf(out, "%llu\n", (unsigned long long)count);
    }
    print_identity(out, name, "_sum", labels, NULL);
    print_number(out, atomic_load_explicit(&histogram->sum, memory_order_relaxed));
    fputc('\n', out);
    print_identity(out, name, "_count", labels, NULL);
    fprintf(out, "%llu\n", (unsigned long long)count);
}

static void print_family(FILE *out, const family *f) {
    static const char *const type_names[] = {[COUNTER] = "counter", [GAUGE] = "gauge", [HISTOGRAM] = "histogram"};
    fprintf(out, "# HELP %s ", f->name);
    print_help(out, f->help);
    fprintf(out, "\n# TYPE %s %s\n", f->name, type_names[f->kind]);
    for (const series *s = f->first; s != NULL; s = s->next) {
        if (f->kind == HISTOGRAM) {
            print_histogram(out, f->name, s->labels, &s->histogram);
            continue;
        }
        print_identity(out, f->name, "", s->labels, NULL);
        if (f->kind == COUNTER) fprintf(out, "%llu", (unsigned long long)hd_counter_value(&s->counter));
        else print_number(out, hd_gauge_value(&s->gauge));
        fputc('\n', out);
    }
}

hd_status hd_metrics_render(const hd_metrics *metrics, char **text, size_t *text_bytes) {
    char *buffer = NULL;
    size_t bytes = 0;
    if (fault_strikes(FAULT_ALLOCATION)) return HD_NO_MEMORY;
    FILE *out = open_memstream(&buffer, &bytes);
    if (out == NULL) return HD_NO_MEMORY;
    for (const family *f = metrics->first; f != NULL; f = f->next) print_family(out, f);
    bool has_failed = ferror(out) != 0;
    if (fclose(out) != 0 || has_failed) {
        free(buffer);
        return HD_NO_MEMORY;
    }
    *text = buffer;
    *text_bytes = bytes;
    return HD_OK;
}
