/* bench_offload.c - `hadal bench offload`: flags, and a model. */
#include <string.h>

#include "bench/offload.h"
#include "cli/command.h"
#include "cli/node.h"

static struct {
    node_options node;
    uint64_t depth, batch, steps, node_memory, node_threads, delay;
    const char *json;
} options = {.node = NODE_OPTIONS_DEFAULTS, .depth = 8192, .batch = 8, .steps = 20, .delay = 1};

static size_t offload_flags(hd_flag *flags) {
    const hd_flag own[] = {
        {"depth", HD_FLAG_U64, &options.depth, "N", "tokens that each sequence has", false},
        {"batch", HD_FLAG_U64, &options.batch, "N", "sequences that decode together", false},
        {"steps", HD_FLAG_U64, &options.steps, "N", "decode steps to time on each side", false},
        {"delay", HD_FLAG_DURATION, &options.delay, "TIME",
         "each way, that two micro-batches in turns are to hide (default: 1ms)", false},
        {"node-memory", HD_FLAG_SIZE, &options.node_memory, "BYTES",
         "of the attention node, for twice the sequences (default: twice as much as here)", false},
        {"node-threads", HD_FLAG_U64, &options.node_threads, "N",
         "compute threads of the attention node (default: as many as here)", false},
        {"json", HD_FLAG_STRING, &options.json, "FILE", "the figures as JSON; - is standard output", false},
    };
    memcpy(flags, own, sizeof(own));
    size_t count = sizeof(own) / sizeof(own[0]);
    return count + node_options_flags(&options.node, flags + count);
}

static hd_status check(hd_error *error) {
    if (options.batch == 0 || options.batch > NODE_RUNNING_MAX / 2 || 2 * options.batch > options.node.max_batch_tokens)
        return hd_error_set(error, HD_INVALID,
                            "--batch must be between 1 and %u and at most half of --max-batch-tokens",
                            NODE_RUNNING_MAX / 2);
    if (options.delay > 1000) return hd_error_set(error, HD_INVALID, "--delay must be at most 1s");
    if (options.steps == 0 || options.steps > 100000)
        return hd_error_set(error, HD_INVALID, "--steps must be between 1 and 100000");
    if (options.depth == 0 || options.depth > UINT32_MAX)
        return hd_error_set(error, HD_INVALID, "--depth must be between 1 and %u", UINT32_MAX);
    return HD_OK;
}

static cli_exit offload_run(const cli_command *command, const cli_arguments *arguments) {
    hd_error error = {{0}};
    node_settings settings;
    options.node.model_directory = arguments->positionals[0];
    hd_status status = check(&error);
    if (status == HD_OK) status = node_options_check(&options.node, &settings, &error);
    if (status != HD_OK) return cli_misuse(command, &error);
    node n;
    if (node_open(&options.node, &settings, false, &n, &error) != HD_OK) return cli_fail(&error);
    bench_offload_config config = {.model_name = n.settings.model_name,
                                   .model = n.config,
                                   .weights = n.weights,
                                   .kernels = n.kernels,
                                   .pool = n.pool,
                                   .attention = n.attention,
                                   .kv_dtype = n.settings.kv_dtype,
                                   .node_bytes = options.node_memory > 0 ? options.node_memory : 2 * n.memory.hot_bytes,
                                   .node_threads = options.node_threads > 0 ? (uint32_t)options.node_threads
                                                                            : hd_pool_thread_count(n.pool),
                                   .depth = options.depth,
                                   .batch = (uint32_t)options.batch,
                                   .steps = (uint32_t)options.steps,
                                   .delay_ms = options.delay,
                                   .rows_max = (uint32_t)options.node.max_batch_tokens,
                                   .json_path = options.json};
    status = bench_offload_run(&config, &error);
    node_close(&n, 0);
    return status == HD_OK ? CLI_DONE : cli_fail(&error);
}

const cli_command bench_offload_command = {
    .name = "bench offload",
    .arguments = "MODEL_DIR",
    .summary = "what a step costs with its keys and values on an attention node",
    .details =
        "Times the same decode steps over keys and values in this process and on an attention node of this host,\n"
        "in turns, and holds what a layer's attention takes longer against an echo of the same bytes. Then two\n"
        "micro-batches take turns, straight and behind a delay.\n"
        "    hadal bench offload ./Llama-3.2-1B --batch 8 --depth 8192 --hot-memory 3G\n",
    .positionals_min = 1,
    .positionals_max = 1,
    .flags = offload_flags,
    .run = offload_run,
};
