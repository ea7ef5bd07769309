//! Reads the published .proto files with a compiler in Rust (no `protoc` is needed) and writes the messages, clients and servers.

/// Each folder has one.
const FOLDERS: [&str; 4] = [
    "proto/dra/v1",
    "proto/dra/v1beta1",
    "proto/dra-health/v1",
    "proto/dra-health/v1alpha1",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for folder in FOLDERS {
        let file = format!("{folder}/api.proto");
        println!("cargo:rerun-if-changed={file}");
        let descriptors = protox::compile([file.as_str()], [folder])?;
        tonic_prost_build::configure()
            .btree_map(".")
            .compile_fds(descriptors)?;
    }
    Ok(())
}
