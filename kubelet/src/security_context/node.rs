//! What the node itself can enforce and wants hidden. Read once, at the start.
//!
//! Upstream: `pkg/security/apparmor`, `defaultMaskedPaths` in `pkg/securitycontext`, v1.36.

use std::path::Path;

use component_base::processors;

/// Where AppArmor's profiles are loaded from; containerd wants it there before it applies one of its own.
const APPARMOR_PARSER: &str = "/sbin/apparmor_parser";

/// The machine's side of security contexts.
#[derive(Clone, Debug, Default)]
pub struct NodeSecurity {
    /// The kernel enforces AppArmor profiles.
    pub apparmor: bool,
    /// The runtime can load a profile of its own for containers that name none.
    pub apparmor_default: bool,
    /// The kernel has SELinux, and a policy is loaded.
    pub selinux: bool,
    /// Directories with counters by which one container can tell what another does.
    pub thermal_paths: Vec<String>,
}

impl NodeSecurity {
    /// Reads /sys; a few files, for the start.
    pub fn read() -> Self {
        let apparmor = Path::new("/sys/kernel/security/apparmor").exists()
            && std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
                .is_ok_and(|text| text.starts_with('Y'));
        let cpus = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
        Self {
            apparmor,
            apparmor_default: apparmor && Path::new(APPARMOR_PARSER).exists(),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
            thermal_paths: processors::list(&cpus)
                .unwrap_or_else(|| (0..processors::online() as usize).collect())
                .into_iter()
                .map(|cpu| format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle"))
                .filter(|path| Path::new(path).exists())
                .collect(),
        }
    }
}
