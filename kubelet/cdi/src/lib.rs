//! The Container Device Interface: files on the node that say what a container gets with a device.
//!
//! Owns: names (`vendor/class=device`), the files' format and its versions, which file counts for a device, and what a
//! container is to get for several of them together. Never touches a container: whoever makes one carries the edits out and refuses
//! what it cannot. The decisions ([`resolve`], [`parse`]) are pure; [`read`] is the shell.
//!
//! Upstream: tags.cncf.io/container-device-interface, v1.1.

mod directory;
mod edits;
mod name;
mod resolve;
mod spec;
mod version;

pub use directory::{DEFAULT_DIRS, Files, Unreadable, read};
pub use edits::{
    ContainerEdits, DeviceNode, EditsError, Hook, HookName, IntelRdt, Mount, NetDevice,
};
pub use name::{NameError, QualifiedName, annotated_names};
pub use resolve::{Loaded, Part, ResolveError, resolve};
pub use spec::{Device, Spec, SpecError, parse};
