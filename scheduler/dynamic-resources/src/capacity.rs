//! Capacity that claims consume: how much of a device a request takes, and whether the device has it.
//!
//! Upstream: structured/internal/incubating/consumable_capacity.go, v1.37.

use std::collections::BTreeMap;

use component_helpers::quantity::{Amount, amount};
use k8s_openapi::api::resource::v1::CapacityRequestPolicy;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The amounts a request asks for.
pub(crate) type Requested = BTreeMap<String, Amount>;

/// Amounts taken of one device, by name.
pub(crate) type Consumed = BTreeMap<String, Amount>;

/// Adds amounts.
pub(crate) fn add(to: &mut Consumed, more: &Consumed) {
    for (name, amount) in more {
        *to.entry(name.clone()).or_insert(Amount::ZERO) += *amount;
    }
}

/// Takes amounts away; of what is not there, nothing.
pub(crate) fn subtract(from: &mut Consumed, less: &Consumed) {
    for (name, amount) in less {
        if let Some(left) = from.get_mut(name) {
            *left -= *amount;
        }
    }
}

/// What a device has of something.
#[derive(Debug, Clone)]
pub(crate) struct Capacity {
    pub(crate) value: Amount,
    pub(crate) policy: Option<Policy>,
}

/// What a device lets be asked for.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    default: Option<Amount>,
    valid: Valid,
}

#[derive(Debug, Clone)]
enum Valid {
    All,
    Range(Range),
    Values(Vec<Amount>),
}

#[derive(Debug, Clone, Copy)]
struct Range {
    min: Option<Amount>,
    max: Option<Amount>,
    step: Option<Amount>,
}

/// Why no device can be looked at any more: what is asked for, or what a device says, makes no sense. A retry does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CapacityError {
    #[error(
        "capacity {name:?}: capacity request cannot be represented in the device's range arithmetic: {why}"
    )]
    NotRepresentable { name: String, why: String },
    #[error("capacity {name:?}: capacity value is negative")]
    Negative { name: String },
}

const NANO_PER_MILLI: i128 = 1_000_000;

/// The value in thousandths, if it is a whole number of them that fits.
fn milli(value: Amount) -> Option<i64> {
    if value.nano_value() % NANO_PER_MILLI != 0 {
        return None;
    }
    i64::try_from(value.nano_value() / NANO_PER_MILLI).ok()
}

impl Range {
    /// Can all of it be said in thousandths?
    fn in_milli(&self, fractional: bool) -> bool {
        let ends = [self.min, self.max, self.step];
        let exact = ends.into_iter().flatten().all(|end| milli(end).is_some());
        fractional && exact && self.step.and_then(milli).is_none_or(|step| step >= 1)
    }

    /// Up to the next step. The unit is that of the arithmetic: a thousandth, or one.
    fn round_up(
        &self,
        name: &str,
        requested: Amount,
        fractional: bool,
    ) -> Result<Amount, CapacityError> {
        let wrong = |why: &str| {
            let why = format!("{why} {requested}");
            CapacityError::NotRepresentable {
                name: name.to_owned(),
                why,
            }
        };
        let Some(min) = self.min else {
            return Ok(requested);
        };
        if requested < min {
            return Ok(min);
        }
        let Some(step) = self.step else {
            return Ok(requested);
        };
        let in_milli = self.in_milli(fractional);
        let (unit, wanted, low, width) = if in_milli {
            let wanted = milli(requested)
                .ok_or_else(|| wrong("not a representable milli value: request"))?;
            (NANO_PER_MILLI, wanted, milli(min), milli(step))
        } else {
            (
                NANO_PER_MILLI * 1000,
                requested.value(),
                Some(min.value()),
                Some(step.value()),
            )
        };
        let (low, width) = (i128::from(low.unwrap_or(0)), i128::from(width.unwrap_or(0)));
        if width <= 0 {
            return Err(wrong("a step below 1 for request"));
        }
        let steps = (i128::from(wanted) - low + width - 1).div_euclid(width);
        let rounded = low + width * steps;
        if rounded > i128::from(i64::MAX) {
            return Err(wrong(
                "beyond the largest number is the next step for request",
            ));
        }
        let whole = rounded * unit;
        // Written in the family of suffixes of the step.
        Ok(match i64::try_from(whole / (NANO_PER_MILLI * 1000)) {
            Ok(units) if whole % (NANO_PER_MILLI * 1000) == 0 => Amount::new(units, step.format()),
            _ => Amount::from_nano(whole),
        })
    }

    fn violated_by(&self, requested: Amount, fractional: bool) -> bool {
        if self.max.is_some_and(|max| requested > max) {
            return true;
        }
        let Some(step) = self.step else { return false };
        let low = self.min.unwrap_or(Amount::ZERO);
        let (wanted, low, width) = if self.in_milli(fractional) {
            let Some(wanted) = milli(requested) else {
                return true;
            };
            (wanted, milli(low).unwrap_or(0), milli(step).unwrap_or(0))
        } else {
            (requested.value(), low.value(), step.value())
        };
        width <= 0 || (i128::from(wanted) - i128::from(low)) % i128::from(width) != 0
    }
}

impl Policy {
    pub(crate) fn new(policy: &CapacityRequestPolicy) -> Self {
        let given = |quantity: &Quantity| (!quantity.0.is_empty()).then(|| amount(quantity));
        let valid = match (&policy.valid_range, &policy.valid_values) {
            (Some(range), _) => Valid::Range(Range {
                min: given(&range.min),
                max: range.max.as_ref().map(amount),
                step: range.step.as_ref().map(amount),
            }),
            (None, Some(values)) => Valid::Values(values.iter().map(amount).collect()),
            (None, None) => Valid::All,
        };
        Policy {
            default: policy.default.as_ref().map(amount),
            valid,
        }
    }

    fn round_up(
        &self,
        name: &str,
        requested: Amount,
        fractional: bool,
    ) -> Result<Amount, CapacityError> {
        match &self.valid {
            Valid::All => Ok(requested),
            Valid::Range(range) => range.round_up(name, requested, fractional),
            // In ascending order, by the API's validation.
            Valid::Values(values) => Ok(values
                .iter()
                .copied()
                .find(|value| requested <= *value)
                .unwrap_or(requested)),
        }
    }

    fn violated_by(&self, consumed: Amount, fractional: bool) -> bool {
        if self.default == Some(consumed) {
            return false;
        }
        match &self.valid {
            Valid::All => false,
            Valid::Range(range) => range.violated_by(consumed, fractional),
            Valid::Values(values) => !values.is_empty() && !values.contains(&consumed),
        }
    }
}

fn consumed_of(
    name: &str,
    requested: Option<Amount>,
    capacity: &Capacity,
    fractional: bool,
) -> Result<Amount, CapacityError> {
    let policy = capacity.policy.as_ref();
    match (requested, policy) {
        (None, policy) => Ok(policy.and_then(|p| p.default).unwrap_or(capacity.value)),
        (Some(requested), None) => Ok(requested),
        (Some(requested), Some(policy)) => policy.round_up(name, requested, fractional),
    }
}

/// What a request takes of a device that is shared.
///
/// # Errors
/// See [`CapacityError`].
pub(crate) fn consumed(
    requested: &Requested,
    capacity: &BTreeMap<String, Capacity>,
    fractional: bool,
) -> Result<Consumed, CapacityError> {
    let mut taken = Consumed::new();
    for (name, capacity) in capacity {
        let amount = consumed_of(name, requested.get(name).copied(), capacity, fractional)?;
        if amount.is_negative() {
            return Err(CapacityError::Negative { name: name.clone() });
        }
        taken.insert(name.clone(), amount);
    }
    Ok(taken)
}

/// Has a device enough left, what is `in_use` by others and by this very search taken off?
///
/// # Errors
/// See [`CapacityError`].
pub(crate) fn has_room(
    requested: &Requested,
    capacity: &BTreeMap<String, Capacity>,
    in_use: [Option<&Consumed>; 2],
    fractional: bool,
) -> Result<bool, CapacityError> {
    if requested.keys().any(|name| !capacity.contains_key(name)) {
        return Ok(false);
    }
    let taken = consumed(requested, capacity, fractional)?;
    Ok(capacity.iter().all(|(name, capacity)| {
        let wanted = taken[name];
        let policy = capacity.policy.as_ref();
        if policy.is_some_and(|policy| policy.violated_by(wanted, fractional)) {
            return false;
        }
        let used = in_use
            .into_iter()
            .flatten()
            .filter_map(|used| used.get(name));
        used.fold(wanted, |sum, used| sum + *used) <= capacity.value
    }))
}
