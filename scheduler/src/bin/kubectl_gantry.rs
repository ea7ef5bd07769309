//! The kubectl-gantry binary: `kubectl gantry`.

fn main() {
    std::process::exit(kube_scheduler::kubectl::main());
}
