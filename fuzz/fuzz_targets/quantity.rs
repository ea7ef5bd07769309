//! Quantities and durations.
#![no_main]

gantry_fuzz::target!(
    1 << 20,
    component_helpers::fuzz::seeds(),
    component_helpers::fuzz::quantity,
    component_base::fuzz::durations
);
