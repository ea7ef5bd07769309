//! Constraints of a claim: an attribute that all its devices share, or that none of them shares.
//!
//! Monotonic: a set of devices that fails is not mended by one more. Upstream: structured/internal/incubating/{allocator_incubating,constraint}.go, v1.37.

use k8s_openapi::api::resource::v1::{Device as ApiDevice, DeviceAttribute, DeviceConstraint};

use crate::device::Device;

/// A value that compares.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Attribute {
    String(String),
    Int(i64),
    Bool(bool),
    // In their least form, so equal texts are equal versions.
    Version(String),
    /// Of a kind that is not known here.
    Unknown,
}

impl Attribute {
    fn of(value: &DeviceAttribute) -> Self {
        if let Some(text) = &value.string {
            Attribute::String(text.clone())
        } else if let Some(number) = value.int {
            Attribute::Int(number)
        } else if let Some(flag) = value.bool {
            Attribute::Bool(flag)
        } else if let Some(version) = &value.version {
            Attribute::Version(version.clone())
        } else {
            Attribute::Unknown
        }
    }
}

/// The attribute of a fully qualified name; a device may leave out its driver's domain.
fn lookup(device: &ApiDevice, driver: &str, name: &str) -> Option<Attribute> {
    let attributes = device.attributes.as_ref()?;
    let found = attributes.get(name).or_else(|| {
        let (domain, id) = name.split_once('/')?;
        attributes.get(id).filter(|_| domain == driver)
    });
    found.map(Attribute::of)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Match,
    Distinct,
}

/// A constraint, and the values of the devices chosen so far.
#[derive(Debug)]
pub(crate) struct Constraint {
    rule: Rule,
    attribute: String,
    /// Of which requests or subrequests (`request/subrequest`); empty: of all.
    requests: Vec<String>,
    chosen: Vec<Attribute>,
}

impl Constraint {
    /// `None` for a kind that is not known here.
    pub(crate) fn new(constraint: &DeviceConstraint) -> Option<Self> {
        let (rule, attribute) = match (&constraint.match_attribute, &constraint.distinct_attribute)
        {
            (Some(attribute), _) => (Rule::Match, attribute),
            (None, Some(attribute)) => (Rule::Distinct, attribute),
            (None, None) => return None,
        };
        Some(Constraint {
            rule,
            attribute: attribute.clone(),
            requests: constraint.requests.clone().unwrap_or_default(),
            chosen: Vec::new(),
        })
    }

    fn concerns(&self, request: &str, sub_request: Option<&str>) -> bool {
        let named = |name: &str| self.requests.iter().any(|known| known == name);
        self.requests.is_empty()
            || named(request)
            || sub_request.is_some_and(|sub| named(&format!("{request}/{sub}")))
    }

    /// Takes the device in, if the set with it still holds.
    pub(crate) fn add(
        &mut self,
        request: &str,
        sub_request: Option<&str>,
        device: &Device,
    ) -> bool {
        if !self.concerns(request, sub_request) {
            return true;
        }
        let found = lookup(&device.api, &device.id.pool.driver, &self.attribute);
        let Some(attribute) = found else {
            return false;
        };
        let known = attribute != Attribute::Unknown;
        let holds = match (self.rule, self.chosen.first()) {
            // The first may be whatever it is.
            (_, None) => true,
            (Rule::Match, Some(first)) => known && *first == attribute,
            (Rule::Distinct, Some(_)) => known && !self.chosen.contains(&attribute),
        };
        if holds {
            self.chosen.push(attribute);
        }
        holds
    }

    /// Takes the device out that was taken in last.
    pub(crate) fn remove(&mut self, request: &str, sub_request: Option<&str>) {
        if self.concerns(request, sub_request) {
            self.chosen.pop();
        }
    }
}
