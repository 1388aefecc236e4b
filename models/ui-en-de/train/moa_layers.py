"""Products with experts on a CPU: f32 master weights, products in the type of the input, sums where it matters in f32."""

import torch
import torch.nn.functional as F

# oneDNN compiles one kernel for each shape it meets, which costs more than the product itself. So the rows of an expert
# are padded to a multiple of this.
ROWS = 128


@torch.library.custom_op("moa::permute_rows", mutates_args=())
def permute_rows(x: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Rows in another order; knowing the inverse makes the gradient another permutation, not a scattered sum."""
    return x.index_select(0, order)


@permute_rows.register_fake
def _(x, order, inverse):
    return torch.empty_like(x)


def _permute_backward(ctx, grad):
    order, inverse = ctx.saved_tensors
    return torch.ops.moa.permute_rows(grad.contiguous(), inverse, order), None, None


def _permute_setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[1], inputs[2])


permute_rows.register_autograd(_permute_backward, setup_context=_permute_setup)


def _padded(x, start, count):
    rows = -(-count // ROWS) * ROWS
    if rows == count:
        return x[start:start + count]
    padded = x.new_zeros(rows, x.shape[1])
    padded[:count] = x[start:start + count]
    return padded


@torch.library.custom_op("moa::grouped", mutates_args=())
def grouped(x: torch.Tensor, weight: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """`y[rows of expert e] = x[rows of expert e] @ weight[e].T`, with rows sorted by expert."""
    weight = weight.to(x.dtype)
    y = x.new_empty(x.shape[0], weight.shape[1])
    start = 0
    for expert, count in enumerate(counts.tolist()):
        if count:
            y[start:start + count] = F.linear(_padded(x, start, count), weight[expert])[:count]
        start += count
    return y


@grouped.register_fake
def _(x, weight, counts):
    return x.new_empty(x.shape[0], weight.shape[1])


@torch.library.custom_op("moa::grouped_backward", mutates_args=())
def grouped_backward(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor,
                     counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weight = weight.to(x.dtype)
    grad = grad.contiguous()
    grad_x = torch.empty_like(x)
    grad_weight = torch.zeros(weight.shape, dtype=torch.float32)
    start = 0
    for expert, count in enumerate(counts.tolist()):
        if count:
            rows = _padded(grad, start, count)
            grad_x[start:start + count] = (rows @ weight[expert])[:count]
            grad_weight[expert] = rows.t() @ _padded(x, start, count)
        start += count
    return grad_x, grad_weight


@grouped_backward.register_fake
def _(grad, x, weight, counts):
    return torch.empty_like(x), torch.empty_like(weight)


def _grouped_backward(ctx, grad):
    grad_x, grad_weight = torch.ops.moa.grouped_backward(grad, *ctx.saved_tensors)
    return grad_x, grad_weight, None


def _grouped_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


grouped.register_autograd(_grouped_backward, setup_context=_grouped_setup)
