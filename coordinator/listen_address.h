/* listen_address.h - HOST:PORT, as --listen takes it, and the socket that listens there.
 *
 * HOST is a name, an IPv4 address or an IPv6 address in brackets; port 0 lets the system choose.
 * Threads: no state. */
#ifndef COORDINATOR_LISTEN_ADDRESS_H
#define COORDINATOR_LISTEN_ADDRESS_H

#include <stdbool.h>

#include "base/status.h"

#define LISTEN_ADDRESS_BYTES 80u

/* Opens a listening, non-blocking socket. bound gets the numeric address with the real port ("127.0.0.1:41873").
 * is_loopback: only this machine can reach it. The caller closes *listener. */
hd_status listen_address_open(const char *address, bool must_be_loopback, int *listener,
                              char bound[LISTEN_ADDRESS_BYTES], hd_error *error);

#endif
