//! The kube-scheduler binary.

fn main() -> std::process::ExitCode {
    kube_scheduler::run(framework::Registry::new())
}
