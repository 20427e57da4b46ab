target_sources(muster_transport PRIVATE comm.c comm_local.c comm_mpi.c comm_measure.c)
