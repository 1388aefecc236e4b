//! The one walk over a transformer's layers: what tensors each has, of what shape, and where they go.
//!
//! Walked with a plan (`Vec<Request>`) it lists what the model wants of its files; walked with an
//! [`Upload`](crate::weights::Upload) it makes the layers. A tensor that a layer comes to have is named here and nowhere else.

use std::sync::Arc;

use super::{
    AttentionNames, Block, BlockNames, BlockSpec, Input, InputNames, InputSpec, Layers, MlpNames, PatchNames,
    RouterNames, Stack, StackNames, StackSpec, TokenNames, TransformNames, TransformerNames, TransformerSpec,
};
use crate::{
    Error, Result,
    layers::{
        ExpertMlp, ExpertMlpSpec, ExpertMlpWeights, Factor, HeadMixture, HeadMixtureSpec, HeadMixtureWeights,
        KvProjection, Norm, NormSpec, OutputBias, OutputHead, PatchEmbedding, PositionEncoding, Router,
        RouterNet, RouterSpec, RouterWeights, TokenEmbedding, Transform,
    },
    ops::{MatrixShape, head_stride},
    weights::{Form, Pieces, Request, Tensors},
};

/// Of what `T` hands out.
type RouterOf<T> = Router<<T as Tensors>::Matrix, <T as Tensors>::Rows>;

impl TransformerSpec {
    /// Everything that this transformer wants of its files.
    ///
    /// # Errors
    /// When `names` lacks a tensor that a layer has.
    pub fn requests(&self, names: &TransformerNames) -> Result<Vec<Request>> {
        let mut plan = Vec::new();
        self.layers(names, &mut plan)?;
        Ok(plan)
    }

    /// Its layers, made of what `tensors` hands out.
    ///
    /// # Errors
    /// When `names` lacks a tensor that a layer has, and what `tensors` reports.
    pub fn layers<T: Tensors>(
        &self,
        names: &TransformerNames,
        tensors: &mut T,
    ) -> Result<Layers<T::Matrix, T::Rows>> {
        let input = self.input(&names.input, tensors)?;
        let matrix = match (names.head.own(), &input) {
            (Some(name), _) => {
                let head = Request::matrix(&name.to_owned().into(), self.table_shape());
                // As the table is, where the same values are not there twice.
                Arc::new(tensors.matrix(if names.head.tied { head.unquantized() } else { head })?)
            }
            (None, Input::Tokens(embedding)) => Arc::clone(&embedding.table),
            (None, Input::Patches(_)) => {
                return Err(Error::bad_file("model", "output head", "no name", "a tensor's name"));
            }
        };
        let head = OutputHead {
            matrix,
            bias: tensors.optional(&names.head.bias, Form::vector(self.outputs))?,
            transform: self.transform(&names.head.transform, tensors)?,
        };
        let encoder = match (&self.encoder, &names.encoder) {
            (Some(spec), Some(names)) => Some(stack(spec, names, tensors)?),
            _ => None,
        };
        Ok(Layers { input, encoder, stack: stack(&self.stack, &names.stack, tensors)?, head })
    }

    /// What the residual stream starts with.
    fn input<T: Tensors>(&self, names: &InputNames, tensors: &mut T) -> Result<Input<T::Matrix, T::Rows>> {
        match (names, self.input) {
            (InputNames::Tokens(names), InputSpec::Tokens { scale, sinusoidal_from, factor }) => {
                let table = Request::matrix(&names.table.clone().into(), self.table_shape()).unquantized();
                let table = Arc::new(tensors.matrix(table)?);
                let computed =
                    sinusoidal_from.map(|first| tensors.sinusoids(self.context, self.width, first));
                let rows = |rows| Form::Rows { rows, width: self.table_width(), transposed: false };
                let learned = tensors.optional(&names.positions, rows(self.context))?;
                let everywhere = tensors.optional(&names.everywhere, rows(1))?;
                let added = computed.into_iter().chain(learned).chain(everywhere).collect();
                let factor = factor.map(|norm| self.factor(norm, names, tensors)).transpose()?;
                Ok(Input::Tokens(TokenEmbedding { table, scale, added, factor }))
            }
            (InputNames::Patches(names), InputSpec::Patches { values, count }) => {
                let PatchNames { projection, bias, class_token, positions } = &**names;
                let shape = MatrixShape::dense(self.width, values);
                let embedding = PatchEmbedding {
                    projection: tensors.matrix(Request::matrix(projection, shape).unquantized())?,
                    bias: tensors.rows(Request::new(bias, Form::vector(self.width)))?,
                    class_token: tensors.rows(Request::rows(class_token, 1, self.width))?,
                    positions: tensors.rows(Request::rows(positions, 1 + count, self.width))?,
                };
                Ok(Input::Patches(embedding))
            }
            (_, spec) => {
                let expected = "names for the same input";
                Err(Error::bad_file("model", "input", format!("{spec:?} and other names"), expected))
            }
        }
    }

    /// From the table's width to the residual stream's.
    fn factor<T: Tensors>(
        &self,
        spec: NormSpec,
        names: &TokenNames,
        tensors: &mut T,
    ) -> Result<Factor<T::Matrix, T::Rows>> {
        let shape = MatrixShape::dense(self.width, spec.width);
        Ok(Factor {
            norm: norm(spec, &names.norm, tensors)?,
            projection: tensors.matrix(Request::matrix(&names.projection, shape).unquantized())?,
            bias: tensors.optional(&names.bias, Form::vector(self.width))?,
        })
    }

    /// The layer before the output head.
    fn transform<T: Tensors>(
        &self,
        names: &TransformNames,
        tensors: &mut T,
    ) -> Result<Option<Transform<T::Matrix, T::Rows>>> {
        let Some(spec) = self.transform else { return Ok(None) };
        let shape = MatrixShape::dense(spec.norm.width, self.width);
        Ok(Some(Transform {
            matrix: tensors.matrix(Request::matrix(&names.matrix, shape))?,
            bias: tensors.optional(&names.bias, Form::vector(spec.norm.width))?,
            activation: spec.activation,
            norm: norm(spec.norm, &names.norm, tensors)?,
        }))
    }
}

fn stack<T: Tensors>(
    spec: &StackSpec,
    names: &StackNames,
    tensors: &mut T,
) -> Result<Stack<T::Matrix, T::Rows>> {
    let blocks = spec.blocks.iter().zip(&names.blocks);
    Ok(Stack {
        blocks: blocks.map(|(spec, names)| block(spec, names, tensors)).collect::<Result<_>>()?,
        final_norm: norm(spec.final_norm, &names.final_norm, tensors)?,
    })
}

fn block<T: Tensors>(
    spec: &BlockSpec,
    names: &BlockNames,
    tensors: &mut T,
) -> Result<Block<T::Matrix, T::Rows>> {
    Ok(Block {
        attention: attention(&spec.attention, &names.attention, tensors)?,
        cross: match (&spec.cross, &names.cross) {
            (Some(spec), Some(names)) => Some(attention(spec, names, tensors)?),
            _ => None,
        },
        mlp: spec.mlp.as_ref().map(|spec| mlp(spec, &names.mlp, tensors)).transpose()?,
    })
}

fn attention<T: Tensors>(
    spec: &HeadMixtureSpec,
    names: &AttentionNames,
    tensors: &mut T,
) -> Result<HeadMixture<T::Matrix, T::Rows>> {
    debug_assert!(!matches!(spec.position, PositionEncoding::Relative { .. }), "no family has these yet");
    let (width, dim) = (spec.norm.width, spec.head_dim);
    let norm = norm(spec.norm, &names.norm, tensors)?;
    let router = router(&spec.router, &names.router, width, tensors)?;
    let (query, kv) = projections(spec, names, tensors)?;
    let shape = spec.query_shape();
    let per_expert = shape.outputs / head_stride(dim);
    let query_heads = Form::ExpertHeads { experts: shape.experts, heads: per_expert, head_dim: dim };
    let query_bias = tensors.optional(&names.query_bias, query_heads)?;
    let kv = match (kv, spec.kv_shape()) {
        (Some(kv), Some(shape)) => {
            let heads = Form::Heads { width: shape.outputs, head_dim: dim };
            Some((kv, tensors.optional(&names.kv_bias, heads)?))
        }
        _ => None,
    };
    let output = Request::matrix(&names.output, spec.output_shape()).input_heads(dim).used(spec.active());
    Ok(HeadMixture {
        spec: *spec,
        norm,
        router,
        weights: HeadMixtureWeights {
            query,
            query_bias,
            kv,
            values: values(spec, names, tensors)?,
            output: tensors.matrix(output)?,
            output_bias: output_bias(spec, names, tensors)?,
            relative: None,
        },
    })
}

/// Queries, and keys and values where there is a projection of them.
fn projections<T: Tensors>(
    spec: &HeadMixtureSpec,
    names: &AttentionNames,
    tensors: &mut T,
) -> Result<(T::Matrix, Option<T::Matrix>)> {
    let dim = spec.head_dim;
    let query = Request::matrix(&names.query, spec.query_shape()).output_heads(dim).used(spec.active());
    let Some(shape) = spec.kv_shape() else { return Ok((tensors.matrix(query)?, None)) };
    let kv = Request::matrix(&names.kv, shape).output_heads(dim);
    // Decoding projects routed queries, keys and values at once.
    let at_once = names.kv_bias.is_empty() && !spec.dense_queries() && spec.kv == KvProjection::Projected;
    let [query, kv] = match at_once {
        true => tensors.pair([query, kv])?,
        false => [tensors.matrix(query)?, tensors.matrix(kv)?],
    };
    Ok((query, Some(kv)))
}

/// The value experts and their router.
fn values<T: Tensors>(
    spec: &HeadMixtureSpec,
    names: &AttentionNames,
    tensors: &mut T,
) -> Result<Option<(T::Matrix, RouterOf<T>)>> {
    let (Some(shape), Some(of)) = (spec.value_shape(), spec.value_router()) else { return Ok(None) };
    let values = Request::matrix(&names.values, shape).output_heads(spec.head_dim).used(of.active());
    let values = tensors.matrix(values)?;
    let router = router(of, &names.value_router, spec.norm.width, tensors)?;
    Ok(router.map(|router| (values, router)))
}

fn output_bias<T: Tensors>(
    spec: &HeadMixtureSpec,
    names: &AttentionNames,
    tensors: &mut T,
) -> Result<OutputBias<T::Rows>> {
    let width = spec.norm.width;
    let of_expert = Form::Rows { rows: spec.experts(), width, transposed: false };
    let form = if names.output_bias_of_expert { of_expert } else { Form::vector(width) };
    Ok(match tensors.optional(&names.output_bias, form)? {
        None => OutputBias::None,
        Some(bias) if names.output_bias_of_expert => OutputBias::OfExpert(bias),
        Some(bias) => OutputBias::Once(bias),
    })
}

fn mlp<T: Tensors>(
    spec: &ExpertMlpSpec,
    names: &MlpNames,
    tensors: &mut T,
) -> Result<ExpertMlp<T::Matrix, T::Rows>> {
    let (width, active) = (spec.norm.width, spec.active());
    let up_bias = match spec.router.routes() {
        true => Form::Rows { rows: spec.experts(), width: spec.hidden, transposed: false },
        false => Form::vector(spec.hidden),
    };
    Ok(ExpertMlp {
        spec: *spec,
        norm: norm(spec.norm, &names.norm, tensors)?,
        router: router(&spec.router, &names.router, width, tensors)?,
        weights: ExpertMlpWeights {
            up: tensors.matrix(Request::matrix(&names.up, spec.up_shape()).used(active))?,
            up_bias: tensors.optional(&names.up_bias, up_bias)?,
            down: tensors.matrix(Request::matrix(&names.down, spec.down_shape()).used(active))?,
            output_bias: tensors.optional(&names.down_bias, Form::vector(width))?,
        },
    })
}

/// A norm, which may have no tensors of its own.
fn norm<T: Tensors>(spec: NormSpec, names: &Pieces, tensors: &mut T) -> Result<Norm<T::Rows>> {
    let form = Form::Vectors { rows: spec.rows(), width: spec.width };
    Ok(Norm { spec, weights: tensors.optional(names, form)? })
}

fn router<T: Tensors>(
    spec: &RouterSpec,
    names: &RouterNames,
    width: u32,
    tensors: &mut T,
) -> Result<Option<RouterOf<T>>> {
    let rows = spec.choice.score_rows();
    let weights = match spec.net {
        RouterNet::None => return Ok(None),
        RouterNet::QueryNorm => RouterWeights::QueryNorm,
        RouterNet::Linear => RouterWeights::Linear {
            weight: tensors.rows(Request::rows(&names.weight, rows, width))?,
            bias: tensors.optional(&names.bias, Form::vector(rows))?,
        },
        RouterNet::Mlp { hidden, .. } => {
            let layer = |names, outputs, inputs| {
                Request::matrix(names, MatrixShape::dense(outputs, inputs)).unquantized()
            };
            RouterWeights::Mlp {
                first: tensors.matrix(layer(&names.hidden, hidden, width))?,
                second: tensors.matrix(layer(&names.weight, rows, hidden))?,
                first_bias: tensors.optional(&names.hidden_bias, Form::vector(hidden))?,
                second_bias: tensors.optional(&names.bias, Form::vector(rows))?,
            }
        }
        RouterNet::Cosine { .. } => {
            let found = format!("{:?}", spec.net);
            return Err(Error::bad_file("model", "router", found, "one that a family has names for"));
        }
    };
    Ok(Some(Router { spec: *spec, weights }))
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests;
