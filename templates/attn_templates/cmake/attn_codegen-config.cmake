# SPDX-License-Identifier: Apache-2.0
#
# find_package(attn_codegen), for a build that emits its kernels. It is found where
# `attn-codegen cmake-dir` says, given as attn_codegen_DIR or in CMAKE_PREFIX_PATH.
#
#   attn_codegen_emit(<folder>
#     [NAMESPACE <name>]                  # C++ namespace of the kernels; attn
#     [PRESET <name>] [KERNELS <name>...] # what to emit; the default preset where both are left out
#     [OPTIONS <option>...])              # for `attn-codegen emit`, such as --dtype bf16
#
# emits kernels into the folder and adds it as a subdirectory, which makes the target
# <namespace>::attention and heeds ATTN_KERNELS, ATTN_SHARED and CMAKE_CUDA_ARCHITECTURES. Emit runs
# when the build is configured and again, as a custom command, when attn-codegen itself has changed
# or a file is gone; it writes only what differs, so that only that is compiled anew.
# ATTN_CODEGEN_COMMAND is the command to run, where this file does not find it by itself.

include_guard(GLOBAL)

# The packages stand side by side when installed, and in folders of their own in a checkout.
get_filename_component(attn_codegen_TEMPLATES "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
get_filename_component(attn_codegen_SITE "${attn_codegen_TEMPLATES}/.." ABSOLUTE)
set(attn_codegen_PACKAGE "${attn_codegen_SITE}/attn_codegen")
if(NOT IS_DIRECTORY "${attn_codegen_PACKAGE}")
  get_filename_component(attn_codegen_ROOT "${attn_codegen_SITE}/.." ABSOLUTE)
  set(attn_codegen_PACKAGE "${attn_codegen_ROOT}/codegen/attn_codegen")
endif()

# The program that belongs to this file, or any Python that runs the packages as they are.
if(NOT DEFINED ATTN_CODEGEN_COMMAND)
  find_program(attn_codegen_PROGRAM attn-codegen HINTS "${attn_codegen_SITE}/../../../bin")
  if(attn_codegen_PROGRAM)
    execute_process(COMMAND "${attn_codegen_PROGRAM}" cmake-dir
      OUTPUT_VARIABLE attn_codegen_FOLDER OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  if(attn_codegen_PROGRAM AND attn_codegen_FOLDER STREQUAL CMAKE_CURRENT_LIST_DIR)
    set(ATTN_CODEGEN_COMMAND "${attn_codegen_PROGRAM}")
  else()
    find_package(Python3 3.11 REQUIRED COMPONENTS Interpreter)
    get_filename_component(attn_codegen_FOLDER "${attn_codegen_PACKAGE}/.." ABSOLUTE)
    set(ATTN_CODEGEN_COMMAND "${CMAKE_COMMAND}" -E env
      "PYTHONPATH=${attn_codegen_FOLDER}:${attn_codegen_SITE}"
      "${Python3_EXECUTABLE}" -m attn_codegen)
  endif()
endif()

# Runs the generator now; its errors are those of the configuration.
function(attn_codegen_run result)
  execute_process(COMMAND ${ATTN_CODEGEN_COMMAND} ${ARGN}
    RESULT_VARIABLE code OUTPUT_VARIABLE output ERROR_VARIABLE error)
  if(NOT code EQUAL 0)
    list(JOIN ATTN_CODEGEN_COMMAND " " command)
    list(JOIN ARGN " " arguments)
    message(FATAL_ERROR "${command} ${arguments}\nfailed (${code}): ${error}")
  endif()
  set(${result} "${output}" PARENT_SCOPE)
endfunction()

function(attn_codegen_emit folder)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "NAMESPACE;PRESET" "KERNELS;OPTIONS")
  if(arg_UNPARSED_ARGUMENTS OR arg_KEYWORDS_MISSING_VALUES)
    message(FATAL_ERROR "attn_codegen_emit(${folder} ...) does not know "
      "'${arg_UNPARSED_ARGUMENTS}${arg_KEYWORDS_MISSING_VALUES}': use NAMESPACE, PRESET, KERNELS "
      "and OPTIONS, each with a value")
  endif()
  get_filename_component(folder "${folder}" ABSOLUTE BASE_DIR "${CMAKE_CURRENT_BINARY_DIR}")
  set(namespace attn)
  set(emit emit --out "${folder}" ${arg_OPTIONS})
  if(arg_NAMESPACE)
    set(namespace ${arg_NAMESPACE})
    list(APPEND emit --namespace ${namespace})
  endif()
  if(arg_PRESET)
    list(APPEND emit --preset ${arg_PRESET})
  endif()
  foreach(kernel IN LISTS arg_KERNELS)
    list(APPEND emit --config ${kernel})
  endforeach()

  # Now, because the folder's own CMakeLists.txt is needed. What it writes decides what is built, so
  # a change of the generator configures anew.
  attn_codegen_run(outputs ${emit} --print-outputs)
  string(STRIP "${outputs}" outputs)
  string(REPLACE "\n" ";" outputs "${outputs}")
  attn_codegen_run(ignored ${emit})
  file(GLOB_RECURSE inputs LIST_DIRECTORIES false
    "${attn_codegen_PACKAGE}/*.py"
    "${attn_codegen_PACKAGE}/*.json"
    "${attn_codegen_TEMPLATES}/cuda/*"
    "${attn_codegen_TEMPLATES}/jinja/*")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${inputs})

  # And in the build. Files that are right keep their time, so the command's own output is a stamp.
  set(stamp "${CMAKE_CURRENT_BINARY_DIR}/CMakeFiles/${namespace}_emit.stamp")
  add_custom_command(OUTPUT "${stamp}" BYPRODUCTS ${outputs}
    COMMAND ${ATTN_CODEGEN_COMMAND} ${emit}
    COMMAND "${CMAKE_COMMAND}" -E touch "${stamp}"
    DEPENDS ${inputs}
    COMMENT "Emitting attention kernels to ${folder}"
    VERBATIM)
  add_custom_target(${namespace}_emit DEPENDS "${stamp}")
  add_subdirectory("${folder}" "${folder}-build")
  add_dependencies(${namespace}_attention ${namespace}_emit)
endfunction()
