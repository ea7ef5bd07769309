//! [`DeviceVariable`]: `device` in an expression.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use cel::ExecutionError;
use cel::common::traits::Indexer;
use cel::common::types::{CelBool, CelInt, CelList, CelMap, CelMapKey, CelString, Type};
use cel::common::value::{CowVal, StaticVal, Val};
use component_helpers::quantity::amount;
use k8s_openapi::api::resource::v1::{Device, DeviceAttribute};

use super::values::{Domains, Quantity, Semver, text};

/// Upstream's name of the type.
static DEVICE: Type = Type::new_unspecified_type("kubernetes.DRADevice");

#[derive(Debug)]
struct Fields {
    driver: CelString<'static>,
    allow_multiple_allocations: CelBool,
    attributes: Domains,
    capacity: Domains,
}

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct DeviceVariable(Arc<Fields>);

type Boxed = Box<dyn Val + 'static>;

fn version(text: &str) -> Result<Boxed, String> {
    let version = semver::Version::parse(text);
    let version = version.map_err(|error| format!("parse semantic version: {error}"))?;
    Ok(Box::new(Semver(version)))
}

fn list(values: impl Iterator<Item = Result<Boxed, String>>) -> Result<Boxed, String> {
    let values: Vec<Boxed> = values.collect::<Result<_, _>>()?;
    Ok(Box::new(CelList::from(values)))
}

fn value(attribute: &DeviceAttribute) -> Result<Boxed, String> {
    if let Some(ints) = &attribute.ints {
        return list(ints.iter().map(|n| Ok(Box::new(CelInt::from(*n)) as Boxed)));
    }
    if let Some(bools) = &attribute.bools {
        return list(
            bools
                .iter()
                .map(|b| Ok(Box::new(CelBool::from(*b)) as Boxed)),
        );
    }
    if let Some(strings) = &attribute.strings {
        return list(strings.iter().map(|s| Ok(Box::new(text(s)) as Boxed)));
    }
    if let Some(versions) = &attribute.versions {
        return list(versions.iter().map(|v| version(v)));
    }
    if let Some(number) = attribute.int {
        return Ok(Box::new(CelInt::from(number)));
    }
    if let Some(flag) = attribute.bool {
        return Ok(Box::new(CelBool::from(flag)));
    }
    if let Some(string) = &attribute.string {
        return Ok(Box::new(text(string)));
    }
    match &attribute.version {
        Some(text) => version(text),
        None => Err("unsupported attribute value".to_owned()),
    }
}

/// Values by domain; a name without one is in the driver's.
fn domains(driver: &str, values: impl Iterator<Item = (String, Boxed)>) -> Domains {
    let mut all: HashMap<String, HashMap<CelMapKey<'static>, Boxed>> = HashMap::new();
    for (name, value) in values {
        let (domain, id) = name.split_once('/').unwrap_or((driver, &name));
        let of_domain = all.entry(domain.to_owned()).or_default();
        of_domain.insert(CelMapKey::from(id.to_owned()), value);
    }
    let all = all.into_iter().map(|(domain, values)| {
        let values: Boxed = Box::new(CelMap::from(values));
        (CelMapKey::from(domain), values)
    });
    let all: HashMap<CelMapKey<'static>, Boxed> = all.collect();
    Domains(Arc::new(CelMap::from(all)))
}

impl DeviceVariable {
    /// # Errors
    /// An attribute that cannot be read.
    pub(crate) fn new(driver: &str, device: &Device) -> Result<Self, String> {
        let mut attributes = Vec::new();
        for (name, attribute) in device.attributes.iter().flatten() {
            let value = value(attribute).map_err(|error| format!("attribute {name}: {error}"))?;
            attributes.push((name.clone(), value));
        }
        let capacity = device.capacity.iter().flatten().map(|(name, capacity)| {
            let value: Boxed = Box::new(Quantity(amount(&capacity.value)));
            (name.clone(), value)
        });
        Ok(DeviceVariable(Arc::new(Fields {
            driver: text(driver),
            allow_multiple_allocations: (device.allow_multiple_allocations == Some(true)).into(),
            attributes: domains(driver, attributes.into_iter()),
            capacity: domains(driver, capacity),
        })))
    }
}

impl Indexer for DeviceVariable {
    fn get<'b, 'v>(&'b self, field: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let name = field.downcast_ref::<CelString>().map(CelString::inner);
        let found: &'b (dyn Val + 'v) = match name {
            Some("driver") => &self.0.driver,
            Some("allowMultipleAllocations") => &self.0.allow_multiple_allocations,
            Some("attributes") => &self.0.attributes,
            Some("capacity") => &self.0.capacity,
            other => return Err(ExecutionError::no_such_key(other.unwrap_or("field"))),
        };
        Ok(CowVal::Borrowed(found))
    }

    fn steal<'v>(self: Box<Self>, field: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.get(field).map(CowVal::into_owned)
    }
}

impl Val for DeviceVariable {
    fn get_type(&self) -> &Type {
        &DEVICE
    }
    fn cel_type() -> &'static Type {
        &DEVICE
    }
    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }
    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(self.clone())
    }
    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}
impl StaticVal for DeviceVariable {}
