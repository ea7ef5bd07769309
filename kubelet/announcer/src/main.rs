//! The `gantry-announcer` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    announcer::app::main()
}
