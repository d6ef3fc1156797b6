/* worker_messages.h - worker_rpc's structs as the messages of worker.proto, and back.
 *
 * Decoding checks what the struct promises (lengths, counts), not what the request asks for; that is the worker's.
 * Threads: pure functions. */
#ifndef PROTO_WORKER_MESSAGES_H
#define PROTO_WORKER_MESSAGES_H

#include "proto/rpc.h"
#include "proto/worker.pb-c.h"
#include "proto/worker_rpc.h"

#define WORKER_SESSION_METHOD "/hadal.Worker/Session"
#define WORKER_DESCRIBE_METHOD "/hadal.Worker/Describe"

/* Sends the request as an order under the session's id. */
hd_status worker_submit_send(rpc_stream *stream, const worker_request *request, uint64_t id);

/* A request out of a message, whose memory it borrows; answers and logit_bias are malloc'ed and freed by
 * worker_submit_fini. on_event, context and id are the caller's to set. */
hd_status worker_submit_decode(const Hadal__Submit *submit, worker_request *request, hd_error *error);
void worker_submit_fini(worker_request *request);

/* A report with one event, packed. Reports put one behind the other are one report of all. Returns the bytes that it
 * needs; nothing is written where capacity is less. */
size_t worker_event_pack(const worker_event *event, uint64_t id, unsigned char *bytes, size_t capacity);
/* The event borrows the message; logprobs point into it. HD_CORRUPT for what cannot be one. */
hd_status worker_event_decode(const Hadal__Event *message, worker_event *event);

/* The info's texts and ids are the message's. */
void worker_info_decode(const Hadal__Description *message, worker_info *info);

void worker_load_encode(const worker_load *load, Hadal__Load *message);
void worker_load_decode(const Hadal__Load *message, worker_load *load);

#endif
