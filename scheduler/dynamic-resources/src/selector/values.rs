//! Values CEL does not know by itself: quantities, versions, and the maps of a device that have an empty map for every domain.

use std::any::Any;
use std::cmp::Ordering;
use std::sync::Arc;

use cel::ExecutionError;
use cel::common::traits::{Container, Indexer, Iterable, Iterator, Sizer};
use cel::common::types::{CelInt, CelMap, CelString, MAP_TYPE, Type};
use cel::common::value::{CowVal, StaticVal, Val};
use component_helpers::quantity::Amount;

/// Upstream's name of the type.
pub(super) static QUANTITY: Type = Type::new_unspecified_type("kubernetes.Quantity");
/// Upstream's name of the type.
pub(super) static SEMVER: Type = Type::new_unspecified_type("kubernetes.Semver");

/// An amount.
#[derive(Debug, Clone)]
pub(super) struct Quantity(pub(super) Amount);

/// A semantic version.
#[derive(Debug, Clone)]
pub(super) struct Semver(pub(super) semver::Version);

impl Semver {
    /// What is built is no matter.
    pub(super) fn compare(&self, other: &Semver) -> Ordering {
        self.0.cmp_precedence(&other.0)
    }
}

macro_rules! plain_value {
    ($type:ty, $cel:ident, $equal:expr) => {
        impl Val for $type {
            fn get_type(&self) -> &Type {
                &$cel
            }
            fn cel_type() -> &'static Type {
                &$cel
            }
            fn equals(&self, other: &dyn Val) -> bool {
                let equal: fn(&$type, &$type) -> bool = $equal;
                other
                    .downcast_ref::<$type>()
                    .is_some_and(|other| equal(self, other))
            }
            fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
                Box::new(self.clone())
            }
            fn as_any(&self) -> Option<&dyn Any> {
                Some(self)
            }
        }
        impl StaticVal for $type {}
    };
}

plain_value!(Quantity, QUANTITY, |a, b| a.0 == b.0);
plain_value!(Semver, SEMVER, |a, b| a.compare(b) == Ordering::Equal);

/// `device.attributes` and `device.capacity`: domain to id to value, where a domain that is not there is empty.
#[derive(Debug, Clone)]
pub(super) struct Domains(pub(super) Arc<CelMap<'static>>);

impl Indexer for Domains {
    fn get<'b, 'v>(&'b self, key: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        match self.0.get(key) {
            Err(ExecutionError::NoSuchKey(_)) => Ok(CowVal::owned(CelMap::default())),
            found => found,
        }
    }

    fn steal<'v>(self: Box<Self>, key: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.get(key).map(CowVal::into_owned)
    }
}

impl Container for Domains {
    fn contains(&self, key: &dyn Val) -> Result<bool, ExecutionError> {
        self.0.contains(key)
    }
}

impl Sizer for Domains {
    fn size(&self) -> CelInt {
        Sizer::size(&*self.0)
    }
}

impl Iterable for Domains {
    fn iter<'b, 'v>(&'b self) -> Box<dyn Iterator<'b, 'v> + 'b>
    where
        Self: 'v,
    {
        Iterable::iter(&*self.0)
    }
}

impl Val for Domains {
    fn get_type(&self) -> &Type {
        &MAP_TYPE
    }
    fn cel_type() -> &'static Type {
        &MAP_TYPE
    }
    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }
    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }
    fn as_iterable<'b, 'v>(&'b self) -> Option<&'b (dyn Iterable + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }
    fn as_sizer(&self) -> Option<&dyn Sizer> {
        Some(self)
    }
    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(self.clone())
    }
    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}
impl StaticVal for Domains {}

/// A text, as a value of CEL.
pub(super) fn text(text: &str) -> CelString<'static> {
    CelString::from(text.to_owned())
}
