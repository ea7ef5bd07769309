//! Faults of fields, said as the API says them: `spec.containers[0].name: Required value`.
//!
//! Upstream: `apimachinery/pkg/util/validation/field`.

use std::fmt;

use serde::Serialize;

/// Where a field is.
#[derive(Clone, Debug)]
pub struct Path(String);

impl Path {
    pub fn new(name: &str) -> Self {
        Self(name.to_owned())
    }

    pub fn child(&self, name: &str) -> Self {
        Self(format!("{}.{name}", self.0))
    }

    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }
}

/// A value as a fault shows it: texts quoted, numbers bare.
pub enum Value<'a> {
    Text(&'a str),
    Number(i64),
    Truth(bool),
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl From<i32> for Value<'_> {
    fn from(number: i32) -> Self {
        Self::Number(number.into())
    }
}

impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<bool> for Value<'_> {
    fn from(truth: bool) -> Self {
        Self::Truth(truth)
    }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Number(number) => number.fmt(f),
            Self::Truth(truth) => truth.fmt(f),
        }
    }
}

/// What is wrong, in the order in which it was found. Shown in brackets with spaces between, as Go shows a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Errors(Vec<String>);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}]", self.0.join(" "))
    }
}

impl std::error::Error for Errors {}

impl Errors {
    /// # Errors
    /// There are any.
    pub fn into_result(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    fn add(&mut self, path: &Path, what: &str, detail: &str) {
        let text = match detail {
            "" => format!("{}: {what}", path.0),
            _ => format!("{}: {what}: {detail}", path.0),
        };
        self.0.push(text);
    }

    pub fn required(&mut self, path: &Path, detail: &str) {
        self.add(path, "Required value", detail);
    }

    pub fn forbidden(&mut self, path: &Path, detail: &str) {
        self.add(path, "Forbidden", detail);
    }

    pub fn too_long(&mut self, path: &Path, detail: &str) {
        self.add(path, "Too long", detail);
    }

    pub fn too_many(&mut self, path: &Path, count: usize, most: usize) {
        let detail = format!("must have at most {most} items");
        self.add(path, &format!("Too many: {count}"), &detail);
    }

    pub fn invalid<'a>(&mut self, path: &Path, value: impl Into<Value<'a>>, detail: &str) {
        self.add(path, &format!("Invalid value: {}", value.into()), detail);
    }

    /// With a value that is no text and no number.
    pub fn invalid_json(&mut self, path: &Path, value: &impl Serialize, detail: &str) {
        let value = serde_json::to_string(value).unwrap_or_default();
        self.add(path, &format!("Invalid value: {value}"), detail);
    }

    pub fn duplicate(&mut self, path: &Path, value: &str) {
        self.add(path, &format!("Duplicate value: {value:?}"), "");
    }

    pub fn not_found(&mut self, path: &Path, value: &str) {
        self.add(path, &format!("Not found: {value:?}"), "");
    }

    pub fn not_supported(&mut self, path: &Path, value: &str, supported: &[&str]) {
        let quoted: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let detail = format!("supported values: {}", quoted.join(", "));
        self.add(path, &format!("Unsupported value: {value:?}"), &detail);
    }

    /// A word that must be there, and one of these.
    pub fn one_of(&mut self, path: &Path, value: Option<&str>, supported: &[&str]) {
        match value.unwrap_or_default() {
            "" => self.required(path, ""),
            word if supported.contains(&word) => {}
            word => self.not_supported(path, word, supported),
        }
    }

    pub fn not_negative(&mut self, path: &Path, value: impl Into<i64>) {
        let value = value.into();
        if value < 0 {
            self.invalid(path, value, NEGATIVE);
        }
    }
}

/// Upstream: `IsNegativeErrorMsg`.
pub const NEGATIVE: &str = "must be greater than or equal to 0";
