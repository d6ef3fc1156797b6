/* serve.c - everything in this process, until a signal ends it. */
#include <stdint.h>

#include "base/log.h"
#include "cli/command.h"
#include "cli/server.h"
#include "cli/signals.h"

static struct {
    node_options node;
    server_options server;
    uint64_t drain_timeout;
} options = {.node = NODE_OPTIONS_DEFAULTS, .server = SERVER_OPTIONS_DEFAULTS};

static size_t serve_flags(hd_flag *flags) {
    size_t count = server_options_flags(&options.server, flags);
    flags[count++] = (hd_flag){"drain-timeout",
                               HD_FLAG_DURATION,
                               &options.drain_timeout,
                               "TIME",
                               "how long what runs may go on after SIGTERM (default: until it is done)",
                               false};
    return count + node_options_flags(&options.node, flags + count);
}

static cli_exit serve_run(const cli_command *command, const cli_arguments *arguments) {
    hd_error error = {{0}};
    node_settings settings;
    options.node.model_directory = arguments->positionals[0];
    hd_status status = server_options_check(&options.server, &error);
    if (status == HD_OK) status = node_options_check(&options.node, &settings, &error);
    if (status != HD_OK) return cli_misuse(command, &error);
    settings.takes_device = true;

    signals_load();
    node n;
    coordinator *front = NULL;
    if (node_open(&options.node, &settings, true, &n, &error) != HD_OK) return cli_fail(&error);
    status = node_start(&options.node, &n, &error);
    if (status == HD_OK) status = server_open(&options.server, &n, &front, &error);
    if (status == HD_OK) {
        signals_hold();
        const char *signal_name = signals_wait();
        hd_log(HD_LOG_INFO, "ending", "signal=%s second_signal=ends_at_once", signal_name);
    }
    uint64_t drain_ms = options.drain_timeout > 0 ? options.drain_timeout : UINT64_MAX;
    coordinator_close(front, drain_ms);
    node_close(&n, 0); /* the coordinator has waited for every request */
    if (status != HD_OK) return cli_fail(&error);
    hd_log(HD_LOG_INFO, "ended", "status=ok");
    return CLI_DONE;
}

const cli_command serve_command = {
    .name = "serve",
    .arguments = "MODEL_DIR",
    .summary = "serve a model directory over the OpenAI API",
    .details = "Loads a model directory as downloaded from Hugging Face and serves it over the OpenAI API, all in this "
               "process.\n"
               "    hadal serve ./Llama-3.2-1B-Instruct --listen 127.0.0.1:8000\n"
               "SIGTERM finishes what runs, answers new requests with 503, then ends; a second one ends at once.\n",
    .positionals_min = 1,
    .positionals_max = 1,
    .flags = serve_flags,
    .run = serve_run,
};
