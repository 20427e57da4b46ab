# What every file of Muster is compiled with, here and for other processors (tests/kernels/arm).
set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS ON)
set(CMAKE_C_FLAGS_RELEASE "-O2")
set(CMAKE_C_FLAGS_DEBUG "-O1")
set(CMAKE_CXX_FLAGS_RELEASE "-O2")
set(CMAKE_CXX_FLAGS_DEBUG "-O1")
set(CMAKE_CUDA_FLAGS_RELEASE "") # kernels/cuda has its own
set(CMAKE_CUDA_FLAGS_DEBUG "")
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

# The arithmetic contract (docs/arithmetic.md, C0) needs the three -f flags everywhere that floats are touched.
set(MUSTER_FLAGS -g -fmacro-prefix-map=${CMAKE_CURRENT_LIST_DIR}/= -ffp-contract=off -fno-math-errno -fno-trapping-math -fno-strict-aliasing
  -Wall -Wextra -Wpointer-arith -Wvla -Wundef -Wformat=2 -Werror)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  list(APPEND MUSTER_FLAGS -fsigned-char) # as on x86
endif()
add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:${MUSTER_FLAGS}>" "$<$<COMPILE_LANGUAGE:C>:-Wshadow;-Wstrict-prototypes;-Wmissing-prototypes>")
