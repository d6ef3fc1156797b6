/* table.c - the table of the instruction set that this copy of the sources is compiled for. */
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/cpu/attend.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/gather.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/page.h"
#include "kernels/cpu/scan.h"
#include "kernels/cpu/tables.h"

#define TEXT_(name) #name
#define TEXT(name) TEXT_(name)

#if defined(KERNEL_HAS_AMX)
/* Linux gives the tile registers to a process that asks; asking again is harmless. */
static bool system_grants_tiles(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    const unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & amx_bf16) == 0 || (d & amx_tile) == 0) return false;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#else
static bool system_grants_tiles(void) {
    return true;
}
#endif

static bool is_supported(void) {
    __builtin_cpu_init();
    bool supported =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt");
#if defined(__AVX512F__)
    supported = supported && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#endif
#if defined(__AVX512BF16__)
    supported = supported && __builtin_cpu_supports("avx512bf16");
#endif
#if defined(__AVX512VBMI__)
    supported = supported && __builtin_cpu_supports("avx512vbmi");
#endif
    return supported && system_grants_tiles();
}

const kernel_ops TABLE_NAME(kernel_cpu) = {
    .name = TEXT(KERNEL_TABLE),
    .is_supported = is_supported,
    .scratch_bytes = MATMUL_SCRATCH_BYTES > ATTEND_SCRATCH_BYTES ? MATMUL_SCRATCH_BYTES : ATTEND_SCRATCH_BYTES,
    .attend_rows_best = 256,
    .matmul = table_matmul,
    .attend = table_attend,
    .merge = table_merge,
    .finish = table_finish,
    .page_store = page_store,
    .gather = table_gather,
    .rmsnorm = table_rmsnorm,
    .rope = table_rope,
    .convert = table_convert,
    .add_scaled = table_add_scaled,
    .logits_summary = table_logits_summary,
    .scan = &table_scan,
};
