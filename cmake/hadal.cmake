# hadal_library(NAME SOURCES ... [USES ...]), hadal_test(NAME SOURCES ... [USES ...]), hadal_fuzz(NAME SOURCES ... [USES ...])
# give every target the same warnings, sanitizers and include root.

add_library(hadal_options INTERFACE)
target_include_directories(hadal_options INTERFACE ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR})
target_compile_definitions(hadal_options INTERFACE _GNU_SOURCE HADAL_VERSION="${PROJECT_VERSION}")
target_compile_options(hadal_options INTERFACE
  -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla -Wundef -Wno-unused-parameter
  -fno-math-errno -fno-trapping-math -ffp-contract=off -g)
if(HADAL_SANITIZE STREQUAL "address")
  target_compile_options(hadal_options INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
  target_link_options(hadal_options INTERFACE -fsanitize=address,undefined)
elseif(HADAL_SANITIZE STREQUAL "thread")
  target_compile_options(hadal_options INTERFACE -fsanitize=thread -fno-omit-frame-pointer)
  target_link_options(hadal_options INTERFACE -fsanitize=thread)
elseif(HADAL_SANITIZE)
  message(FATAL_ERROR "HADAL_SANITIZE is 'address', 'thread' or empty, not '${HADAL_SANITIZE}'")
endif()

function(hadal_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;USES" ${ARGN})
  add_library(${name} STATIC ${arg_SOURCES})
  target_link_libraries(${name} PUBLIC hadal_options ${arg_USES} Threads::Threads m)
endfunction()

function(hadal_test name)
  cmake_parse_arguments(arg "" "" "SOURCES;USES" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE hadal_options ${arg_USES} cmocka)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES TIMEOUT 300)
endfunction()

# A fuzz target defines LLVMFuzzerTestOneInput. With HADAL_FUZZ it is a libFuzzer program; always, the kept corpus in
# tests/fuzz/corpus/NAME is replayed as a test.
function(hadal_fuzz name)
  cmake_parse_arguments(arg "" "" "SOURCES;USES" ${ARGN})
  if(HADAL_FUZZ)
    add_executable(${name} ${arg_SOURCES})
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  else()
    add_executable(${name} ${arg_SOURCES} ${CMAKE_SOURCE_DIR}/tests/fuzz/replay.c)
    add_test(NAME ${name}_corpus COMMAND ${name} ${CMAKE_SOURCE_DIR}/tests/fuzz/corpus/${name})
  endif()
  target_link_libraries(${name} PRIVATE hadal_options ${arg_USES})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/fuzz)
endfunction()
