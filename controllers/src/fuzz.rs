//! What must hold whatever a command line says: for the fuzz target in `fuzz/`, and for the cases it found.

use crate::options::{Options, flag_set};
use crate::registry::validate;

/// The flags, one a line: read or refused with a text.
pub fn command_line(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match flag_set().parse(text.lines().map(str::to_owned)) {
        Ok(flags) => {
            if let Err(error) = Options::from_flags(&flags, validate) {
                assert!(!error.to_string().is_empty());
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Command lines to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    [
        "--controllers=*,-ttl\n--cluster-cidr=10.0.0.0/16\n--allocate-node-cidrs",
        "--node-monitor-period=5s\n--feature-gates=A=true\n--concurrent-gc-syncs=3",
        "--cluster-signing-duration=8760h\n--service-cluster-ip-range=fd00::/108,10.0.0.0/24\n--v=3",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

#[cfg(test)]
mod tests {
    #[test]
    fn promises_hold() {
        for case in super::seeds() {
            super::command_line(&case);
        }
    }
}
