//! Compiling a seccomp profile to a filter, once a profile: `gantry-shim compile-seccomp IN OUT`.
//!
//! IN is an OCI `linux.seccomp` object, OUT a file of `struct sock_filter`s. Compiling takes some
//! 13 ms, loading what was compiled next to nothing; the runtime keeps the results.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use libcontainer::oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompOperator,
};
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};

#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error("{path}: {source}")]
    Io {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{path}: {source}")]
    Json {
        path: String,
        #[source]
        source: serde_json::Error,
    },
    #[error(transparent)]
    Seccomp(#[from] libseccomp::error::SeccompError),
    #[error("seccomp action {0:?} is not supported")]
    Action(LinuxSeccompAction),
}

pub fn compile(input: &Path, output: &Path) -> Result<(), CompileError> {
    let io = |path: &Path| {
        let path = path.display().to_string();
        move |source| CompileError::Io { path, source }
    };
    let text = std::fs::read(input).map_err(io(input))?;
    let profile: LinuxSeccomp =
        serde_json::from_slice(&text).map_err(|source| CompileError::Json {
            path: input.display().to_string(),
            source,
        })?;
    let mut temporary = output.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io(output))?;
    context(&profile)?.export_bpf(&file)?;
    file.sync_all().map_err(io(output))?;
    std::fs::rename(&temporary, output).map_err(io(output))
}

fn context(profile: &LinuxSeccomp) -> Result<ScmpFilterContext, CompileError> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut context = ScmpFilterContext::new(default)?;
    for arch in profile.architectures().iter().flatten() {
        // The native one is there from the start.
        if let Some(arch) = architecture(*arch)
            && !context.is_arch_present(arch)?
        {
            context.add_arch(arch)?;
        }
    }
    // A tree instead of a list: a decision takes some ten comparisons, not three hundred.
    let _ = context.set_ctl_optimize(2);
    for rule in profile.syscalls().iter().flatten() {
        let decision = action(rule.action(), rule.errno_ret())?;
        if decision == default {
            continue;
        }
        for name in rule.names() {
            // A name this libseccomp does not know is a call this kernel hardly has.
            let Ok(syscall) = ScmpSyscall::from_name(name) else {
                continue;
            };
            let compare: Vec<_> = rule
                .args()
                .iter()
                .flatten()
                .map(|arg| {
                    let (operator, datum) =
                        operator(arg.op(), arg.value(), arg.value_two().unwrap_or(0));
                    ScmpArgCompare::new(arg.index() as u32, operator, datum)
                })
                .collect();
            let indexes: std::collections::BTreeSet<_> = rule
                .args()
                .iter()
                .flatten()
                .map(|arg| arg.index())
                .collect();
            if compare.is_empty() {
                context.add_rule(decision, syscall)?;
            } else if indexes.len() == compare.len() {
                context.add_rule_conditional(decision, syscall, &compare)?;
            } else {
                // One argument compared twice: libseccomp wants a rule each, as runc does it.
                for one in &compare {
                    context.add_rule_conditional(decision, syscall, std::slice::from_ref(one))?;
                }
            }
        }
    }
    Ok(context)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, CompileError> {
    let errno = errno.unwrap_or(libc::EPERM as u32);
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            ScmpAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno as i32),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(errno as u16),
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        other => return Err(CompileError::Action(other)),
    })
}

/// The comparison and its right side. A masked comparison is `arg & value == value_two`, as runc and
/// the OCI have it; libcontainer 0.7 has the two the other way round.
fn operator(operator: LinuxSeccompOperator, value: u64, value_two: u64) -> (ScmpCompareOp, u64) {
    match operator {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, value),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, value),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, value),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, value),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, value),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => (ScmpCompareOp::MaskedEqual(value), value_two),
    }
}

fn architecture(arch: Arch) -> Option<ScmpArch> {
    Some(match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        _ => return None,
    })
}
