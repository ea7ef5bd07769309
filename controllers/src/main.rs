//! The kube-controller-manager binary.

fn main() {
    std::process::exit(kube_controller_manager::app::main());
}
