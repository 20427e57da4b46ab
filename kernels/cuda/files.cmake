# The plugin's files, for kernels/cuda (nvcc) and tests/stubs/cuda (the emulation).
set(CUDA_FILES plugin.cu runtime.cu measure.cu link.cu pack.cu matmul.cu matvec.cu tiles.cu tiles_plain.cu
  tiles_min.cu tiles_halves.cu tiles_table.cu rough.cu rough_plain.cu rough_min.cu rough_halves.cu rough_table.cu
  rough_float.cu float.cu norm.cu form.cu move.cu rotate.cu attn.cu attn_query.cu attn_block.cu attn_rough.cu
  experts.cu pick.cu)
# What their host side needs of the rest; the plugin stands alone.
set(CUDA_HOST_FILES base/status.c base/clock.c kernels/types.c kernels/kv.c)

list(TRANSFORM CUDA_FILES PREPEND ${CMAKE_CURRENT_LIST_DIR}/ OUTPUT_VARIABLE CUDA_SOURCES)
list(TRANSFORM CUDA_HOST_FILES PREPEND ${CMAKE_CURRENT_LIST_DIR}/../../)

# One symbol goes out (MU_DEVICE_SYMBOL), none is missing. Beside each other in the build: kernels/cuda.
set(CUDA_MAP ${CMAKE_CURRENT_LIST_DIR}/plugin.map)
function(cuda_plugin name)
  set_target_properties(${name} PROPERTIES C_VISIBILITY_PRESET hidden CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON
    POSITION_INDEPENDENT_CODE ON CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON LINK_DEPENDS ${CUDA_MAP}
    LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/kernels/cuda)
  target_link_libraries(${name} PRIVATE Threads::Threads ${CMAKE_DL_LIBS})
  target_link_options(${name} PRIVATE LINKER:--exclude-libs,ALL LINKER:--version-script=${CUDA_MAP})
endfunction()
