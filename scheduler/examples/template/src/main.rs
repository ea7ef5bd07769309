//! kube-scheduler with one plugin more.

fn main() -> std::process::ExitCode {
    kube_scheduler::run({{crate_name}}::registry())
}
