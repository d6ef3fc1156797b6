/* ops.c - the list of tables, and the choice that is made once at start. */
#include "kernels/ops.h"

#include <stdio.h>
#include <stdlib.h>

#include "kernels/cpu/tables.h"

static const kernel_ops *const known[] = {
    &kernel_cpu_portable,
#if defined(__x86_64__)
    &kernel_cpu_avx2,     &kernel_cpu_avx512, &kernel_cpu_avx512bf16, &kernel_cpu_amx,
#endif
};
enum { KNOWN_COUNT = sizeof(known) / sizeof(known[0]) };

const kernel_ops *kernel_ops_portable(void) {
    return &kernel_cpu_portable;
}

size_t kernel_ops_list(const kernel_ops *const **tables) {
    *tables = known;
    return KNOWN_COUNT;
}

static hd_status refuse(const char *name, const char *why, hd_error *error) {
    char names[128] = "";
    for (size_t i = 0; i < KNOWN_COUNT; i++) {
        if (!known[i]->is_supported()) continue;
        size_t used = strlen(names);
        snprintf(names + used, sizeof(names) - used, "%s%s", used > 0 ? ", " : "", known[i]->name);
    }
    return hd_error_set(error, HD_INVALID, "kernels '%s' %s; this machine has %s", name, why, names);
}

hd_status kernel_ops_choose(const char *name_or_null, const kernel_ops **ops, hd_error *error) {
    const char *name = name_or_null != NULL ? name_or_null : getenv("HADAL_KERNELS");
    for (size_t i = KNOWN_COUNT; i-- > 0;) {
        bool is_meant = name == NULL || name[0] == '\0' || strcmp(name, known[i]->name) == 0;
        if (!is_meant) continue;
        if (known[i]->is_supported()) {
            *ops = known[i];
            return HD_OK;
        }
        if (name != NULL && name[0] != '\0')
            return refuse(name, "need instructions that this processor or its kernel lacks", error);
    }
    return refuse(name, "are not known", error);
}
