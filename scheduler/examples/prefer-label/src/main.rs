//! kube-scheduler with one plugin more.

fn main() -> std::process::ExitCode {
    kube_scheduler::run(example_prefer_label::registry())
}
