/* node_options.h - the flags that say which model runs here and with how much: shared by serve, generate and the
 * benchmarks.
 *
 * Threads: main thread. */
#ifndef CLI_NODE_OPTIONS_H
#define CLI_NODE_OPTIONS_H

#include "base/flags.h"
#include "kernels/dtype.h"
#include "proto/collective.h"

typedef struct node_options {
    const char *model_directory; /* the positional argument */
    uint64_t hot_memory;         /* bytes of KV; 0: what is left after the weights */
    uint64_t warm_memory;        /* more of it; 0: by whether there is a cold tier */
    const char *cold_dir;        /* NULL: no cold tier */
    uint64_t cold_size;          /* bytes of its files */
    const char *kv_dtype, *weights, *selection, *kernels, *device, *model_name, *log_level;
    uint64_t full_up_to;                                  /* tokens up to which the selection auto is full */
    const char *selection_overrides;                      /* file; NULL: none */
    uint64_t index_memory;                                /* bytes of hot_memory for indexes; 0: by the selection */
    uint64_t threads;                                     /* 0: every CPU that this process may use */
    uint64_t max_batch_tokens, max_requests, max_context; /* max_context 0: the model's, or what fits */
} node_options;

#define NODE_OPTIONS_DEFAULTS                                                                                          \
    {                                                                                                                  \
        .kv_dtype = "bf16", .weights = "auto", .selection = "auto", .device = "auto", .log_level = "info",             \
        .max_batch_tokens = 512, .max_requests = 1024, .full_up_to = 32768                                             \
    }

/* Fills flags and returns how many. */
size_t node_options_flags(node_options *options, hd_flag *flags);

struct node;

typedef struct node_settings { /* the same as values */
    hd_dtype kv_dtype, weights_dtype;
    char model_name[256];
    /* Sets node->attention, which stays its own, or leaves it NULL for an engine of the node's. NULL: an engine. */
    hd_status (*open_attention)(void *context, struct node *node, hd_error *error);
    void *context;
    uint32_t micro_batches; /* worker.h */
    bool takes_device;      /* the caller works with a node whose weights, keys and values are on a device */
    collective *collective; /* between the ranks of this worker; NULL: it is one process. Lent */
} node_settings;

hd_status node_options_log_level(const char *name, hd_error *error); /* sets it */
/* Refuses values that can never be right, naming the flag; sets the log level. */
hd_status node_options_check(const node_options *options, node_settings *settings, hd_error *error);

#endif
