//! Reads the published .proto files with a compiler in Rust (no `protoc` is needed) and writes the messages, clients and servers.

/// Each file is the only one of its folder.
const FOLDERS: &[(&str, &str)] = &[("proto", "api.proto"), ("proto/gantry", "images.proto")];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for (folder, file) in FOLDERS {
        println!("cargo:rerun-if-changed={folder}/{file}");
        let descriptors = protox::compile([format!("{folder}/{file}")], [folder])?;
        tonic_prost_build::configure().compile_fds(descriptors)?;
    }
    Ok(())
}
