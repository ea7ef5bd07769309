//! Reads the published .proto file with a compiler in Rust (no `protoc` is needed) and writes the messages, clients and servers.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/deviceplugin/api.proto");
    let descriptors = protox::compile(["proto/deviceplugin/api.proto"], ["proto/deviceplugin"])?;
    tonic_prost_build::configure()
        // What is kept on disk has one form.
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}
