//! The virtual kubelet's program; everything is in the library.

fn main() {
    std::process::exit(virtual_kubelet::app::main());
}
