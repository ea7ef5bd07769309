//! From nodes and an object to text.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::{Command, Context, Node, Operand, Pipeline, RenderError};

/// What a template may give; a status has a few KiB.
const MAX_BYTES: usize = 1 << 20;

pub(super) fn render(
    nodes: &[Node],
    object: &Value,
    context: &dyn Context,
) -> Result<String, RenderError> {
    let mut renderer = Renderer {
        context,
        root: object,
        variables: Vec::new(),
        out: String::new(),
    };
    renderer.nodes(nodes, object)?;
    Ok(renderer.out)
}

struct Renderer<'a> {
    context: &'a dyn Context,
    root: &'a Value,
    variables: Vec<(String, Value)>,
    out: String,
}

/// Go's truth of a value.
fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => !object.is_empty(),
    }
}

fn below(value: Value, fields: &[String]) -> Value {
    fields.iter().fold(value, |value, field| match value {
        Value::Object(mut object) => object.remove(field).unwrap_or(Value::Null),
        _ => Value::Null,
    })
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

impl Renderer<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<(), RenderError> {
        let scope = self.variables.len();
        for node in nodes {
            if self.out.len() > MAX_BYTES {
                return Err(RenderError(format!("more than {MAX_BYTES} bytes")));
            }
            self.node(node, dot)?;
        }
        self.variables.truncate(scope);
        Ok(())
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<(), RenderError> {
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Print(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                self.out.push_str(&text(&value));
            }
            Node::Assign {
                name,
                declares,
                value,
            } => {
                let value = self.pipeline(value, dot)?;
                let known = self.variables.iter_mut().rev().find(|(n, _)| n == name);
                match (declares, known) {
                    (false, Some((_, old))) => *old = value,
                    (false, None) => {
                        return Err(RenderError(format!("undefined variable ${name}")));
                    }
                    (true, _) => self.variables.push((name.clone(), value)),
                }
            }
            Node::If {
                with,
                condition,
                then,
                otherwise,
            } => {
                let value = self.pipeline(condition, dot)?;
                match (truth(&value), with) {
                    (true, true) => self.nodes(then, &value)?,
                    (true, false) => self.nodes(then, dot)?,
                    (false, _) => self.nodes(otherwise, dot)?,
                }
            }
            Node::Range {
                key,
                value,
                over,
                body,
                otherwise,
            } => {
                let items = items(self.pipeline(over, dot)?)?;
                if items.is_empty() {
                    return self.nodes(otherwise, dot);
                }
                for (at, item) in items {
                    let scope = self.variables.len();
                    let named = [(key, at), (value, item.clone())];
                    for (name, value) in named {
                        if let Some(name) = name {
                            self.variables.push((name.clone(), value));
                        }
                    }
                    self.nodes(body, &item)?;
                    self.variables.truncate(scope);
                }
            }
        }
        Ok(())
    }

    fn pipeline(&self, pipeline: &Pipeline, dot: &Value) -> Result<Value, RenderError> {
        let mut given: Option<Value> = None;
        for command in &pipeline.0 {
            given = Some(match command {
                Command::Operand(operand) => self.operand(operand, dot)?,
                Command::Call(name, operands) => {
                    let mut arguments = Vec::with_capacity(operands.len() + 1);
                    for operand in operands {
                        arguments.push(self.operand(operand, dot)?);
                    }
                    arguments.extend(given.take());
                    self.call(name, &arguments)?
                }
            });
        }
        Ok(given.unwrap_or(Value::Null))
    }

    fn operand(&self, operand: &Operand, dot: &Value) -> Result<Value, RenderError> {
        Ok(match operand {
            Operand::Dot(fields) => walk(dot, fields),
            Operand::Variable(name, fields) if name.is_empty() => walk(self.root, fields),
            Operand::Variable(name, fields) => {
                let found = self.variables.iter().rev().find(|(n, _)| n == name);
                let (_, value) =
                    found.ok_or_else(|| RenderError(format!("undefined variable ${name}")))?;
                walk(value, fields)
            }
            Operand::Literal(value) => value.clone(),
            Operand::Nested(pipeline, fields) => below(self.pipeline(pipeline, dot)?, fields),
            Operand::Function(name) => self.call(name, &[])?,
        })
    }

    fn call(&self, name: &str, arguments: &[Value]) -> Result<Value, RenderError> {
        let wrong = |what: &str| RenderError(format!("{name}: {what}"));
        let argument = |at: usize| {
            arguments
                .get(at)
                .ok_or_else(|| wrong("an argument is missing"))
        };
        let word = |at: usize| argument(at).map(|v| v.as_str().unwrap_or_default().to_owned());
        Ok(match name {
            "and" | "or" => {
                let decides = |v: &&Value| truth(v) == (name == "or");
                let last = arguments
                    .last()
                    .ok_or_else(|| wrong("an argument is missing"))?;
                arguments.iter().find(decides).unwrap_or(last).clone()
            }
            "not" => (!truth(argument(0)?)).into(),
            "eq" => {
                let first = argument(0)?;
                argument(1)?;
                arguments[1..].iter().any(|v| equal(first, v)).into()
            }
            "ne" => (!equal(argument(0)?, argument(1)?)).into(),
            "lt" | "le" | "gt" | "ge" => {
                let order = order(argument(0)?, argument(1)?)
                    .ok_or_else(|| wrong("incompatible types for comparison"))?;
                match name {
                    "lt" => order == Ordering::Less,
                    "le" => order != Ordering::Greater,
                    "gt" => order == Ordering::Greater,
                    _ => order != Ordering::Less,
                }
                .into()
            }
            "len" => match argument(0)? {
                Value::String(text) => text.len().into(),
                Value::Array(list) => list.len().into(),
                Value::Object(object) => object.len().into(),
                _ => return Err(wrong("it has no length")),
            },
            "index" => arguments
                .iter()
                .skip(1)
                .fold(argument(0)?.clone(), |value, at| {
                    let found = match (&value, at) {
                        (Value::Object(object), Value::String(key)) => object.get(key),
                        (Value::Array(list), at) => at
                            .as_u64()
                            .and_then(|at| list.get(usize::try_from(at).ok()?)),
                        _ => None,
                    };
                    found.cloned().unwrap_or(Value::Null)
                }),
            "print" => arguments.iter().map(text).collect::<String>().into(),
            "Quote" => match argument(0)? {
                Value::String(text) => Value::from(text.as_str()).to_string().into(),
                Value::Null => "\"\"".into(),
                other => Value::from(other.to_string()).to_string().into(),
            },
            // JSON is YAML, and needs no indentation.
            "YAML" => argument(0)?.to_string().into(),
            "Now" => self.context.now().into(),
            "StartTime" => self.context.start_time().into(),
            "Version" => self.context.version().into(),
            "NodeIP" => self.context.node_ip("").into(),
            "NodeName" => self.context.node_name().into(),
            "NodePort" => self.context.node_port().into(),
            "NodeIPWith" => self.context.node_ip(&word(0)?).into(),
            "PodIP" => self.context.pod_ip("", false, "").into(),
            "PodIPWith" => {
                let host = arguments.get(1).is_some_and(truth);
                let uid = arguments.get(2).and_then(Value::as_str).unwrap_or_default();
                self.context.pod_ip(&word(0)?, host, uid).into()
            }
            _ => return Err(wrong("not defined")),
        })
    }
}

fn walk(value: &Value, fields: &[String]) -> Value {
    let found = fields
        .iter()
        .try_fold(value, |value, field| value.get(field));
    found.cloned().unwrap_or(Value::Null)
}

fn items(value: Value) -> Result<Vec<(Value, Value)>, RenderError> {
    let keyed =
        |object: Map<String, Value>| object.into_iter().map(|(k, v)| (k.into(), v)).collect();
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) => {
            let numbered = list.into_iter().enumerate();
            Ok(numbered.map(|(at, v)| (at.into(), v)).collect())
        }
        Value::Object(object) => Ok(keyed(object)),
        other => Err(RenderError(format!("range can't iterate over {other}"))),
    }
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

fn order(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
    }
}
