//! The `kube-proxy` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    kube_proxy::server::main()
}
