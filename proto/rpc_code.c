/* rpc_code.c - gRPC's codes as ours, and back. */
#include <grpc/status.h>

#include "proto/rpc.h"

static const struct {
    grpc_status_code code;
    hd_status status;
} codes[] = {
    {GRPC_STATUS_OK, HD_OK},
    {GRPC_STATUS_RESOURCE_EXHAUSTED, HD_FULL},
    {GRPC_STATUS_RESOURCE_EXHAUSTED, HD_NO_MEMORY},
    {GRPC_STATUS_ABORTED, HD_STALE},
    {GRPC_STATUS_FAILED_PRECONDITION, HD_STALE},
    {GRPC_STATUS_INVALID_ARGUMENT, HD_INVALID},
    {GRPC_STATUS_UNAUTHENTICATED, HD_INVALID},
    {GRPC_STATUS_PERMISSION_DENIED, HD_INVALID},
    {GRPC_STATUS_OUT_OF_RANGE, HD_INVALID},
    {GRPC_STATUS_ALREADY_EXISTS, HD_INVALID},
    {GRPC_STATUS_UNIMPLEMENTED, HD_UNSUPPORTED},
    {GRPC_STATUS_NOT_FOUND, HD_NOT_FOUND},
    {GRPC_STATUS_CANCELLED, HD_CANCELLED},
    {GRPC_STATUS_DEADLINE_EXCEEDED, HD_TIMED_OUT},
    {GRPC_STATUS_UNAVAILABLE, HD_PEER_LOST},
    {GRPC_STATUS_INTERNAL, HD_IO},
    {GRPC_STATUS_DATA_LOSS, HD_CORRUPT},
};
#define CODE_COUNT (sizeof(codes) / sizeof(codes[0]))

hd_status rpc_status_of_code(int code) {
    for (size_t i = 0; i < CODE_COUNT; i++) {
        if ((int)codes[i].code == code) return codes[i].status;
    }
    return HD_IO;
}

int rpc_code_of_status(hd_status status) {
    for (size_t i = 0; i < CODE_COUNT; i++) {
        if (codes[i].status == status) return (int)codes[i].code;
    }
    return GRPC_STATUS_UNKNOWN;
}
