//! Label selectors: the structured kind of the API, the string kind of query parameters, and what they match.
//!
//! Upstream: k8s.io/apimachinery/pkg/labels and meta/v1 LabelSelectorAsSelector, v1.36.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::BTreeMap;
use std::fmt;

mod parse;
#[cfg(test)]
mod tests;
mod validation;

pub use validation::{validate_label_key, validate_label_value};

/// What a selector is matched against.
pub trait Labels {
    /// The value of `key`, or `None` where the object does not carry it.
    fn get_label(&self, key: &str) -> Option<&str>;
}

impl Labels for BTreeMap<String, String> {
    fn get_label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl<L: Labels> Labels for Option<L> {
    fn get_label(&self, key: &str) -> Option<&str> {
        self.as_ref().and_then(|labels| labels.get_label(key))
    }
}

impl<L: Labels + ?Sized> Labels for &L {
    fn get_label(&self, key: &str) -> Option<&str> {
        (**self).get_label(key)
    }
}

/// Why a selector cannot be used. A retry never helps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelectorError {
    /// An operator nobody knows, e.g. `"Matches" is not a valid label selector operator`.
    UnknownOperator(String),
    /// A requirement's values do not fit its operator.
    Values {
        /// The label key.
        key: String,
        /// What is expected.
        reason: &'static str,
    },
    /// A key that is no label key.
    Key {
        /// The offending key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A value that is no label value.
    Value {
        /// The label key.
        key: String,
        /// The offending value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A string selector that cannot be read.
    Parse {
        /// The selector.
        text: String,
        /// What was found and what was expected.
        reason: String,
    },
}

impl fmt::Display for SelectorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownOperator(operator) => {
                write!(f, "{operator:?} is not a valid label selector operator")
            }
            Self::Values { key, reason } => write!(f, "values of {key:?}: {reason}"),
            Self::Key { key, reason } => write!(f, "key: Invalid value: {key:?}: {reason}"),
            Self::Value { key, value, reason } => {
                write!(f, "values[{key}]: Invalid value: {value:?}: {reason}")
            }
            Self::Parse { text, reason } => {
                write!(f, "unable to parse selector {text:?}: {reason}")
            }
        }
    }
}

impl std::error::Error for SelectorError {}

/// How a requirement looks at a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// The label is there and has one of these values.
    In(Vec<String>),
    /// The label is absent or has none of these values.
    NotIn(Vec<String>),
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
    /// The label is there, is an integer, and is greater.
    Gt(i64),
    /// The label is there, is an integer, and is less.
    Lt(i64),
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// The label looked at.
    pub key: String,
    /// The condition.
    pub operator: Operator,
}

impl Requirement {
    /// Checks key and values as upstream's `NewRequirement` does.
    ///
    /// # Errors
    /// A key or value that no label may have, or values that do not fit the operator.
    pub fn new(key: &str, operator: &str, values: &[String]) -> Result<Self, SelectorError> {
        validate_label_key(key).map_err(|reason| SelectorError::Key {
            key: key.into(),
            reason,
        })?;
        let wrong = |reason| SelectorError::Values {
            key: key.into(),
            reason,
        };
        let listed = || {
            let mut sorted = values.to_vec();
            sorted.sort();
            sorted.dedup();
            if sorted.is_empty() {
                Err(wrong(
                    "for 'in', 'notin' operators, values set can't be empty",
                ))
            } else {
                Ok(sorted)
            }
        };
        let none = || {
            if values.is_empty() {
                Ok(())
            } else {
                Err(wrong(
                    "values set must be empty for exists and does not exist",
                ))
            }
        };
        let number = || match values {
            [one] => one
                .parse()
                .map_err(|_| wrong("for 'Gt', 'Lt' operators, the value must be an integer")),
            _ => Err(wrong(
                "for 'Gt', 'Lt' operators, exactly one value is required",
            )),
        };
        let operator = match operator {
            "In" => Operator::In(listed()?),
            "NotIn" => Operator::NotIn(listed()?),
            "Exists" => none().map(|()| Operator::Exists)?,
            "DoesNotExist" => none().map(|()| Operator::DoesNotExist)?,
            "Gt" => Operator::Gt(number()?),
            "Lt" => Operator::Lt(number()?),
            other => return Err(SelectorError::UnknownOperator(other.into())),
        };
        for value in values {
            validate_label_value(value).map_err(|reason| SelectorError::Value {
                key: key.into(),
                value: value.clone(),
                reason,
            })?;
        }
        Ok(Self {
            key: key.into(),
            operator,
        })
    }

    /// `key = value`, unchecked.
    pub fn equals(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            operator: Operator::In(vec![value.into()]),
        }
    }

    /// Whether `labels` fulfil this condition.
    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        self.matches_value(labels.get_label(&self.key))
    }

    /// Whether an object whose label [`Self::key`] has this value (`None`: does not carry it) fulfils this condition.
    pub fn matches_value(&self, value: Option<&str>) -> bool {
        match (&self.operator, value) {
            (Operator::In(values), Some(value)) => values.iter().any(|v| v == value),
            (Operator::In(_), None) => false,
            (Operator::NotIn(values), Some(value)) => values.iter().all(|v| v != value),
            (Operator::NotIn(_), None) => true,
            (Operator::Exists, value) => value.is_some(),
            (Operator::DoesNotExist, value) => value.is_none(),
            (Operator::Gt(than), value) => value
                .and_then(|v| v.parse::<i64>().ok())
                .is_some_and(|v| v > *than),
            (Operator::Lt(than), value) => value
                .and_then(|v| v.parse::<i64>().ok())
                .is_some_and(|v| v < *than),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match &self.operator {
            Operator::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0]),
            Operator::In(values) => write!(f, "{key} in ({})", values.join(",")),
            Operator::NotIn(values) => write!(f, "{key} notin ({})", values.join(",")),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::Gt(than) => write!(f, "{key}>{than}"),
            Operator::Lt(than) => write!(f, "{key}<{than}"),
        }
    }
}

/// A selector made ready for matching: everything, nothing, or all of some requirements.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Selector {
    /// `None` matches nothing; an empty list matches everything.
    requirements: Option<Vec<Requirement>>,
}

impl Default for Selector {
    fn default() -> Self {
        Self::everything()
    }
}

impl Selector {
    /// Matches every object.
    pub const fn everything() -> Self {
        Self {
            requirements: Some(Vec::new()),
        }
    }

    /// Matches no object.
    pub const fn nothing() -> Self {
        Self { requirements: None }
    }

    /// Matches what fulfils all of `requirements`.
    pub fn from_requirements(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self {
            requirements: Some(requirements),
        }
    }

    /// Matches what carries all of these labels with these values.
    pub fn from_labels(labels: &BTreeMap<String, String>) -> Self {
        Self {
            requirements: Some(
                labels
                    .iter()
                    .map(|(k, v)| Requirement::equals(k, v))
                    .collect(),
            ),
        }
    }

    /// A selector of the API; the empty one matches everything.
    ///
    /// # Errors
    /// See [`Requirement::new`].
    pub fn new(selector: &LabelSelector) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            requirements.push(Requirement::new(key, "In", std::slice::from_ref(value))?);
        }
        for expression in selector.match_expressions.iter().flatten() {
            if matches!(expression.operator.as_str(), "Gt" | "Lt") {
                return Err(SelectorError::UnknownOperator(expression.operator.clone()));
            }
            requirements.push(Requirement::new(
                &expression.key,
                &expression.operator,
                expression.values.as_deref().unwrap_or_default(),
            )?);
        }
        Ok(Self::from_requirements(requirements))
    }

    /// A selector of the API that may be left out; `None` matches nothing.
    ///
    /// # Errors
    /// See [`Requirement::new`].
    pub fn from_optional(selector: Option<&LabelSelector>) -> Result<Self, SelectorError> {
        selector.map_or(Ok(Self::nothing()), Self::new)
    }

    /// A string selector as in `kubectl get -l`: `app=web,tier in (a,b),!old,x>3`. The empty text matches everything.
    ///
    /// # Errors
    /// [`SelectorError::Parse`], or as [`Requirement::new`].
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        parse::parse(text).map(Self::from_requirements)
    }

    /// With one more requirement; nothing stays nothing.
    pub fn and(mut self, requirement: Requirement) -> Self {
        if let Some(requirements) = &mut self.requirements {
            let at = requirements.partition_point(|r| r.key <= requirement.key);
            requirements.insert(at, requirement);
        }
        self
    }

    /// Whether `labels` are selected.
    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        self.requirements
            .as_ref()
            .is_some_and(|requirements| requirements.iter().all(|r| r.matches(labels)))
    }

    /// Whether this selects every object, whatever its labels.
    pub fn is_everything(&self) -> bool {
        self.requirements.as_ref().is_some_and(Vec::is_empty)
    }

    /// Whether this selects no object at all.
    pub fn is_nothing(&self) -> bool {
        self.requirements.is_none()
    }

    /// The requirements, sorted by key; none for a selector that matches nothing.
    pub fn requirements(&self) -> &[Requirement] {
        self.requirements.as_deref().unwrap_or_default()
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements().iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

/// Whether `labels` carry all of `wanted` with the same values (a Service's or a Pod's plain selector).
pub fn is_subset(wanted: &BTreeMap<String, String>, labels: &(impl Labels + ?Sized)) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get_label(key) == Some(value))
}
