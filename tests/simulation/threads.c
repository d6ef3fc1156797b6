/* threads.c - what the linker puts in the place of pthreads, clocks and randomness (-Wl,--wrap, CMakeLists.txt).
 *
 * A mutex is its first word: the number of the task that has it. Conditions have no state of their own: who waits for
 * one waits for its address. */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/simulation/machine.h"

#define PASS_AT_LOCK 8u
#define SPURIOUS 64u /* waits for a condition that end for no reason, one in so many */
#define CLOCK_READ_NS 40u

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *context);
int __wrap_pthread_join(pthread_t thread, void **result);
pthread_t __wrap_pthread_self(void);
int __wrap_pthread_setname_np(pthread_t thread, const char *name);
int __wrap_pthread_sigmask(int how, const sigset_t *set, sigset_t *before);
int __wrap_pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes);
int __wrap_pthread_mutex_destroy(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex);
int __wrap_pthread_cond_init(pthread_cond_t *condition, const pthread_condattr_t *attributes);
int __wrap_pthread_cond_destroy(pthread_cond_t *condition);
int __wrap_pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex);
int __wrap_pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until);
int __wrap_pthread_cond_signal(pthread_cond_t *condition);
int __wrap_pthread_cond_broadcast(pthread_cond_t *condition);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now);
int __wrap_nanosleep(const struct timespec *time, struct timespec *left);
int __wrap_usleep(useconds_t time_us);
void __wrap_randombytes_buf(void *bytes, size_t count);
char *__wrap_mkdtemp(char *path);
int __wrap_madvise(void *address, size_t bytes, int advice);

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *context) {
    *thread = machine_spawn(machine_current(), run, context);
    machine_pass(2);
    return 0;
}

int __wrap_pthread_join(pthread_t thread, void **result) {
    assert(result == NULL);
    while (!machine_task_has_ended(thread)) machine_wait((const void *)thread, MACHINE_NEVER);
    return 0;
}

pthread_t __wrap_pthread_self(void) {
    return machine_task();
}

int __wrap_pthread_setname_np(pthread_t thread, const char *name) {
    return 0;
}

int __wrap_pthread_sigmask(int how, const sigset_t *set, sigset_t *before) {
    return 0;
}

static unsigned long *owner_of(pthread_mutex_t *mutex) {
    return (unsigned long *)mutex;
}

int __wrap_pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes) {
    memset(mutex, 0, sizeof(*mutex));
    return 0;
}

int __wrap_pthread_mutex_destroy(pthread_mutex_t *mutex) {
    assert(*owner_of(mutex) == 0);
    return 0;
}

int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex) {
    machine_pass(PASS_AT_LOCK);
    assert(*owner_of(mutex) != machine_task());
    while (*owner_of(mutex) != 0) machine_wait(mutex, MACHINE_NEVER);
    *owner_of(mutex) = machine_task();
    return 0;
}

int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex) {
    assert(*owner_of(mutex) == machine_task());
    *owner_of(mutex) = 0;
    machine_wake(mutex, false);
    machine_pass(PASS_AT_LOCK);
    return 0;
}

int __wrap_pthread_cond_init(pthread_cond_t *condition, const pthread_condattr_t *attributes) {
    return 0;
}

int __wrap_pthread_cond_destroy(pthread_cond_t *condition) {
    return 0;
}

static int wait_for(pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t deadline_ns) {
    assert(*owner_of(mutex) == machine_task());
    *owner_of(mutex) = 0;
    machine_wake(mutex, false);
    bool was_woken = true;
    if (dice_one_in(&the_machine.dice, SPURIOUS)) machine_pass(1);
    else was_woken = machine_wait(condition, deadline_ns);
    while (*owner_of(mutex) != 0) machine_wait(mutex, MACHINE_NEVER);
    *owner_of(mutex) = machine_task();
    return was_woken ? 0 : ETIMEDOUT;
}

int __wrap_pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex) {
    return wait_for(condition, mutex, MACHINE_NEVER);
}

int __wrap_pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until) {
    return wait_for(condition, mutex, (uint64_t)until->tv_sec * MACHINE_S + (uint64_t)until->tv_nsec);
}

int __wrap_pthread_cond_signal(pthread_cond_t *condition) {
    machine_wake(condition, false);
    return 0;
}

int __wrap_pthread_cond_broadcast(pthread_cond_t *condition) {
    machine_wake(condition, true);
    return 0;
}

/* Whoever looks at the clock until it says something gets there. */
int __wrap_clock_gettime(clockid_t clock, struct timespec *now) {
    the_machine.now_ns += CLOCK_READ_NS;
    *now = (struct timespec){.tv_sec = (time_t)(the_machine.now_ns / MACHINE_S),
                             .tv_nsec = (long)(the_machine.now_ns % MACHINE_S)};
    return 0;
}

static void sleep_for(uint64_t time_ns) {
    machine_wait(&time_ns, the_machine.now_ns + time_ns); /* nobody wakes that */
}

int __wrap_nanosleep(const struct timespec *time, struct timespec *left) {
    sleep_for((uint64_t)time->tv_sec * MACHINE_S + (uint64_t)time->tv_nsec);
    return 0;
}

int __wrap_usleep(useconds_t time_us) {
    sleep_for(time_us * 1000ull);
    return 0;
}

void __wrap_randombytes_buf(void *bytes, size_t count) {
    for (size_t i = 0; i < count; i++) ((unsigned char *)bytes)[i] = (unsigned char)dice_next(&the_machine.dice);
}

/* A coordinator unpacks the tokenizer's files there, and there are none. */
char *__wrap_mkdtemp(char *path) {
    return path;
}

/* Huge pages cost more to clear than a scene uses. */
int __wrap_madvise(void *address, size_t bytes, int advice) {
    return 0;
}
