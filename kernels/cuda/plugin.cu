/* What libmuster_cuda.so exports: the table of kernels/device.h. */
#include "cuda.h"

static struct mu_device_ops ops_make(void)
{
    struct mu_device_ops o = {};
    o.abi = MU_DEVICE_ABI;
    o.name = "cuda";
    o.count = mu_cuda_count;
    o.info = mu_cuda_info;
    o.open = mu_cuda_open;
    o.close = mu_cuda_close;
    o.measure = mu_cuda_measure;
    o.alloc = mu_cuda_alloc;
    o.free = mu_cuda_free;
    o.alloc_host = mu_cuda_alloc_host;
    o.free_host = mu_cuda_free_host;
    o.upload = mu_cuda_upload;
    o.download = mu_cuda_download;
    o.copy = mu_cuda_copy;
    o.zero = mu_cuda_zero;
    o.fetch = mu_cuda_fetch;
    o.fetched = mu_cuda_fetched;
    o.mark = mu_cuda_mark;
    o.wait = mu_cuda_wait;
    o.test = mu_cuda_test;
    o.record_begin = mu_cuda_record_begin;
    o.record_end = mu_cuda_record_end;
    o.replay = mu_cuda_replay;
    o.graph_free = mu_cuda_graph_free;
    o.mat_bytes = mu_cuda_mat_bytes;
    o.mat_pack = mu_cuda_mat_pack;
    o.matmul = mu_cuda_matmul;
    o.norm = mu_cuda_norm;
    o.form = mu_cuda_form;
    o.widen = mu_cuda_widen;
    o.block_sums = mu_cuda_block_sums;
    o.spread = mu_cuda_spread;
    o.set = mu_cuda_set;
    o.rope_table = mu_cuda_rope_table;
    o.rotate = mu_cuda_rotate;
    o.attn = mu_cuda_attn;
    o.route = mu_cuda_route;
    o.combine = mu_cuda_combine;
    o.pick = mu_cuda_pick;
    if (mu_cuda_link_have()) {
        o.link_id = mu_cuda_link_id;
        o.link_open = mu_cuda_link_open;
        o.link_gather = mu_cuda_link_gather;
        o.link_send = mu_cuda_link_send;
        o.link_recv = mu_cuda_link_recv;
        o.link_close = mu_cuda_link_close;
    }
    return o;
}

extern "C" __attribute__((visibility("default"))) const struct mu_device_ops *muster_device_ops(void)
{
    static const struct mu_device_ops ops = ops_make();
    return &ops;
}
