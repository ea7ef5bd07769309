//! WebSockets of channels.
#![no_main]

gantry_fuzz::target!(
    48 << 20,
    streaming::fuzz::websocket_seeds(),
    streaming::fuzz::websocket
);
