/* machine.h - the simulated cluster's processors: processes, their threads, and time.
 *
 * Every thread of the product's code is a task with a stack of its own, and exactly one runs at a time. It runs until
 * it waits, or comes to a place where another one may go first (locks, sends, polls); which one goes on, and how much
 * time has passed, the dice say. So a run is a function of its seed, and other seeds are other interleavings. Time
 * passes only where somebody waits, and a little at each switch.
 *
 * A process that is killed is never run again, in the middle of whatever it did; its memory stays where it is until the
 * program ends, since nobody can tell what of it was whose.
 * Threads: one kernel thread. */
#ifndef TESTS_SIMULATION_MACHINE_H
#define TESTS_SIMULATION_MACHINE_H

#include <stddef.h>

#include "tests/simulation/dice.h"

#define MACHINE_NEVER UINT64_MAX
#define MACHINE_MS 1000000ull
#define MACHINE_S 1000000000ull

typedef struct process {
    char name[24];
    unsigned index; /* of the machine's processes, in the order in which they began */
    bool is_dead;
    uint64_t frozen_until_ns; /* stopped, as by SIGSTOP: no task of it runs before */
} process;

typedef struct machine {
    uint64_t now_ns;
    dice dice; /* of schedules and of everything that takes its time */
    bool is_verbose;
    char failure[512]; /* "": none so far */
} machine;
extern machine the_machine;

void machine_init(uint64_t seed, bool is_verbose);

process *machine_process(const char *name); /* begins one, without a task; lives as long as the machine */
/* A task of the process; its number. From anywhere. */
unsigned long machine_spawn(process *p, void *(*run)(void *context), void *context);
void machine_kill(process *p);    /* from an event only, never by itself */
process *machine_current(void);   /* whose task is running; NULL in an event */
unsigned long machine_task(void); /* its number; 0 in an event */
bool machine_task_has_ended(unsigned long number);

/* An event: run(context) outside of every task, at that time or as soon as it is over. */
void machine_at(uint64_t time_ns, void (*run)(void *context), void *context);
/* What an event is about may be woken by its address. False: the deadline has come first. */
bool machine_wait(const void *object, uint64_t deadline_ns);
void machine_wake(const void *object, bool all); /* else one of those who wait, whichever */
/* Somebody else may go first, once in so many times. Nothing in an event. */
void machine_pass(unsigned one_in);

/* Runs until the condition holds, which is asked between two tasks. False: the time has come first, or something has
 * failed. Outside of tasks. */
bool machine_run(bool (*is_done)(void *context), void *context, uint64_t until_ns);

/* What must not be. The first one is kept, and ends machine_run. */
void machine_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* A line of the story, where somebody reads it. */
void machine_tell(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
