/* command.h - a subcommand: what help says of it, its flags, and the function that wires it.
 *
 * The flags of a command are targets in a static options struct of its file, which hold the defaults until main has
 * parsed the command line into them; a process runs one command once.
 * Exit codes: 0 done; 1 failed, with one line on stderr that says what and what to do; 2 wrong usage.
 * Threads: main thread. */
#ifndef CLI_COMMAND_H
#define CLI_COMMAND_H

#include <stdbool.h>
#include <stddef.h>

#include "base/flags.h"
#include "base/status.h"

#define CLI_FLAGS_MAX 64u
#define CLI_POSITIONALS_MAX 2u

typedef enum { CLI_DONE = 0, CLI_FAILED = 1, CLI_MISUSED = 2 } cli_exit;

typedef struct cli_arguments {                    /* the parsed command line */
    const char *positionals[CLI_POSITIONALS_MAX]; /* NULL: not given */
    const hd_flag *flags;
    size_t flag_count;
} cli_arguments;

typedef struct cli_command {
    const char *name;      /* "serve", or two words: "bench serve" */
    const char *arguments; /* "MODEL_DIR" */
    const char *summary;   /* one line of `hadal help` */
    const char *details;   /* what `hadal help NAME` says above the flags; ends with a line feed */
    size_t positionals_min, positionals_max;
    size_t (*flags)(hd_flag *flags); /* fills at most CLI_FLAGS_MAX and returns how many */
    cli_exit (*run)(const struct cli_command *command, const cli_arguments *arguments);
} cli_command;

/* Every command, in the order of help; the end is NULL. */
extern const cli_command *const cli_commands[];

extern const cli_command attention_node_command, bench_offload_command;
extern const cli_command coordinator_command, worker_command, nodes_command, sequences_command, drain_command,
    undrain_command, cancel_command;
extern const cli_command serve_command, generate_command, bench_serve_command, bench_decode_command,
    bench_fidelity_command, bench_kernels_command, bench_stream_command, bench_device_command, bench_index_command;

/* Whether the flag was given, on the command line or in the environment. */
bool cli_is_set(const cli_arguments *arguments, const char *flag);

/* Both print error's sentence on stderr and return the code. */
cli_exit cli_fail(const hd_error *error);
cli_exit cli_misuse(const cli_command *command, const hd_error *error);

/* `hadal help`, `hadal help bench`, `hadal help bench serve`: words are what follows help. On stdout, or on stderr
 * after misuse. */
cli_exit help_run(int word_count, char **words);
void help_print_command(const cli_command *command, FILE *stream);
void help_print_overview(FILE *stream);

#endif
