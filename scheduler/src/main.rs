//! The kube-scheduler binary.

fn main() {
    std::process::exit(kube_scheduler::app::main());
}
