/* What the files of the host's device share. */
#ifndef MU_TESTS_STUBS_DEVICE_HOST_PARTS_H
#define MU_TESTS_STUBS_DEVICE_HOST_PARTS_H

#include "kernels/device.h"

/* device_host.c */

/* Keeps the first failure for the next wait. */
void mu_host_fail(struct mu_device *d, enum mu_status code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
bool mu_host_failed(const struct mu_device *d);
/* Whether [p, p + bytes) lies in one allocation on this device; else the device fails, naming op and argument. */
bool mu_host_holds(struct mu_device *d, const char *op, const char *argument, const void *p, size_t bytes);
/* n zeroed elements, freed with mu_free; NULL, and the device fails, where there is no memory. */
void *mu_host_scratch(struct mu_device *d, size_t n, size_t size);

/* device_host_ops.c: the operations, when their turn comes. As in struct mu_device_ops. */
void mu_host_mat_pack(struct mu_device *d, const struct mu_mat *m, int row0, int row1, const void *raw, int32_t *bad);
void mu_host_matmul(struct mu_device *d, const struct mu_device_job *job, int n_job, const struct mu_act *x,
                    const struct mu_device_experts *experts);
void mu_host_norm(struct mu_device *d, const struct mu_device_norm *a);
void mu_host_form(struct mu_device *d, const float *src, size_t stride, int n_tok, int n, const struct mu_act_to *to);
void mu_host_widen(struct mu_device *d, const struct mu_act *x, float *out);
void mu_host_block_sums(struct mu_device *d, const int8_t *q, size_t n, int16_t *sum);
void mu_host_spread(struct mu_device *d, const struct mu_device_part *p, int n_tok);
void mu_host_set(struct mu_device *d, uint32_t *table, const struct mu_device_set *set, int n);
void mu_host_rope_table(struct mu_device *d, const float *freq, const float *freq_far, const uint8_t *far,
                        const int32_t *pos, int n_tok, int n_pair, float mscale, float *out);
void mu_host_rotate(struct mu_device *d, const struct mu_device_rotate *a);
void mu_host_attn(struct mu_device *d, const struct mu_device_attn *a);
void mu_host_route(struct mu_device *d, const struct mu_device_route *a);
void mu_host_combine(struct mu_device *d, const struct mu_device_combine *a);
void mu_host_pick(struct mu_device *d, const float *logits, size_t stride, int n_row, int n, int first_id,
                  const struct mu_device_draw *draw, struct mu_device_pick *out);

/* device_host_link.c */
bool mu_host_has_link(void);
enum mu_status mu_host_link_id(unsigned char id_out[MU_DEVICE_LINK_ID], struct mu_err *err);
enum mu_status mu_host_link_open(struct mu_device *d, const unsigned char id[MU_DEVICE_LINK_ID], int n_rank, int rank,
                                 int timeout_ms, struct mu_device_link **link_out, struct mu_err *err);
void mu_host_link_close(struct mu_device_link *l);
struct mu_device *mu_host_link_device(const struct mu_device_link *l);
int mu_host_link_ranks(const struct mu_device_link *l);
void mu_host_link_gather(struct mu_device_link *l, void *buf, const size_t *off, const size_t *len);
void mu_host_link_send(struct mu_device_link *l, int to, const void *buf, size_t bytes);
/* Until that rank has what I sent it last. */
void mu_host_link_taken(struct mu_device_link *l, int to);
bool mu_host_link_has_taken(const struct mu_device_link *l, int to);
void mu_host_link_recv(struct mu_device_link *l, int from, void *buf, size_t bytes);

#endif
