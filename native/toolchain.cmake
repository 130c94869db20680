# Is there what the kernels need? A compiler that is missing is no error; one that fails on them is.
set(LISSOME_MISSING "")

if(NOT "$ENV{LISSOME_NO_NATIVE}" STREQUAL "" AND NOT "$ENV{LISSOME_NO_NATIVE}" STREQUAL "0")
  set(LISSOME_MISSING "LISSOME_NO_NATIVE was set when it was installed")
  return()
endif()

if(DEFINED CMAKE_CXX_COMPILER AND NOT CMAKE_CXX_COMPILER)
  unset(CMAKE_CXX_COMPILER CACHE) # there was none the last time; there may be one now
endif()
include(CheckLanguage)
check_language(CXX)
if(NOT CMAKE_CXX_COMPILER)
  set(LISSOME_MISSING "no C++ compiler was found when it was installed")
  return()
endif()
enable_language(CXX)

# The first versions with C++20 and with every instruction set that functions here are compiled for.
set(lissome_oldest_GNU 11)
set(lissome_oldest_Clang 14)
set(lissome_oldest_AppleClang 14)
set(lissome_oldest "${lissome_oldest_${CMAKE_CXX_COMPILER_ID}}")
if("${lissome_oldest}" STREQUAL "" OR CMAKE_CXX_COMPILER_VERSION VERSION_LESS "${lissome_oldest}")
  set(LISSOME_MISSING
    "the C++ compiler was ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}; GCC 11 or Clang 14 is needed")
  return()
endif()

if(SKBUILD)
  find_package(Python 3.11 COMPONENTS Interpreter Development.Module)
  if(NOT Python_FOUND)
    set(LISSOME_MISSING "the headers of Python were not found when it was installed")
    return()
  endif()
  execute_process(COMMAND "${Python_EXECUTABLE}" -m nanobind --cmake_dir
    OUTPUT_VARIABLE nanobind_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE)
  find_package(nanobind CONFIG REQUIRED)
endif()
