//! [`Selectors`]: the CEL expressions that classes and requests select devices by, compiled once.
//!
//! The language is the crate `cel`'s, with what Kubernetes adds to it for devices: the variable `device`, quantities, versions, and functions on strings, lists
//! and sets. Costs are bounded by the API server, which lets no expression in that may take long. Upstream: k8s.io/dynamic-resource-allocation/cel and
//! k8s.io/apiserver/pkg/cel/{environment,library}, v1.37.
//!
//! DIFFERS: an expression whose tree is higher than [`MAX_HEIGHT`] is refused: it is read and evaluated by recursion. Functions on addresses, URLs, named formats, times and comprehensions of two variables are not built; an expression that comes to one fails with its name.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use cel::common::ast::{EntryExpr, Expr, IdedExpr};
use cel::{Context, Env, ExecutionError, Program, Value};

mod device;
mod library;
#[cfg(test)]
mod tests;
mod values;

pub(crate) use device::DeviceVariable;

/// Compiled expressions kept; at one more, all are forgotten.
const MAX_KEPT: usize = 1024;
/// Bytes of an expression. Upstream: `CELSelectorExpressionMaxLength`.
const MAX_LENGTH: usize = 10 * 1024;
/// How high the tree of an expression may be.
const MAX_HEIGHT: usize = 96;
/// The stack an expression is read on: a byte of it may be a level of the tree.
const COMPILER_STACK: usize = 256 << 20;

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(library::environment()));

/// Why a selector says neither yes nor no. A retry does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// It is not in the language.
    #[error("CEL compile error: compilation failed: {reason} in {expression:?}")]
    Compile {
        /// The expression.
        expression: String,
        /// What is wrong.
        reason: String,
    },
    /// It fails for a device.
    #[error("CEL runtime error: {reason} in {expression:?}")]
    Run {
        /// The expression.
        expression: String,
        /// What is wrong.
        reason: String,
    },
}

/// A compiled expression.
pub(crate) struct Selector {
    expression: String,
    program: Program,
}

/// See the module.
#[derive(Default)]
pub struct Selectors {
    known: Mutex<HashMap<String, Result<Arc<Selector>, SelectorError>>>,
}

impl Selectors {
    /// Without any yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Compiles, or remembers.
    ///
    /// # Errors
    /// When it is not in the language.
    pub(crate) fn compile(&self, expression: &str) -> Result<Arc<Selector>, SelectorError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(expression) {
            return found.clone();
        }
        let compiled = match compile(expression) {
            Ok(program) => Ok(Arc::new(Selector {
                expression: expression.to_owned(),
                program,
            })),
            Err(reason) => Err(SelectorError::Compile {
                expression: expression.to_owned(),
                reason,
            }),
        };
        if known.len() >= MAX_KEPT {
            known.clear();
        }
        known.insert(expression.to_owned(), compiled.clone());
        compiled
    }
}

/// Reads an expression, on a stack of its own: nobody has looked at how deep it is.
fn compile(expression: &str) -> Result<Program, String> {
    if expression.len() > MAX_LENGTH {
        return Err(format!("longer than {MAX_LENGTH} bytes"));
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("cel".to_owned())
            .stack_size(COMPILER_STACK);
        let read = thread.spawn_scoped(scope, || {
            let program = ENVIRONMENT
                .compile(expression)
                .map_err(|errors| errors.to_string())?;
            if height(program.expression()) > MAX_HEIGHT {
                return Err(format!("nested more than {MAX_HEIGHT} deep"));
            }
            Ok(program)
        });
        let read = read.map_err(|error| format!("no thread to read it: {error}"))?;
        read.join()
            .unwrap_or_else(|_| Err("it cannot be read".to_owned()))
    })
}

/// How many nodes the longest way down has.
fn height(expr: &IdedExpr) -> usize {
    let of = |exprs: &mut dyn Iterator<Item = &IdedExpr>| exprs.map(height).max().unwrap_or(0);
    let entry = |entry: &EntryExpr| match entry {
        EntryExpr::StructField(field) => height(&field.value),
        EntryExpr::MapEntry(entry) => height(&entry.key).max(height(&entry.value)),
    };
    let below = match &expr.expr {
        Expr::Call(call) => of(&mut call.args.iter().chain(call.target.as_deref())),
        Expr::Comprehension(c) => of(&mut [
            &c.iter_range,
            &c.accu_init,
            &c.loop_cond,
            &c.loop_step,
            &c.result,
        ]
        .into_iter()),
        Expr::List(list) => of(&mut list.elements.iter()),
        Expr::Map(map) => map
            .entries
            .iter()
            .map(|e| entry(&e.expr))
            .max()
            .unwrap_or(0),
        Expr::Struct(all) => all
            .entries
            .iter()
            .map(|e| entry(&e.expr))
            .max()
            .unwrap_or(0),
        Expr::Select(select) => height(&select.operand),
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => 0,
    };
    below + 1
}

impl Selector {
    /// Does it match the device?
    ///
    /// # Errors
    /// When it fails, or gives no boolean.
    pub(crate) fn matches(
        &self,
        device: &Result<DeviceVariable, String>,
    ) -> Result<bool, SelectorError> {
        let failed = |reason: String| SelectorError::Run {
            expression: self.expression.clone(),
            reason,
        };
        let variable = device.as_ref().map_err(|e| failed(e.clone()))?;
        let mut context = Context::with_env(Arc::clone(&ENVIRONMENT));
        context.add_variable_as_val("device", Box::new(variable.clone()));
        let value = Value::resolve_val(self.program.expression(), &context);
        let value = value.map_err(|error| failed(told(&error)))?;
        match value.downcast_ref::<cel::common::types::CelBool>() {
            Some(matches) => Ok(*matches.inner()),
            None => Err(failed(format!(
                "CEL result of type {} could not be converted to bool",
                value.get_type().name()
            ))),
        }
    }
}

fn told(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(key) => format!(
            "no such key: {key}. consider using CEL optional chaining (.? followed by orValue()) or guarding the check with has() for optional fields"
        ),
        other => other.to_string(),
    }
}
