//! Requests for certificates: what is signed is what was understood.
#![no_main]

gantry_fuzz::target!(
    1 << 20,
    kube_controller_manager::certificatesigningrequest::fuzz::seeds(),
    kube_controller_manager::certificatesigningrequest::fuzz::certificate_request
);
