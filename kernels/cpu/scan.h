/* scan.h - the scans of the instruction set that this copy is compiled for, and those in plain C.
 *
 * Threads: as kernels/scan.h. */
#ifndef KERNELS_CPU_SCAN_H
#define KERNELS_CPU_SCAN_H

#include "kernels/scan.h"

extern const kernel_scan kernel_scan_portable;

#if defined(KERNEL_TABLE)
#include "kernels/cpu/vector.h"
#define table_scan TABLE_NAME(kernel_scan)
extern const kernel_scan table_scan;
#endif

#endif
