/* index_memory.h - where segments of indexes lie: places of equal size side by side in huge pages.
 *
 * Most segments are smaller than a huge page, and a search reads all over many of them: with a small page of its own for
 * every few keys it would wait for the page tables as long as for the keys. So the process keeps chunks, each cut into
 * places of one size; indexes of all sequences share them. A chunk whose last place is given back goes back to the
 * kernel, so what is held beyond what is in use is at most a part of a chunk for each size and time of life; segments
 * of one range of tokens are made, and replaced, at about the same time. What is larger than half a chunk is mapped by
 * itself.
 * Threads: any; a lock of the module's own, held for as long as it takes to find a place. */
#ifndef ATTENTION_NODE_INDEX_MEMORY_H
#define ATTENTION_NODE_INDEX_MEMORY_H

#include <stddef.h>

#define INDEX_MEMORY_CHUNK ((size_t)8 << 20)

void *index_memory_take(size_t bytes);             /* zeros, aligned to cache lines; NULL when there is none */
void index_memory_give(void *place, size_t bytes); /* of the same size; accepts NULL */
size_t index_memory_held(void);                    /* bytes of all chunks, whether in use or not */

#endif
