//! `cargo e2e csi-sanity`: csi-test's suite, in each of the driver's ways to run, against a driver that no cluster stands around.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::debian;
use crate::programs::{self, CSI_HOSTPATH, Outputs, Profile};
use crate::step::Steps;

#[derive(Args)]
pub struct SanityOptions {
    /// How the driver is built.
    #[arg(long, value_enum, default_value = "release")]
    profile: Profile,
    /// Only the tests whose name matches.
    #[arg(long)]
    focus: Option<String>,
}

/// A way to run the driver, and what the suite is told of it.
struct Form {
    name: &'static str,
    driver: &'static [&'static str],
    suite: &'static [&'static str],
}

const EVERYTHING: &[&str] = &[
    "--enable-attach",
    "--attach-limit=4",
    "--check-volume-lifecycle",
    "--enable-controller-modify-volume",
    "--accepted-mutable-parameter-names=iops",
];

const FORMS: &[Form] = &[
    Form {
        name: "as deployed",
        driver: &[],
        suite: &["--csi.testvolumeaccesstype=mount"],
    },
    Form {
        name: "everything, mount",
        driver: EVERYTHING,
        suite: &[
            "--csi.testvolumeaccesstype=mount",
            "--csi.testnodevolumeattachlimit",
        ],
    },
    Form {
        name: "everything, block",
        driver: EVERYTHING,
        suite: &[
            "--csi.testvolumeaccesstype=block",
            "--csi.testnodevolumeattachlimit",
        ],
    },
];

/// What a VolumeAttributesClass of the suite changes.
const MUTABLE: &str = "iops: \"1000\"\n";

/// Runs every form and prints a line for each.
///
/// # Errors
/// A test failed, or the suite could not be run.
pub fn run(options: &SanityOptions) -> Result<()> {
    debian::require_root("mount volumes and make loop devices")?;
    let outputs = Outputs::find().with_profile(options.profile);
    let steps = Steps::new(outputs.logs())?;
    programs::build_upstream(&steps, &outputs, &["csi-sanity"])?;
    programs::build_csi_hostpath(&steps, &outputs)?;
    let mut failed = Vec::new();
    for form in FORMS {
        let log = outputs.logs().join(format!(
            "csi-sanity-{}.log",
            form.name.replace([' ', ','], "-")
        ));
        match run_form(&outputs, form, options.focus.as_deref(), &log)? {
            Outcome { line, is_passed } => {
                println!("csi-sanity, {}: {line}", form.name);
                if !is_passed {
                    failed.push(format!("{}: {}", form.name, log.display()));
                }
            }
        }
    }
    ensure!(failed.is_empty(), "tests failed: {}", failed.join("; "));
    Ok(())
}

struct Outcome {
    /// The suite's own count.
    line: String,
    is_passed: bool,
}

/// Ends with its handle.
struct Driver(Child);

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run_form(outputs: &Outputs, form: &Form, focus: Option<&str>, log: &Path) -> Result<Outcome> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("csi.sock");
    let driver_log = log.with_extension("driver.log");
    // Its mounts end with it.
    let child = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(outputs.ours(CSI_HOSTPATH[0]))
        .args(form.driver)
        .args(["--v=5", "--nodeid=node-1"])
        .arg(format!("--endpoint=unix://{}", socket.display()))
        .arg(format!("--statedir={}", dir.path().join("state").display()))
        .stderr(fs::File::create(&driver_log)?)
        .stdin(Stdio::null())
        .spawn()
        .context("start the driver")?;
    let mut driver = Driver(child);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !socket.exists() {
        if let Some(status) = driver.0.try_wait()? {
            bail!(
                "the driver ended with {status}: {}",
                crate::step::tail(&driver_log, 5)
            );
        }
        ensure!(Instant::now() < deadline, "the driver does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mutable = dir.path().join("mutable.yaml");
    fs::write(&mutable, MUTABLE)?;
    let mut suite = Command::new(outputs.upstream("csi-sanity"));
    suite
        .arg(format!("--csi.endpoint={}", socket.display()))
        .arg(format!(
            "--csi.mountdir={}",
            dir.path().join("mount").display()
        ))
        .arg(format!(
            "--csi.stagingdir={}",
            dir.path().join("staging").display()
        ))
        .arg(format!(
            "--csi.testvolumemutableparameters={}",
            mutable.display()
        ))
        .args(["--ginkgo.no-color", "--ginkgo.v"])
        .args(form.suite);
    if let Some(focus) = focus {
        suite.arg(format!("--ginkgo.focus={focus}"));
    }
    let file = fs::File::create(log)?;
    let status = suite
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .context("start csi-sanity")?;
    let text = fs::read_to_string(log)?;
    let line = count(&text).with_context(|| {
        format!(
            "csi-sanity ended with {status} and no count; its output: {}",
            log.display()
        )
    })?;
    Ok(Outcome {
        is_passed: status.success() && line.contains(" 0 Failed"),
        line: line.to_owned(),
    })
}

/// Ginkgo's last line: `SUCCESS! -- 70 Passed | 0 Failed | 1 Pending | 20 Skipped`.
fn count(text: &str) -> Option<&str> {
    let line = text
        .lines()
        .rev()
        .find(|line| line.contains(" Passed | ") && line.contains(" Failed | "))?;
    Some(line.trim())
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn the_count_is_the_last_line_of_its_form() {
        let text =
            "Ran 2 of 3 Specs\nFAIL! -- 1 Passed | 1 Failed | 0 Pending | 1 Skipped\n--- FAIL\n";
        assert_eq!(
            count(text),
            Some("FAIL! -- 1 Passed | 1 Failed | 0 Pending | 1 Skipped")
        );
        assert_eq!(count("panic\n"), None);
    }
}
