//! The wire protocols of volume drivers, nothing else: messages, clients and servers, generated when the crate is built from the
//! published files in `proto/` (kept as they were published; README.md says from where).
//!
//! The kubelet is a client of both; the programs in `e2e/csi-hostpath` are servers. What the fields mean is said in the .proto files.

/// The Container Storage Interface, version 1.13.0. Upstream: container-storage-interface/spec, `csi.proto`.
pub mod csi {
    /// The package's only version.
    #[allow(clippy::all, missing_docs, rustdoc::all)]
    pub mod v1 {
        tonic::include_proto!("csi.v1");
    }
}

/// How a plugin makes itself known to the kubelet, over a socket in its `plugins_registry`.
/// Upstream: `k8s.io/kubelet/pkg/apis/pluginregistration/v1`, 0.37.2.
#[allow(clippy::all, missing_docs, rustdoc::all)]
pub mod pluginregistration {
    tonic::include_proto!("pluginregistration");

    /// What `PluginInfo.type` says of a CSI driver. Upstream: `constants.go`.
    pub const CSI_PLUGIN: &str = "CSIPlugin";
    /// And of a device plugin.
    pub const DEVICE_PLUGIN: &str = "DevicePlugin";
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::csi::v1;

    #[test]
    fn a_message_keeps_the_published_numbers() {
        let request = v1::NodePublishVolumeRequest {
            volume_id: "v".to_owned(),
            target_path: "/t".to_owned(),
            ..Default::default()
        };
        // volume_id = 1, target_path = 4
        assert_eq!(
            request.encode_to_vec(),
            [0x0a, 1, b'v', 0x22, 2, b'/', b't']
        );
    }
}
