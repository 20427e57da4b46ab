target_sources(muster_transport PRIVATE rpc_common.c rpc_server.c rpc_listen.c rpc_services.c rpc_client.c)
