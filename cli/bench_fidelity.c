/* bench_fidelity.c - the flags of `hadal bench fidelity`. */
#include <string.h>

#include "bench/fidelity.h"
#include "cli/command.h"
#include "cli/node.h"

static struct {
    node_options node;
    const char *text, *selections, *lengths, *reference, *json, *svg;
    uint64_t trials, steps;
} options = {.node = NODE_OPTIONS_DEFAULTS,
             .selections = "window;retrieval,index=exact;retrieval,index=clusters",
             .lengths = "8192",
             .trials = 5,
             .steps = 64};

static size_t fidelity_flags(hd_flag *flags) {
    const hd_flag own[] = {
        {"text", HD_FLAG_STRING, &options.text, "FILE", "text that documents are made of", false},
        {"selections", HD_FLAG_STRING, &options.selections, "LIST", "what to compare with full, semicolons between",
         false},
        {"lengths", HD_FLAG_STRING, &options.lengths, "LIST", "tokens of the contexts", false},
        {"trials", HD_FLAG_U64, &options.trials, "N", "questions of each kind, at most 16", false},
        {"steps", HD_FLAG_U64, &options.steps, "N", "tokens of the text told one by one for agreement", false},
        {"reference", HD_FLAG_STRING, &options.reference, "FILE",
         "agree with these distributions, of a run with other flags; written where the file is missing", false},
        {"json", HD_FLAG_STRING, &options.json, "FILE", "the figures as JSON; - is standard output", false},
        {"svg", HD_FLAG_STRING, &options.svg, "FILE", "a chart of the longest context", false},
    };
    memcpy(flags, own, sizeof(own));
    size_t count = sizeof(own) / sizeof(own[0]);
    return count + node_options_flags(&options.node, flags + count);
}

static hd_status check(fidelity_config *config, hd_error *error) {
    hd_status status = bench_list_parse("lengths", options.lengths, &config->lengths, error);
    if (status != HD_OK) return status;
    if (options.text == NULL) return hd_error_set(error, HD_INVALID, "--text is missing");
    if (options.trials == 0 || options.trials > 16)
        return hd_error_set(error, HD_INVALID, "--trials must be between 1 and 16");
    if (options.steps == 0 || options.steps > 4096)
        return hd_error_set(error, HD_INVALID, "--steps must be between 1 and 4096");
    if (options.reference != NULL && config->lengths.count > 1)
        return hd_error_set(error, HD_INVALID, "--reference goes with one of --lengths");
    for (size_t i = 0; i < config->lengths.count; i++)
        if (config->lengths.values[i] < 1024)
            return hd_error_set(error, HD_INVALID, "--lengths: contexts have at least 1024 tokens");
    /* Every other selection than full may need indexes, whatever the node's own selection is. */
    options.node.selection = "auto";
    options.node.full_up_to = 0;
    return HD_OK;
}

static cli_exit fidelity_run(const cli_command *command, const cli_arguments *arguments) {
    hd_error error = {{0}};
    node_settings settings;
    fidelity_config config = {.text_path = options.text};
    options.node.model_directory = arguments->positionals[0];
    hd_status status = check(&config, &error);
    if (status == HD_OK) status = node_options_check(&options.node, &settings, &error);
    if (status != HD_OK) return cli_misuse(command, &error);

    node n;
    if (node_open(&options.node, &settings, true, &n, &error) != HD_OK) return cli_fail(&error);
    config.decoder = (decoder_config){.model = n.config,
                                      .weights = n.weights,
                                      .kernels = n.kernels,
                                      .pool = n.pool,
                                      .attention = n.attention,
                                      .batch_tokens_max = (uint32_t)options.node.max_batch_tokens};
    config.model_name = n.settings.model_name;
    config.text = n.text;
    config.selections = options.selections;
    config.trials = (uint32_t)options.trials;
    config.steps = (uint32_t)options.steps;
    config.reference_path = options.reference;
    config.json_path = options.json;
    config.chart_path = options.svg;
    status = bench_fidelity_run(&config, &error);
    node_close(&n, 0);
    return status == HD_OK ? CLI_DONE : cli_fail(&error);
}

const cli_command bench_fidelity_command = {
    .name = "bench fidelity",
    .arguments = "MODEL_DIR",
    .summary = "what selections cost in answers",
    .details = "Compares selections with full attention of the same model: agreement on the next token and divergence "
               "over a text,\n"
               "needles at depths, several needles, values of keys. Documents are made of the text given.\n"
               "    hadal bench fidelity ./Llama-3.2-1B --text book.txt --lengths 8192,32768 --svg fidelity.svg\n",
    .positionals_min = 1,
    .positionals_max = 1,
    .flags = fidelity_flags,
    .run = fidelity_run,
};
