//! What stands in for systemd's daemons in tests.

mod bus;
mod logind;

pub use bus::PrivateBus;
pub use logind::FakeLogind;
