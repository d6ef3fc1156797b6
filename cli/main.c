/* main.c - finds the subcommand, parses its flags, runs it. */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "cli/command.h"
#include "cli/signals.h"

const cli_command *const cli_commands[] = {&attention_node_command,
                                           &bench_offload_command,
                                           &serve_command,
                                           &coordinator_command,
                                           &worker_command,
                                           &nodes_command,
                                           &sequences_command,
                                           &drain_command,
                                           &undrain_command,
                                           &cancel_command,
                                           &generate_command,
                                           &bench_serve_command,
                                           &bench_decode_command,
                                           &bench_fidelity_command,
                                           &bench_kernels_command,
                                           &bench_stream_command,
                                           &bench_device_command,
                                           &bench_index_command,
                                           NULL};

cli_exit cli_fail(const hd_error *error) {
    fprintf(stderr, "hadal: %s\n", error->text);
    return CLI_FAILED;
}

cli_exit cli_misuse(const cli_command *command, const hd_error *error) {
    fprintf(stderr, "hadal %s: %s; see 'hadal help %s'\n", command->name, error->text, command->name);
    return CLI_MISUSED;
}

bool cli_is_set(const cli_arguments *arguments, const char *flag) {
    for (size_t i = 0; i < arguments->flag_count; i++)
        if (strcmp(arguments->flags[i].name, flag) == 0) return arguments->flags[i].is_set;
    return false;
}

/* The command that argv names, and in *words of how many words its name is. */
static const cli_command *find_command(int argc, char **argv, int *words) {
    for (size_t i = 0; cli_commands[i] != NULL; i++) {
        const char *name = cli_commands[i]->name, *space = strchr(name, ' ');
        if (space == NULL) {
            *words = 1;
            if (strcmp(argv[0], name) == 0) return cli_commands[i];
        } else {
            *words = 2;
            size_t first = (size_t)(space - name);
            if (argc >= 2 && strlen(argv[0]) == first && strncmp(argv[0], name, first) == 0 &&
                strcmp(argv[1], space + 1) == 0)
                return cli_commands[i];
        }
    }
    return NULL;
}

static cli_exit unknown_command(int argc, char **argv) {
    if (strcmp(argv[0], "bench") == 0)
        fprintf(stderr, "hadal bench: %s; see 'hadal help bench'\n",
                argc >= 2 ? "there is no such benchmark" : "which benchmark?");
    else fprintf(stderr, "hadal: there is no subcommand '%s'; see 'hadal help'\n", argv[0]);
    return CLI_MISUSED;
}

static bool asks_for_help(int argc, char **argv) {
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return true;
    return false;
}

/* A server holds a connection per client, and the usual soft limit is 1,024. */
static void raise_file_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit); /* what cannot be raised stays; accept says so when it matters */
}

static cli_exit run_command(const cli_command *command, int argc, char **argv) {
    if (asks_for_help(argc, argv)) {
        help_print_command(command, stdout);
        return CLI_DONE;
    }
    hd_flag flags[CLI_FLAGS_MAX];
    cli_arguments arguments = {.flags = flags, .flag_count = command->flags(flags)};
    size_t positional_count = 0;
    hd_error error = {{0}};
    hd_status status = hd_flags_parse(flags, arguments.flag_count, argc, argv, arguments.positionals,
                                      command->positionals_max, &positional_count, &error);
    if (status == HD_OK && positional_count < command->positionals_min)
        status = hd_error_set(&error, HD_INVALID, "%s is missing", command->arguments);
    if (status != HD_OK) return cli_misuse(command, &error);
    return command->run(command, &arguments);
}

int main(int argc, char **argv) {
    signals_open();
    raise_file_limit();
    argc--;
    argv++;
    if (argc == 0) {
        help_print_overview(stderr);
        return CLI_MISUSED;
    }
    if (strcmp(argv[0], "--version") == 0 || strcmp(argv[0], "version") == 0) {
        printf("hadal %s\n", HADAL_VERSION);
        return CLI_DONE;
    }
    if (strcmp(argv[0], "help") == 0) return (int)help_run(argc - 1, argv + 1);
    if (strcmp(argv[0], "--help") == 0 || strcmp(argv[0], "-h") == 0) return (int)help_run(0, NULL);
    int words = 1;
    const cli_command *command = find_command(argc, argv, &words);
    if (command == NULL) return (int)unknown_command(argc, argv);
    return (int)run_command(command, argc - words, argv + words);
}
