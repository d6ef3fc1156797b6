/* main.c - many seeds, each in a process of its own, so that none knows of another; or one seed, told in full. */
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "tests/simulation/catalog.h"
#include "tests/simulation/scene.h"
#include "tests/simulation/tiny_model.h"

#define SEED_SECONDS 60u /* of one seed, before it hangs */
#define JOBS_MAX 64u

int __real_clock_gettime(clockid_t clock, struct timespec *now);

static uint64_t takeovers, moves; /* that routers and workers have logged */

/* The product's own lines join the story. */
void hd_log_set_level(hd_log_level minimum) {}

void hd_log(hd_log_level level, const char *event, const char *pairs_format, ...) {
    takeovers += strcmp(event, "takeover") == 0;
    moves += strcmp(event, "row_moved") == 0 || strcmp(event, "row_replicated") == 0;
    if (!the_machine.is_verbose) return;
    char pairs[1024];
    va_list arguments;
    va_start(arguments, pairs_format);
    vsnprintf(pairs, sizeof(pairs), pairs_format, arguments);
    va_end(arguments);
    machine_tell("%s %s", event, pairs);
}

const char *hd_log_quote(const char *text, char *buffer, unsigned long buffer_bytes) {
    snprintf(buffer, buffer_bytes, "'%s'", text);
    return buffer;
}

static double seconds(void) {
    struct timespec now;
    __real_clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

typedef struct board { /* shared by the processes */
    _Atomic uint64_t next_seed, done, failed;
    bool keeps_going;
    uint64_t failed_seed;
    char failure[512];
    _Atomic uint64_t sums[sizeof(scene_counts) / sizeof(uint64_t)];
    char failures[JOBS_MAX][512]; /* a job's seed in hand */
} board;

static board *shared;

static void run_one(uint64_t seed, unsigned job) {
    scene_counts counts = {0};
    alarm(SEED_SECONDS);
    scene_run(seed, false, &counts);
    counts.takeovers = takeovers;
    counts.moves = moves;
    snprintf(shared->failures[job], sizeof(shared->failures[job]), "%s", the_machine.failure);
    const uint64_t *values = (const uint64_t *)&counts;
    for (size_t i = 0; i < sizeof(counts) / sizeof(uint64_t); i++) atomic_fetch_add(&shared->sums[i], values[i]);
    _exit(0);
}

static void report(uint64_t seed, const char *failure) {
    if (shared->keeps_going) fprintf(stderr, "seed %" PRIu64 " FAILED: %s\n", seed, failure);
    if (atomic_fetch_add(&shared->failed, 1) > 0) return;
    shared->failed_seed = seed;
    snprintf(shared->failure, sizeof(shared->failure), "%s", failure);
}

/* Seeds until there are no more, or one has failed. */
static void run_job(unsigned job, uint64_t end) {
    for (uint64_t seed; shared->keeps_going || atomic_load(&shared->failed) == 0;) {
        if ((seed = atomic_fetch_add(&shared->next_seed, 1)) >= end) return;
        shared->failures[job][0] = '\0';
        pid_t child = fork();
        if (child == 0) run_one(seed, job);
        int status = 0;
        waitpid(child, &status, 0);
        char text[64];
        snprintf(text, sizeof(text), "it ended by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
        if (WIFSIGNALED(status)) report(seed, text);
        else if (shared->failures[job][0] != '\0') report(seed, shared->failures[job]);
        atomic_fetch_add(&shared->done, 1);
    }
}

static int run_seeds(const char *program, uint64_t first, uint64_t count, unsigned jobs, bool must_fail,
                     bool keeps_going) {
    double begin = seconds();
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) return 1;
    shared->next_seed = first;
    shared->keeps_going = keeps_going;
    fflush(NULL);
    for (unsigned job = 0; job < jobs; job++) {
        if (fork() != 0) continue;
        run_job(job, first + count);
        _exit(0);
    }
    while (wait(NULL) > 0) {}
    const scene_counts *sums = (const scene_counts *)shared->sums;
    struct rusage usage;
    getrusage(RUSAGE_CHILDREN, &usage);
    double used = (double)usage.ru_utime.tv_sec + (double)usage.ru_stime.tv_sec +
                  (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    printf("%" PRIu64 " seeds in %.1f s, %.1f ms of CPU each: %" PRIu64 " requests, %" PRIu64 " tokens, %" PRIu64
           " steps of nodes, %" PRIu64 " messages, %.0f simulated seconds\n"
           "%" PRIu64 " kills, %" PRIu64 " partitions, %" PRIu64 " freezes, %" PRIu64 " drains; %" PRIu64
           " takeovers, %" PRIu64 " rows moved or copied, %" PRIu64 " calls of older epochs refused\n",
           shared->done, seconds() - begin, 1000 * used / (double)(shared->done + (shared->done == 0)), sums->requests,
           sums->tokens, sums->steps, sums->messages, (double)sums->simulated_ns / 1e9, sums->kills, sums->cuts,
           sums->freezes, sums->drains, sums->takeovers, sums->moves, sums->refused);
    if (shared->failed == 0) return must_fail;
    printf("seed %" PRIu64 " FAILED: %s\nreplay: %s --seed %" PRIu64 "\n", shared->failed_seed, shared->failure,
           program, shared->failed_seed);
    return !must_fail;
}

static int tell_seed(uint64_t seed) {
    scene_counts counts = {0};
    scene_run(seed, true, &counts);
    if (the_machine.failure[0] == '\0') printf("seed %" PRIu64 ": ok\n", seed);
    else printf("seed %" PRIu64 " FAILED: %s\n", seed, the_machine.failure);
    return the_machine.failure[0] != '\0';
}

int main(int count, char **arguments) {
    uint64_t first = 1, seeds = 10000, jobs = (uint64_t)sysconf(_SC_NPROCESSORS_ONLN), one = 0;
    bool has_one = false, must_fail = false, keeps_going = false;
    for (int i = 1; i < count; i += 2) {
        bool has_value = i + 1 < count;
        bool is_must_fail = strcmp(arguments[i], "--must-fail") == 0;
        if (is_must_fail || strcmp(arguments[i], "--keep-going") == 0) {
            *(is_must_fail ? &must_fail : &keeps_going) = true;
            i--;
            continue;
        }
        uint64_t value = has_value ? strtoull(arguments[i + 1], NULL, 10) : 0;
        if (has_value && strcmp(arguments[i], "--seeds") == 0) seeds = value;
        else if (has_value && strcmp(arguments[i], "--first") == 0) first = value;
        else if (has_value && strcmp(arguments[i], "--jobs") == 0) jobs = value;
        else if (has_value && strcmp(arguments[i], "--seed") == 0) one = value, has_one = true;
        else {
            fprintf(stderr,
                    "usage: %s [--seeds N] [--first SEED] [--jobs N] [--keep-going] [--must-fail] | --seed SEED\n",
                    arguments[0]);
            return 2;
        }
    }
    tiny_model_init();
    if (!catalog_make(&scene_widest)) {
        printf("the catalogue FAILED: %s\n", the_machine.failure);
        return 1;
    }
    if (jobs == 0 || jobs > JOBS_MAX) jobs = jobs == 0 ? 1 : JOBS_MAX;
    return has_one ? tell_seed(one) : run_seeds(arguments[0], first, seeds, (unsigned)jobs, must_fail, keeps_going);
}
