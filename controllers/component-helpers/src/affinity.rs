//! Node selectors and node affinity: which nodes a pod requires or prefers.
//!
//! Upstream: k8s.io/component-helpers/scheduling/corev1/nodeaffinity, v1.36.

use crate::labels::{Labels, Requirement, Selector, SelectorError};
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorTerm, Pod, PreferredSchedulingTerm,
};
use std::collections::BTreeMap;
use std::fmt;

#[cfg(test)]
mod tests;

/// Why a term cannot be used. It matches no node; a retry never helps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TermError {
    /// A label expression is wrong.
    Expression(SelectorError),
    /// A field expression must be `In` or `NotIn` with exactly one value.
    Field {
        /// The field.
        key: String,
        /// What is expected.
        reason: &'static str,
    },
}

impl fmt::Display for TermError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expression(error) => write!(f, "matchExpressions: {error}"),
            Self::Field { key, reason } => write!(f, "matchFields[{key}]: {reason}"),
        }
    }
}

impl std::error::Error for TermError {}

/// A condition on a field of the node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct FieldRequirement {
    key: String,
    value: String,
    equal: bool,
}

/// One term: all its label and field conditions must hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Term {
    labels: Option<Selector>,
    fields: Vec<FieldRequirement>,
}

impl Term {
    /// `None` for the empty term, which matches nothing.
    ///
    /// # Errors
    /// See [`TermError`].
    pub fn new(term: &NodeSelectorTerm) -> Result<Option<Self>, TermError> {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let match_fields = term.match_fields.as_deref().unwrap_or_default();
        if expressions.is_empty() && match_fields.is_empty() {
            return Ok(None);
        }
        let mut requirements = Vec::with_capacity(expressions.len());
        for expression in expressions {
            let values = expression.values.as_deref().unwrap_or_default();
            requirements.push(
                Requirement::new(&expression.key, &expression.operator, values)
                    .map_err(TermError::Expression)?,
            );
        }
        let mut fields = Vec::with_capacity(match_fields.len());
        for field in match_fields {
            let wrong = |reason| TermError::Field {
                key: field.key.clone(),
                reason,
            };
            let equal = match field.operator.as_str() {
                "In" => true,
                "NotIn" => false,
                _ => return Err(wrong("the operator must be In or NotIn")),
            };
            let [value] = field.values.as_deref().unwrap_or_default() else {
                return Err(wrong("must have one element"));
            };
            fields.push(FieldRequirement {
                key: field.key.clone(),
                value: value.clone(),
                equal,
            });
        }
        Ok(Some(Self {
            labels: (!requirements.is_empty()).then(|| Selector::from_requirements(requirements)),
            fields,
        }))
    }

    /// Whether a node with this name and these labels matches.
    pub fn matches(&self, name: &str, labels: &(impl Labels + ?Sized)) -> bool {
        self.labels
            .as_ref()
            .is_none_or(|selector| selector.matches(labels))
            && self.matches_fields(name)
    }

    /// Whether a node with this name matches the field conditions.
    pub fn matches_fields(&self, name: &str) -> bool {
        self.fields.iter().all(|field| {
            let have = if field.key == "metadata.name" {
                name
            } else {
                ""
            };
            name.is_empty() || (have == field.value) == field.equal
        })
    }

    /// The label conditions.
    pub fn label_requirements(&self) -> &[Requirement] {
        self.labels
            .as_ref()
            .map(Selector::requirements)
            .unwrap_or_default()
    }

    /// Whether there are conditions on fields.
    pub fn has_fields(&self) -> bool {
        !self.fields.is_empty()
    }

    /// The one node name that this term asks for, if it does.
    pub fn node_name(&self) -> Option<&str> {
        self.fields
            .iter()
            .find(|field| field.equal && field.key == "metadata.name")
            .map(|field| field.value.as_str())
    }
}

/// A node selector made ready: any one of its terms must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSelectorTerms {
    terms: Vec<Term>,
    errors: Vec<TermError>,
}

impl NodeSelectorTerms {
    /// Wrong terms are kept as [`Self::errors`] and match nothing; empty terms match nothing.
    pub fn new(selector: &NodeSelector) -> Self {
        let mut parsed = Self::default();
        for term in &selector.node_selector_terms {
            match Term::new(term) {
                Ok(Some(term)) => parsed.terms.push(term),
                Ok(None) => {}
                Err(error) => parsed.errors.push(error),
            }
        }
        parsed
    }

    /// The terms that can be used.
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// What is wrong with the others.
    pub fn errors(&self) -> &[TermError] {
        &self.errors
    }

    /// Whether a node with this name and these labels matches some term.
    pub fn matches(&self, name: &str, labels: &(impl Labels + ?Sized)) -> bool {
        self.terms.iter().any(|term| term.matches(name, labels))
    }
}

/// What a pod requires of its node: `nodeSelector` and the required node affinity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequiredNodeAffinity {
    /// From `nodeSelector`; `None` asks for nothing.
    pub labels: Option<BTreeMap<String, String>>,
    /// From the required node affinity; `None` asks for nothing.
    pub terms: Option<NodeSelectorTerms>,
}

impl RequiredNodeAffinity {
    /// Reads a pod's requirements.
    pub fn new(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let labels = spec
            .and_then(|spec| spec.node_selector.clone())
            .filter(|labels| !labels.is_empty());
        let terms = spec
            .and_then(|spec| spec.affinity.as_ref())
            .and_then(|affinity| affinity.node_affinity.as_ref())
            .and_then(|affinity| {
                affinity
                    .required_during_scheduling_ignored_during_execution
                    .as_ref()
            })
            .map(NodeSelectorTerms::new);
        Self { labels, terms }
    }

    /// Whether the pod asks for nothing.
    pub fn is_empty(&self) -> bool {
        self.labels.is_none() && self.terms.is_none()
    }

    /// Whether the node fulfils the requirements.
    pub fn matches(&self, node: &Node) -> bool {
        self.matches_labels(
            node.metadata.name.as_deref().unwrap_or_default(),
            &node.metadata.labels,
        )
    }

    /// Whether a node with this name and these labels fulfils the requirements.
    pub fn matches_labels(&self, name: &str, labels: &(impl Labels + ?Sized)) -> bool {
        self.labels
            .as_ref()
            .is_none_or(|wanted| crate::labels::is_subset(wanted, labels))
            && self
                .terms
                .as_ref()
                .is_none_or(|terms| terms.matches(name, labels))
    }
}

/// What a pod prefers: weighted terms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreferredSchedulingTerms {
    terms: Vec<(Term, i32)>,
}

impl PreferredSchedulingTerms {
    /// Terms of weight zero and empty terms count nothing.
    ///
    /// # Errors
    /// The first wrong term.
    pub fn new(preferred: &[PreferredSchedulingTerm]) -> Result<Self, TermError> {
        let mut terms = Vec::with_capacity(preferred.len());
        for term in preferred.iter().filter(|term| term.weight != 0) {
            if let Some(parsed) = Term::new(&term.preference)? {
                terms.push((parsed, term.weight));
            }
        }
        Ok(Self { terms })
    }

    /// The preferences of a pod.
    ///
    /// # Errors
    /// The first wrong term.
    pub fn of_pod(pod: &Pod) -> Result<Self, TermError> {
        let preferred = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.affinity.as_ref())
            .and_then(|affinity| affinity.node_affinity.as_ref())
            .and_then(|affinity| {
                affinity
                    .preferred_during_scheduling_ignored_during_execution
                    .as_deref()
            });
        Self::new(preferred.unwrap_or_default())
    }

    /// The terms and their weights.
    pub fn terms(&self) -> &[(Term, i32)] {
        &self.terms
    }

    /// The sum of the weights of the terms that match.
    pub fn score(&self, name: &str, labels: &(impl Labels + ?Sized)) -> i64 {
        self.terms
            .iter()
            .filter(|(term, _)| term.matches(name, labels))
            .map(|(_, weight)| i64::from(*weight))
            .sum()
    }
}
