//! The version every binary reports, and the `--version` flag's exact words.
//!
//! Upstream: `k8s.io/component-base/version`.

/// The Kubernetes version whose behaviour this build follows, with the leading `v`.
pub const GIT_VERSION: &str = "v1.37.2";

/// What `--version` prints: `Kubernetes v1.37.2`, and nothing else.
pub fn long() -> String {
    format!("Kubernetes {GIT_VERSION}")
}

/// The user agent of a component: `kubelet/v1.37.2 (linux/amd64) gantry`, upstream's form.
pub fn user_agent(component: &str) -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!(
        "{component}/{GIT_VERSION} ({}/{arch}) gantry",
        std::env::consts::OS
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn version_is_one_line() {
        assert_eq!(super::long(), "Kubernetes v1.37.2");
    }
}
