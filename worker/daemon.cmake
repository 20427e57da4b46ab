target_sources(muster_worker PRIVATE watch.c procs.c launch.c gang.c gang_start.c gang_output.c inventory.c supervisor.c kept.c places.c daemon.c)
