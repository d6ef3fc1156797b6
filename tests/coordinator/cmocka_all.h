/* cmocka_all.h - cmocka and the headers that it wants before itself. */
#ifndef TESTS_COORDINATOR_CMOCKA_ALL_H
#define TESTS_COORDINATOR_CMOCKA_ALL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#endif
