/* selection_auto.c - full where it is affordable, decided by the length of the request alone. */
#include <stdio.h>
#include <string.h>

#include "attention-node/selection.h"

hd_status selection_resolve(const char *text, uint64_t tokens, uint64_t full_up_to, char out[SELECTION_TEXT_BYTES],
                            hd_error *error) {
    size_t auto_bytes = strlen(SELECTION_AUTO);
    bool is_auto =
        strncmp(text, SELECTION_AUTO, auto_bytes) == 0 && (text[auto_bytes] == '\0' || text[auto_bytes] == ',');
    int written;
    if (!is_auto) written = snprintf(out, SELECTION_TEXT_BYTES, "%s", text);
    else if (tokens <= full_up_to) written = snprintf(out, SELECTION_TEXT_BYTES, "%s", selection_ops_full()->name);
    else written = snprintf(out, SELECTION_TEXT_BYTES, "%s%s", selection_ops_retrieval()->name, text + auto_bytes);
    if (written >= (int)SELECTION_TEXT_BYTES)
        return hd_error_set(error, HD_INVALID, "a selection has at most %u characters", SELECTION_TEXT_BYTES - 10);
    return HD_OK;
}
