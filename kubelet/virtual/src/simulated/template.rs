//! Templates as stages write them: Go's `text/template`, as far as it is needed. Pure.
//!
//! Understood: fields and variables, texts, numbers and words, pipes, brackets, `if`/`else if`/`else`, `with`, `range` (also over
//! `$i, $v`), assignments, trimmed whitespace, comments, and the functions in [`FUNCTIONS`]. Whatever else there is is refused when a
//! template is read. Upstream: Go's `text/template`, kwok's `pkg/utils/gotpl`.

mod parse;
mod render;
#[cfg(test)]
mod tests;

use serde_json::Value;

pub use parse::TemplateError;

/// A template that was read.
#[derive(Clone, Debug)]
pub struct Template {
    nodes: Vec<Node>,
}

#[derive(Clone, Debug)]
enum Node {
    Text(String),
    Print(Pipeline),
    Assign {
        name: String,
        declares: bool,
        value: Pipeline,
    },
    If {
        /// `with` sets the dot.
        with: bool,
        condition: Pipeline,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Range {
        /// Variables for key and value.
        key: Option<String>,
        value: Option<String>,
        over: Pipeline,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

/// Commands; what one gives is the last argument of the next.
#[derive(Clone, Debug)]
struct Pipeline(Vec<Command>);

#[derive(Clone, Debug)]
enum Command {
    Operand(Operand),
    Call(String, Vec<Operand>),
}

#[derive(Clone, Debug)]
enum Operand {
    /// Fields below the dot.
    Dot(Vec<String>),
    /// Fields below a variable; the name is empty for `$`.
    Variable(String, Vec<String>),
    Literal(Value),
    /// In brackets, with fields below it.
    Nested(Pipeline, Vec<String>),
    /// A function without arguments.
    Function(String),
}

/// Functions that are understood: Go's own, then kwok's.
pub const FUNCTIONS: &[&str] = &[
    "and",
    "or",
    "not",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "len",
    "index",
    "print",
    "Quote",
    "YAML",
    "Now",
    "StartTime",
    "Version",
    "NodeIP",
    "NodeName",
    "NodePort",
    "NodeIPWith",
    "PodIP",
    "PodIPWith",
];

/// What kwok's functions ask about.
pub trait Context {
    /// RFC 3339, the time now.
    fn now(&self) -> String;
    /// RFC 3339, the begin of the process.
    fn start_time(&self) -> String;
    fn version(&self) -> String;
    /// The node's address; empty: any of ours.
    fn node_ip(&self, node: &str) -> String;
    fn node_name(&self) -> String;
    fn node_port(&self) -> i64;
    /// An address for a pod: the same one for the same pod.
    fn pod_ip(&self, node: &str, host_network: bool, uid: &str) -> String;
}

/// Why a template could not be carried out with an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("template: {0}")]
pub struct RenderError(pub String);

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// Names what is not understood, with its line.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        parse::parse(text).map(|nodes| Self { nodes })
    }

    /// The text for an object.
    ///
    /// # Errors
    /// A function got what it cannot take.
    pub fn render(&self, object: &Value, context: &dyn Context) -> Result<String, RenderError> {
        render::render(&self.nodes, object, context)
    }
}
