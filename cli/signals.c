/* signals.c - the handler only posts a semaphore or ends the process; both are safe there. */
#include "cli/signals.h"

#include <errno.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <unistd.h>

static sem_t arrived;
static _Atomic bool is_serving;
static _Atomic int first_signal;

static void on_signal(int number) {
    static const char second_text[] = "hadal: a second signal; ending at once\n";
    int saved = errno, none = 0;
    if (!atomic_load(&is_serving)) _exit(0);
    if (atomic_compare_exchange_strong(&first_signal, &none, number)) {
        sem_post(&arrived);
    } else {
        ssize_t written = write(STDERR_FILENO, second_text, sizeof(second_text) - 1);
        (void)written; /* the process ends whether or not anybody reads why */
        _exit(1);
    }
    errno = saved;
}

void signals_open(void) {
    signal(SIGPIPE, SIG_IGN);
}

void signals_load(void) {
    sem_init(&arrived, 0, 0);
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
}

void signals_hold(void) {
    atomic_store(&is_serving, true);
}

const char *signals_wait(void) {
    while (sem_wait(&arrived) != 0 && errno == EINTR) continue;
    return atomic_load(&first_signal) == SIGINT ? "SIGINT" : "SIGTERM";
}
