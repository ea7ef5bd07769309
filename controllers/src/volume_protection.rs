//! The three protection controllers: an object that is in use stays, by a finalizer, until nobody uses it any more.
//!
//! | object | finalizer | in use by |
//! |---|---|---|
//! | PersistentVolume | `kubernetes.io/pv-protection` | the claim it is bound to (its phase) |
//! | PersistentVolumeClaim | `kubernetes.io/pvc-protection` | pods that are scheduled |
//! | VolumeAttributesClass | `kubernetes.io/vac-protection` | volumes and claims that name it |
//!
//! Admission adds the finalizers; these controllers add them to what was there before, and take them off. That of claims also says on
//! each bound claim, by the condition `Unused`, since when no pod names it.
//!
//! Upstream: pkg/controller/volume/{pvprotection,pvcprotection,vacprotection}, v1.37.

mod persistent_volume;
mod persistent_volume_claim;
pub mod sync;
mod volume_attributes_class;

pub use persistent_volume::start as start_persistent_volume;
pub use persistent_volume_claim::UNUSED_SINCE_TIME;
pub use persistent_volume_claim::start as start_persistent_volume_claim;
pub use volume_attributes_class::start as start_volume_attributes_class;
