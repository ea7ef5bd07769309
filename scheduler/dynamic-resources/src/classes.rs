//! [`Classes`]: the DeviceClasses by name, and by the extended resource they stand for.
//!
//! Upstream: k8s.io/dynamic-resource-allocation/deviceclass/extendedresourcecache, v1.37.
//! DIFFERS: found anew from all classes at a change, so that which of two classes of one resource counts does not hinge on the order of events.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::resource::v1::DeviceClass;

/// Before a class's name: the resource that stands for it though the class names none. Upstream: `ResourceDeviceClassPrefix`.
pub const IMPLICIT_RESOURCE_PREFIX: &str = "deviceclass.resource.kubernetes.io/";

/// See the module. Immutable.
#[derive(Debug, Default, Clone)]
pub struct Classes {
    by_name: BTreeMap<String, Arc<DeviceClass>>,
    by_resource: BTreeMap<String, Arc<DeviceClass>>,
}

fn name(class: &DeviceClass) -> &str {
    class.metadata.name.as_deref().unwrap_or_default()
}

/// The resource a class names.
fn resource(class: &DeviceClass) -> Option<&str> {
    class.spec.as_ref()?.extended_resource_name.as_deref()
}

impl Classes {
    /// Of these classes.
    pub fn new(classes: impl IntoIterator<Item = Arc<DeviceClass>>) -> Self {
        let mut all = Classes::default();
        for class in classes {
            if let Some(resource) = resource(&class) {
                let made = |class: &DeviceClass| class.metadata.creation_timestamp.clone();
                // The newer one, then the one whose name is first.
                let stays = all
                    .by_resource
                    .get(resource)
                    .is_some_and(|known| (made(&class), name(known)) < (made(known), name(&class)));
                if !stays {
                    all.by_resource
                        .insert(resource.to_owned(), Arc::clone(&class));
                }
            }
            all.by_name.insert(name(&class).to_owned(), class);
        }
        all
    }

    /// A class.
    pub fn get(&self, name: &str) -> Option<&Arc<DeviceClass>> {
        self.by_name.get(name)
    }

    /// The class whose devices a resource stands for.
    pub fn of_resource(&self, resource: &str) -> Option<&Arc<DeviceClass>> {
        match resource.strip_prefix(IMPLICIT_RESOURCE_PREFIX) {
            Some(class) => self.by_name.get(class),
            None => self.by_resource.get(resource),
        }
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<DeviceClass>> {
        self.by_name.values()
    }
}
