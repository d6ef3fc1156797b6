# hadal_library(NAME SOURCES ... [USES ...]), hadal_test(NAME SOURCES ... [USES ...]), hadal_fuzz(NAME SOURCES ... [USES ...] [COVERS ...])
# give every target the same warnings, sanitizers and include root; hadal_rust_library(NAME DIRECTORY) makes a crate one of them.

add_library(hadal_options INTERFACE)
target_include_directories(hadal_options INTERFACE ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR})
target_compile_definitions(hadal_options INTERFACE _GNU_SOURCE HADAL_VERSION="${PROJECT_VERSION}")
target_compile_options(hadal_options INTERFACE
  -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla -Wundef -Wno-unused-parameter
  -fno-math-errno -fno-trapping-math -ffp-contract=off -g)
# After so long a test hangs; one that computes takes many times as long under a sanitizer.
set(HADAL_TEST_SECONDS 300)
if(HADAL_SANITIZE)
  set(HADAL_TEST_SECONDS 1800)
endif()
# A target with the property HADAL_COMPUTE is all loops over numbers on one thread. Under the thread sanitizer it would be a hundred
# times slower, and to the fuzzer it is no parser: it is left as it is in both.
set(not_compute $<NOT:$<BOOL:$<TARGET_PROPERTY:HADAL_COMPUTE>>>)
if(HADAL_SANITIZE STREQUAL "address")
  target_compile_options(hadal_options INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
  target_link_options(hadal_options INTERFACE -fsanitize=address,undefined)
elseif(HADAL_SANITIZE STREQUAL "thread")
  target_compile_options(hadal_options INTERFACE $<${not_compute}:-fsanitize=thread> -fno-omit-frame-pointer)
  target_link_options(hadal_options INTERFACE -fsanitize=thread)
elseif(HADAL_SANITIZE)
  message(FATAL_ERROR "HADAL_SANITIZE is 'address', 'thread' or empty, not '${HADAL_SANITIZE}'")
endif()

if(HADAL_FUZZ)
  if(NOT CMAKE_C_COMPILER_ID STREQUAL "Clang")
    message(FATAL_ERROR "HADAL_FUZZ needs clang: cmake --preset fuzz")
  endif()
  # Every library tells the fuzzer where it goes and shows how much of it is reached.
  target_compile_options(hadal_options INTERFACE
    $<${not_compute}:-fsanitize=fuzzer-no-link> $<${not_compute}:-fprofile-instr-generate> $<${not_compute}:-fcoverage-mapping>)
  target_link_options(hadal_options INTERFACE -fprofile-instr-generate)
endif()

function(hadal_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;USES" ${ARGN})
  add_library(${name} STATIC ${arg_SOURCES})
  target_link_libraries(${name} PUBLIC hadal_options ${arg_USES} Threads::Threads m)
endfunction()

# What tools/setup.sh installs for tests that are Python or Node programs; every build directory uses the one set.
set(HADAL_PYTHON ${CMAKE_SOURCE_DIR}/build/venv/bin/python3 CACHE FILEPATH "Python with tools/requirements-*.txt")
set(HADAL_NODE_MODULES ${CMAKE_SOURCE_DIR}/build/node/node_modules CACHE PATH "npm packages for tests/api")

function(hadal_test name)
  cmake_parse_arguments(arg "" "" "SOURCES;USES" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE hadal_options ${arg_USES} cmocka)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${HADAL_TEST_SECONDS})
endfunction()

# A fuzz target defines LLVMFuzzerTestOneInput. With HADAL_FUZZ it is a libFuzzer program, and `./run fuzz` prints how many lines it
# reaches of the files in COVERS (from the root); always, the kept corpus in tests/fuzz/corpus/NAME is replayed as a test.
add_custom_target(fuzzers)
function(hadal_fuzz name)
  cmake_parse_arguments(arg "" "" "SOURCES;USES;COVERS" ${ARGN})
  if(HADAL_FUZZ)
    add_executable(${name} ${arg_SOURCES})
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    list(JOIN arg_COVERS "\n" covers)
    if(covers)
      string(APPEND covers "\n")
    endif()
    file(WRITE ${CMAKE_BINARY_DIR}/fuzz/${name}.covers "${covers}")
  else()
    add_executable(${name} ${arg_SOURCES} ${CMAKE_SOURCE_DIR}/tests/fuzz/replay.c)
    add_test(NAME ${name}_corpus COMMAND ${name} ${CMAKE_SOURCE_DIR}/tests/fuzz/corpus/${name})
    set_tests_properties(${name}_corpus PROPERTIES TIMEOUT ${HADAL_TEST_SECONDS})
  endif()
  target_link_libraries(${name} PRIVATE hadal_options ${arg_USES})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/fuzz)
  add_dependencies(fuzzers ${name})
endfunction()

# The static library lib<NAME>.a of the crate in DIRECTORY (absolute), as an imported target NAME. All build directories share one
# cargo target directory, so that the crate's dependencies are compiled once. Debian's own cargo comes before any other: beside
# it rustup's shims would pick a compiler by what some dependency asks for, and need the network for that.
set(HADAL_CARGO_TARGET_DIR ${CMAKE_SOURCE_DIR}/var/cargo-target CACHE PATH "Where cargo builds")
function(hadal_rust_library name directory)
  find_program(HADAL_CARGO cargo PATHS /usr/bin NO_DEFAULT_PATH)
  find_program(HADAL_CARGO cargo REQUIRED)
  get_filename_component(cargo_bin ${HADAL_CARGO} DIRECTORY)
  set(search_path "$ENV{PATH}")
  if(cargo_bin STREQUAL "/usr/bin")
    set(search_path /usr/bin:/bin)
  endif()
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${directory}/src/*.rs)
  set(built ${HADAL_CARGO_TARGET_DIR}/release/lib${name}.a)
  set(archive ${CMAKE_CURRENT_BINARY_DIR}/lib${name}.a)
  add_custom_command(OUTPUT ${archive}
    COMMAND ${CMAKE_COMMAND} -E env "PATH=${search_path}" ${HADAL_CARGO} build --release --locked --lib
            --manifest-path ${directory}/Cargo.toml --target-dir ${HADAL_CARGO_TARGET_DIR}
    COMMAND ${CMAKE_COMMAND} -E copy ${built} ${archive}
    DEPENDS ${directory}/Cargo.toml ${directory}/Cargo.lock ${sources}
    WORKING_DIRECTORY ${directory}
    COMMENT "Building the crate ${name}"
    USES_TERMINAL VERBATIM)
  add_custom_target(${name}_crate DEPENDS ${archive})
  add_library(${name} STATIC IMPORTED GLOBAL)
  set_target_properties(${name} PROPERTIES IMPORTED_LOCATION ${archive})
  target_link_libraries(${name} INTERFACE gcc_s Threads::Threads m dl)
  add_dependencies(${name} ${name}_crate)
endfunction()
