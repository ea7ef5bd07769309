//! The cloud-controller-manager binary.

fn main() {
    std::process::exit(cloud_controller_manager::app::main());
}
