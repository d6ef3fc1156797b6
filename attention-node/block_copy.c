/* block_copy.c - two cursors over (block, unit). */
#include "attention-node/block_copy.h"

#include <assert.h>

void block_copy_init(block_copy *copy, uint32_t units, uint32_t piece_units, uint64_t whole) {
    assert(units > 0 && piece_units > 0);
    *copy = (block_copy){.units = units, .piece_units = piece_units, .end = whole, .granted = whole};
    copy->ask_block = copy->come_block = whole;
}

static uint32_t units_from(const block_copy *copy, uint32_t unit) {
    uint32_t left = copy->units - unit;
    return left < copy->piece_units ? left : copy->piece_units;
}

static void advance(const block_copy *copy, uint32_t count, uint64_t *block, uint32_t *unit) {
    *unit += count;
    if (*unit < copy->units) return;
    *unit = 0;
    ++*block;
}

bool block_copy_ask(block_copy *copy, block_piece *piece) {
    if (copy->ask_block >= copy->end || copy->ask_block >= copy->granted) return false;
    *piece = (block_piece){copy->ask_block, copy->ask_unit, units_from(copy, copy->ask_unit), copy->round};
    advance(copy, piece->unit_count, &copy->ask_block, &copy->ask_unit);
    return true;
}

hd_status block_copy_check(const block_copy *copy, const block_piece *piece) {
    if (piece->round != copy->round) return HD_STALE;
    bool is_asked =
        copy->come_block < copy->ask_block || (copy->come_block == copy->ask_block && copy->come_unit < copy->ask_unit);
    bool is_due = piece->block == copy->come_block && piece->first_unit == copy->come_unit && piece->unit_count > 0 &&
                  piece->unit_count <= copy->units - copy->come_unit;
    return is_asked && is_due ? HD_OK : HD_CORRUPT;
}

hd_status block_copy_come(block_copy *copy, const block_piece *piece) {
    hd_status status = block_copy_check(copy, piece);
    if (status == HD_OK) advance(copy, piece->unit_count, &copy->come_block, &copy->come_unit);
    return status;
}

void block_copy_restart(block_copy *copy, uint64_t whole) {
    assert(whole <= copy->come_block);
    copy->round++;
    copy->ask_block = copy->come_block = whole;
    copy->ask_unit = copy->come_unit = 0;
    if (copy->end < whole) copy->end = whole;
    if (copy->granted < whole) copy->granted = whole;
}
