//! kube-scheduler with one plugin more.

fn main() -> std::process::ExitCode {
    kube_scheduler::run(example_power_cap::registry())
}
