//! A Python with the packages of a file of requirements, of its own and kept: `target/e2e/python`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::programs::Outputs;
use crate::step::Steps;

/// The system's own, which `venv` comes with.
const SYSTEM: &str = "/usr/bin/python3";

/// The interpreter. Made anew when `requirements` changes.
///
/// # Errors
/// There is no Python, or a package cannot be had.
pub fn with(steps: &Steps, outputs: &Outputs, requirements: &Path) -> Result<PathBuf> {
    let wanted = fs::read_to_string(requirements)
        .with_context(|| format!("read {}", requirements.display()))?;
    let dir = outputs.workspace.join("target/e2e/python");
    let (python, made) = (dir.join("bin/python3"), dir.join("made"));
    if fs::read_to_string(&made).is_ok_and(|made| made == wanted) {
        return Ok(python);
    }
    let step = steps.start("Python packages", None)?;
    step.run(
        Command::new(SYSTEM)
            .args(["-m", "venv", "--clear"])
            .arg(&dir),
    )?;
    let pip = ["-m", "pip", "install", "--quiet", "--requirement"];
    step.run(Command::new(&python).args(pip).arg(requirements))?;
    fs::write(&made, wanted)?;
    step.done();
    Ok(python)
}
