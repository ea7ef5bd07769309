//! The controller manager's flags.
#![no_main]

gantry_fuzz::target!(
    4 << 20,
    kube_controller_manager::fuzz::seeds(),
    kube_controller_manager::fuzz::command_line
);
