/* signals.h - what SIGTERM and SIGINT do while a server runs.
 *
 *   LOADING --SIGTERM or SIGINT--> the process ends at once, with code 0: nothing runs yet that would have to finish
 *   LOADING --signals_hold--> SERVING --first signal--> signals_wait returns --second signal--> the process ends at
 *   once, with code 1
 *
 * SIGPIPE is ignored from the start: a client that went away is an error of its write.
 * Threads: the main thread; the handler may run on any. */
#ifndef CLI_SIGNALS_H
#define CLI_SIGNALS_H

void signals_open(
    void); /* once, before other threads start; SIGTERM and SIGINT keep their default until signals_load */
void signals_load(void);        /* LOADING */
void signals_hold(void);        /* SERVING */
const char *signals_wait(void); /* the first signal's name, once it has come */

#endif
