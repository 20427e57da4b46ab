# The same checks on processes: three ranks of an MPI job, whatever the machine has.
add_executable(test_comm_mpi ${CMAKE_CURRENT_LIST_DIR}/test_comm_mpi.c)
target_link_libraries(test_comm_mpi PRIVATE muster_transport)
find_program(MPIRUN mpirun)
if(MPIRUN)
  set(mpirun_args --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 --mca pml ob1 --mca btl tcp,vader,self -np 3)
  set(mpirun_env "OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1")
  add_test(NAME test_comm_mpi COMMAND ${MPIRUN} ${mpirun_args} $<TARGET_FILE:test_comm_mpi>)
  set_tests_properties(test_comm_mpi PROPERTIES TIMEOUT 60 LABELS "unit;transport"
    ENVIRONMENT "${mpirun_env};MUSTER_TEST_CLEAN_END=1;LSAN_OPTIONS=detect_leaks=0")
  # A rank that met an error ends without finalising, and mpirun says so: its output tells whether the checks passed.
  add_test(NAME test_comm_mpi_errors COMMAND ${MPIRUN} ${mpirun_args} $<TARGET_FILE:test_comm_mpi>)
  set_tests_properties(test_comm_mpi_errors PROPERTIES TIMEOUT 60 LABELS "unit;transport"
    PASS_REGULAR_EXPRESSION "rank . ok\n(.*\n)*rank . ok\n(.*\n)*rank . ok" FAIL_REGULAR_EXPRESSION "test_comm_mpi.c:[0-9]+:;comm_checks.h:[0-9]+:"
    ENVIRONMENT "${mpirun_env};LSAN_OPTIONS=detect_leaks=0")
endif()
