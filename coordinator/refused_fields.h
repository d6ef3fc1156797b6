/* refused_fields.h - fields that would change the answer and that this server does not act on.
 *
 * Ignoring one silently would give an answer that the client did not ask for, so it is refused by name, except with a
 * value that asks for nothing (as clients send that write out every default).
 * Threads: no state. */
#ifndef COORDINATOR_REFUSED_FIELDS_H
#define COORDINATOR_REFUSED_FIELDS_H

#include "coordinator/body_fields.h"
#include "coordinator/request.h"

void refused_fields_check(body_fields *fields, request_kind kind);

#endif
