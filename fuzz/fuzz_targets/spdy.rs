//! SPDY frames and connections.
#![no_main]

gantry_fuzz::target!(
    48 << 20,
    streaming::fuzz::spdy_seeds(),
    streaming::fuzz::spdy_frames,
    streaming::fuzz::spdy_connection
);
