/* generate.c - one prompt from a file, its answer to standard output as it comes, figures to standard error.
 *
 * The worker's events come on the step thread, which only puts them into an outbox of fixed size; this thread decodes
 * and writes, so a slow terminal holds up nobody but itself. */
#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "cli/command.h"
#include "cli/node.h"
#include "coordinator/stop_matcher.h"

#define PROMPT_BYTES_MAX ((size_t)1 << 30)
#define MAX_TOKENS_DEFAULT 512u

static struct {
    node_options node;
    const char *prompt_file, *stop;
    bool is_chat, ignore_eos;
    uint64_t max_tokens, top_k, seed;
    double temperature, top_p, min_p, repetition_penalty;
} options = {.node = NODE_OPTIONS_DEFAULTS};

static size_t generate_flags(hd_flag *flags) {
    const hd_flag own[] = {
        {"prompt-file", HD_FLAG_STRING, &options.prompt_file, "FILE", "the prompt; - is standard input", false},
        {"chat", HD_FLAG_BOOL, &options.is_chat, NULL, "the prompt is a user's message, put into the chat template",
         false},
        {"max-tokens", HD_FLAG_U64, &options.max_tokens, "N",
         "tokens of the answer, at most (default: 512, or what fits)", false},
        {"temperature", HD_FLAG_DOUBLE, &options.temperature, "X", "0 takes the likeliest token (default: the model's)",
         false},
        {"top-p", HD_FLAG_DOUBLE, &options.top_p, "X",
         "draw from the likeliest tokens of this mass (default: the model's)", false},
        {"top-k", HD_FLAG_U64, &options.top_k, "N", "draw from so many likeliest tokens; 0: all (default: the model's)",
         false},
        {"min-p", HD_FLAG_DOUBLE, &options.min_p, "X",
         "draw from tokens this likely relative to the likeliest (default: the model's)", false},
        {"repetition-penalty", HD_FLAG_DOUBLE, &options.repetition_penalty, "X",
         "above 1: less of what was there (default: the model's)", false},
        {"seed", HD_FLAG_U64, &options.seed, "N", "the same seed draws the same answer", false},
        {"stop", HD_FLAG_STRING, &options.stop, "TEXT", "the answer ends before this text", false},
        {"ignore-eos", HD_FLAG_BOOL, &options.ignore_eos, NULL, "go on where the model would end", false},
    };
    memcpy(flags, own, sizeof(own));
    size_t count = sizeof(own) / sizeof(own[0]);
    return count + node_options_flags(&options.node, flags + count);
}

typedef struct outbox {
    pthread_mutex_t mutex; /* guards what is written while the worker runs: all but capacity and tokens itself */
    pthread_cond_t arrived;
    uint32_t *tokens; /* [capacity]: a choice has no more than max_tokens */
    uint64_t token_count, capacity;
    uint64_t cached_tokens, first_ns, last_ns; /* first_ns 0: no token yet */
    bool is_finished;
    worker_finish finish;
    hd_status status;
    char message[256];
} outbox;

static void on_event(worker_request *asked, const worker_event *event) {
    outbox *o = asked->context;
    pthread_mutex_lock(&o->mutex);
    switch (event->kind) {
    case WORKER_STARTED: o->cached_tokens = event->cached_tokens; break;
    case WORKER_TOKEN:
        o->last_ns = hd_now_ns();
        if (o->first_ns == 0) o->first_ns = o->last_ns;
        if (o->token_count < o->capacity) o->tokens[o->token_count++] = event->token_id;
        break;
    case WORKER_FINISHED:
        o->finish = event->finish;
        o->is_finished = true;
        break;
    case WORKER_FAILED:
        o->status = event->status;
        snprintf(o->message, sizeof(o->message), "%s",
                 event->message != NULL ? event->message : hd_status_text(event->status));
        o->is_finished = true;
        break;
    case WORKER_PROGRESS:
    case WORKER_PROMPT_LOGPROBS: break;
    }
    pthread_cond_signal(&o->arrived);
    pthread_mutex_unlock(&o->mutex);
}

static hd_status read_prompt(const char *path, char **text, size_t *text_bytes, hd_error *error) {
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    if (file == NULL) return hd_error_set(error, HD_IO, "cannot read %s: %s", path, strerror(errno));
    char *bytes = NULL;
    size_t used = 0, capacity = 0, count;
    hd_status status = HD_OK;
    do {
        if (used == capacity) {
            capacity = capacity > 0 ? 2 * capacity : 65536;
            char *grown = capacity <= PROMPT_BYTES_MAX ? realloc(bytes, capacity) : NULL;
            if (grown == NULL) {
                status = hd_error_set(error, HD_NO_MEMORY, "%s is too large", path);
                break;
            }
            bytes = grown;
        }
        count = fread(bytes + used, 1, capacity - used, file);
        used += count;
    } while (count > 0);
    if (status == HD_OK && ferror(file))
        status = hd_error_set(error, HD_IO, "cannot read %s: %s", path, strerror(errno));
    if (file != stdin) fclose(file);
    if (status != HD_OK) {
        free(bytes);
        return status;
    }
    *text = bytes;
    *text_bytes = used;
    return HD_OK;
}

static hd_status render_chat(const node *n, char **text, size_t *text_bytes, hd_error *error) {
    json_t *context = json_pack("{s:[{s:s, s:s%}], s:b}", "messages", "role", "user", "content", *text, *text_bytes,
                                "add_generation_prompt", true);
    char *context_json = context != NULL ? json_dumps(context, JSON_COMPACT) : NULL;
    json_decref(context);
    if (context_json == NULL) return hd_error_set(error, HD_INVALID, "the prompt is not UTF-8");
    char *rendered = NULL;
    size_t rendered_bytes = 0;
    hd_status status =
        text_render_chat(n->text, NULL, context_json, strlen(context_json), &rendered, &rendered_bytes, error);
    free(context_json);
    if (status != HD_OK) return status;
    free(*text);
    *text = rendered;
    *text_bytes = rendered_bytes;
    return HD_OK;
}

/* Takes the text. The caller frees *ids whatever comes back; it is NULL before. */
static hd_status encode_prompt(const node *n, char *text, size_t text_bytes, uint32_t **ids, size_t *id_count,
                               hd_error *error) {
    hd_status status = options.is_chat ? render_chat(n, &text, &text_bytes, error) : HD_OK;
    /* A chat template writes the special tokens itself. */
    if (status == HD_OK) status = text_encode(n->text, text, text_bytes, !options.is_chat, ids, id_count, error);
    free(text);
    if (status == HD_OK && *id_count == 0)
        return hd_error_set(error, HD_INVALID, "%s is empty; a prompt has at least one token", options.prompt_file);
    return status;
}

/* Writes what a stop string does not claim. *is_stopped: one was found. */
typedef struct writer {
    text_stream *stream;
    stop_set stops;
    stop_matcher matcher;
    bool has_stop, is_stopped;
    char held[REQUEST_STOP_BYTES_MAX]; /* text that may be the beginning of the stop string */
    size_t held_bytes;
} writer;

static void write_held(writer *w, size_t keep) {
    size_t shown = w->held_bytes - keep;
    fwrite(w->held, 1, shown, stdout);
    memmove(w->held, w->held + shown, keep);
    w->held_bytes = keep;
}

static void write_text(writer *w, const char *text, size_t bytes) {
    if (!w->has_stop) {
        fwrite(text, 1, bytes, stdout);
        return;
    }
    for (size_t i = 0; i < bytes && !w->is_stopped; i++) {
        size_t used;
        uint32_t stop;
        w->held[w->held_bytes++] = text[i];
        w->is_stopped = stop_matcher_push(&w->matcher, text + i, 1, &used, &stop);
        if (w->is_stopped) w->held_bytes -= w->stops.stops[stop].text_bytes;
        write_held(w, w->is_stopped ? 0 : stop_matcher_held(&w->matcher));
    }
}

static hd_status write_answer(const node *n, uint64_t id, outbox *o, writer *w, hd_error *error) {
    uint64_t written = 0;
    hd_status status = HD_OK;
    bool is_finished = false;
    while (!is_finished) {
        pthread_mutex_lock(&o->mutex);
        while (written == o->token_count && !o->is_finished) pthread_cond_wait(&o->arrived, &o->mutex);
        uint64_t arrived = o->token_count;
        is_finished = o->is_finished;
        pthread_mutex_unlock(&o->mutex);
        for (; written < arrived && status == HD_OK && !w->is_stopped; written++) {
            const char *piece;
            size_t piece_bytes;
            status = text_stream_push(w->stream, o->tokens[written], &piece, &piece_bytes);
            if (status == HD_OK) write_text(w, piece, piece_bytes);
        }
        fflush(stdout);
        if (!is_finished && (w->is_stopped || status != HD_OK || ferror(stdout))) {
            worker_rpc *rpc = worker_rpc_of(n->worker);
            rpc->ops->cancel(rpc, id, UINT32_MAX); /* the last event still has to be waited for */
            written = arrived;
        }
        if (w->is_stopped || status != HD_OK) written = arrived;
    }
    if (o->status != HD_OK) return hd_error_set(error, o->status, "%s", o->message);
    if (status != HD_OK) return hd_error_set(error, status, "cannot decode the answer: %s", hd_status_text(status));
    const char *piece;
    size_t piece_bytes;
    if (!w->is_stopped && text_stream_finish(w->stream, &piece, &piece_bytes) == HD_OK)
        write_text(w, piece, piece_bytes);
    write_held(w, 0);
    if (fflush(stdout) != 0 || ferror(stdout))
        return hd_error_set(error, HD_IO, "cannot write the answer: %s", strerror(errno));
    return HD_OK;
}

static void log_figures(const outbox *o, uint64_t prompt_tokens, uint64_t start_ns, bool is_stopped) {
    static const char *const finishes[] = {
        [WORKER_FINISH_STOP] = "stop", [WORKER_FINISH_LENGTH] = "length", [WORKER_FINISH_CANCELLED] = "cancelled"};
    double first_s = o->first_ns > 0 ? (double)(o->first_ns - start_ns) * 1e-9 : 0;
    double decode_s = (double)(o->last_ns - o->first_ns) * 1e-9;
    char peak[32], quoted[48];
    hd_log(HD_LOG_INFO, "generated",
           "prompt_tokens=%llu output_tokens=%llu finish=%s first_token_s=%.3f prefill_tokens_per_s=%.1f "
           "decode_tokens_per_s=%.2f peak_memory=%s",
           (unsigned long long)prompt_tokens, (unsigned long long)o->token_count,
           is_stopped ? "stop" : finishes[o->finish], first_s,
           first_s > 0 ? (double)(prompt_tokens - o->cached_tokens) / first_s : 0,
           decode_s > 0 ? (double)(o->token_count - 1) / decode_s : 0,
           hd_log_quote(hd_format_size(hd_memory_peak_bytes(), peak, sizeof(peak)), quoted, sizeof(quoted)));
}

static worker_sampling sampling_of(const cli_arguments *arguments, const worker_info *info) {
    worker_sampling sampling = {.temperature = info->default_temperature,
                                .top_k = info->default_top_k,
                                .top_p = info->default_top_p,
                                .min_p = info->default_min_p,
                                .repetition_penalty = info->default_repetition_penalty,
                                .seed = options.seed,
                                .ignore_eos = options.ignore_eos,
                                .logprobs = -1,
                                .prompt_logprobs = -1};
    if (cli_is_set(arguments, "temperature")) sampling.temperature = (float)options.temperature;
    if (cli_is_set(arguments, "top-k")) sampling.top_k = (uint32_t)options.top_k;
    if (cli_is_set(arguments, "top-p")) sampling.top_p = (float)options.top_p;
    if (cli_is_set(arguments, "min-p")) sampling.min_p = (float)options.min_p;
    if (cli_is_set(arguments, "repetition-penalty")) sampling.repetition_penalty = (float)options.repetition_penalty;
    return sampling;
}

static hd_status answer(const node *n, const cli_arguments *arguments, const uint32_t *ids, size_t id_count,
                        hd_error *error) {
    worker_rpc *rpc = worker_rpc_of(n->worker);
    worker_info info;
    rpc->ops->info(rpc, &info);
    uint64_t room =
        id_count < info.context_max ? info.context_max - id_count : 1; /* too long a prompt is refused by submit */
    uint64_t max_tokens = cli_is_set(arguments, "max-tokens") ? options.max_tokens
                          : MAX_TOKENS_DEFAULT < room         ? MAX_TOKENS_DEFAULT
                                                              : room;

    outbox o = {.mutex = PTHREAD_MUTEX_INITIALIZER,
                .arrived = PTHREAD_COND_INITIALIZER,
                .capacity = max_tokens < room ? max_tokens : room};
    worker_request asked = {.id = 1,
                            .prompt_ids = ids,
                            .prompt_count = id_count,
                            .max_tokens = max_tokens,
                            .choices = 1,
                            .sampling = sampling_of(arguments, &info),
                            .on_event = on_event,
                            .context = &o};
    request_stop stop = {.text = (char *)options.stop, .text_bytes = options.stop != NULL ? strlen(options.stop) : 0};
    writer w = {.has_stop = options.stop != NULL};
    o.tokens = malloc((o.capacity + 1) * sizeof(*o.tokens));
    hd_status status = o.tokens != NULL ? text_stream_open(n->text, true, &w.stream) : HD_NO_MEMORY;
    if (status == HD_OK && w.has_stop) status = stop_set_init(&w.stops, &stop, 1);
    if (status != HD_OK)
        hd_error_set(error, status, "no memory for an answer of %llu tokens", (unsigned long long)max_tokens);
    if (status == HD_OK) {
        stop_matcher_init(&w.matcher, &w.stops);
        uint64_t start = hd_now_ns();
        status = rpc->ops->submit(rpc, &asked, error);
        if (status == HD_OK) {
            status = write_answer(n, asked.id, &o, &w, error);
            if (status == HD_OK) log_figures(&o, id_count, start, w.is_stopped);
        }
    }
    stop_set_fini(&w.stops);
    text_stream_close(w.stream);
    free(o.tokens);
    return status;
}

static hd_status check_options(const cli_arguments *arguments, hd_error *error) {
    if (options.prompt_file == NULL) return hd_error_set(error, HD_INVALID, "--prompt-file is missing");
    if (cli_is_set(arguments, "max-tokens") && options.max_tokens == 0)
        return hd_error_set(error, HD_INVALID, "--max-tokens must be at least 1");
    if (options.temperature < 0) return hd_error_set(error, HD_INVALID, "--temperature must be at least 0");
    if (cli_is_set(arguments, "top-p") && !(options.top_p > 0 && options.top_p <= 1))
        return hd_error_set(error, HD_INVALID, "--top-p must be above 0 and at most 1");
    if (!(options.min_p >= 0 && options.min_p <= 1))
        return hd_error_set(error, HD_INVALID, "--min-p must be between 0 and 1");
    if (cli_is_set(arguments, "repetition-penalty") && options.repetition_penalty <= 0)
        return hd_error_set(error, HD_INVALID, "--repetition-penalty must be above 0");
    if (options.top_k > UINT32_MAX) return hd_error_set(error, HD_INVALID, "--top-k is too large");
    size_t stop_bytes = options.stop != NULL ? strlen(options.stop) : 1;
    if (stop_bytes == 0 || stop_bytes >= REQUEST_STOP_BYTES_MAX)
        return hd_error_set(error, HD_INVALID, "--stop must have 1 to %u bytes", REQUEST_STOP_BYTES_MAX - 1);
    return HD_OK;
}

static cli_exit generate_run(const cli_command *command, const cli_arguments *arguments) {
    hd_error error = {{0}};
    node_settings settings;
    options.node.model_directory = arguments->positionals[0];
    if (check_options(arguments, &error) != HD_OK || node_options_check(&options.node, &settings, &error) != HD_OK)
        return cli_misuse(command, &error);
    settings.takes_device = true;

    char *text = NULL;
    size_t text_bytes = 0;
    if (read_prompt(options.prompt_file, &text, &text_bytes, &error) != HD_OK) return cli_fail(&error);
    node n;
    if (node_open(&options.node, &settings, true, &n, &error) != HD_OK) {
        free(text);
        return cli_fail(&error);
    }
    uint32_t *ids = NULL;
    size_t id_count = 0;
    hd_status status = encode_prompt(&n, text, text_bytes, &ids, &id_count, &error);
    if (status == HD_OK) status = node_start(&options.node, &n, &error);
    if (status == HD_OK) status = answer(&n, arguments, ids, id_count, &error);
    free(ids);
    node_close(&n, 0);
    return status == HD_OK ? CLI_DONE : cli_fail(&error);
}

const cli_command generate_command = {
    .name = "generate",
    .arguments = "MODEL_DIR",
    .summary = "continue a prompt from a file, without a server",
    .details =
        "Loads the model directory, continues the prompt in --prompt-file, writes the text to standard output as it\n"
        "comes and the figures to standard error.\n"
        "    hadal generate ./Llama-3.2-1B --prompt-file prompt.txt --max-tokens 200\n",
    .positionals_min = 1,
    .positionals_max = 1,
    .flags = generate_flags,
    .run = generate_run,
};
