/* delay_relay.h - a wire with a distance: a port on loopback that passes everything on to another one, each way a fixed
 * time later, in order. What netem does to an interface, without an interface or the right to change one.
 *
 * Delay alone: bandwidth is what two copies through this process give. A direction holds at most DELAY_RELAY_BYTES;
 * when it is full, its sender waits.
 * Threads: open and close from one; a thread of its own passes on. */
#ifndef BENCH_DELAY_RELAY_H
#define BENCH_DELAY_RELAY_H

#include <stdint.h>

#include "base/status.h"

#define DELAY_RELAY_BYTES (4u << 20)

typedef struct delay_relay delay_relay;

/* target: 127.0.0.1:PORT. */
hd_status delay_relay_open(const char *target, uint64_t delay_ns, delay_relay **out, hd_error *error);
const char *delay_relay_address(const delay_relay *relay);
void delay_relay_close(delay_relay *relay); /* with every connection; accepts NULL */

#endif
