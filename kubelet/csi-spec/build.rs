//! Reads the published .proto files with a compiler in Rust (no `protoc` is needed) and writes the messages, clients and servers.

use std::path::PathBuf;

/// Each file with the folder its imports are looked up in.
const PROTOS: &[(&str, &str)] = &[
    ("proto/csi.proto", "proto"),
    (
        "proto/pluginregistration/api.proto",
        "proto/pluginregistration",
    ),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for (file, folder) in PROTOS {
        println!("cargo:rerun-if-changed={file}");
        let descriptors = protox::compile([PathBuf::from(file)], [PathBuf::from(folder)])?;
        tonic_prost_build::configure()
            .type_attribute(
                ".csi.v1",
                r#"#[cfg_attr(feature = "serde", derive(serde::Serialize))]"#,
            )
            // Well-known types know nothing of serde.
            .field_attribute(
                ".csi.v1.Snapshot.creation_time",
                r#"#[cfg_attr(feature = "serde", serde(skip))]"#,
            )
            .field_attribute(
                ".csi.v1.VolumeGroupSnapshot.creation_time",
                r#"#[cfg_attr(feature = "serde", serde(skip))]"#,
            )
            .compile_fds(descriptors)?;
    }
    Ok(())
}
