//! Reads the published .proto files with a compiler in Rust (no `protoc` is needed) and writes the messages, clients and servers.

/// Each folder has one.
const FOLDERS: [&str; 3] = [
    "proto/deviceplugin",
    "proto/podresources/v1",
    "proto/podresources/v1alpha1",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for folder in FOLDERS {
        let file = format!("{folder}/api.proto");
        println!("cargo:rerun-if-changed={file}");
        let descriptors = protox::compile([file.as_str()], [folder])?;
        tonic_prost_build::configure()
            // What is kept on disk has one form.
            .btree_map(".")
            .compile_fds(descriptors)?;
    }
    Ok(())
}
