/* machine.c - tasks on stacks of their own, and a heap of events.
 *
 * A task is entered by setcontext once and from then on by longjmp, which makes no system call. */
#include "tests/simulation/machine.h"

#include <assert.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#define STACK_BYTES ((size_t)256 << 10)
#define TASKS_MAX 256u
#define PROCESSES_MAX 64u
#define SWITCH_NS_MAX 2000u /* what a turn of a task takes, at most */

typedef enum { TASK_FREE, TASK_READY, TASK_WAITING } task_state;

typedef struct task {
    task_state state;
    bool has_begun, was_woken;
    unsigned long number;
    process *process;
    void *(*run)(void *context);
    void *context;
    const void *object; /* that it waits for */
    uint64_t deadline_ns;
    void *stack;
    ucontext_t entry;
    jmp_buf place;
} task;

typedef struct event {
    uint64_t time_ns, order;
    void (*run)(void *context);
    void *context;
} event;

machine the_machine;

static struct {
    task tasks[TASKS_MAX];
    unsigned task_count; /* places ever used */
    unsigned long next_number;
    task *current;
    jmp_buf between;
    process processes[PROCESSES_MAX];
    unsigned process_count;
    event *events; /* a heap */
    size_t event_count, event_room;
    uint64_t next_order;
} m;

void machine_init(uint64_t seed, bool is_verbose) {
    the_machine = (machine){.now_ns = 1000 * MACHINE_S, .dice = {dice_mix(seed + 1)}, .is_verbose = is_verbose};
    memset(&m, 0, sizeof(m)); /* stacks of an earlier machine stay mapped */
    m.next_number = 1;
}

/* ---- What happened ---- */

void machine_fail(const char *format, ...) {
    if (the_machine.failure[0] != '\0') return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(the_machine.failure, sizeof(the_machine.failure), format, arguments);
    va_end(arguments);
    machine_tell("FAILED: %s", the_machine.failure);
}

void machine_tell(const char *format, ...) {
    if (!the_machine.is_verbose) return;
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "%12.6f %-14s ", (double)(the_machine.now_ns - 1000 * MACHINE_S) / 1e9,
            m.current != NULL ? m.current->process->name : "-");
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

/* ---- Processes and tasks ---- */

process *machine_process(const char *name) {
    assert(m.process_count < PROCESSES_MAX);
    process *p = &m.processes[m.process_count];
    p->index = m.process_count++;
    snprintf(p->name, sizeof(p->name), "%s", name);
    return p;
}

static void leave(void) {
    if (_setjmp(m.current->place) == 0) _longjmp(m.between, 1);
}

static void begin(void) {
    m.current->run(m.current->context);
    m.current->state = TASK_FREE;
    machine_wake((const void *)m.current->number, true);
    _longjmp(m.between, 1);
}

static void prepare(task *t) {
    getcontext(&t->entry);
    t->entry.uc_stack.ss_sp = t->stack;
    t->entry.uc_stack.ss_size = STACK_BYTES;
    t->entry.uc_link = NULL;
    makecontext(&t->entry, begin, 0);
}

unsigned long machine_spawn(process *p, void *(*run)(void *context), void *context) {
    task *t = NULL;
    for (unsigned i = 0; i < m.task_count && t == NULL; i++) {
        if (m.tasks[i].state == TASK_FREE) t = &m.tasks[i];
    }
    if (t == NULL) {
        assert(m.task_count < TASKS_MAX);
        t = &m.tasks[m.task_count++];
        t->stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        assert(t->stack != MAP_FAILED);
    }
    t->state = TASK_READY;
    t->has_begun = false;
    t->number = m.next_number++;
    t->process = p;
    t->run = run;
    t->context = context;
    prepare(t);
    return t->number;
}

void machine_kill(process *p) {
    assert(m.current == NULL);
    p->is_dead = true;
    for (unsigned i = 0; i < m.task_count; i++) {
        if (m.tasks[i].process == p) m.tasks[i].state = TASK_FREE;
    }
}

process *machine_current(void) {
    return m.current != NULL ? m.current->process : NULL;
}

unsigned long machine_task(void) {
    return m.current != NULL ? m.current->number : 0;
}

bool machine_task_has_ended(unsigned long number) {
    for (unsigned i = 0; i < m.task_count; i++) {
        if (m.tasks[i].number == number) return m.tasks[i].state == TASK_FREE;
    }
    return true;
}

/* ---- Waiting ---- */

bool machine_wait(const void *object, uint64_t deadline_ns) {
    task *t = m.current;
    assert(t != NULL);
    t->state = TASK_WAITING;
    t->object = object;
    t->deadline_ns = deadline_ns;
    t->was_woken = false;
    leave();
    return m.current->was_woken;
}

static void make_ready(task *t, bool was_woken) {
    t->state = TASK_READY;
    t->was_woken = was_woken;
}

void machine_wake(const void *object, bool all) {
    unsigned count = 0;
    task *chosen = NULL;
    for (unsigned i = 0; i < m.task_count; i++) {
        task *t = &m.tasks[i];
        if (t->state != TASK_WAITING || t->object != object) continue;
        if (all) make_ready(t, true);
        else if (dice_one_in(&the_machine.dice, ++count)) chosen = t;
    }
    if (chosen != NULL) make_ready(chosen, true);
}

void machine_pass(unsigned one_in) {
    if (m.current != NULL && dice_one_in(&the_machine.dice, one_in)) leave();
}

/* ---- Events ---- */

static bool is_before(const event *a, const event *b) {
    return a->time_ns != b->time_ns ? a->time_ns < b->time_ns : a->order < b->order;
}

void machine_at(uint64_t time_ns, void (*run)(void *context), void *context) {
    if (m.event_count == m.event_room) {
        m.event_room = m.event_room * 2 + 1024;
        m.events = realloc(m.events, m.event_room * sizeof(event));
        assert(m.events != NULL);
    }
    event added = {time_ns, m.next_order++, run, context};
    size_t at = m.event_count++;
    for (; at > 0 && is_before(&added, &m.events[(at - 1) / 2]); at = (at - 1) / 2)
        m.events[at] = m.events[(at - 1) / 2];
    m.events[at] = added;
}

static event take_event(void) {
    event first = m.events[0], last = m.events[--m.event_count];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < m.event_count; at = child) {
        if (child + 1 < m.event_count && is_before(&m.events[child + 1], &m.events[child])) child++;
        if (!is_before(&m.events[child], &last)) break;
        m.events[at] = m.events[child];
    }
    if (m.event_count > 0) m.events[at] = last;
    return first;
}

/* ---- Turns ---- */

static void enter(task *t) {
    m.current = t;
    if (_setjmp(m.between) == 0) {
        if (t->has_begun) _longjmp(t->place, 1);
        t->has_begun = true;
        setcontext(&t->entry);
    }
    m.current = NULL;
    the_machine.now_ns += dice_below(&the_machine.dice, SWITCH_NS_MAX);
}

/* One of those that can run now; *next_ns: when another one can. */
static task *choose(uint64_t *next_ns) {
    task *chosen = NULL;
    unsigned count = 0;
    *next_ns = MACHINE_NEVER;
    for (unsigned i = 0; i < m.task_count; i++) {
        task *t = &m.tasks[i];
        if (t->state == TASK_FREE) continue;
        if (t->state == TASK_WAITING && t->deadline_ns <= the_machine.now_ns) make_ready(t, false);
        uint64_t ready_ns = t->state == TASK_READY ? the_machine.now_ns : t->deadline_ns;
        if (ready_ns < t->process->frozen_until_ns) ready_ns = t->process->frozen_until_ns;
        if (ready_ns > the_machine.now_ns) {
            if (ready_ns < *next_ns) *next_ns = ready_ns;
        } else if (dice_one_in(&the_machine.dice, ++count)) {
            chosen = t;
        }
    }
    return chosen;
}

bool machine_run(bool (*is_done)(void *context), void *context, uint64_t until_ns) {
    while (the_machine.failure[0] == '\0') {
        while (m.event_count > 0 && m.events[0].time_ns <= the_machine.now_ns) {
            event due = take_event();
            due.run(due.context);
        }
        if (is_done(context)) return true;
        if (the_machine.now_ns >= until_ns) return false;
        uint64_t next_ns;
        task *t = choose(&next_ns);
        if (t != NULL) {
            enter(t);
            continue;
        }
        if (m.event_count > 0 && m.events[0].time_ns < next_ns) next_ns = m.events[0].time_ns;
        the_machine.now_ns = next_ns < until_ns ? next_ns : until_ns;
    }
    return false;
}
