# The CUDA back end: finds a toolkit, and compiles .cu files into a library that is linked as C.
#
# CMake's own CUDA language is not used: it would make every program that contains a kernel a C++ program, and its modules ask
# for parts of a toolkit that nothing here needs. Kernels use none of C++'s library.
set(HADAL_CUDA_HOME "" CACHE PATH "Root of a CUDA toolkit; empty: the one of 'tools/setup.sh cuda', or what nvcc is on the PATH")
set(HADAL_CUDA_ARCHITECTURES "80;90a;100" CACHE STRING "Compute capabilities; those that nvcc does not know are left out")

if(NOT HADAL_CUDA_HOME AND EXISTS ${CMAKE_SOURCE_DIR}/var/cuda/toolkit/bin/nvcc)
  set(HADAL_CUDA_HOME ${CMAKE_SOURCE_DIR}/var/cuda/toolkit)
endif()
find_program(HADAL_NVCC nvcc HINTS ${HADAL_CUDA_HOME}/bin ENV CUDA_HOME PATHS /usr/local/cuda/bin NO_CACHE)
if(NOT HADAL_NVCC)
  message(FATAL_ERROR "HADAL_CUDA needs nvcc: run 'tools/setup.sh cuda', or set HADAL_CUDA_HOME to a CUDA toolkit")
endif()
get_filename_component(nvcc_real ${HADAL_NVCC} REALPATH)
get_filename_component(HADAL_CUDA_ROOT ${nvcc_real}/../.. ABSOLUTE)
# Toolkits differ in where these lie: include or targets/.../include, lib or lib64.
find_path(HADAL_CUDA_INCLUDE cublasLt.h HINTS ${HADAL_CUDA_ROOT}/include ${HADAL_CUDA_ROOT}/targets/x86_64-linux/include NO_CACHE)
find_library(HADAL_CUDA_RUNTIME libcudart_static.a
  HINTS ${HADAL_CUDA_ROOT}/lib ${HADAL_CUDA_ROOT}/lib64 ${HADAL_CUDA_ROOT}/targets/x86_64-linux/lib NO_CACHE)
if(NOT HADAL_CUDA_INCLUDE OR NOT HADAL_CUDA_RUNTIME)
  message(FATAL_ERROR "HADAL_CUDA: the toolkit in ${HADAL_CUDA_ROOT} lacks cublasLt.h or libcudart_static.a")
endif()
get_filename_component(HADAL_CUDA_LIBRARY_FOLDER ${HADAL_CUDA_RUNTIME} DIRECTORY)

execute_process(COMMAND ${HADAL_NVCC} --list-gpu-arch OUTPUT_VARIABLE known_architectures OUTPUT_STRIP_TRAILING_WHITESPACE
  COMMAND_ERROR_IS_FATAL ANY)
set(cuda_code "")
foreach(architecture ${HADAL_CUDA_ARCHITECTURES})
  string(REGEX REPLACE "[a-z]+$" "" plain ${architecture})
  if(known_architectures MATCHES "compute_${plain}(\n|$)")
    list(APPEND cuda_code -gencode arch=compute_${architecture},code=sm_${architecture})
    list(APPEND cuda_known ${architecture})
  endif()
endforeach()
list(JOIN cuda_known " " cuda_known)
message(STATUS "CUDA: ${HADAL_NVCC} for ${cuda_known}")

# hadal_cuda_objects(OUTPUT SOURCES ...): compiles each .cu file; OUTPUT names the objects.
function(hadal_cuda_objects output)
  cmake_parse_arguments(arg "" "" "SOURCES" ${ARGN})
  set(objects "")
  foreach(source ${arg_SOURCES})
    get_filename_component(name ${source} NAME_WE)
    set(object ${CMAKE_CURRENT_BINARY_DIR}/${name}.cu.o)
    add_custom_command(OUTPUT ${object}
      COMMAND ${CMAKE_C_COMPILER_LAUNCHER} ${HADAL_NVCC} -c -std=c++17 -O3 -lineinfo ${cuda_code} -I${CMAKE_SOURCE_DIR}
              -Werror all-warnings -Xcompiler=-fPIC,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics
              -Xcompiler=-Wall,-Wextra,-Werror,-Wno-unused-parameter
              -MD -MF ${object}.d -MT ${object} ${CMAKE_CURRENT_SOURCE_DIR}/${source} -o ${object}
      DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${source}
      DEPFILE ${object}.d
      COMMENT "Compiling ${source} for ${cuda_known}"
      VERBATIM)
    list(APPEND objects ${object})
  endforeach()
  set(${output} ${objects} PARENT_SCOPE)
endfunction()
