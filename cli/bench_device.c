/* bench_device.c - `hadal bench device`: opens a device and measures its kernels. */
#include "bench/device_bench.h"
#include "cli/command.h"

static struct {
    const char *only, *json;
    uint64_t device, max_context;
} options = {.max_context = 1 << 20};

static size_t flags(hd_flag *flags) {
    const hd_flag own[] = {
        {"device", HD_FLAG_U64, &options.device, "N", "which of this machine's, from 0", false},
        {"only", HD_FLAG_STRING, &options.only, "TEXT", "kernels with this text in their names", false},
        {"max-context", HD_FLAG_U64, &options.max_context, "N", "leave deeper contexts out", false},
        {"json", HD_FLAG_STRING, &options.json, "FILE", "the figures as JSON; - is standard output", false},
    };
    for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++) flags[i] = own[i];
    return sizeof(own) / sizeof(own[0]);
}

static cli_exit run(const cli_command *command, const cli_arguments *arguments) {
    hd_error error = {{0}};
    kernel_device *device;
    hd_status status = kernel_device_cuda_open((unsigned)options.device, &device, &error);
    if (status != HD_OK) return cli_fail(&error);
    device_bench_config config = {.device = device,
                                  .only = options.only,
                                  .context_max = options.max_context,
                                  .scale = 1,
                                  .json_path = options.json};
    status = device_bench_run(&config, &error);
    device->ops->close(device);
    return status == HD_OK ? CLI_DONE : cli_fail(&error);
}

const cli_command bench_device_command = {
    .name = "bench device",
    .arguments = "",
    .summary = "a GPU's kernels against what the GPU can do",
    .details = "Decode attention is held against the read bandwidth, prefill attention against a square product, both "
               "measured beside it.\n"
               "    hadal bench device --only decode --json figures.json\n",
    .positionals_min = 0,
    .positionals_max = 0,
    .flags = flags,
    .run = run,
};
