//! kube-proxy's configuration and flags.
#![no_main]

gantry_fuzz::target!(
    16 << 20,
    kube_proxy::fuzz::seeds(),
    kube_proxy::fuzz::configuration
);
