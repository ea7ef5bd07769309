//! The Container Runtime Interface on the wire, nothing else: messages, clients and servers, generated when the crate is built from
//! the published file in `proto/` (kept as it was published; README.md says from where), and one small service of ours beside it.
//!
//! What the fields mean is said in the .proto files.

/// The CRI, version v1 of 0.37.2. Upstream: `k8s.io/cri-api/pkg/apis/runtime/v1`.
#[allow(clippy::all, missing_docs, rustdoc::all, deprecated)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");

    /// Upstream: `constants.go`.
    pub const RUNTIME_READY: &str = "RuntimeReady";
    /// As above.
    pub const NETWORK_READY: &str = "NetworkReady";
    /// What `VersionResponse.runtime_api_version` says.
    pub const API_VERSION: &str = "v1";
}

/// Archives and names of images, for `ctr`.
#[allow(clippy::all, missing_docs, rustdoc::all)]
pub mod archives {
    tonic::include_proto!("gantry.images.v1");
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::v1;

    #[test]
    fn a_message_keeps_the_published_numbers() {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: "s".to_owned(),
            config: Some(v1::ContainerConfig {
                tty: true,
                ..Default::default()
            }),
            ..Default::default()
        };
        // pod_sandbox_id = 1, config = 2, tty = 14
        assert_eq!(request.encode_to_vec(), [0x0a, 1, b's', 0x12, 2, 0x70, 1]);
    }
}
