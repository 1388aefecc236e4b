"""Writes a JetMoE folder as two ONNX graphs, for one token with a cache and for a whole prompt.

    export.py MODEL_FOLDER OUT_FOLDER [--attention standard|gqa] [--router topk|argmax]

decode.onnx gathers the chosen experts' weights; prefill.onnx computes all experts, zero where not chosen: what
ONNX's operators allow without leaving the GPU. onnxruntime-web 1.30 runs TopK on the CPU, with a readback in
every routed layer; `argmax` takes the maximum k times instead and stays on the GPU. Weights are f32: the browser's software adapter has no f16.
The graphs end in the likeliest id.
"""

import argparse
import json
import os

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

BLOCK_EPSILON = 1e-6  # the norms inside a block


class Graph:
    """Nodes in order, with names made up."""

    def __init__(self):
        self.nodes, self.constants, self.inputs, self.outputs = [], {}, [], []

    def op(self, kind, *inputs, outputs=1, domain="", **attributes):
        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, name, value):
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def ints(self, *values):
        return self.constant("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def reshape(self, x, *shape):
        return self.op("Reshape", x, self.ints(*shape))

    def input(self, name, kind, shape):
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, value, name, kind, shape):
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def save(self, path):
        graph = helper.make_graph(self.nodes, "jetmoe", self.inputs, self.outputs, list(self.constants.values()))
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


class Exporter:
    def __init__(self, folder, attention, router):
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = json.load(file)

        def field(*names):
            return next(config[name] for name in names if name in config)

        self.layers, self.k = field("num_hidden_layers"), field("num_experts_per_tok", "moe_top_k")
        self.m, self.d = field("num_key_value_heads"), field("kv_channels")
        self.context, self.epsilon = field("max_position_embeddings", "n_positions"), field("rms_norm_eps")
        self.weights = {n: t.astype(np.float32) for n, t in load_file(os.path.join(folder, "model.safetensors")).items()}
        self.gqa, self.router = attention == "gqa", router
        angle = np.outer(np.arange(self.context), field("rope_theta") ** (-np.arange(0, self.d, 2) / self.d))
        self.cos, self.sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    def write(self, path, decode):
        g = self.g = Graph()
        self.decode = decode
        rows = 1 if decode else "rows"
        ids = g.input("ids", TensorProto.INT64, [rows])
        if self.gqa:
            self.lengths = g.input("lengths", TensorProto.INT32, [1])
            self.total = g.input("total", TensorProto.INT32, [1])
        else:
            positions = g.input("positions", TensorProto.INT64, [rows])
            self.turns = [
                g.op("Unsqueeze", g.op("Gather", g.constant(n, np.concatenate([t, t], 1)), positions), g.ints(1))
                for n, t in (("cos", self.cos), ("sin", self.sin))
            ]  # [rows, 1, d]
            if not decode:
                row, column = g.op("Unsqueeze", positions, g.ints(1)), g.op("Unsqueeze", positions, g.ints(0))
                hidden = g.op("Less", row, column)
                zero, never = (g.constant(n, np.float32(v)) for n, v in (("zero", 0), ("never", -1e30)))
                self.mask = g.op("Where", hidden, never, zero)  # [rows, rows]
        x = g.op("Gather", g.constant("embedding", self.weights["model.embed_tokens.weight"]), ids)
        for i in range(self.layers):
            layer = f"model.layers.{i}."
            x = self.attention(x, layer, i)
            x = self.mlp(x, layer)
        if not decode:
            x = g.op("Gather", x, g.ints(-1))  # the last row
        x = self.norm(x, "model.norm.weight", self.epsilon)
        logits = g.op("MatMul", x, g.constant("head", self.weights["model.embed_tokens.weight"].T))
        g.output(g.op("ArgMax", logits, axis=-1, keepdims=0), "next", TensorProto.INT64, [1])
        g.save(path)

    def norm(self, x, name, epsilon):
        # ONNX Runtime's own name for RMSNorm: its optimizer turns the standard operators into it.
        weight = self.g.constant(name, self.weights[name])
        return self.g.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=epsilon)

    def route(self, xn, name):
        """Ids [rows, k] and gates [rows, k] of the chosen experts."""
        g = self.g
        scores = g.op("MatMul", xn, g.constant(name, self.weights[name].T))
        if self.router == "topk":
            best, ids = g.op("TopK", scores, g.ints(self.k), outputs=2, axis=-1)
            return ids, g.op("Softmax", best, axis=-1)
        # ArgMax gives int64, whose Cast would run on the CPU too.
        every, zero = self.every(len(self.weights[name])), g.constant("zero", np.float32(0))
        best, ids = [], []
        for slot in range(self.k):
            best.append(g.op("ReduceMax", scores, axes=[-1], keepdims=1))
            taken = g.op("Equal", scores, best[-1])
            ids.append(g.op("ReduceMax", g.op("Where", taken, every, zero), axes=[-1], keepdims=1))
            if slot + 1 < self.k:
                scores = g.op("Where", taken, g.constant("never", np.float32(-1e30)), scores)
        return g.op("Concat", *ids, axis=-1), g.op("Softmax", g.op("Concat", *best, axis=-1), axis=-1)

    def every(self, experts):
        kind = np.int64 if self.router == "topk" else np.float32
        return self.g.constant(f"experts_{experts}", np.arange(experts, dtype=kind))

    def hot(self, ids, experts):
        """One where the slot chose the expert, [rows, k, E]."""
        g = self.g
        return g.op("Cast", g.op("Equal", g.op("Unsqueeze", ids, g.ints(2)), self.every(experts)), to=TensorProto.FLOAT)

    def matrices(self, name, scale=1.0):
        """[E, inputs, outputs]"""
        return self.g.constant(name, scale * self.weights[name].transpose(0, 2, 1))

    def stacked(self, name):
        """[E · inputs, outputs]"""
        stack = self.weights[name].transpose(0, 2, 1)
        return self.g.constant(name + ".stacked", stack.reshape(-1, stack.shape[2]))

    def chosen(self, matrices, ids):
        if self.router == "argmax":
            ids = self.g.op("Cast", ids, to=TensorProto.INT32)
        return self.g.op("Gather", matrices, self.g.reshape(ids, self.k))  # [k, inputs, outputs]

    def add_bias(self, y, x, name):
        g = self.g
        return g.op("Add", x, g.op("Add", y, g.constant(name, self.weights[name])))

    def attention(self, x, layer, i):
        g, k, m, d = self.g, self.k, self.m, self.d
        heads = layer + "self_attention.experts."
        xn = self.norm(x, layer + "input_layernorm.weight", BLOCK_EPSILON)
        ids, gates = self.route(xn, heads + "router.layer.weight")
        experts = len(self.weights[heads + "router.layer.weight"])
        # The scores' scale goes into the queries' weights: rotation is linear.
        w_q = self.matrices(heads + "input_linear.weight", 1.0 if self.gqa else d**-0.5)
        if self.decode:
            q = g.op("MatMul", xn, self.chosen(w_q, ids))  # [k, 1, m·d]
        else:
            every = g.op("Transpose", g.op("MatMul", g.op("Unsqueeze", xn, g.ints(0)), w_q), perm=[1, 0, 2])
            hot = self.hot(ids, experts)
            q = g.op("MatMul", hot, every)  # [rows, k, m·d]
        kv_name = layer + "self_attention.kv_proj.weight"
        new_k = g.op("MatMul", xn, g.constant(kv_name + ".k", self.weights[kv_name][: m * d].T))
        new_v = g.op("MatMul", xn, g.constant(kv_name + ".v", self.weights[kv_name][m * d :].T))
        attend = self.attend_gqa if self.gqa else self.attend
        out = attend(q, new_k, new_v, i)  # [rows, k, m·d]
        if self.decode:
            gated = g.op("Mul", g.reshape(out, k, m * d), g.reshape(gates, k, 1))
            w_o = g.reshape(self.chosen(self.matrices(heads + "output_linear.weight"), ids), k * m * d, -1)
            y = g.op("MatMul", g.reshape(gated, 1, k * m * d), w_o)
        else:
            gate = g.op("Transpose", g.op("Mul", hot, g.op("Unsqueeze", gates, g.ints(2))), perm=[0, 2, 1])
            spread = g.reshape(g.op("MatMul", gate, out), -1, experts * m * d)
            y = g.op("MatMul", spread, self.stacked(heads + "output_linear.weight"))
        return self.add_bias(y, x, heads + "bias")

    def rope(self, x):
        """x [rows, heads, d]"""
        g, d = self.g, self.d
        first, second = g.op("Split", x, g.ints(d // 2, d // 2), outputs=2, axis=2)
        turned = g.op("Concat", g.op("Neg", second), first, axis=2)
        return g.op("Add", g.op("Mul", x, self.turns[0]), g.op("Mul", turned, self.turns[1]))

    def attend(self, q, new_k, new_v, i):
        g, k, m, d = self.g, self.k, self.m, self.d
        q = self.rope(g.reshape(q, -1, k * m, d))
        q = g.reshape(g.op("Transpose", g.reshape(q, -1, k, m, d), perm=[2, 0, 1, 3]), m, -1, d)
        keys = g.op("Transpose", self.rope(g.reshape(new_k, -1, m, d)), perm=[1, 2, 0])  # [m, d, rows]
        values = g.op("Transpose", g.reshape(new_v, -1, m, d), perm=[1, 0, 2])  # [m, rows, d]
        if self.decode:
            past_k = g.input(f"past_k.{i}", TensorProto.FLOAT, [m, d, "past"])
            past_v = g.input(f"past_v.{i}", TensorProto.FLOAT, [m, "past", d])
            keys, values = g.op("Concat", past_k, keys, axis=2), g.op("Concat", past_v, values, axis=1)
        g.output(keys, f"present_k.{i}", TensorProto.FLOAT, [m, d, "total"])
        g.output(values, f"present_v.{i}", TensorProto.FLOAT, [m, "total", d])
        scores = g.op("MatMul", q, keys)  # [m, rows·k, keys]
        if not self.decode:
            mask = g.op("Unsqueeze", self.mask, g.ints(1))  # [rows, 1, keys]
            shape = g.op("Shape", scores)
            by_slot = g.op("Reshape", scores, g.op("Concat", g.ints(m, -1, k), g.op("Slice", shape, g.ints(2), g.ints(3)), axis=0))
            scores = g.op("Reshape", g.op("Add", by_slot, mask), shape)
        out = g.op("MatMul", g.op("Softmax", scores, axis=-1), values)
        return g.reshape(g.op("Transpose", g.reshape(out, m, -1, k, d), perm=[1, 2, 0, 3]), -1, k, m * d)

    def attend_gqa(self, q, new_k, new_v, i):
        """ONNX Runtime's fused operator: rotation, cache and attention in one. Its heads of one KV head stand together."""
        g, k, m, d = self.g, self.k, self.m, self.d
        q = g.op("Transpose", g.reshape(q, -1, k, m, d), perm=[0, 2, 1, 3])
        past = ("", "")
        if self.decode:
            past = [g.input(f"past_{n}.{i}", TensorProto.FLOAT, [1, m, "past", d]) for n in "kv"]
        out, keys, values = g.op(
            "GroupQueryAttention", g.reshape(q, 1, -1, m * k * d), g.reshape(new_k, 1, -1, m * d), g.reshape(new_v, 1, -1, m * d),
            *past, self.lengths, self.total, g.constant("cos_half", self.cos), g.constant("sin_half", self.sin),
            outputs=3, domain="com.microsoft", num_heads=m * k, kv_num_heads=m, do_rotary=1,
        )
        for name, value in (("k", keys), ("v", values)):
            g.output(value, f"present_{name}.{i}", TensorProto.FLOAT, [1, m, "total", d])
        return g.reshape(g.op("Transpose", g.reshape(out, -1, m, k, d), perm=[0, 2, 1, 3]), -1, k, m * d)

    def mlp(self, x, layer):
        g, k = self.g, self.k
        mlp = layer + "mlp."
        xn = self.norm(x, layer + "post_attention_layernorm.weight", BLOCK_EPSILON)
        ids, gates = self.route(xn, mlp + "router.layer.weight")
        experts, _, width = self.weights[mlp + "output_linear.weight"].shape
        w_i = self.matrices(mlp + "input_linear.weight")
        h = g.op("MatMul", xn, self.chosen(w_i, ids) if self.decode else w_i)  # [k or E, rows, 2F]
        gate, up = g.op("Split", h, g.ints(width, width), outputs=2, axis=2)
        h = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
        if self.decode:
            h = g.op("Mul", h, g.reshape(gates, k, 1, 1))
            w_o = g.reshape(self.chosen(self.matrices(mlp + "output_linear.weight"), ids), k * width, -1)
            y = g.op("MatMul", g.reshape(h, 1, k * width), w_o)
        else:
            gate = g.op("Mul", self.hot(ids, experts), g.op("Unsqueeze", gates, g.ints(2)))
            gate = g.op("Transpose", g.op("ReduceSum", gate, g.ints(1), keepdims=0), perm=[1, 0])  # [E, rows]
            h = g.op("Transpose", g.op("Mul", h, g.op("Unsqueeze", gate, g.ints(2))), perm=[1, 0, 2])
            y = g.op("MatMul", g.reshape(h, -1, experts * width), self.stacked(mlp + "output_linear.weight"))
        return self.add_bias(y, x, mlp + "bias")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--attention", choices=["standard", "gqa"], default="gqa")
    parser.add_argument("--router", choices=["topk", "argmax"], default="argmax")
    a = parser.parse_args()
    os.makedirs(a.out, exist_ok=True)
    exporter = Exporter(a.model, a.attention, a.router)
    exporter.write(os.path.join(a.out, "decode.onnx"), decode=True)
    exporter.write(os.path.join(a.out, "prefill.onnx"), decode=False)
    with open(os.path.join(a.out, "graph.json"), "w", encoding="utf-8") as file:
        json.dump({"layers": exporter.layers, "attention": a.attention}, file)


if __name__ == "__main__":
    main()
