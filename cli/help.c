/* help.c - everything help says comes from the table of commands and their flags, so it cannot fall behind them. */
#include <stdio.h>
#include <string.h>

#include "cli/command.h"

void help_print_overview(FILE *stream) {
    fputs("Hadal serves language models over long contexts.\n\n", stream);
    for (size_t i = 0; cli_commands[i] != NULL; i++) {
        char usage[64];
        snprintf(usage, sizeof(usage), "hadal %s %s", cli_commands[i]->name, cli_commands[i]->arguments);
        fprintf(stream, "  %-36s  %s\n", usage, cli_commands[i]->summary);
    }
    fprintf(stream, "  %-36s  %s\n", "hadal help [SUBCOMMAND]", "what a subcommand does, and its flags");
    fprintf(stream, "  %-36s  %s\n", "hadal --version", "the version");
    fputs("\nExit codes: 0 done, 1 failed, 2 wrong usage. Data goes to standard output, logs (logfmt) to standard "
          "error.\n",
          stream);
}

void help_print_command(const cli_command *command, FILE *stream) {
    hd_flag flags[CLI_FLAGS_MAX];
    size_t count = command->flags(flags);
    fprintf(stream, "hadal %s %s [flags]\n\n%s\n", command->name, command->arguments, command->details);
    fputs("Flags (each is also read from the environment, --hot-memory as HADAL_HOT_MEMORY; sizes take 512M or 16G, "
          "durations "
          "500ms, 2s, 5m or 1h):\n",
          stream);
    hd_flags_print_help(flags, count, stream);
}

/* Whether a command's name begins with the given words; "bench" is the beginning of "bench serve", "ben" is not. */
static bool begins_with(const char *name, int word_count, char **words) {
    for (int i = 0; i < word_count; i++) {
        size_t length = strlen(words[i]);
        if (strncmp(name, words[i], length) != 0 || (name[length] != ' ' && name[length] != '\0')) return false;
        name += length + (name[length] == ' ');
    }
    return true;
}

cli_exit help_run(int word_count, char **words) {
    if (word_count == 0) {
        help_print_overview(stdout);
        return CLI_DONE;
    }
    const cli_command *found = NULL;
    size_t found_count = 0;
    for (size_t i = 0; cli_commands[i] != NULL; i++)
        if (begins_with(cli_commands[i]->name, word_count, words)) {
            found = cli_commands[i];
            found_count++;
        }
    if (found_count == 0) {
        fprintf(stderr, "hadal: there is no subcommand '%s'; see 'hadal help'\n", words[0]);
        return CLI_MISUSED;
    }
    if (found_count == 1) {
        help_print_command(found, stdout);
        return CLI_DONE;
    }
    for (size_t i = 0; cli_commands[i] != NULL; i++)
        if (begins_with(cli_commands[i]->name, word_count, words))
            printf("hadal %s %s [flags]\n    %s\n", cli_commands[i]->name, cli_commands[i]->arguments,
                   cli_commands[i]->summary);
    return CLI_DONE;
}
