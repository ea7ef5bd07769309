//! `cargo e2e vm`: what only a kernel of one's own can show: cgroup v2 as every new distribution has it, systemd as the first process, and
//! a kubeadm that ignores nothing. A virtual machine by qemu, emulated, so that it runs where no hardware lends itself.
//!
//! **Invariant:** the machine has no network; its disk is thrown away.

mod checks;
mod disk;
mod machine;

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::debian;
use crate::kind::Kind;
use crate::programs::Profile;
use crate::step::Step;
use machine::Machine;

/// Programs beside those of `cargo e2e kind`, and their packages.
const PROGRAMS: &[(&str, &str)] = &[
    ("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
    ("/usr/sbin/mke2fs", "e2fsprogs"),
    ("/usr/sbin/depmod", "kmod"),
];

#[derive(Args)]
pub struct VmOptions {
    /// What is run in the machine.
    #[arg(value_enum, value_delimiter = ',', default_values = ["runtime", "kubeadm"])]
    parts: Vec<Part>,
    /// How our programs are built.
    #[arg(long, value_enum, default_value = "release")]
    profile: Profile,
    /// Only the runtime's tests whose names hold this.
    #[arg(long)]
    filter: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The runtime's tests on real containers.
    Runtime,
    /// `kubeadm init` without a preflight check ignored, pods and their cgroups, `kubeadm reset`.
    Kubeadm,
}

/// # Errors
/// Something of it does not work; the text is for people.
pub fn run(options: &VmOptions) -> Result<()> {
    debian::require_root("read a node's image")?;
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| !Path::new(program).exists())
        .map(|(_, package)| *package)
        .collect();
    if !missing.is_empty() {
        bail!(
            "programs are missing. Install them as root: apt-get install --no-install-recommends {}",
            missing.join(" ")
        );
    }
    let kind = Kind::open(options.profile)?;
    let dir = kind.outputs.e2e().join("vm");
    let image = kind.node_image()?;
    let boot = disk::build(&kind, &dir, &image)?;
    let step = kind.steps.start("the virtual machine boots", None)?;
    let mut machine = Machine::boot(&boot, &dir)?;
    step.done();
    let result = options.parts.iter().try_for_each(|part| {
        let (name, check): (_, fn(&mut Machine, &Step, &VmOptions) -> Result<()>) = match part {
            Part::Runtime => ("the runtime's tests in the machine", runtime),
            Part::Kubeadm => ("kubeadm in the machine", kubeadm),
        };
        let step = kind.steps.start(name, None)?;
        let started = Instant::now();
        check(&mut machine, &step, options)?;
        step.note(&format!("{:.0} s", started.elapsed().as_secs_f64()));
        step.done();
        Ok(())
    });
    if result.is_err() {
        let log = dir.join("failed.log");
        let _ = std::fs::write(&log, checks::journal(&mut machine));
        eprintln!("the machine's journal: {}", log.display());
    }
    drop(machine);
    let _ = std::fs::remove_file(&boot.disk);
    result
}

fn runtime(machine: &mut Machine, step: &Step, options: &VmOptions) -> Result<()> {
    let said = checks::runtime(machine, options.filter.as_deref().unwrap_or_default());
    if let Ok(said) = &said {
        step.note(said);
        if let Some(line) = said
            .lines()
            .rev()
            .find(|line| line.starts_with("test result:"))
        {
            println!("      {line}");
        }
    }
    said.map(drop)
}

fn kubeadm(machine: &mut Machine, step: &Step, _: &VmOptions) -> Result<()> {
    checks::kubeadm(machine, step)
}
