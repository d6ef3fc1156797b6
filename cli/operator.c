/* operator.c - nodes, sequences, drain, undrain, cancel: a coordinator's operator API for people and scripts. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/http_client.h"
#include "cli/command.h"

#define CALL_MS 15000
#define WAIT_POLL_US 300000u
#define WATCH_PERIOD_US 1000000u

static struct {
    const char *coordinator, *api_key;
    bool is_json, waits, watches;
} options = {.coordinator = "http://127.0.0.1:8000"};

static size_t common_flags(hd_flag *flags) {
    const hd_flag all[] = {
        {"coordinator", HD_FLAG_STRING, &options.coordinator, "URL",
         "a coordinator's operator address, or that of hadal serve", false},
        {"api-key", HD_FLAG_STRING, &options.api_key, "KEY", "an admin key, where the coordinator has keys", false},
        {"json", HD_FLAG_BOOL, &options.is_json, NULL, "for scripts", false},
    };
    memcpy(flags, all, sizeof(all));
    return sizeof(all) / sizeof(all[0]);
}

static size_t nodes_flags(hd_flag *flags) {
    size_t count = common_flags(flags);
    flags[count++] =
        (hd_flag){"watch", HD_FLAG_BOOL, &options.watches, NULL, "again every second, with the workers' steps", false};
    return count;
}

static size_t drain_flags(hd_flag *flags) {
    size_t count = common_flags(flags);
    flags[count++] = (hd_flag){
        "wait", HD_FLAG_BOOL, &options.waits, NULL, "until the node holds nothing that anybody would miss", false};
    return count;
}

/* One call; *root is the answer's JSON, for the caller to drop. */
static hd_status call(const char *path, const char *body, json_t **root, hd_error *error) {
    http_client *client = NULL;
    char *text = NULL;
    int code = 0;
    hd_status status = http_client_open(options.coordinator, options.api_key, &client, error);
    if (status != HD_OK) {
        hd_error cause = *error;
        return hd_error_set(error, status, "--coordinator: %s", cause.text);
    }
    status = http_client_fetch(client, path, body, CALL_MS, &code, &text);
    const char *cause = http_client_cause(client, status);
    http_client_close(client);
    if (status != HD_OK) {
        return hd_error_set(error, status,
                            "the coordinator at %s does not answer: %s; look at --coordinator, and whether it runs",
                            options.coordinator, cause);
    }
    *root = json_loads(text, 0, NULL);
    free(text);
    if (code == 200 && *root != NULL) return HD_OK;
    const char *message = json_string_value(json_object_get(json_object_get(*root, "error"), "message"));
    status = hd_error_set(error, HD_INVALID, "the coordinator at %s refuses (%d): %s", options.coordinator, code,
                          message != NULL ? message : "without a word");
    json_decref(*root);
    *root = NULL;
    return status;
}

static hd_status order(const char *path, const char *field, const char *name, hd_error *error) {
    json_t *body = json_pack("{ss}", field, name), *answer = NULL;
    char *text = body != NULL ? json_dumps(body, JSON_COMPACT) : NULL;
    json_decref(body);
    if (text == NULL) return hd_error_set(error, HD_INVALID, "'%s' is not a name", name);
    hd_status status = call(path, text, &answer, error);
    free(text);
    json_decref(answer);
    return status;
}

/* -- tables -- */

typedef struct column {
    const char *title, *key;
} column;

#define CELL_BYTES 96

static void cell_text(const json_t *row, const column *c, char text[CELL_BYTES]) {
    const json_t *value = json_object_get(row, c->key);
    uint64_t number = (uint64_t)json_integer_value(value);
    if (json_is_string(value))
        snprintf(text, CELL_BYTES, "%s", json_string_value(value)[0] != '\0' ? json_string_value(value) : "-");
    else if (json_is_boolean(value)) snprintf(text, CELL_BYTES, "%s", json_is_true(value) ? "yes" : "no");
    else if (json_is_integer(value) && strncmp(c->key, "kv_", 3) == 0) hd_format_size(number, text, CELL_BYTES);
    else if (json_is_integer(value)) snprintf(text, CELL_BYTES, "%" PRIu64, number);
    else snprintf(text, CELL_BYTES, "-");
}

static void print_table(const json_t *rows, const column *columns, size_t column_count) {
    int widths[16];
    char text[CELL_BYTES];
    size_t index;
    json_t *row;
    for (size_t i = 0; i < column_count; i++) {
        widths[i] = (int)strlen(columns[i].title);
        json_array_foreach(rows, index, row) {
            cell_text(row, &columns[i], text);
            if ((int)strlen(text) > widths[i]) widths[i] = (int)strlen(text);
        }
    }
    for (size_t i = 0; i < column_count; i++)
        printf("%-*s%s", widths[i], columns[i].title, i + 1 < column_count ? "  " : "\n");
    json_array_foreach(rows, index, row) {
        for (size_t i = 0; i < column_count; i++) {
            cell_text(row, &columns[i], text);
            printf("%-*s%s", widths[i], text, i + 1 < column_count ? "  " : "\n");
        }
    }
}

static cli_exit print_list(const char *path, const column *columns, size_t column_count) {
    json_t *rows;
    hd_error error = {{0}};
    if (call(path, NULL, &rows, &error) != HD_OK) return cli_fail(&error);
    if (options.is_json) {
        json_dumpf(rows, stdout, JSON_COMPACT);
        putchar('\n');
    } else {
        print_table(rows, columns, column_count);
    }
    json_decref(rows);
    return CLI_DONE;
}

/* -- watching -- */

static const char *const step_parts[] = {"dense_us", "wire_us", "attention_us"};
enum { STEP_PARTS = sizeof(step_parts) / sizeof(step_parts[0]) };

static double number(const json_t *row, const char *key) {
    return json_number_value(json_object_get(row, key));
}

/* What a worker's steps were since the last look, into its row: how long one takes, and the parts' shares. */
static void set_steps(json_t *row, const json_t *before, const json_t *now) {
    double steps = number(now, "steps") - number(before, "steps"), spent = 0;
    if (before == NULL || steps <= 0) return;
    for (int i = 0; i < STEP_PARTS; i++) spent += number(now, step_parts[i]) - number(before, step_parts[i]);
    char text[32];
    snprintf(text, sizeof(text), "%.2f", spent / steps / 1e3);
    json_object_set_new(row, "step_ms", json_string(text));
    for (int i = 0; i < STEP_PARTS && spent > 0; i++) {
        double part = number(now, step_parts[i]) - number(before, step_parts[i]);
        snprintf(text, sizeof(text), "%.0f %%", 100 * part / spent);
        json_object_set_new(row, step_parts[i], json_string(text));
    }
}

static const json_t *find_steps(const json_t *all, const char *node) {
    size_t index;
    json_t *steps;
    json_array_foreach(all, index, steps) {
        const char *name = json_string_value(json_object_get(steps, "node"));
        if (name != NULL && node != NULL && strcmp(name, node) == 0) return steps;
    }
    return NULL;
}

static void print_rows(const json_t *rows, const column *columns, size_t column_count) {
    if (options.is_json) {
        json_dumpf(rows, stdout, JSON_COMPACT);
        putchar('\n');
    } else {
        if (isatty(STDOUT_FILENO)) printf("\033[H\033[J"); /* home, and clear what is below */
        print_table(rows, columns, column_count);
        if (!isatty(STDOUT_FILENO)) putchar('\n');
    }
    fflush(stdout);
}

/* Until it is ended, or the coordinator does not answer. */
static cli_exit watch(const column *columns, size_t column_count) {
    hd_error error = {{0}};
    json_t *before = NULL, *rows, *now;
    for (;;) {
        hd_status status = call("/operator/nodes", NULL, &rows, &error);
        if (status == HD_OK && (status = call("/operator/steps", NULL, &now, &error)) != HD_OK) json_decref(rows);
        if (status != HD_OK) break;
        size_t index;
        json_t *row;
        json_array_foreach(rows, index, row) {
            const char *id = json_string_value(json_object_get(row, "id"));
            set_steps(row, find_steps(before, id), find_steps(now, id));
        }
        print_rows(rows, columns, column_count);
        json_decref(rows);
        json_decref(before);
        before = now;
        usleep(WATCH_PERIOD_US);
    }
    json_decref(before);
    return cli_fail(&error);
}

static cli_exit nodes_run(const cli_command *command, const cli_arguments *arguments) {
    static const column columns[] = {{"NODE", "id"},
                                     {"ROLE", "role"},
                                     {"STATE", "state"},
                                     {"ADDRESS", "address"},
                                     {"MODEL", "model"},
                                     {"KV", "kv_bytes"},
                                     {"OF", "kv_capacity"},
                                     {"SEQUENCES", "sequences"},
                                     {"SAFE TO DELETE", "safe_to_delete"},
                                     {"STEP MS", "step_ms"},
                                     {"DENSE", "dense_us"},
                                     {"WIRE", "wire_us"},
                                     {"ATTENTION", "attention_us"}};
    enum { ALL = sizeof(columns) / sizeof(columns[0]) };
    return options.watches ? watch(columns, ALL) : print_list("/operator/nodes", columns, ALL - 1 - STEP_PARTS);
}

static cli_exit sequences_run(const cli_command *command, const cli_arguments *arguments) {
    static const column columns[] = {{"SEQUENCE", "id"},           {"MODEL", "model"},          {"WORKER", "worker"},
                                     {"STATE", "state"},           {"PROMPT", "prompt_tokens"}, {"DONE", "prompt_done"},
                                     {"SAID", "generated_tokens"}, {"EPOCH", "epoch"},          {"AGE S", "age_s"}};
    return print_list("/operator/sequences", columns, sizeof(columns) / sizeof(columns[0]));
}

/* -- orders -- */

static cli_exit print_done(const char *what, const char *name) {
    if (options.is_json) printf("{\"%s\":\"%s\"}\n", what, name);
    else printf("%s: %s\n", name, what);
    return CLI_DONE;
}

/* The node's row; NULL: it is not listed any more. */
static const json_t *find_row(const json_t *rows, const char *node) {
    size_t index;
    json_t *row;
    json_array_foreach(rows, index, row) {
        const char *id = json_string_value(json_object_get(row, "id"));
        if (id != NULL && strcmp(id, node) == 0) return row;
    }
    return NULL;
}

/* By bytes, which go row by row, where the node keeps any; else by sequences. */
static void show_progress(uint64_t most_bytes, uint64_t bytes, uint64_t most, uint64_t left) {
    if (!isatty(STDERR_FILENO) || options.is_json) return;
    enum { WIDTH = 30 };
    double part = most_bytes > 0 ? (double)bytes / (double)most_bytes : most > 0 ? (double)left / (double)most : 0;
    int done = (int)((1 - part) * WIDTH);
    char left_text[CELL_BYTES], most_text[CELL_BYTES];
    hd_format_size(bytes, left_text, sizeof(left_text));
    hd_format_size(most_bytes, most_text, sizeof(most_text));
    fprintf(stderr, "\r[%.*s%*s] %" PRIu64 " of %" PRIu64 " sequences, %s of %s left ", done,
            "##############################", WIDTH - done, "", left, most, left_text, most_text);
}

static cli_exit wait_drained(const char *node) {
    hd_error error = {{0}};
    uint64_t most = 0, most_bytes = 0;
    for (;;) {
        json_t *rows;
        if (call("/operator/nodes", NULL, &rows, &error) != HD_OK) return cli_fail(&error);
        const json_t *row = find_row(rows, node);
        uint64_t left = (uint64_t)json_integer_value(json_object_get(row, "sequences"));
        bool is_safe = row == NULL || json_is_true(json_object_get(row, "safe_to_delete"));
        uint64_t bytes = (uint64_t)json_integer_value(json_object_get(row, "kv_bytes"));
        if (left > most) most = left;
        if (bytes > most_bytes) most_bytes = bytes;
        show_progress(most_bytes, bytes, most, left);
        json_decref(rows);
        if (is_safe) break;
        usleep(WAIT_POLL_US);
    }
    if (isatty(STDERR_FILENO) && !options.is_json) fputc('\n', stderr);
    return print_done("safe_to_delete", node);
}

static cli_exit drain_run(const cli_command *command, const cli_arguments *arguments) {
    hd_error error = {{0}};
    const char *node = arguments->positionals[0];
    if (order("/operator/drain", "node", node, &error) != HD_OK) return cli_fail(&error);
    return options.waits ? wait_drained(node) : print_done("draining", node);
}

static cli_exit undrain_run(const cli_command *command, const cli_arguments *arguments) {
    hd_error error = {{0}};
    if (order("/operator/undrain", "node", arguments->positionals[0], &error) != HD_OK) return cli_fail(&error);
    return print_done("ready", arguments->positionals[0]);
}

static cli_exit cancel_run(const cli_command *command, const cli_arguments *arguments) {
    hd_error error = {{0}};
    if (order("/operator/cancel", "sequence", arguments->positionals[0], &error) != HD_OK) return cli_fail(&error);
    return print_done("cancelled", arguments->positionals[0]);
}

const cli_command nodes_command = {.name = "nodes",
                                   .arguments = "",
                                   .summary = "the cluster's nodes: state, memory, what may be deleted",
                                   .details =
                                       "Lists the nodes that a coordinator sees. A node is safe to delete when "
                                       "it takes no new work and holds nothing.\n"
                                       "    hadal nodes --coordinator http://127.0.0.1:8001\n"
                                       "With --watch it is printed again every second, and says where the time of "
                                       "each worker's steps goes:\n"
                                       "products with weights, the way to attention nodes and back, attention.\n",
                                   .flags = nodes_flags,
                                   .run = nodes_run};
const cli_command sequences_command = {.name = "sequences",
                                       .arguments = "",
                                       .summary = "what is being answered, and where",
                                       .details = "Lists the sequences of one coordinator, or of one hadal serve.\n    "
                                                  "hadal sequences --coordinator http://127.0.0.1:8001 --json\n",
                                       .flags = common_flags,
                                       .run = sequences_run};
const cli_command drain_command = {
    .name = "drain",
    .arguments = "NODE",
    .summary = "move a node's work elsewhere, so that it can be deleted",
    .details = "The node takes no new work, and what runs there moves to others between two tokens: of a worker its "
               "requests,\nof an attention node its keys and values, while decoding goes on.\n"
               "    hadal drain worker-1 --wait --coordinator http://127.0.0.1:8001\n",
    .positionals_min = 1,
    .positionals_max = 1,
    .flags = drain_flags,
    .run = drain_run};
const cli_command undrain_command = {.name = "undrain",
                                     .arguments = "NODE",
                                     .summary = "let a drained node take work again",
                                     .details = "    hadal undrain worker-1 --coordinator http://127.0.0.1:8001\n",
                                     .positionals_min = 1,
                                     .positionals_max = 1,
                                     .flags = common_flags,
                                     .run = undrain_run};
const cli_command cancel_command = {.name = "cancel",
                                    .arguments = "SEQUENCE",
                                    .summary = "end one sequence",
                                    .details =
                                        "Its client gets an error. SEQUENCE is an id of `hadal sequences`.\n"
                                        "    hadal cancel 4f1d22a09c000080 --coordinator http://127.0.0.1:8001\n",
                                    .positionals_min = 1,
                                    .positionals_max = 1,
                                    .flags = common_flags,
                                    .run = cancel_run};
