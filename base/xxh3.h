/* xxh3.h - libxxhash, whose XXH3 functions take the widest vectors that this machine has: under their own names they
 * take those that every x86-64 has, at less than half of the speed. The values are the same. */
#ifndef HD_XXH3_H
#define HD_XXH3_H

#ifdef __x86_64__
#include <xxh_x86dispatch.h>
#else
#include <xxhash.h>
#endif

#endif
