//! DER and the names in certificates.
#![no_main]

gantry_fuzz::target!(
    1 << 20,
    component_base::fuzz::certificate_seeds(),
    component_base::fuzz::certificates
);
