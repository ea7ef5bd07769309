//! `ctr` and `containerd`, as scripts of nodes call them; everything is in the library.

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    cri::ctr::main().await
}
