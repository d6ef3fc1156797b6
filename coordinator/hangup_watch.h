/* hangup_watch.h - tells at once when the peer of a socket has gone, also while nothing is read from or written to it.
 *
 * libmicrohttpd does not look at a suspended connection, and a request that waits for its answer is one. So the sockets
 * of such requests are also in an epoll set of our own that asks for nothing but the peer's end (EPOLLRDHUP: its half
 * of the connection is closed, or all of it). A client that closes only its sending half counts as gone, as with most
 * proxies.
 *     FREE --add--> WATCHED --the peer ends--> on_hangup, once --> WATCHED, silent --remove--> FREE
 * Threads: add and remove from any; on_hangup runs on the watch's own thread, under its lock: after remove has
 * returned, it neither runs nor will. */
#ifndef COORDINATOR_HANGUP_WATCH_H
#define COORDINATOR_HANGUP_WATCH_H

#include <stdint.h>

#include "base/status.h"

typedef struct hangup_watch hangup_watch;
typedef struct hangup_ticket {
    uint32_t slot, generation; /* generation 0: nothing is watched */
} hangup_ticket;

/* entries_max sockets at once. */
hd_status hangup_watch_open(uint32_t entries_max, hangup_watch **watch);
void hangup_watch_close(hangup_watch *watch); /* accepts NULL */
/* HD_FULL: entries_max are watched. Also turns on TCP keep-alive, so that a peer that lost its power is found in a
 * minute. */
hd_status hangup_watch_add(hangup_watch *watch, int fd, void (*on_hangup)(void *context), void *context,
                           hangup_ticket *ticket);
void hangup_watch_remove(hangup_watch *watch, int fd,
                         hangup_ticket *ticket); /* before the socket is closed; accepts generation 0 */

#endif
