//! A kernel with its constants filled in and without the branches that these rule out, so that drivers get what one
//! dispatch needs. They would drop the rest as well, but inline it first: on Mesa that was more than half of the time that
//! a pipeline took to make.

use std::sync::OnceLock;

use wgpu::naga::{
    Arena, Block, Expression, Function, Literal, Module, Statement, SwitchCase, SwitchValue,
    back::{PipelineConstants, pipeline_constants::process_overrides},
    compact::{KeepUnused, compact},
    front::wgsl,
    ir::{Constant, ShaderStage},
    valid::{Capabilities, ModuleInfo, ValidationFlags, Validator},
};

/// A kernel's text as naga reads it, once; nothing where naga refuses it.
#[derive(Default)]
pub(super) struct Parsed(OnceLock<Option<(Module, ModuleInfo)>>);

impl Parsed {
    /// The module of `source` for these constants, or nothing where something is wrong with it: then the text itself tells.
    pub fn specialise(&self, source: &str, constants: &PipelineConstants) -> Option<Module> {
        let parsed = self.0.get_or_init(|| {
            let module = wgsl::parse_str(source).ok()?;
            // wgpu validates what comes of it for what the device has.
            let info =
                Validator::new(ValidationFlags::empty(), Capabilities::all()).validate(&module).ok()?;
            Some((module, info))
        });
        let (module, info) = parsed.as_ref()?;
        let (module, _) =
            process_overrides(module, info, Some((ShaderStage::Compute, "main")), constants).ok()?;
        let mut module = module.into_owned();
        drop_dead_branches(&mut module);
        compact(&mut module, KeepUnused::No);
        Some(module)
    }
}

fn drop_dead_branches(module: &mut Module) {
    let Module { functions, entry_points, constants, global_expressions, .. } = module;
    let known = Known { constants, values: global_expressions };
    let entries = entry_points.iter_mut().map(|entry| &mut entry.function);
    for function in functions.iter_mut().map(|(_, function)| function).chain(entries) {
        let Function { body, expressions, named_expressions, .. } = function;
        known.prune(body, expressions);
        // What has a name counts as used.
        named_expressions.clear();
    }
}

/// The module's constants, by which branches are known.
struct Known<'a> {
    constants: &'a Arena<Constant>,
    values: &'a Arena<Expression>,
}

impl Known<'_> {
    fn literal(&self, expression: &Expression) -> Option<Literal> {
        match *expression {
            Expression::Literal(literal) => Some(literal),
            Expression::Constant(constant) => self.literal(&self.values[self.constants[constant].init]),
            _ => None,
        }
    }

    /// Puts what a known branch holds in its place. (What a branch emits is for itself alone, so it stays a block.)
    fn prune(&self, block: &mut Block, expressions: &Arena<Expression>) {
        let literal = |handle| self.literal(&expressions[handle]);
        for statement in block.iter_mut() {
            match statement {
                Statement::If { condition, accept, reject } => {
                    if let Some(Literal::Bool(is)) = literal(*condition) {
                        *statement = Statement::Block(std::mem::take(if is { accept } else { reject }));
                    }
                }
                Statement::Switch { selector, cases } => {
                    if let Some(Literal::U32(value)) = literal(*selector) {
                        keep_case(cases, value);
                    }
                }
                _ => {}
            }
            match statement {
                Statement::Block(block) => self.prune(block, expressions),
                Statement::If { accept, reject, .. } => {
                    self.prune(accept, expressions);
                    self.prune(reject, expressions);
                }
                Statement::Switch { cases, .. } => {
                    cases.iter_mut().for_each(|case| self.prune(&mut case.body, expressions));
                }
                Statement::Loop { body, continuing, .. } => {
                    self.prune(body, expressions);
                    self.prune(continuing, expressions);
                }
                _ => {}
            }
        }
        // Nothing may follow where a block now always ends.
        if let Some(last) = block.iter().position(ends) {
            block.cull(last + 1..);
        }
    }
}

/// Leaves of a switch what it does for `value`, as its default: a `break` in it still has a switch to end.
fn keep_case(cases: &mut Vec<SwitchCase>, value: u32) {
    let is = |wanted: SwitchValue| cases.iter().position(|case| case.value == wanted);
    let Some(mut index) = is(SwitchValue::U32(value)).or_else(|| is(SwitchValue::Default)) else { return };
    // One body for several values belongs to the last of them.
    while cases[index].fall_through && cases[index].body.is_empty() && index + 1 < cases.len() {
        index += 1;
    }
    if !cases[index].fall_through {
        *cases = vec![SwitchCase { value: SwitchValue::Default, ..cases.swap_remove(index) }];
    }
}

/// Whether nothing after the statement is reached.
fn ends(statement: &Statement) -> bool {
    match statement {
        Statement::Return { .. } | Statement::Kill | Statement::Break | Statement::Continue => true,
        Statement::Block(block) => block.iter().any(ends),
        Statement::If { accept, reject, .. } => accept.iter().any(ends) && reject.iter().any(ends),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "
        override FORMAT: u32 = 0u;
        override WIDE: bool = false;
        @group(0) @binding(0) var<storage, read_write> out: array<u32>;

        fn one(x: u32) -> u32 { return x + 1u; }
        fn two(x: u32) -> u32 { return x + 2u; }

        fn pick(x: u32) -> u32 {
            if FORMAT == 7u {
                return one(x);
            }
            switch FORMAT {
                case 1u, 2u: { return two(x); }
                case 3u: {
                    if x > 5u { break; }
                    return 9u;
                }
                default: { return x; }
            }
            return 4u;
        }

        @compute @workgroup_size(1)
        fn main(@builtin(local_invocation_index) lane: u32) {
            if WIDE && lane > 0u {
                out[1] = pick(lane);
            } else {
                out[0] = lane;
            }
        }
    ";

    fn specialise(source: &str, constants: &[(&str, f64)]) -> Option<Module> {
        let constants = constants.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        Parsed::default().specialise(source, &constants)
    }

    /// Statements of the module that choose, and functions that are left.
    fn left(format: f64, wide: f64) -> (usize, Vec<String>) {
        let module = specialise(SOURCE, &[("FORMAT", format), ("WIDE", wide)]).unwrap();
        let mut validator = Validator::new(ValidationFlags::all(), Capabilities::empty());
        validator.validate(&module).unwrap();
        fn choices(block: &Block) -> usize {
            let of = |statement: &Statement| match statement {
                Statement::If { accept, reject, .. } => 1 + choices(accept) + choices(reject),
                Statement::Switch { cases, .. } => {
                    usize::from(cases.len() > 1) + cases.iter().map(|case| choices(&case.body)).sum::<usize>()
                }
                Statement::Block(block) => choices(block),
                _ => 0,
            };
            block.iter().map(of).sum()
        }
        let bodies = module.functions.iter().map(|(_, function)| &function.body);
        let all = bodies.chain([&module.entry_points[0].function.body]).map(choices).sum();
        let names = module.functions.iter().filter_map(|(_, function)| function.name.clone()).collect();
        (all, names)
    }

    #[test]
    fn what_constants_rule_out_is_gone() {
        // The entry point asks for the result of `&&`, which is known, but in a variable.
        let pick = |others: &[&str]| others.iter().chain(&["pick"]).map(|name| name.to_string()).collect();
        assert_eq!(left(7.0, 1.0), (1, pick(&["one"])));
        assert_eq!(left(1.0, 1.0), (1, pick(&["two"])));
        assert_eq!(left(2.0, 1.0), (1, pick(&["two"])));
        // Its own `if`, whose `break` ends the switch that is left for it.
        assert_eq!(left(3.0, 1.0), (2, pick(&[])));
        assert_eq!(left(8.0, 1.0), (1, pick(&[])));
    }

    #[test]
    fn what_naga_refuses_is_left_to_the_text() {
        assert!(specialise("fn", &[]).is_none());
        assert!(specialise(SOURCE, &[("NO_SUCH", 1.0)]).is_none());
    }
}
