/* What travels between a rank on a device and the others: the parts and formats of exchange.c, so that ranks on devices and on
 * processors are of one stage.
 *
 *   ① … ④  my part is made on the device ─ download ─ comm.gather ─ upload the others' ─ spread into place
 *          or, with a link between the devices of the stage, gathered in the queue
 *
 * Inputs of o and down that other ranks hold parts of are put together in `input`; a rank that is alone writes them there in
 * their forms, or leaves them where they are as f32. What goes from stage to stage by links is device_hop.c's. */
#include "shard/device.h"

struct dev_part mu_dev_input_begin(const struct queue *r, enum input input, unsigned forms, int n_vec)
{
    const struct mu_shard *s = r->s;
    struct mu_range mine = mu_input_columns(s, input, s->me.local);
    struct dev_part p = {.input = input,
                         .forms = forms,
                         .n_vec = n_vec,
                         .width = mu_range_len(mine),
                         .f32 = input == INPUT_O ? r->v->attn : r->v->gate};
    if (s->stage.n_rank == 1) {
        p.form = mu_dev_forms(&r->v->input, forms & ~(unsigned)FORM_F32);
        return p;
    }
    p.wire = mu_input_wire(s, input, forms);
    p.parts = mu_input_parts(s, input, p.wire, n_vec);
    char *part = r->v->gather + p.parts.off[s->me.local];
    switch (p.wire) {
    case WIRE_F32: p.f32 = (float *)(void *)part; break;
    case WIRE_BF16: p.form.bf16 = (uint16_t *)(void *)part; break;
    case WIRE_Q8:
        p.form.q = (int8_t *)part;
        p.form.s = (float *)(void *)(part + (size_t)p.width * (size_t)n_vec);
        break;
    }
    return p;
}

/* All ranks' parts, on the device. */
static bool gather(const struct queue *r, const struct parts *parts)
{
    struct mu_shard *s = r->s;
    struct dev *v = r->v;
    char *here = v->pinned.gather;
    size_t mine = parts->off[s->me.local], len = parts->len[s->me.local];
    int last = s->stage.n_rank - 1;
    size_t end = parts->off[last] + parts->len[last];
    if (v->link) {
        r->ops->link_gather(v->link, v->gather, parts->off, parts->len);
        return true;
    }
    if (len > 0) r->ops->download(v->d, here + mine, v->gather + mine, len);
    r->ops->mark(v->d, DEV_MARK);
    if (!mu_dev_wait(s, DEV_MARK, "a part for the other ranks of the stage")) return false;
    mu_gather_now(s, here, parts);
    if (s->failed != MU_OK) return false;
    if (mine > 0) r->ops->upload(v->d, v->gather, here, mine);
    if (end > mine + len) r->ops->upload(v->d, v->gather + mine + len, here + mine + len, end - mine - len);
    return true;
}

/* Parts that are spread together: what each rank has of one gather, in a quantised form codes and scales. */
struct spread {
    struct mu_device_part part[2 * MU_MAX_RANKS];
    int n;
};

static void spread_add(struct spread *s, enum mu_device_spread kind, void *to, size_t to_stride, const void *from,
                       int n)
{
    if (n > 0) s->part[s->n++] = (struct mu_device_part){kind, to, to_stride, from, n};
}

/* The parts of all ranks, as the columns of the whole. */
static void spread_input(const struct queue *r, const struct dev_part *p, int n_col)
{
    const struct mu_shard *s = r->s;
    const struct act *to = &r->v->input;
    size_t n = (size_t)n_col;
    struct spread all = {.n = 0};
    for (int i = 0; i < s->stage.n_rank; i++) {
        struct mu_range c = mu_input_columns(s, p->input, i);
        int w = mu_range_len(c);
        const char *part = r->v->gather + p->parts.off[i];
        switch (p->wire) {
        case WIRE_F32: spread_add(&all, MU_SPREAD_F32, to->f32 + c.begin, n, part, w); break;
        case WIRE_BF16: spread_add(&all, MU_SPREAD_BF16, to->bf16 + c.begin, n, part, w); break;
        case WIRE_Q8:
            spread_add(&all, MU_SPREAD_I8, to->q + c.begin, n, part, w);
            spread_add(&all, MU_SPREAD_F32, to->s + c.begin / MU_Q_BLOCK, n / MU_Q_BLOCK,
                       part + (size_t)w * (size_t)p->n_vec, w / MU_Q_BLOCK);
            break;
        }
    }
    r->ops->spread(r->v->d, all.part, all.n, p->n_vec);
}

bool mu_dev_input_end(const struct queue *r, const struct dev_part *p, struct mu_act *act_out)
{
    const struct mu_shard *s = r->s;
    const struct act *to = &r->v->input;
    int n_col = p->input == INPUT_O ? s->cfg.n_head * s->cfg.d_head : s->cfg.d_ff;
    *act_out = mu_dev_act(to, p->n_vec, n_col);
    if (s->stage.n_rank == 1) {
        act_out->f32 = p->f32;
        return true;
    }
    if (!gather(r, &p->parts)) return false;
    if (p->n_vec == 0) return true;
    spread_input(r, p, n_col);
    if (p->wire == WIRE_Q8) r->ops->block_sums(r->v->d, to->q, (size_t)p->n_vec * (size_t)n_col, to->sum);
    struct mu_act_to form = mu_dev_forms(to, p->forms & ~(unsigned)FORM_F32);
    if (p->wire == WIRE_F32 && p->forms != FORM_F32)
        r->ops->form(r->v->d, to->f32, (size_t)n_col, p->n_vec, n_col, &form);
    return true;
}

void mu_dev_project_begin(struct queue *r, float **out, uint16_t **bf16_out, bool round, const float *post,
                          struct parts *parts_out)
{
    const struct mu_shard *s = r->s;
    r->pending = r->v->y;
    r->pending_round = round;
    r->post = post;
    if (s->stage.n_rank == 1) return;
    *parts_out = mu_model_parts(s, round ? WIRE_BF16 : WIRE_F32, r->n_tok);
    char *part = r->v->gather + parts_out->off[s->me.local];
    *out = round ? r->v->y_mine : (float *)(void *)part;
    if (round) *bf16_out = (uint16_t *)(void *)part;
}

bool mu_dev_project_end(struct queue *r, const struct parts *parts)
{
    const struct mu_shard *s = r->s;
    if (s->stage.n_rank == 1) return true;
    if (!gather(r, parts)) return false;
    struct spread all = {.n = 0};
    for (int i = 0; i < s->stage.n_rank; i++) {
        struct mu_range rows = mu_model_rows(s, i);
        spread_add(&all, r->pending_round ? MU_SPREAD_BF16_TO_F32 : MU_SPREAD_F32, r->v->y + rows.begin,
                   (size_t)s->cfg.d_model, r->v->gather + parts->off[i], mu_range_len(rows));
    }
    r->ops->spread(r->v->d, all.part, all.n, r->n_tok);
    return true; /* what is rounded is rounded again, which changes nothing */
}

void mu_dev_send(struct queue *r)
{
    struct mu_shard *s = r->s;
    size_t n = (size_t)r->n_tok * (size_t)s->cfg.d_model;
    if (r->v->after.link) {
        mu_dev_hop_send(r);
        return;
    }
    r->ops->download(r->v->d, s->send[s->ticket], r->x, n * sizeof *r->x);
    r->ops->mark(r->v->d, DEV_MARK);
    if (mu_dev_wait(s, DEV_MARK, "the residual for the next stage")) mu_send_now(s, r->n_tok);
}
