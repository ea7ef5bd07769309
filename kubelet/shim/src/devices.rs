//! Device rules on cgroup v2: a small eBPF program, written out by hand.
//!
//! libcontainer's own way (`cgroupsv2_devices`) needs libelf and a C toolchain at build time;
//! without it rules are silently not enforced. The program compares the access asked for with each
//! rule, newest first, and refuses what no rule allows.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use shim_protocol::DeviceRule;

// linux/bpf.h
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;
const DEVICE_BLOCK: i32 = 1;
const DEVICE_CHAR: i32 = 2;
const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;

// Opcodes.
const LOAD_WORD: u8 = 0x61; // dst = *(u32 *)(src + off)
const MOVE: u8 = 0xbf; // dst = src
const MOVE_IMMEDIATE: u8 = 0xb7; // dst = imm
const AND: u8 = 0x57; // dst &= imm
const SHIFT_RIGHT: u8 = 0x77; // dst >>= imm
const JUMP_NOT_IMMEDIATE: u8 = 0x55; // if dst != imm goto off
const JUMP_NOT: u8 = 0x5d; // if dst != src goto off
const EXIT: u8 = 0x95;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

fn instruction(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: dst | src << 4,
        offset,
        immediate,
    }
}

/// r2 type, r3 access, r4 major, r5 minor.
fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut code = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOVE, 3, 2, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut block = Vec::new();
        match rule.kind {
            'b' => block.push(instruction(JUMP_NOT_IMMEDIATE, 2, 0, 0, DEVICE_BLOCK)),
            'c' => block.push(instruction(JUMP_NOT_IMMEDIATE, 2, 0, 0, DEVICE_CHAR)),
            _ => {}
        }
        let mask = rule.access.chars().fold(0, |mask, letter| {
            mask | match letter {
                'r' => ACCESS_READ,
                'w' => ACCESS_WRITE,
                'm' => ACCESS_MKNOD,
                _ => 0,
            }
        });
        if mask != ACCESS_MKNOD | ACCESS_READ | ACCESS_WRITE {
            block.push(instruction(MOVE, 1, 3, 0, 0));
            block.push(instruction(AND, 1, 0, 0, mask));
            block.push(instruction(JUMP_NOT, 1, 3, 0, 0));
        }
        if let Some(major) = rule.major {
            block.push(instruction(JUMP_NOT_IMMEDIATE, 4, 0, 0, major as i32));
        }
        if let Some(minor) = rule.minor {
            block.push(instruction(JUMP_NOT_IMMEDIATE, 5, 0, 0, minor as i32));
        }
        block.push(instruction(MOVE_IMMEDIATE, 0, 0, 0, i32::from(rule.allow)));
        block.push(instruction(EXIT, 0, 0, 0, 0));
        let length = block.len();
        for (index, step) in block.iter_mut().enumerate() {
            if matches!(step.code, JUMP_NOT | JUMP_NOT_IMMEDIATE) {
                step.offset = (length - index - 1) as i16;
            }
        }
        let unconditional = block.len() == 2;
        code.extend(block);
        if unconditional {
            return code; // the verifier refuses code that cannot be reached
        }
    }
    code.push(instruction(MOVE_IMMEDIATE, 0, 0, 0, 0));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

/// Loads the program and binds it to the cgroup for as long as that lives.
pub fn attach(cgroup: &Path, rules: &[DeviceRule]) -> io::Result<()> {
    let directory = std::fs::File::open(cgroup)?;
    let code = program(rules);
    let program = load(&code)?;
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }
    let attach = Attach {
        target: directory.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: `attach` has the layout of the start of union bpf_attr for this command.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &attach, size_of::<Attach>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn load(code: &[Instruction]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
    }
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: code.len() as u32,
        instructions: code.as_ptr() as u64,
        license: c"Apache".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: `load` has the layout of the start of union bpf_attr for this command, its pointers are
    // live; the descriptor is new and ours.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &load, size_of::<Load>());
        if fd < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(OwnedFd::from_raw_fd(fd as i32))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(
        allow: bool,
        kind: char,
        major: Option<u32>,
        minor: Option<u32>,
        access: &str,
    ) -> DeviceRule {
        DeviceRule {
            allow,
            kind,
            major,
            minor,
            access: access.into(),
        }
    }

    /// Runs the program as the kernel would.
    fn decide(rules: &[DeviceRule], kind: i32, access: i32, major: i64, minor: i64) -> bool {
        let code = program(rules);
        let context = [i64::from(kind | access << 16), major, minor];
        let mut registers = [0i64; 6];
        let mut at = 0;
        loop {
            let step = code[at];
            let (dst, src) = (
                (step.registers & 15) as usize,
                (step.registers >> 4) as usize,
            );
            at += 1;
            match step.code {
                LOAD_WORD => registers[dst] = context[step.offset as usize / 4],
                MOVE => registers[dst] = registers[src],
                MOVE_IMMEDIATE => registers[dst] = i64::from(step.immediate),
                AND => registers[dst] &= i64::from(step.immediate),
                SHIFT_RIGHT => registers[dst] >>= step.immediate,
                JUMP_NOT_IMMEDIATE if registers[dst] != i64::from(step.immediate) => {
                    at += step.offset as usize
                }
                JUMP_NOT if registers[dst] != registers[src] => at += step.offset as usize,
                EXIT => return registers[0] != 0,
                _ => {}
            }
        }
    }

    #[test]
    fn the_newest_matching_rule_wins() {
        let rules = [
            rule(false, 'a', None, None, "rwm"),
            rule(true, 'c', None, None, "m"),
            rule(true, 'c', Some(1), Some(3), "rwm"),
            rule(true, 'b', Some(8), None, "r"),
        ];
        for (kind, access, major, minor, allowed) in [
            (DEVICE_CHAR, ACCESS_READ | ACCESS_WRITE, 1, 3, true),
            (DEVICE_CHAR, ACCESS_READ, 1, 1, false),
            (DEVICE_CHAR, ACCESS_MKNOD, 1, 1, true),
            (DEVICE_BLOCK, ACCESS_READ, 8, 7, true),
            (DEVICE_BLOCK, ACCESS_WRITE, 8, 7, false),
            (DEVICE_BLOCK, ACCESS_READ, 9, 7, false),
        ] {
            assert_eq!(
                decide(&rules, kind, access, major, minor),
                allowed,
                "{kind} {access} {major}:{minor}"
            );
        }
        assert!(decide(
            &[rule(true, 'a', None, None, "rwm")],
            DEVICE_BLOCK,
            ACCESS_WRITE,
            8,
            0
        ));
        assert!(!decide(&[], DEVICE_CHAR, ACCESS_READ, 1, 3));
    }

    /// A cgroup v2 with no controllers will do; it is there on v1 machines too.
    #[test]
    fn the_kernel_takes_the_program_and_holds_to_it() {
        let unified = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .map(Path::new)
            .into_iter()
            .find(|path| {
                path.join("cgroup.procs").exists() && path.join("cgroup.subtree_control").exists()
            });
        // SAFETY: geteuid has no preconditions.
        let (Some(unified), 0) = (unified, unsafe { libc::geteuid() }) else {
            eprintln!("skipped: needs root and a cgroup2 mount");
            return;
        };
        let cgroup = unified.join(format!("gantry-shim-test-{}", std::process::id()));
        std::fs::create_dir(&cgroup).unwrap();
        let rules = [
            rule(false, 'a', None, None, "rwm"),
            rule(true, 'c', Some(1), Some(3), "rw"),
        ];
        let attached = attach(&cgroup, &rules);
        let script = format!(
            "echo 0 > {}/cgroup.procs; echo x > /dev/null && echo null; cat /dev/zero | head -c 1 | wc -c",
            cgroup.display()
        );
        let output = std::process::Command::new("sh")
            .args(["-c", &script])
            .output()
            .unwrap();
        std::fs::remove_dir(&cgroup).unwrap();
        attached.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(
            text.contains("null\n0\n") && text.contains("not permitted"),
            "{text}"
        );
    }
}
