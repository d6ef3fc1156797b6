/* bench.c - the benchmarks' flags; what they measure is in bench/. */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "bench/decode.h"
#include "bench/kernels_bench.h"
#include "bench/serve.h"
#include "bench/stream_bench.h"
#include "cli/command.h"
#include "cli/node_device.h"
#include "cli/server.h"

/* ---- bench serve ---- */

static struct {
    node_options node;
    const char *url, *api_key, *goodput, *json;
    bool is_chat;
    double rate, spread, temperature;
    uint64_t requests, concurrency, prompt_tokens, output_tokens, prefix_tokens, seed, request_timeout;
} serve = {
    .node = NODE_OPTIONS_DEFAULTS, .rate = 1, .requests = 100, .prompt_tokens = 512, .output_tokens = 64, .seed = 1};

static size_t bench_serve_flags(hd_flag *flags) {
    const hd_flag own[] = {
        {"url", HD_FLAG_STRING, &serve.url, "URL",
         "the server, http://HOST:PORT; without it MODEL_DIR is served in this process", false},
        {"api-key", HD_FLAG_STRING, &serve.api_key, "KEY", "what the server asks for", false},
        {"chat", HD_FLAG_BOOL, &serve.is_chat, NULL, "/v1/chat/completions instead of /v1/completions", false},
        {"rate", HD_FLAG_DOUBLE, &serve.rate, "N", "requests a second, as a Poisson process; 0: all at once", false},
        {"requests", HD_FLAG_U64, &serve.requests, "N", "how many", false},
        {"concurrency", HD_FLAG_U64, &serve.concurrency, "N", "running at once, at most (default: no bound)", false},
        {"prompt-tokens", HD_FLAG_U64, &serve.prompt_tokens, "N", "of a prompt", false},
        {"output-tokens", HD_FLAG_U64, &serve.output_tokens, "N", "of an answer", false},
        {"spread", HD_FLAG_DOUBLE, &serve.spread, "X", "lengths vary by this share both ways, below 1", false},
        {"prefix-tokens", HD_FLAG_U64, &serve.prefix_tokens, "N", "with which all prompts begin alike", false},
        {"temperature", HD_FLAG_DOUBLE, &serve.temperature, "X", "of the answers", false},
        {"seed", HD_FLAG_U64, &serve.seed, "N", "the same seed draws the same load", false},
        {"request-timeout", HD_FLAG_DURATION, &serve.request_timeout, "TIME",
         "after which a request has failed (default: none)", false},
        {"goodput", HD_FLAG_STRING, &serve.goodput, "GOALS", "count what meets these, ttft:MS,tpot:MS,e2el:MS", false},
        {"json", HD_FLAG_STRING, &serve.json, "FILE", "the figures as JSON; - is standard output", false},
    };
    memcpy(flags, own, sizeof(own));
    size_t count = sizeof(own) / sizeof(own[0]);
    return count + node_options_flags(&serve.node, flags + count);
}

static hd_status check_serve(const cli_arguments *arguments, bench_goals *goals, hd_error *error) {
    if ((serve.url == NULL) == (arguments->positionals[0] == NULL))
        return hd_error_set(error, HD_INVALID, "give either --url or a MODEL_DIR");
    if (!(serve.rate >= 0)) return hd_error_set(error, HD_INVALID, "--rate must be at least 0");
    if (serve.requests == 0 || serve.requests > 10000000)
        return hd_error_set(error, HD_INVALID, "--requests must be between 1 and 10000000");
    if (serve.prompt_tokens == 0 || serve.output_tokens == 0)
        return hd_error_set(error, HD_INVALID, "--prompt-tokens and --output-tokens must be at least 1");
    if (serve.prompt_tokens > 100000000 || serve.output_tokens > 100000000)
        return hd_error_set(error, HD_INVALID, "--prompt-tokens and --output-tokens must be at most 100000000");
    if (!(serve.spread >= 0 && serve.spread < 1))
        return hd_error_set(error, HD_INVALID, "--spread must be at least 0 and below 1");
    if (!(serve.temperature >= 0)) return hd_error_set(error, HD_INVALID, "--temperature must be at least 0");
    if (bench_goals_parse(serve.goodput != NULL ? serve.goodput : "", goals, error) == HD_OK) return HD_OK;
    hd_error goal_error = *error;
    return hd_error_set(error, HD_INVALID, "--goodput: %s", goal_error.text);
}

static hd_status load_server(const char *url, const char *model, const bench_goals *goals, hd_error *error) {
    bench_serve_config config = {.load = {.url = url,
                                          .api_key = serve.api_key,
                                          .model = model,
                                          .is_chat = serve.is_chat,
                                          .rate = serve.rate,
                                          .requests = serve.requests,
                                          .concurrency = serve.concurrency,
                                          .prompt_tokens = serve.prompt_tokens,
                                          .output_tokens = serve.output_tokens,
                                          .spread = serve.spread,
                                          .prefix_tokens = serve.prefix_tokens,
                                          .temperature = serve.temperature,
                                          .seed = serve.seed,
                                          .timeout_ms = serve.request_timeout},
                                 .goals = *goals,
                                 .json_path = serve.json};
    return bench_serve_run(&config, error);
}

/* A server in this process, reached over its socket as any other. */
static hd_status load_directory(const bench_goals *goals, const node_settings *settings, hd_error *error) {
    node n;
    server_options server = SERVER_OPTIONS_DEFAULTS;
    server.listen = "127.0.0.1:0";
    hd_status status = node_open(&serve.node, settings, true, &n, error);
    if (status != HD_OK) return status;
    coordinator *front = NULL;
    status = node_start(&serve.node, &n, error);
    if (status == HD_OK) status = server_open(&server, &n, &front, error);
    if (status == HD_OK) {
        char url[128];
        snprintf(url, sizeof(url), "http://%s", coordinator_address(front));
        status = load_server(url, settings->model_name, goals, error);
    }
    coordinator_close(front, 0);
    node_close(&n, 0);
    return status;
}

static cli_exit bench_serve_command_run(const cli_command *command, const cli_arguments *arguments) {
    hd_error error = {{0}};
    bench_goals goals;
    node_settings settings;
    serve.node.model_directory = arguments->positionals[0];
    hd_status status = check_serve(arguments, &goals, &error);
    if (status == HD_OK && serve.url == NULL) status = node_options_check(&serve.node, &settings, &error);
    if (status != HD_OK) return cli_misuse(command, &error);
    if (serve.url != NULL) status = load_server(serve.url, serve.node.model_name, &goals, &error);
    else {
        settings.takes_device = true;
        status = load_directory(&goals, &settings, &error);
    }
    return status == HD_OK ? CLI_DONE : cli_fail(&error);
}

const cli_command bench_serve_command = {
    .name = "bench serve",
    .arguments = "[MODEL_DIR]",
    .summary = "latency and throughput of a server under load",
    .details = "Sends requests at the times of a Poisson process, whatever the server does, and reports time to first "
               "token (ttft),\n"
               "time per output token (tpot), the gaps between tokens (itl) and the time of whole answers (e2el).\n"
               "    hadal bench serve --url http://127.0.0.1:8000 --rate 2 --requests 200\n"
               "    hadal bench serve ./Llama-3.2-1B --rate 0.5 --prompt-tokens 4096 --goodput ttft:30000,tpot:200\n",
    .positionals_min = 0,
    .positionals_max = 1,
    .flags = bench_serve_flags,
    .run = bench_serve_command_run,
};

/* ---- bench decode ---- */

static struct {
    node_options node;
    const char *depth, *prefill, *json;
    uint64_t batch, chunk, steps, prefill_up_to;
} decode = {.node = NODE_OPTIONS_DEFAULTS,
            .depth = "0,4096,32768",
            .prefill = "512,4096",
            .batch = 1,
            .chunk = 256,
            .steps = 16,
            .prefill_up_to = 4096};

static size_t bench_decode_flags(hd_flag *flags) {
    const hd_flag own[] = {
        {"depth", HD_FLAG_STRING, &decode.depth, "LIST", "tokens that are there before a step", false},
        {"batch", HD_FLAG_U64, &decode.batch, "N", "sequences that decode together, each at that depth", false},
        {"steps", HD_FLAG_U64, &decode.steps, "N", "decode steps to time; fewer where they take long", false},
        {"prefill", HD_FLAG_STRING, &decode.prefill, "LIST", "lengths of prompts to time; empty for none", false},
        {"chunk", HD_FLAG_U64, &decode.chunk, "N", "tokens of a prompt to time at each depth; 0: none", false},
        {"prefill-up-to", HD_FLAG_U64, &decode.prefill_up_to, "N",
         "tokens, up to which a depth is filled by prefill; above, synthetic", false},
        {"json", HD_FLAG_STRING, &decode.json, "FILE", "the figures as JSON; - is standard output", false},
    };
    memcpy(flags, own, sizeof(own));
    size_t count = sizeof(own) / sizeof(own[0]);
    return count + node_options_flags(&decode.node, flags + count);
}

static hd_status check_decode(bench_decode_config *config, hd_error *error) {
    hd_status status = bench_list_parse("depth", decode.depth, &config->depths, error);
    if (status == HD_OK) status = bench_list_parse("prefill", decode.prefill, &config->prefills, error);
    if (status != HD_OK) return status;
    if (decode.batch == 0 || decode.batch > decode.node.max_batch_tokens || decode.batch > NODE_RUNNING_MAX)
        return hd_error_set(error, HD_INVALID, "--batch must be between 1 and %u and at most --max-batch-tokens",
                            NODE_RUNNING_MAX);
    if (decode.steps == 0 || decode.steps > 100000)
        return hd_error_set(error, HD_INVALID, "--steps must be between 1 and 100000");
    if (decode.chunk > 1000000) return hd_error_set(error, HD_INVALID, "--chunk must be at most 1000000");
    for (size_t i = 0; i < config->depths.count; i++)
        if (config->depths.values[i] > UINT32_MAX)
            return hd_error_set(error, HD_INVALID, "--depth: %llu is too deep",
                                (unsigned long long)config->depths.values[i]);
    config->batch = (uint32_t)decode.batch;
    config->steps = (uint32_t)decode.steps;
    config->chunk = (uint32_t)decode.chunk;
    config->prefill_up_to = decode.prefill_up_to;
    config->batch_tokens_max = (uint32_t)decode.node.max_batch_tokens;
    config->json_path = decode.json;
    return HD_OK;
}

static cli_exit bench_decode_command_run(const cli_command *command, const cli_arguments *arguments) {
    hd_error error = {{0}};
    node_settings settings;
    bench_decode_config config = {.selection = NULL};
    decode.node.model_directory = arguments->positionals[0];
    hd_status status = check_decode(&config, &error);
    if (status == HD_OK) status = node_options_check(&decode.node, &settings, &error);
    if (status != HD_OK) return cli_misuse(command, &error);

    node n;
    settings.takes_device = true;
    if (node_open(&decode.node, &settings, false, &n, &error) != HD_OK) return cli_fail(&error);
    config.model_name = n.settings.model_name;
    config.model = n.config;
    config.weights = n.weights;
    config.kernels = n.kernels;
    config.pool = n.pool;
    config.queue = n.queue;
    config.attention = n.attention;
    config.selection = decode.node.selection;
    config.cold_directory = decode.node.cold_dir;
    config.full_up_to = node_full_up_to(&decode.node, &n);
    status = bench_decode_run(&config, &error);
    node_close(&n, 0);
    return status == HD_OK ? CLI_DONE : cli_fail(&error);
}

const cli_command bench_decode_command = {
    .name = "bench decode",
    .arguments = "MODEL_DIR",
    .summary = "tokens a second against the depth of the context",
    .details = "Times decode steps, and chunks of a prompt, behind contexts of given depths, without a server. Deep "
               "contexts are\n"
               "filled with synthetic keys and values, and the table says where. The share is what the step achieves "
               "of the read\n"
               "bandwidth that was measured in the same run.\n"
               "    hadal bench decode ./Llama-3.2-1B --depth 0,4096,32768,131072 --json decode.json\n",
    .positionals_min = 1,
    .positionals_max = 1,
    .flags = bench_decode_flags,
    .run = bench_decode_command_run,
};

/* ---- bench stream ---- */

static struct {
    const char *listen, *connect, *json, *log_level;
    uint64_t message, total;
} stream = {.log_level = "info", .message = (uint64_t)256 << 10, .total = (uint64_t)4 << 30};

static size_t bench_stream_flags(hd_flag *flags) {
    const hd_flag own[] = {
        {"listen", HD_FLAG_STRING, &stream.listen, "HOST:PORT", "send from here, until the input ends", false},
        {"connect", HD_FLAG_STRING, &stream.connect, "HOST:PORT", "read from there", false},
        {"message", HD_FLAG_SIZE, &stream.message, "BYTES", "of a message that is sent", false},
        {"total", HD_FLAG_SIZE, &stream.total, "BYTES", "to read", false},
        {"json", HD_FLAG_STRING, &stream.json, "FILE", "the figures as JSON; - is standard output", false},
        {"log-level", HD_FLAG_STRING, &stream.log_level, "debug|info|warn|error", "what is logged", false},
    };
    memcpy(flags, own, sizeof(own));
    return sizeof(own) / sizeof(own[0]);
}

static cli_exit bench_stream_command_run(const cli_command *command, const cli_arguments *arguments) {
    (void)arguments; /* it has no positional ones */
    hd_error error = {{0}};
    stream_bench_config config = {.listen = stream.listen,
                                  .connect = stream.connect,
                                  .message_bytes = stream.message,
                                  .total_bytes = stream.total,
                                  .json_path = stream.json};
    hd_status status = node_options_log_level(stream.log_level, &error);
    if (status == HD_OK && (stream.listen != NULL) == (stream.connect != NULL))
        status = hd_error_set(&error, HD_INVALID, "either --listen or --connect");
    if (status == HD_OK && (stream.message == 0 || stream.message > (uint64_t)16 << 20))
        status = hd_error_set(&error, HD_INVALID, "--message must be between 1 and 16M");
    if (status != HD_OK) return cli_misuse(command, &error);
    return stream_bench_run(&config, &error) == HD_OK ? CLI_DONE : cli_fail(&error);
}

const cli_command bench_stream_command = {
    .name = "bench stream",
    .arguments = "",
    .summary = "what one gRPC stream carries between two processes",
    .details = "The most that a copy of keys and values between attention nodes could reach; ./run accept cluster 6 "
               "compares.\n"
               "    hadal bench stream --listen 127.0.0.1:7900\n"
               "    hadal bench stream --connect 127.0.0.1:7900 --total 4G\n",
    .positionals_min = 0,
    .positionals_max = 0,
    .flags = bench_stream_flags,
    .run = bench_stream_command_run,
};

/* ---- bench kernels ---- */

static struct {
    uint64_t threads, memory;
    const char *kernels, *only, *json;
} kernels;

static size_t bench_kernels_flags(hd_flag *flags) {
    const hd_flag own[] = {
        {"only", HD_FLAG_STRING, &kernels.only, "TEXT", "kernels with this in their names (default: all)", false},
        {"threads", HD_FLAG_U64, &kernels.threads, "N", "compute threads (default: the CPUs this process may use)",
         false},
        {"kernels", HD_FLAG_STRING, &kernels.kernels, "NAME",
         "the table of kernels (default: the best that this CPU runs)", false},
        {"memory", HD_FLAG_SIZE, &kernels.memory, "BYTES",
         "that large reads are spread over (default: 1 GiB, or what there is)", false},
        {"json", HD_FLAG_STRING, &kernels.json, "FILE", "the figures as JSON; - is standard output", false},
    };
    memcpy(flags, own, sizeof(own));
    return sizeof(own) / sizeof(own[0]);
}

static cli_exit bench_kernels_command_run(const cli_command *command, const cli_arguments *arguments) {
    (void)arguments; /* it has no positional ones */
    hd_error error = {{0}};
    kernels_bench_config config = {.only = kernels.only, .memory_bytes = kernels.memory, .json_path = kernels.json};
    if (kernel_ops_choose(kernels.kernels, &config.kernels, &error) != HD_OK) return cli_misuse(command, &error);
    hd_status status = hd_pool_open((unsigned)kernels.threads, &config.pool);
    if (status != HD_OK) {
        hd_error_set(&error, status, "cannot start %llu threads", (unsigned long long)kernels.threads);
        return cli_fail(&error);
    }
    status = kernels_bench_run(&config, &error);
    hd_pool_close(config.pool);
    return status == HD_OK ? CLI_DONE : cli_fail(&error);
}

const cli_command bench_kernels_command = {
    .name = "bench kernels",
    .arguments = "",
    .summary = "each kernel against memory bandwidth, peak and oneDNN",
    .details = "Times single kernels and holds each against what this machine can do, measured in turns with it.\n"
               "    hadal bench kernels --only attend\n",
    .positionals_min = 0,
    .positionals_max = 0,
    .flags = bench_kernels_flags,
    .run = bench_kernels_command_run,
};
