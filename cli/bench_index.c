/* bench_index.c - the flags of `hadal bench index`; what it measures is in bench/index_bench.h. */
#include <string.h>

#include "bench/index_bench.h"
#include "cli/command.h"

static struct {
    const char *data, *index, *kernels, *json;
    uint64_t candidates, outputs;
    double share;
    bool values;
} indexes = {.outputs = 64, .share = 0.02};

static size_t bench_index_flags(hd_flag *flags) {
    const hd_flag own[] = {
        {"data", HD_FLAG_STRING, &indexes.data, "DIR", "a data set that tools/index_data.py made", false},
        {"index", HD_FLAG_STRING, &indexes.index, "NAMES", "which ones, and `oracle` (default: all)", false},
        {"candidates", HD_FLAG_U64, &indexes.candidates, "N",
         "keys read exactly, to hand back the best 100 (default: 350, and more of more than 131072 keys)", false},
        {"share", HD_FLAG_DOUBLE, &indexes.share, "X", "of the keys that attention reads exactly", false},
        {"drawn-values", HD_FLAG_BOOL, &indexes.values, NULL,
         "values that are drawn, so that nothing in a key tells its value", false},
        {"outputs", HD_FLAG_U64, &indexes.outputs, "N", "queries whose attention is compared; 0: none", false},
        {"kernels", HD_FLAG_STRING, &indexes.kernels, "NAME",
         "the table of kernels (default: the best that this CPU runs)", false},
        {"json", HD_FLAG_STRING, &indexes.json, "FILE", "the figures as JSON; - is standard output", false},
    };
    memcpy(flags, own, sizeof(own));
    return sizeof(own) / sizeof(own[0]);
}

static cli_exit bench_index_command_run(const cli_command *command, const cli_arguments *arguments) {
    (void)arguments; /* it has no positional ones */
    hd_error error = {{0}};
    index_bench_config config = {.data = indexes.data,
                                 .only = indexes.index,
                                 .candidates = (uint32_t)indexes.candidates,
                                 .share = indexes.share,
                                 .has_own_values = indexes.values,
                                 .outputs = (uint32_t)indexes.outputs,
                                 .json_path = indexes.json};
    hd_status status = HD_OK;
    if (indexes.data == NULL) status = hd_error_set(&error, HD_INVALID, "give --data DIR");
    else if ((indexes.candidates != 0 && indexes.candidates < 100) || indexes.candidates > 1000000)
        status = hd_error_set(&error, HD_INVALID, "--candidates must be between 100 and 1000000");
    else if (!(indexes.share >= 0.001 && indexes.share <= 1))
        status = hd_error_set(&error, HD_INVALID, "--share must be between 0.001 and 1");
    else if (indexes.outputs > 1000000) status = hd_error_set(&error, HD_INVALID, "--outputs must be at most 1000000");
    else status = kernel_ops_choose(indexes.kernels, &config.kernels, &error);
    if (status != HD_OK) return cli_misuse(command, &error);
    return index_bench_run(&config, &error) == HD_OK ? CLI_DONE : cli_fail(&error);
}

const cli_command bench_index_command = {
    .name = "bench index",
    .arguments = "",
    .summary = "what each kind of index finds, reads and costs",
    .details = "Builds every index on the keys of one attention head and asks it the queries of a test set: the share\n"
               "of the true best 100 that it finds, the bytes that it reads for that (of those of the keys in bf16),\n"
               "queries a second, and how far attention over what it finds is from attention over all, beside an\n"
               "oracle's.\n"
               "    hadal bench index --data shifted-131072 --index clusters,oracle\n",
    .positionals_min = 0,
    .positionals_max = 0,
    .flags = bench_index_flags,
    .run = bench_index_command_run,
};
