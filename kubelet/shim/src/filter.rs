//! What a seccomp filter says to a system call, without asking the kernel: the classic BPF of
//! seccomp(2), run here. Pure.
//!
//! Needed because a process born in a container's PID namespace should come with its filter already
//! loaded, and a filter can forbid the very call that bears it.

const ALLOW: u32 = 0x7fff_0000;
const LOG: u32 = 0x7ffc_0000;

/// `AUDIT_ARCH_…` of linux/audit.h, as `seccomp_data.arch` has it; `None`: not known here.
pub const ARCH: Option<u32> = if cfg!(target_arch = "x86_64") {
    Some(0xc000_003e)
} else if cfg!(target_arch = "aarch64") {
    Some(0xc000_00b7)
} else if cfg!(target_arch = "riscv64") {
    Some(0xc000_00f3)
} else if cfg!(all(target_arch = "powerpc64", target_endian = "little")) {
    Some(0xc000_0015)
} else if cfg!(target_arch = "s390x") {
    Some(0x8000_0016)
} else {
    None
};

/// Whether `filter` (a row of `struct sock_filter`s) lets the call through. What cannot be followed is
/// taken for a no. An empty filter allows everything.
pub fn allows(filter: &[u8], number: libc::c_long, args: [u64; 6]) -> bool {
    if filter.is_empty() {
        return true;
    }
    let Some(arch) = ARCH else { return false };
    let mut data = [0u32; 16];
    data[0] = number as u32;
    data[1] = arch;
    // Words 2 and 3 are the instruction pointer, which no profile asks for.
    for (index, argument) in args.into_iter().enumerate() {
        let halves = [argument as u32, (argument >> 32) as u32];
        let big = cfg!(target_endian = "big");
        data[4 + index * 2] = halves[usize::from(big)];
        data[5 + index * 2] = halves[usize::from(!big)];
    }
    run(filter, &data).is_some_and(|result| matches!(result & 0xffff_0000, ALLOW | LOG))
}

fn run(filter: &[u8], data: &[u32; 16]) -> Option<u32> {
    let program: Vec<[u8; 8]> = filter
        .chunks_exact(8)
        .map(|chunk| chunk.try_into().expect("chunks of eight"))
        .collect();
    let (mut a, mut x, mut memory) = (0u32, 0u32, [0u32; 16]);
    let mut at = 0usize;
    loop {
        let [code0, code1, jt, jf, k0, k1, k2, k3] = *program.get(at)?;
        let code = u16::from_ne_bytes([code0, code1]);
        let k = u32::from_ne_bytes([k0, k1, k2, k3]);
        at += 1;
        let slot = || usize::try_from(k).ok().filter(|slot| *slot < 16);
        match code & 0x07 {
            // Loads into A and X: immediate, a word of the data, memory, length.
            class @ (0x00 | 0x01) => {
                let value = match code & 0xe0 {
                    0x00 => k,
                    0x20 if class == 0 && k % 4 == 0 => *data.get(k as usize / 4)?,
                    0x60 => memory[slot()?],
                    0x80 => size_of_val(data) as u32,
                    _ => return None,
                };
                if class == 0 { a = value } else { x = value }
            }
            0x02 => memory[slot()?] = a,
            0x03 => memory[slot()?] = x,
            0x04 => {
                let operand = if code & 0x08 == 0 { k } else { x };
                a = match code & 0xf0 {
                    0x00 => a.wrapping_add(operand),
                    0x10 => a.wrapping_sub(operand),
                    0x20 => a.wrapping_mul(operand),
                    0x30 => a.checked_div(operand)?,
                    0x40 => a | operand,
                    0x50 => a & operand,
                    0x60 => a.checked_shl(operand)?,
                    0x70 => a.checked_shr(operand)?,
                    0x80 => a.wrapping_neg(),
                    0xa0 => a ^ operand,
                    _ => return None,
                };
            }
            0x05 => {
                let operand = if code & 0x08 == 0 { k } else { x };
                let holds = match code & 0xf0 {
                    0x00 => {
                        at = at.checked_add(k as usize)?;
                        continue;
                    }
                    0x10 => a == operand,
                    0x20 => a > operand,
                    0x30 => a >= operand,
                    0x40 => a & operand != 0,
                    _ => return None,
                };
                at += usize::from(if holds { jt } else { jf });
            }
            0x06 => return Some(if code & 0x18 == 0x10 { a } else { k }),
            _ => match code & 0xf8 {
                0x00 => x = a,
                0x80 => a = x,
                _ => return None,
            },
        }
    }
}

/// One instruction, for filters written by hand.
pub fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

/// A filter that lets only the named calls through and answers the rest with EPERM; calls of another
/// architecture end the process.
pub fn only(calls: &[libc::c_long]) -> Vec<libc::sock_filter> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let mut program = Vec::new();
    if let Some(arch) = ARCH {
        program.extend([
            instruction(LOAD, 0, 0, 4),
            instruction(EQUAL, 1, 0, arch),
            instruction(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        ]);
    }
    program.push(instruction(LOAD, 0, 0, 0));
    for (index, call) in calls.iter().enumerate() {
        let rest = (calls.len() - 1 - index) as u8;
        program.push(instruction(EQUAL, rest + 1, 0, *call as u32));
    }
    program.push(instruction(
        RETURN,
        0,
        0,
        libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
    ));
    program.push(instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The filter's bytes, as a profile's file has them.
    fn bytes(program: &[libc::sock_filter]) -> Vec<u8> {
        program
            .iter()
            .flat_map(|one| {
                let [c0, c1] = one.code.to_ne_bytes();
                let [k0, k1, k2, k3] = one.k.to_ne_bytes();
                [c0, c1, one.jt, one.jf, k0, k1, k2, k3]
            })
            .collect()
    }

    #[test]
    fn filters_by_hand_are_followed() {
        let filter = bytes(&only(&[libc::SYS_wait4, libc::SYS_exit_group]));
        for (call, expected) in [
            (libc::SYS_wait4, true),
            (libc::SYS_exit_group, true),
            (libc::SYS_clone, false),
            (libc::SYS_openat, false),
        ] {
            assert_eq!(allows(&filter, call, [0; 6]), expected, "{call}");
        }
        assert!(allows(&[], libc::SYS_clone, [0; 6]));
        assert!(
            !allows(&[0; 8], libc::SYS_clone, [0; 6]),
            "runs off its end"
        );
    }

    /// libseccomp's own work, as the runtime compiles it.
    #[test]
    fn compiled_profiles_are_followed() {
        let directory = std::env::temp_dir().join(format!("gantry-filter-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let (input, output) = (directory.join("in"), directory.join("out"));
        let profile = serde_json::json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"],
            "syscalls": [
                { "names": ["write", "setsid"], "action": "SCMP_ACT_ALLOW" },
                { "names": ["execve"], "action": "SCMP_ACT_LOG" },
                { "names": ["clone"], "action": "SCMP_ACT_ALLOW",
                  "args": [{ "index": 0, "value": 0x7e020000u64, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }] },
            ],
        });
        std::fs::write(&input, profile.to_string()).unwrap();
        crate::seccomp::compile(&input, &output).unwrap();
        let filter = std::fs::read(&output).unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        let clone = |flags: libc::c_int| [flags as u64, 0, 0, 0, 0, 0];
        for (call, args, expected) in [
            (libc::SYS_write, [0; 6], true),
            (libc::SYS_setsid, [0; 6], true),
            (libc::SYS_execve, [0; 6], true),
            (libc::SYS_ioctl, [0; 6], false),
            (
                libc::SYS_clone,
                clone(libc::CLONE_PARENT | libc::SIGCHLD),
                true,
            ),
            (libc::SYS_clone, clone(libc::CLONE_NEWUSER), false),
        ] {
            assert_eq!(allows(&filter, call, args), expected, "{call} {args:?}");
        }
    }
}
