//! A bus of a test's own.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::bus::Address;

/// Whoever comes may own any name and hears everybody.
const CONF: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path=SOCKET</listen>
  <policy context="default">
    <allow send_destination="*"/>
    <allow send_type="signal"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow own="*"/>
  </policy>
</busconfig>
"#;

/// A `dbus-daemon`, ended with this value.
#[derive(Debug)]
pub struct PrivateBus {
    daemon: Child,
    address: String,
}

impl PrivateBus {
    /// `dir`: a folder of the test's.
    ///
    /// # Panics
    /// There is no `dbus-daemon` (Debian: `dbus-daemon`), or it does not start.
    pub fn start(dir: &Path) -> Self {
        let conf = dir.join("bus.conf");
        let socket = dir.join("bus").display().to_string();
        std::fs::write(&conf, CONF.replace("SOCKET", &socket)).expect("the test's folder");
        let mut daemon = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", conf.display()))
            .args(["--nofork", "--nopidfile", "--print-address=1"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon, of the Debian package of this name");
        let mut address = String::new();
        let printed = daemon.stdout.take().expect("a pipe");
        BufReader::new(printed)
            .read_line(&mut address)
            .expect("a line");
        assert!(!address.is_empty(), "dbus-daemon ended");
        Self {
            daemon,
            address: address.trim().to_owned(),
        }
    }

    /// Where it is.
    pub fn address(&self) -> Address {
        Address::Of(self.address.clone())
    }
}

impl Drop for PrivateBus {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
